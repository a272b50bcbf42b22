//! The typed view, and values that are set under a read point.

use super::*;
use crate::{
    Reason,
    kernel::Scope,
    values::{ReadPoint, SetOutcome, Values},
};

const NAME: (&str, u32) = ("user", 7);

fn values(larder: &Larder) -> Values<u32> {
    larder.values()
}

async fn set(point: &ReadPoint, value: u32) -> SetOutcome {
    point.set(NAME, Policy::ttl(MINUTE), value).await
}

/// The scope of a page for all clients.
fn page(larder: &Larder) -> Scope {
    larder.kernel().open_scope().gathering(Audience::Everyone)
}

#[tokio::test(start_paused = true)]
async fn the_view_finds_the_values_of_loaders_and_of_read_points_until_they_expire() {
    let larder = larder();
    assert_eq!(values(&larder).get("a").await, None);
    load(&larder, "a", 1).await;
    assert_eq!(values(&larder).get("a").await.as_deref(), Some(&1));
    assert_eq!(set(&larder.read_point(), 2).await, SetOutcome::Stored);
    assert_eq!(values(&larder).get(NAME).await.as_deref(), Some(&2));
    assert_eq!(values(&larder).remaining_ttl(NAME).await, Some(MINUTE));
    tokio::time::advance(MINUTE).await;
    assert!(!values(&larder).contains(NAME).await);
    assert_eq!(values(&larder).get(NAME).await, None);
}

#[tokio::test]
async fn a_value_of_another_type_is_not_returned() {
    let larder = larder();
    set(&larder.read_point(), 1).await;
    assert_eq!(larder.values::<String>().get(NAME).await, None);
}

#[tokio::test]
async fn a_page_depends_on_a_value_and_on_its_absence() {
    let larder = larder();
    for stored in [false, true] {
        if stored {
            set(&larder.read_point(), 1).await;
        }
        let (got, contained, remaining) = (page(&larder), page(&larder), page(&larder));
        got.clone().scoped(values(&larder).get(NAME)).await;
        contained.clone().scoped(values(&larder).contains(NAME)).await;
        remaining.clone().scoped(values(&larder).remaining_ttl(NAME)).await;
        for scope in [got, contained, remaining] {
            let tags = scope.gathered().tags;
            assert!(tags.iter().any(|tag| tag.as_str() == "user:7"), "{stored}: {tags:?}");
        }
    }
}

#[tokio::test]
async fn a_page_that_showed_an_absence_is_built_again_once_the_value_was_written() {
    let larder = larder();
    let show = async || {
        let inside = larder.clone();
        let load = move |_: LoadHandle| async move {
            let found = values(&inside).get(NAME).await;
            Ok::<_, Infallible>(found.map_or("not there".to_owned(), |value| value.to_string()))
        };
        larder.get_or_load("page", Policy::ttl(MINUTE), load).await.unwrap().to_string()
    };
    assert_eq!(show().await, "not there");
    // A fill is not a write: the page stays.
    set(&larder.read_point(), 1).await;
    assert_eq!(show().await, "not there");
    let _ = larder.invalidate(NAME).await;
    set(&larder.read_point(), 2).await;
    assert_eq!(show().await, "2");
}

#[tokio::test]
async fn removing_reaches_the_value_for_all_users_and_takes_one_append() {
    let larder = larder();
    let user = larder.kernel().scope().gathering(Audience::Partition(b"ada"[..].into()));
    user.clone().scoped(async { set(&larder.read_point(), 1).await }).await;
    set(&larder.read_point(), 2).await;
    load(&larder, "a", 3).await;
    let _ = values(&larder).remove_many([("user", "7"), ("other", "1")]).await;
    assert_eq!(larder.stats().invalidations, 1);
    assert_eq!(values(&larder).get(NAME).await, None);
    assert_eq!(user.scoped(values(&larder).get(NAME)).await, None);
    assert_eq!(values(&larder).get("a").await.as_deref(), Some(&3));
    let _ = values(&larder).remove("a").await;
    assert_eq!(values(&larder).get("a").await, None);
}

/// The race of every cache with a `set`: the row is read, changes, and the old row is set.
#[tokio::test]
async fn a_value_that_was_read_before_an_invalidation_is_not_stored_after_it() {
    for target in
        [Target::tag("user:7"), Target::tag("t"), Target::everything(), Target::pattern("user:*")]
    {
        let larder = larder();
        let point = larder.read_point();
        let row = 1;
        let _ = larder.invalidate(target.clone()).await;
        let outcome = point.set(NAME, Policy::ttl(MINUTE).tag("t"), row).await;
        assert_eq!(outcome, SetOutcome::NotStored(Reason::Overtaken), "{target:?}");
        assert_eq!(values(&larder).get(NAME).await, None);
    }
}

#[tokio::test]
async fn an_older_point_does_not_replace_the_value_of_a_newer_one() {
    let larder = larder();
    let older = larder.read_point();
    let _ = larder.invalidate("something else").await;
    let newer = larder.read_point();
    set(&newer, 2).await;
    set(&older, 1).await;
    assert_eq!(values(&larder).get(NAME).await.as_deref(), Some(&2));
}

