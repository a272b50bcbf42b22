//! Batches, negative results, the error backoff, codecs and registered loaders.

use std::{
    collections::BTreeMap,
    sync::{Mutex, atomic::AtomicU32},
};

use super::*;
use crate::{
    Reason,
    kernel::Scope,
    values::{Missing, ReadThrough, Values},
};

/// A table of numbers that counts its reads, and can fail or wait.
#[derive(Clone, Default)]
struct Table {
    rows: Arc<Mutex<BTreeMap<String, u32>>>,
    /// The names of each read.
    reads: Arc<Mutex<Vec<Vec<String>>>>,
    is_broken: Arc<std::sync::atomic::AtomicBool>,
    /// How many reads are held up, until `gate` is notified.
    held: Arc<AtomicU32>,
    gate: Arc<Notify>,
}

impl Table {
    fn with(rows: &[(&str, u32)]) -> Self {
        let table = Self::default();
        rows.iter().for_each(|(name, value)| table.put(name, *value));
        table
    }

    fn put(&self, name: &str, value: u32) {
        self.rows.lock().unwrap().insert(name.to_owned(), value);
    }

    async fn read(self, names: Vec<String>) -> Result<Vec<(String, u32)>, &'static str> {
        self.reads.lock().unwrap().push(names.clone());
        let found = {
            let rows = self.rows.lock().unwrap();
            names.into_iter().filter_map(|name| rows.get(&name).map(|row| (name, *row))).collect()
        };
        if self.held.load(Ordering::SeqCst) > 0 {
            self.gate.notified().await;
        }
        if self.is_broken.load(Ordering::SeqCst) { Err("the table is broken") } else { Ok(found) }
    }

    fn reads(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }

    fn break_down(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::SeqCst);
    }

    async fn many(
        &self,
        values: &Values<u32>,
        names: &[&str],
    ) -> Result<Vec<Option<u32>>, LoadError<&'static str>> {
        let table = self.clone();
        let load = move |missing: Missing<String>| table.clone().read(missing.into_names());
        let names = names.iter().map(|name| (*name).to_owned());
        let found = values.get_or_load_many(names, load).await?;
        Ok(found.iter().map(|value| value.as_deref().copied()).collect())
    }

    async fn one(
        &self,
        values: &Values<u32>,
        name: &str,
    ) -> Result<Option<u32>, LoadError<&'static str>> {
        let (table, name) = (self.clone(), name.to_owned());
        let loaded = name.clone();
        let load = move |_| async move {
            Ok(table.read(vec![loaded]).await?.into_iter().next().map(|(_, row)| row))
        };
        Ok(values.get_or_load_optional(name, load).await?.as_deref().copied())
    }
}

fn view(larder: &Larder) -> Values<u32> {
    larder.values(Policy::ttl(MINUTE).tag("t"))
}

fn partition(larder: &Larder, user: &[u8]) -> Scope {
    larder.kernel().scope().gathering(Audience::Partition(user.into()))
}

fn page(larder: &Larder) -> Scope {
    larder.kernel().open_scope().gathering(Audience::Everyone)
}

#[tokio::test]
async fn a_batch_loads_what_is_missing_in_one_call_and_returns_the_order_of_the_names() {
    let (larder, table) = (larder(), Table::with(&[("a", 1), ("b", 2), ("c", 3)]));
    let values = view(&larder);
    assert_eq!(table.many(&values, &["b"]).await.unwrap(), [Some(2)]);
    let found = table.many(&values, &["c", "b", "none", "a", "c"]).await.unwrap();
    assert_eq!(found, [Some(3), Some(2), None, Some(1), Some(3)]);
    assert_eq!(table.reads(), [vec!["b"], vec!["c", "none", "a"]], "each name once");
    assert_eq!(table.many(&values, &["none", "a"]).await.unwrap(), [None, Some(1)]);
    assert!(table.reads().is_empty(), "the negative result is stored, too");
    assert_eq!(table.many(&values, &[]).await.unwrap(), []);
}

