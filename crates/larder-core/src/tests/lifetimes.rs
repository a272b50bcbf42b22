//! Lifetimes: refresh-ahead.

use std::sync::atomic::{AtomicBool, AtomicU32};

use super::*;
use crate::{Reason, values::Values};

const SECOND: Duration = Duration::from_secs(1);

/// A source whose loads take a time, and that counts them.
#[derive(Clone, Default)]
struct Source {
    loads: Arc<AtomicU32>,
    is_broken: Arc<AtomicBool>,
    takes: Duration,
}

impl Source {
    fn slow(takes: Duration) -> Self {
        Self { takes, ..Self::default() }
    }

    fn loads(&self) -> u32 {
        self.loads.load(Ordering::SeqCst)
    }

    async fn get(&self, values: &Values<u32>) -> Result<u32, LoadError<&'static str>> {
        let source = self.clone();
        let load = move |_: LoadHandle| async move {
            let load = source.loads.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(source.takes).await;
            if source.is_broken.load(Ordering::SeqCst) { Err("broken") } else { Ok(load) }
        };
        Ok(*values.get_or_load("a", load).await?)
    }
}

/// Returns how long a call took.
async fn timed<F: Future>(call: F) -> (F::Output, Duration) {
    let began = tokio::time::Instant::now();
    let answer = call.await;
    (answer, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_key_requested_each_second_never_waits_and_one_requested_each_hour_costs_no_more_loads() {
    const LIFETIMES: u32 = 10_000;
    let larder = larder();
    let source = Source::slow(2 * SECOND);
    let values = larder.values::<u32>(Policy::ttl(MINUTE).refresh_ahead(0.2));
    source.get(&values).await.unwrap();
    for _ in 0..LIFETIMES * 60 {
        tokio::time::sleep(SECOND).await;
        let (value, waited) = timed(source.get(&values)).await;
        value.unwrap();
        assert_eq!(waited, Duration::ZERO);
    }
    let loads = f64::from(source.loads());
    let most = f64::from(LIFETIMES) / 0.8 * 1.02;
    assert!(loads < most, "a load for each 48 seconds: {loads} of {most}");

    let seldom = Source::slow(2 * SECOND);
    for _ in 0..1_000 {
        tokio::time::sleep(60 * MINUTE).await;
        seldom
            .get(&values.clone().with(Policy::ttl(MINUTE).refresh_ahead(0.2).shared()))
            .await
            .unwrap();
    }
    assert_eq!(seldom.loads(), 1_000, "as many as without");
}

#[tokio::test(start_paused = true)]
async fn only_a_request_refreshes_and_only_once_at_a_time() {
    let larder = larder();
    let source = Source::slow(SECOND);
    let values = larder.values::<u32>(Policy::ttl(MINUTE).refresh_ahead(0.5));
    source.get(&values).await.unwrap();
    tokio::time::sleep(MINUTE / 4 * 3).await;
    assert_eq!(source.loads(), 1);
    for _ in 0..10 {
        assert_eq!(source.get(&values).await.unwrap(), 1);
    }
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(source.loads(), 2);
    assert_eq!(source.get(&values).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn refreshes_that_fail_pause_longer_each_time_and_remove_nothing() {
    let larder = larder();
    let source = Source::default();
    let values = larder.values::<u32>(Policy::ttl(60 * MINUTE).refresh_ahead(0.9));
    source.get(&values).await.unwrap();
    source.is_broken.store(true, Ordering::SeqCst);
    tokio::time::sleep(6 * MINUTE + SECOND).await;
    let mut at = Vec::new();
    for second in 0..40 {
        let before = source.loads();
        assert_eq!(source.get(&values).await.unwrap(), 1);
        tokio::time::sleep(SECOND).await;
        if source.loads() > before {
            at.push(second);
        }
    }
    assert_eq!(at, [0, 1, 3, 7, 15, 31], "pauses of 1, 2, 4, 8 and 16 seconds");
    let stats = larder.stats();
    let failures = &stats.cache("objects").unwrap().errors;
    assert!(failures.get(&Reason::RefreshBackoff).is_some_and(|count| *count > 20), "{failures:?}");
    source.is_broken.store(false, Ordering::SeqCst);
    tokio::time::sleep(MINUTE).await;
    source.get(&values).await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert!(source.get(&values).await.unwrap() > 1, "it recovers");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_finds_the_row_gone_turns_the_value_negative() {
    let larder = larder();
    let values = larder.values::<u32>(Policy::ttl(MINUTE).refresh_ahead(0.5));
    let find = async |row: Option<u32>| {
        let load = move |_: LoadHandle| async move { Ok::<_, Infallible>(row) };
        values.get_or_load_optional("a", load).await.unwrap().as_deref().copied()
    };
    assert_eq!(find(Some(1)).await, Some(1));
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(find(None).await, Some(1));
    tokio::time::sleep(SECOND).await;
    assert_eq!(find(Some(9)).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_batch_refreshes_its_due_values_by_one_call() {
    let larder = larder();
    let values = larder.values::<u32>(Policy::ttl(MINUTE).refresh_ahead(0.5));
    let calls = Arc::new(AtomicU32::new(0));
    let get = async || {
        let calls = calls.clone();
        let load = move |missing: crate::values::Missing<u32>| {
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                let names = missing.into_names().into_iter();
                Ok::<_, Infallible>(names.map(|name| (name, call)).collect::<Vec<_>>())
            }
        };
        let found = values.get_or_load_many([1, 2, 3], load).await.unwrap();
        found.iter().map(|value| **value.as_ref().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(get().await, [1, 1, 1]);
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(get().await, [1, 1, 1]);
    tokio::time::sleep(SECOND).await;
    assert_eq!(get().await, [2, 2, 2]);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// XFetch: the longer a load takes, the earlier the refresh; a load that takes no time is not refreshed early.
#[tokio::test(start_paused = true)]
async fn early_refreshes_depend_on_the_cost_of_the_load() {
    let mut expired = Vec::new();
    for takes in [Duration::ZERO, 4 * SECOND] {
        let larder = larder();
        let source = Source::slow(takes);
        let values = larder.values::<u32>(Policy::ttl(MINUTE).refresh_early(1.0));
        let mut waits = 0;
        source.get(&values).await.unwrap();
        for _ in 0..6_000 {
            tokio::time::sleep(SECOND).await;
            let before = source.loads();
            let (_, waited) = timed(source.get(&values)).await;
            waits +=
                u32::from(waited > Duration::ZERO || (takes.is_zero() && source.loads() > before));
        }
        expired.push(waits);
    }
    assert!(expired[0] > 80, "each lifetime ends: {expired:?}");
    // About 17 of 100, by chance; without early refreshes it would be all.
    assert!(expired[1] < 50, "most lifetimes are renewed before their end: {expired:?}");
}

#[test]
#[should_panic(expected = "refresh_ahead is 1.5, allowed is more than 0 and less than 1")]
fn a_share_above_1_panics() {
    let _policy = Policy::ttl(MINUTE).refresh_ahead(1.5);
}

#[tokio::test(start_paused = true)]
async fn a_value_expires_at_an_absolute_time() {
    let larder = larder();
    let now = larder.kernel().clock().wall(larder.kernel().now());
    let until = Lifetime::until(now + MINUTE);
    for (lifetime, left) in [
        (until, Some(MINUTE)),
        (until.stale_if_error(MINUTE), Some(MINUTE)),
        (Lifetime::fresh_for(SECOND).expires_at(now + MINUTE), Some(SECOND)),
        (Lifetime::fresh_for(60 * MINUTE).expires_at(now + MINUTE), Some(MINUTE)),
        (Lifetime::until(now - MINUTE), None),
    ] {
        let values = larder.values::<u32>(lifetime);
        let _ = larder.clear().await;
        let load = |_: LoadHandle| async { Ok::<_, Infallible>(1) };
        values.get_or_load("a", load).await.unwrap();
        assert_eq!(values.remaining_ttl("a").await, left, "{lifetime:?}");
    }
}

/// The times at which the value changes within a simulated day, in seconds.
fn trace(kind: &str) -> Vec<u64> {
    const DAY: u64 = 86_400;
    match kind {
        "constant" => {
            // At a constant rate, at random times: from 200 to 400 seconds after the last change.
            let mut state = 1_u64;
            let next = |at: &u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                Some(at + 200 + (state >> 33) % 201)
            };
            std::iter::successors(Some(0), next).take_while(|at| *at < DAY).collect()
        }
        "bursty" => {
            (3_600..DAY).step_by(10_800).flat_map(|at| (at..at + 1_800).step_by(20)).collect()
        }
        "daily" => (DAY / 3..DAY / 6 * 5).step_by(60).collect(),
        _ => Vec::new(),
    }
}

/// Requests a value each second of a day. Returns the loads, and the share of the requests that got an old value.
async fn replayed(changes: &[u64], values: &Values<u64>) -> (u32, f64) {
    const SECONDS: u64 = 86_400;
    let began = tokio::time::Instant::now();
    let (loads, mut old) = (Arc::new(AtomicU32::new(0)), 0);
    for second in 0..SECONDS {
        tokio::time::sleep_until(began + SECOND * u32::try_from(second).unwrap()).await;
        let current = changes.partition_point(|change| *change <= second) as u64;
        let counted = loads.clone();
        let load = move |_: LoadHandle| async move {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(current)
        };
        old += u64::from(*values.get_or_load("a", load).await.unwrap() != current);
    }
    (loads.load(Ordering::SeqCst), old as f64 / SECONDS as f64)
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_lifetime_serves_fewer_old_values_than_a_fixed_one_with_as_many_loads() {
    // A value that changes at a constant rate has a best fixed lifetime, which costs nothing to find.
    for (kind, most) in [("constant", 1.4), ("bursty", 0.8), ("daily", 0.8), ("never", 1.0)] {
        let changes = trace(kind);
        let adaptive = larder().values::<u64>(MINUTE).adaptive(10 * SECOND, 10 * MINUTE);
        let (loads, old) = replayed(&changes, &adaptive).await;
        let equal = larder().values::<u64>(Duration::from_secs_f64(86_400.0 / f64::from(loads)));
        let (fixed_loads, fixed_old) = replayed(&changes, &equal).await;
        println!(
            "{kind}: {loads} loads, {old:.3} old; fixed: {fixed_loads} loads, {fixed_old:.3} old"
        );
        assert!(loads < fixed_loads + fixed_loads / 50, "{kind}: {loads} and {fixed_loads} loads");
        assert!(old <= fixed_old * most, "{kind}: {old} and {fixed_old}");
        if kind == "never" {
            assert!(loads < 200, "close to the ceiling: {loads}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_shortens_an_adaptive_lifetime_to_its_floor() {
    let larder = larder();
    let values = larder.values::<u64>(MINUTE).adaptive(10 * SECOND, 10 * MINUTE);
    let get = async || {
        let load = |_: LoadHandle| async { Ok::<_, Infallible>(1) };
        values.get_or_load("a", load).await.unwrap();
    };
    for _ in 0..100 {
        get().await;
        tokio::time::sleep(MINUTE).await;
    }
    get().await;
    assert!(values.remaining_ttl("a").await > Some(MINUTE));
    let _ = larder.invalidate("a").await;
    get().await;
    assert_eq!(values.remaining_ttl("a").await, Some(10 * SECOND));
}

#[tokio::test]
#[should_panic(expected = "adaptive is 60s to 1s, allowed is a floor")]
async fn a_floor_above_the_ceiling_panics() {
    let _values = larder().values::<u64>(MINUTE).adaptive(MINUTE, SECOND);
}

async fn store(larder: &Larder, values: &Values<u32>) {
    values.set(&larder.read_point(), "a", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_sliding_value_lives_while_it_is_read_and_no_longer_than_its_maximum_age() {
    let larder = larder();
    let values = larder.values::<u32>(Policy::ttl(60 * MINUTE).sliding(10 * MINUTE));
    store(&larder, &values).await;
    for minute in (9..60).step_by(9) {
        tokio::time::advance(9 * MINUTE).await;
        assert!(values.get("a").await.is_some(), "{minute}");
    }
    assert_eq!(
        values.remaining_ttl("a").await,
        Some(6 * MINUTE),
        "the maximum age is not extended"
    );
    tokio::time::advance(6 * MINUTE).await;
    assert_eq!(values.get("a").await, None);
    store(&larder, &values).await;
    tokio::time::advance(10 * MINUTE).await;
    assert_eq!(values.get("a").await, None, "idle");
    store(&larder, &values).await;
    for left in [6, 2] {
        tokio::time::advance(4 * MINUTE).await;
        assert_eq!(values.remaining_ttl("a").await, Some(left * MINUTE), "a look is not a read");
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_reaches_a_sliding_value_however_often_it_is_read() {
    let larder = larder();
    let values = larder.values::<u32>(Policy::ttl(60 * MINUTE).sliding(10 * MINUTE).tag("t"));
    for target in [Target::name("a"), Target::tag("t"), Target::everything()] {
        store(&larder, &values).await;
        values.get("a").await.unwrap();
        let _ = larder.invalidate(target.clone()).await;
        assert_eq!(values.get("a").await, None, "{target:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_value_is_not_served_stale() {
    let larder = larder();
    let lifetime = Lifetime::fresh_for(60 * MINUTE).stale_if_error(60 * MINUTE);
    let values = larder.values::<u32>(Policy::from(lifetime).sliding(MINUTE));
    store(&larder, &values).await;
    tokio::time::advance(MINUTE).await;
    let failing = |_: LoadHandle| async { Err::<u32, _>("down") };
    assert!(values.get_or_load("a", failing).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_extended_value_keeps_its_stamp_and_ends_with_the_longest_lifetime() {
    let larder = Larder::builder().max_lifetime(10 * MINUTE).build().unwrap();
    let values = larder.values::<u32>(MINUTE);
    store(&larder, &values).await;
    tokio::time::advance(MINUTE / 2).await;
    assert_eq!(values.extend("a", 3 * MINUTE).await, Some(3 * MINUTE));
    tokio::time::advance(2 * MINUTE).await;
    assert_eq!(values.get("a").await.as_deref(), Some(&1));
    assert_eq!(values.extend("a", 60 * MINUTE).await, Some(7 * MINUTE + MINUTE / 2));
    assert_eq!(values.extend("a", MINUTE).await, Some(MINUTE), "shorter, too");
    assert_eq!(values.extend("b", MINUTE).await, None);
    let _ = larder.invalidate("a").await;
    assert_eq!(values.extend("a", MINUTE).await, None, "it judges the entry first");
    store(&larder, &values).await;
    tokio::time::advance(MINUTE).await;
    assert_eq!(values.extend("a", MINUTE).await, None, "an expired value does not come back");
}

/// An invalidation between the fill and the extension is newer than the stamp, also for the extended entry.
#[tokio::test(start_paused = true)]
async fn an_extension_does_not_hide_an_invalidation() {
    let larder = larder();
    let values = larder.values::<u32>(MINUTE);
    store(&larder, &values).await;
    values.extend("a", 5 * MINUTE).await.unwrap();
    let _ = larder.invalidate("a").await;
    assert_eq!(values.get("a").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_page_ends_when_its_sliding_part_becomes_idle() {
    let larder = larder();
    let cart = larder.values::<u32>(Policy::ttl(60 * MINUTE).sliding(10 * MINUTE));
    store(&larder, &cart).await;
    let inside = cart.clone();
    let load =
        move |_: LoadHandle| async move { Ok::<_, Infallible>(*inside.get("a").await.unwrap()) };
    let pages = larder.values::<u32>(60 * MINUTE);
    pages.get_or_load("page", load).await.unwrap();
    assert_eq!(pages.remaining_ttl("page").await, Some(10 * MINUTE));
}

/// Requests that find a refresh in flight are no failures of it.
#[tokio::test(start_paused = true)]
async fn requests_during_a_slow_refresh_do_not_count_as_its_failures() {
    let larder = larder();
    let source = Source::slow(10 * SECOND);
    let values = larder.values::<u32>(Policy::ttl(10 * MINUTE).refresh_ahead(0.9));
    source.get(&values).await.unwrap();
    source.is_broken.store(true, Ordering::SeqCst);
    tokio::time::sleep(2 * MINUTE).await;
    for _ in 0..100 {
        source.get(&values).await.unwrap();
        tokio::time::sleep(SECOND / 10).await;
    }
    let before = source.loads();
    tokio::time::sleep(2 * SECOND).await;
    source.get(&values).await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(source.loads(), before + 1, "the pause after the first failure is a second");
}