#[tokio::test]
async fn a_value_that_was_set_for_one_user_is_not_returned_to_another() {
    let larder = larder();
    let [ada, bob] = [&b"ada"[..], b"bob"]
        .map(|user| larder.kernel().scope().gathering(Audience::Partition(user.into())));
    ada.clone().scoped(async { set(&larder.read_point(), 1).await }).await;
    assert_eq!(ada.clone().scoped(values(&larder).get(NAME)).await.as_deref(), Some(&1));
    assert_eq!(bob.clone().scoped(values(&larder).get(NAME)).await, None);
    assert_eq!(values(&larder).get(NAME).await, None, "nor to a visitor");
    let unknown = larder.kernel().scope().gathering(Audience::Unknown);
    let outcome = unknown.clone().scoped(async { set(&larder.read_point(), 9).await }).await;
    assert_eq!(outcome, SetOutcome::NotStored(Reason::Identified));
    // A value made of a user's part is not shared, although its policy says so.
    let shared = ada.scoped(async {
        let point = larder.read_point();
        let part = point.read(values(&larder).get(NAME)).await.unwrap();
        point.set("shared", Policy::ttl(MINUTE).shared(), *part).await
    });
    assert_eq!(shared.await, SetOutcome::NotStored(Reason::PrivatePart));
}

/// The parts are those that the point has read; in a request also those that it read before the point.
#[tokio::test(start_paused = true)]
async fn what_is_read_under_a_point_gives_the_value_its_tags_its_end_and_its_refusals() {
    let larder = larder();
    let part = || async {
        let load = |_: LoadHandle| async { Ok::<_, Infallible>(1_u32) };
        larder.get_or_load("part", Policy::ttl(MINUTE / 6).tag("part"), load).await.unwrap()
    };
    let in_request = |larder: &Larder| page(larder);
    for case in ["under the point", "before it, in the request"] {
        let value = async || {
            if case == "under the point" {
                let point = larder.read_point();
                point.read(part()).await;
                set(&point, 1).await
            } else {
                let reading = async {
                    part().await;
                    set(&larder.read_point(), 1).await
                };
                in_request(&larder).scoped(reading).await
            }
        };
        assert_eq!(value().await, SetOutcome::Stored, "{case}");
        assert_eq!(values(&larder).remaining_ttl(NAME).await, Some(MINUTE / 6), "{case}: the end");
        let _ = larder.invalidate("part").await;
        assert_eq!(values(&larder).get(NAME).await, None, "{case}: the tags");
    }
    let refused = || async {
        let load = |fill: LoadHandle| async move {
            fill.no_store();
            Ok::<_, Infallible>(1_u32)
        };
        larder.get_or_load("refused", MINUTE, load).await.unwrap()
    };
    let point = larder.read_point();
    point.read(refused()).await;
    assert_eq!(set(&point, 1).await, SetOutcome::NotStored(Reason::UnstoredPart));
}

#[tokio::test]
async fn a_page_depends_on_what_was_read_under_a_point_although_no_value_was_set() {
    let larder = larder();
    let request = page(&larder);
    let reading = async {
        let point = larder.read_point();
        point.read(load(&larder, "part", 1)).await;
    };
    request.clone().scoped(reading).await;
    assert!(request.gathered().tags.iter().any(|tag| tag.as_str() == "t"));
}

#[tokio::test(start_paused = true)]
async fn the_lifetime_counts_from_the_point() {
    let larder = larder();
    let point = larder.read_point();
    tokio::time::advance(MINUTE / 2).await;
    set(&point, 1).await;
    assert_eq!(values(&larder).remaining_ttl(NAME).await, Some(MINUTE / 2));
}

#[tokio::test(start_paused = true)]
async fn a_point_older_than_the_longest_lifetime_stores_nothing() {
    let larder = Larder::builder().max_lifetime(2 * MINUTE).build().unwrap();
    let point = larder.read_point();
    tokio::time::advance(2 * MINUTE).await;
    let policy = Policy::ttl(4 * MINUTE);
    let outcome = point.set(NAME, policy, 1_u32).await;
    assert_eq!(outcome, SetOutcome::NotStored(Reason::OldReadPoint));
    assert_eq!(values(&larder).get(NAME).await, None);
}

#[tokio::test]
async fn several_values_are_set_under_one_point() {
    let larder = larder();
    let point = larder.read_point();
    let _ = larder.invalidate(("user", 2)).await;
    let outcomes = point.set_many(MINUTE, (1..=3_u32).map(|id| (("user", id), id))).await;
    let overtaken = SetOutcome::NotStored(Reason::Overtaken);
    assert_eq!(outcomes, [SetOutcome::Stored, overtaken, SetOutcome::Stored]);
    assert_eq!(values(&larder).get(("user", 3)).await.as_deref(), Some(&3));
}

#[tokio::test]
async fn get_many_returns_the_values_in_the_order_of_the_names() {
    let larder = larder();
    larder.read_point().set_many(MINUTE, [("a", 1_u32), ("c", 3)]).await;
    let request = page(&larder);
    let got = request.clone().scoped(values(&larder).get_many(["c", "b", "a", "c"])).await;
    assert_eq!(
        got.iter().map(|value| value.as_deref().copied()).collect::<Vec<_>>(),
        [Some(3), None, Some(1), Some(3)]
    );
    let tags = request.gathered().tags;
    for name in ["a", "b", "c"] {
        assert!(tags.iter().any(|tag| tag.as_str() == name), "{name}: the page depends on it");
    }
    assert_eq!(values(&larder).get_many(Vec::<String>::new()).await, []);
}

#[tokio::test]
async fn get_many_returns_nothing_of_another_user() {
    let larder = larder();
    let [ada, bob] = [&b"ada"[..], b"bob"]
        .map(|user| larder.kernel().scope().gathering(Audience::Partition(user.into())));
    ada.scoped(async { set(&larder.read_point(), 1).await }).await;
    assert_eq!(bob.scoped(values(&larder).get_many([NAME])).await, [None]);
}