/// The test of every batch: a value that the loader read before an invalidation is not served after it.
#[tokio::test]
async fn an_invalidation_during_a_batch_reaches_its_own_names_only() {
    let (larder, table) = (larder(), Table::with(&[("a", 1), ("b", 1)]));
    let values = view(&larder);
    table.held.store(1, Ordering::SeqCst);
    let filling = tokio::spawn({
        let (values, table) = (values.clone(), table.clone());
        async move { table.many(&values, &["a", "b", "c"]).await.unwrap() }
    });
    while table.reads.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    for name in ["a", "c"] {
        table.put(name, 2);
        let _ = larder.invalidate(name).await;
    }
    table.held.store(0, Ordering::SeqCst);
    table.gate.notify_one();
    filling.await.unwrap();
    table.reads();
    let found = table.many(&values, &["a", "b", "c"]).await.unwrap();
    assert_eq!(found, [Some(2), Some(1), Some(2)]);
    assert_eq!(table.reads(), [["a", "c"]]);
}

#[tokio::test]
async fn batches_that_overlap_load_each_name_once_and_do_not_wait_in_a_circle() {
    let (larder, table) = (larder(), Table::with(&[("a", 1), ("b", 2), ("c", 3), ("d", 4)]));
    let values = view(&larder);
    let batches: [&[&str]; 4] = [&["a", "b", "c"], &["c", "b", "d"], &["d", "a"], &["b"]];
    let all = batches.map(|names| {
        let (values, table) = (values.clone(), table.clone());
        async move { table.many(&values, names).await.unwrap() }
    });
    let found = futures_util::future::join_all(all.map(tokio::spawn)).await;
    let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
    assert_eq!(found[1], [Some(3), Some(2), Some(4)]);
    let mut loaded: Vec<_> = table.reads().into_iter().flatten().collect();
    loaded.sort();
    assert_eq!(loaded, ["a", "b", "c", "d"]);
}

/// Two batches, each of which leads a name that the other waits for, while both loaders are held up.
#[tokio::test]
async fn a_batch_takes_all_its_leads_before_it_waits() {
    let (larder, table) = (larder(), Table::with(&[("a", 1), ("b", 2), ("c", 3)]));
    let values = view(&larder);
    table.held.store(1, Ordering::SeqCst);
    let spawn = |names: &'static [&'static str]| {
        let (values, table) = (values.clone(), table.clone());
        tokio::spawn(async move { table.many(&values, names).await.unwrap() })
    };
    let first = spawn(&["a", "b"]);
    while table.reads.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let second = spawn(&["b", "c"]);
    while table.reads.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        table.reads(),
        [vec!["a", "b"], vec!["c"]],
        "`c` is loaded before `b` is waited for"
    );
    table.held.store(0, Ordering::SeqCst);
    table.gate.notify_waiters();
    assert_eq!(first.await.unwrap(), [Some(1), Some(2)]);
    assert_eq!(second.await.unwrap(), [Some(2), Some(3)]);
}

#[tokio::test]
async fn a_loader_that_requests_a_name_of_its_own_batch_does_not_hang() {
    let larder = larder();
    let inside = larder.clone();
    let load = move |missing: Missing<&'static str>| {
        let inside = inside.clone();
        async move {
            let own = load(&inside, "b", 7).await;
            Ok::<_, Infallible>(
                missing.into_names().into_iter().map(|name| (name, own)).collect::<Vec<_>>(),
            )
        }
    };
    let found = view(&larder).get_or_load_many(["a", "b"], load).await.unwrap();
    assert_eq!(found.len(), 2);
}

#[tokio::test]
async fn a_page_depends_on_all_names_of_its_batch() {
    let (larder, table) = (larder(), Table::with(&[("a", 1)]));
    let values = view(&larder);
    for stored in [false, true] {
        let page = page(&larder);
        page.clone().scoped(table.many(&values, &["a", "none"])).await.unwrap();
        let tags = page.gathered().tags.tags().to_vec();
        for name in ["a", "none", "t"] {
            assert!(tags.iter().any(|tag| tag.as_str() == name), "{name}, stored: {stored}");
        }
    }
}

#[tokio::test]
async fn a_batch_returns_nothing_of_another_user() {
    let (larder, table) = (larder(), Table::with(&[("a", 1)]));
    let values = view(&larder);
    let [ada, bob] = [&b"ada"[..], b"bob"].map(|user| partition(&larder, user));
    ada.scoped(table.many(&values, &["a"])).await.unwrap();
    table.put("a", 2);
    assert_eq!(bob.scoped(table.many(&values, &["a"])).await.unwrap(), [Some(2)]);
    let unknown = larder.kernel().scope().gathering(Audience::Unknown);
    table.put("a", 3);
    let bypassed = unknown.clone().scoped(table.many(&values, &["a"])).await.unwrap();
    assert_eq!(bypassed, [Some(3)], "of the source");
    assert_eq!(unknown.gathered().no_store, Some(Reason::UnstoredPart));
    assert_eq!(table.reads().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_falls_back_to_stale_values_and_otherwise_returns_the_error() {
    let (larder, table) = (larder(), Table::with(&[("a", 1), ("b", 2)]));
    let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(MINUTE);
    let values = larder.values(lifetime);
    table.many(&values, &["a", "b"]).await.unwrap();
    tokio::time::advance(MINUTE).await;
    table.break_down(true);
    assert_eq!(table.many(&values, &["a", "b"]).await.unwrap(), [Some(1), Some(2)]);
    let failed = table.many(&values, &["a", "c"]).await;
    assert!(matches!(failed, Err(LoadError::Failed(_))), "{failed:?}");
    let _ = larder.invalidate("a").await;
    assert!(table.many(&values, &["a", "b"]).await.is_err(), "nothing stale after an invalidation");
}

#[tokio::test(start_paused = true)]
async fn stale_values_of_a_batch_are_served_and_refreshed_by_one_call() {
    let (larder, table) = (larder(), Table::with(&[("a", 1), ("b", 2)]));
    let values = larder.values(Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE));
    table.many(&values, &["a", "b"]).await.unwrap();
    tokio::time::advance(MINUTE).await;
    table.reads();
    table.put("a", 9);
    assert_eq!(table.many(&values, &["b", "a"]).await.unwrap(), [Some(2), Some(1)]);
    while larder.stats().fills_running > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(table.reads(), [["b", "a"]]);
    assert_eq!(table.many(&values, &["a", "b"]).await.unwrap(), [Some(9), Some(2)]);
}

#[tokio::test]
async fn the_handles_of_a_batch_set_the_tags_of_single_values() {
    let larder = larder();
    let load = |missing: Missing<u32>| async move {
        for (id, handle) in missing.handles() {
            handle.tag(("category", id % 2));
        }
        Ok::<_, Infallible>(missing.into_names().into_iter().map(|id| (id, id)).collect::<Vec<_>>())
    };
    let values = larder.values(MINUTE);
    values.get_or_load_many([1, 2, 3], load).await.unwrap();
    let _ = larder.invalidate(("category", 1)).await;
    let left = values.get_many([1, 2, 3]).await;
    assert_eq!(left.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
}

#[tokio::test]
async fn a_negative_result_has_the_name_and_falls_with_an_invalidation() {
    let (larder, table) = (larder(), Table::default());
    let values = view(&larder);
    assert_eq!(table.one(&values, "a").await.unwrap(), None);
    assert_eq!(table.one(&values, "a").await.unwrap(), None);
    assert_eq!(table.reads().len(), 1);
    assert_eq!(values.get("a").await, None);
    assert!(!values.contains("a").await);
    // A caller that needs a value loads, and its value is there for all.
    assert_eq!(load(&larder, "a", 7).await, 7);
    assert_eq!(table.one(&values, "a").await.unwrap(), Some(7));
    for target in [Target::tag("t"), Target::name("b"), Target::pattern("b*")] {
        assert_eq!(table.one(&values, "b").await.unwrap(), None);
        let _ = larder.invalidate(target.clone()).await;
        table.reads();
        assert_eq!(table.one(&values, "b").await.unwrap(), None);
        assert_eq!(table.reads().len(), 1, "{target:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_negative_result_lives_for_a_minute_or_its_own_time_to_live() {
    let (larder, table) = (larder(), Table::default());
    let hour = Policy::ttl(60 * MINUTE);
    for (policy, lives) in [(hour.clone(), MINUTE), (hour.negative_ttl(MINUTE / 6), MINUTE / 6)] {
        let values = larder.values(policy);
        let _ = larder.clear().await;
        table.one(&values, "a").await.unwrap();
        tokio::time::advance(lives - Duration::from_millis(1)).await;
        table.one(&values, "a").await.unwrap();
        assert_eq!(table.reads().len(), 1, "{lives:?}");
        tokio::time::advance(Duration::from_millis(1)).await;
        table.one(&values, "a").await.unwrap();
        assert_eq!(table.reads().len(), 1, "{lives:?}");
    }
}

#[tokio::test]
async fn the_absence_that_one_user_saw_is_not_an_absence_for_another() {
    let (larder, table) = (larder(), Table::default());
    let values = view(&larder);
    let [ada, bob] = [&b"ada"[..], b"bob"].map(|user| partition(&larder, user));
    assert_eq!(ada.scoped(table.one(&values, "a")).await.unwrap(), None);
    table.put("a", 1);
    assert_eq!(bob.scoped(table.one(&values, "a")).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn within_the_error_backoff_callers_get_the_same_error_without_a_load() {
    let (larder, table) = (larder(), Table::with(&[("a", 1)]));
    let values = larder.values(Policy::ttl(MINUTE).tag("t").error_backoff(MINUTE / 6));
    table.break_down(true);
    for _ in 0..3 {
        let failed = table.one(&values, "a").await;
        let Err(LoadError::Failed(error)) = failed else { panic!("{failed:?}") };
        assert_eq!(*error, "the table is broken");
    }
    assert!(table.many(&values, &["b", "a"]).await.is_err());
    assert_eq!(table.reads(), [["a"]], "a batch with the name does not load it either");
    table.break_down(false);
    tokio::time::advance(MINUTE / 6).await;
    assert_eq!(table.one(&values, "a").await.unwrap(), Some(1));
}

#[tokio::test]
async fn the_waiters_of_a_load_that_fails_do_not_load_again_within_the_backoff() {
    let (larder, table) = (larder(), Table::default());
    let values = larder.values(Policy::ttl(MINUTE).error_backoff(MINUTE));
    table.break_down(true);
    table.held.store(1, Ordering::SeqCst);
    let all = (0..100).map(|_| {
        let (values, table) = (values.clone(), table.clone());
        tokio::spawn(async move { table.one(&values, "a").await })
    });
    let all: Vec<_> = all.collect();
    while table.reads.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    table.held.store(0, Ordering::SeqCst);
    table.gate.notify_one();
    for failed in all {
        assert!(failed.await.unwrap().is_err());
    }
    assert_eq!(table.reads().len(), 1);
}

#[tokio::test]
async fn the_error_backoff_ends_with_an_invalidation_of_the_name_or_a_tag() {
    let (larder, table) = (larder(), Table::with(&[("a", 1)]));
    let values = larder.values(Policy::ttl(MINUTE).tag("t").error_backoff(MINUTE));
    for target in [Target::name("a"), Target::tag("t"), Target::everything()] {
        table.break_down(true);
        assert!(table.one(&values, "a").await.is_err());
        table.break_down(false);
        let _ = larder.invalidate(target.clone()).await;
        assert_eq!(table.one(&values, "a").await.unwrap(), Some(1), "{target:?}");
        let _ = larder.clear().await;
    }
}

/// An invalidation during the load that fails: what the loader saw is from before.
#[tokio::test]
async fn a_failure_from_before_an_invalidation_is_not_remembered_after_it() {
    let (larder, table) = (larder(), Table::with(&[("a", 1)]));
    let values = larder.values(Policy::ttl(MINUTE).error_backoff(MINUTE));
    table.break_down(true);
    table.held.store(1, Ordering::SeqCst);
    let failing = tokio::spawn({
        let (values, table) = (values.clone(), table.clone());
        async move { table.one(&values, "a").await }
    });
    while table.reads.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let _ = larder.invalidate("a").await;
    table.held.store(0, Ordering::SeqCst);
    table.gate.notify_one();
    assert!(failing.await.unwrap().is_err());
    table.break_down(false);
    assert_eq!(table.one(&values, "a").await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_comes_before_a_remembered_error() {
    let (larder, table) = (larder(), Table::with(&[("a", 1)]));
    let lifetime = Lifetime::fresh_for(MINUTE).stale_if_error(MINUTE);
    let values = larder.values(Policy::from(lifetime).error_backoff(MINUTE / 2));
    table.one(&values, "a").await.unwrap();
    tokio::time::advance(MINUTE).await;
    table.break_down(true);
    table.reads();
    for _ in 0..3 {
        assert_eq!(table.one(&values, "a").await.unwrap(), Some(1));
        assert_eq!(table.many(&values, &["a"]).await.unwrap(), [Some(1)]);
    }
    assert_eq!(table.reads().len(), 1, "the backoff holds for stale values, too");
}

#[tokio::test]
async fn the_error_of_one_user_is_not_the_error_of_another() {
    let (larder, table) = (larder(), Table::with(&[("a", 1)]));
    let values = larder.values(Policy::ttl(MINUTE).error_backoff(MINUTE));
    let [ada, bob] = [&b"ada"[..], b"bob"].map(|user| partition(&larder, user));
    table.break_down(true);
    assert!(ada.clone().scoped(table.one(&values, "a")).await.is_err());
    table.break_down(false);
    assert_eq!(bob.scoped(table.one(&values, "a")).await.unwrap(), Some(1));
    // An error that may be made of a user's part is not remembered for all.
    let inside = values.clone();
    let shared = larder.values::<u32>(Policy::ttl(MINUTE).shared().error_backoff(MINUTE));
    let failing = move |_: LoadHandle| async move {
        let _cart = load_private(&inside).await;
        Err::<u32, _>("the cart of ada is broken")
    };
    assert!(ada.scoped(shared.get_or_load("s", failing)).await.is_err());
    let works = |_: LoadHandle| async { Ok::<_, &'static str>(1) };
    assert_eq!(*shared.get_or_load("s", works).await.unwrap(), 1);
}

async fn load_private(values: &Values<u32>) -> Arc<u32> {
    values.get_or_load("cart", |_: LoadHandle| async { Ok::<_, Infallible>(1) }).await.unwrap()
}

#[tokio::test]
async fn a_page_around_a_remembered_error_is_not_stored() {
    let (larder, table) = (larder(), Table::default());
    let values = larder.values(Policy::ttl(MINUTE).error_backoff(MINUTE));
    table.break_down(true);
    for _ in 0..2 {
        let page = page(&larder);
        assert!(page.clone().scoped(table.one(&values, "a")).await.is_err());
        assert_eq!(page.gathered().no_store, Some(Reason::FailedPart));
        assert!(page.gathered().tags.tags().iter().any(|tag| tag.as_str() == "a"));
    }
}

#[tokio::test]
async fn a_registered_loader_gets_refreshes_and_invalidates() {
    let (larder, table) = (larder(), Table::with(&[("a", 1), ("b", 2)]));
    let rows = table.clone();
    let load = move |name: String| {
        let rows = rows.clone();
        async move { Ok::<_, &str>(rows.read(vec![name]).await?.into_iter().next().map(|(_, row)| row)) }
    };
    let through = ReadThrough::new(view(&larder), load);
    let get = async |name: &str| through.get(name.to_owned()).await.unwrap().as_deref().copied();
    assert_eq!((get("a").await, get("a").await, get("none").await), (Some(1), Some(1), None));
    assert_eq!(table.reads().len(), 2);
    let many = through.get_many(["b", "a", "none"].map(str::to_owned)).await.unwrap();
    assert_eq!(
        many.iter().map(|value| value.as_deref().copied()).collect::<Vec<_>>(),
        [Some(2), Some(1), None]
    );
    table.put("a", 5);
    assert_eq!(get("a").await, Some(1));
    assert_eq!(through.refresh("a".to_owned()).await.unwrap().as_deref(), Some(&5));
    assert_eq!(get("a").await, Some(5));
    table.put("a", 6);
    let _ = through.invalidate("a".to_owned()).await;
    assert_eq!(get("a").await, Some(6));
    table.break_down(true);
    assert!(through.refresh("a".to_owned()).await.is_err());
    assert_eq!(get("a").await, Some(6), "a refresh that fails removes nothing");
}

#[tokio::test]
async fn values_that_stay_in_the_process_need_no_serde() {
    struct Compiled(fn(u32) -> u32);
    let larder = larder();
    let weigh = |_: &Compiled| 10_000;
    let values = Values::local(&larder, MINUTE).weigh_by(weigh);
    let load = |_: LoadHandle| async { Ok::<_, Infallible>(Compiled(|number| number + 1)) };
    let compiled = values.get_or_load("f", load).await.unwrap();
    assert_eq!((compiled.0)(1), 2);
    assert!(values.get("f").await.is_some());
    assert!(larder.stats().memory.bytes >= 10_000);
}

#[tokio::test]
async fn names_longer_than_a_key_still_load() {
    let (larder, table) = (larder(), Table::default());
    let long = "x".repeat(20_000);
    table.put(&long, 1);
    let found = table.many(&view(&larder), &[&long, "none"]).await.unwrap();
    assert_eq!(found, [Some(1), None]);
    assert_eq!(table.reads().len(), 1);
}

/// The caller may go on without the cache, as `#[cached]` does.
#[tokio::test]
async fn a_page_around_a_value_of_another_type_depends_on_its_name_and_is_not_stored() {
    let larder = larder();
    load(&larder, "a", 1).await;
    let page = page(&larder);
    let text = larder.values::<String>(MINUTE);
    let load = |_: LoadHandle| async { Ok::<_, Infallible>("one".to_owned()) };
    let found = page.clone().scoped(text.get_or_load("a", load)).await;
    assert!(matches!(found, Err(LoadError::OtherType { .. })));
    assert!(page.gathered().tags.tags().iter().any(|tag| tag.as_str() == "a"));
    assert_eq!(page.gathered().no_store, Some(Reason::UnstoredPart));
}

#[tokio::test]
async fn the_error_of_one_name_is_not_the_error_of_another() {
    let larder = larder();
    let load =
        |name: u32| async move { if name == 2 { Err("two is broken") } else { Ok(Some(name)) } };
    let policy = Policy::ttl(MINUTE).error_backoff(MINUTE);
    let through = ReadThrough::new(larder.values::<u32>(policy), load);
    assert!(through.get_many([1, 2, 3]).await.is_err());
    assert_eq!(through.get(1).await.unwrap().as_deref(), Some(&1));
    assert_eq!(through.get(3).await.unwrap().as_deref(), Some(&3));
    assert!(through.get(2).await.is_err());
}

/// A refresh in a request that began before an unrelated load of the value.
#[tokio::test]
async fn a_refresh_replaces_a_value_that_was_loaded_later_than_its_request_began() {
    let larder = larder();
    let source = Arc::new(AtomicU32::new(1));
    let row = source.clone();
    let load = move |_: String| {
        let row = row.load(Ordering::SeqCst);
        async move { Ok::<_, Infallible>(Some(row)) }
    };
    let through = ReadThrough::new(larder.values::<u32>(MINUTE), load);
    let request = page(&larder);
    let _ = larder.invalidate("something else").await;
    through.get("a".to_owned()).await.unwrap();
    source.store(2, Ordering::SeqCst);
    let refreshed = request.scoped(through.refresh("a".to_owned())).await.unwrap();
    assert_eq!(refreshed.as_deref(), Some(&2));
    assert_eq!(through.get("a".to_owned()).await.unwrap().as_deref(), Some(&2));
}

#[tokio::test(start_paused = true)]
async fn a_negative_result_of_an_adaptive_view_has_the_negative_lifetime() {
    let larder = larder();
    let policy = Policy::ttl(MINUTE).negative_ttl(MINUTE / 60);
    let values = larder.values::<u32>(policy).adaptive(MINUTE, 60 * MINUTE);
    let table = Table::default();
    table.one(&values, "a").await.unwrap();
    tokio::time::advance(MINUTE / 60).await;
    table.one(&values, "a").await.unwrap();
    assert_eq!(table.reads().len(), 2);
}
