//! The typed view, and values that are set under a read point.

use super::*;
use crate::{
    Reason,
    kernel::Scope,
    values::{ReadPoint, SetOutcome, Values},
};

const NAME: (&str, u32) = ("user", 7);

fn values(larder: &Larder) -> Values<u32> {
    larder.values(MINUTE)
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
    assert_eq!(larder.values::<String>(MINUTE).get(NAME).await, None);
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
            let tags = scope.gathered().tags.tags().to_vec();
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
    assert!(request.gathered().tags.tags().iter().any(|tag| tag.as_str() == "t"));
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
    let tags = request.gathered().tags.tags().to_vec();
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

/// A point that outlives its request, or was taken before any, must not carry the data of one user to another.
#[tokio::test]
async fn a_point_that_is_used_in_the_request_of_another_user_stores_nothing() {
    let larder = larder();
    let ada = larder.kernel().scope().gathering(Audience::Partition(b"ada"[..].into()));
    let early = larder.read_point();
    let in_request = ada.clone().scoped(async {
        early.read(load(&larder, "cart", 1)).await;
        set(&early, 1).await
    });
    assert_eq!(in_request.await, SetOutcome::NotStored(Reason::PrivatePart));
    assert_eq!(values(&larder).get("cart").await, None, "the cart is ada's");
    assert_eq!(values(&larder).get(NAME).await, None);
    assert_eq!(set(&early, 1).await, SetOutcome::NotStored(Reason::PrivatePart), "nor later");
    let shared = early.set(NAME, Policy::ttl(MINUTE).shared(), 1_u32).await;
    assert_eq!(shared, SetOutcome::NotStored(Reason::PrivatePart), "it has read ada's cart");
    let unread = larder.read_point();
    let in_request = ada.clone().scoped(async { set(&unread, 1).await });
    assert_eq!(in_request.await, SetOutcome::NotStored(Reason::PrivatePart), "it may be ada's");
    assert_eq!(values(&larder).get(NAME).await, None);
    // The point of a request is still the user's in a task that has left the scope behind.
    let late = ada.clone().scoped(async { larder.read_point() }).await;
    assert_eq!(set(&late, 2).await, SetOutcome::Stored);
    assert_eq!(values(&larder).get(NAME).await, None);
    assert_eq!(ada.scoped(values(&larder).get(NAME)).await.as_deref(), Some(&2));
}

#[tokio::test]
async fn a_shared_value_that_depends_on_the_absence_of_a_users_value_is_not_stored() {
    let larder = larder();
    let ada = larder.kernel().scope().gathering(Audience::Partition(b"ada"[..].into()));
    for many in [false, true] {
        let shown = || {
            let inside = larder.clone();
            let load = move |_: LoadHandle| async move {
                let view = values(&inside);
                let found =
                    if many { view.get_many([NAME]).await.remove(0) } else { view.get(NAME).await };
                Ok::<_, Infallible>(found.is_some())
            };
            larder.get_or_load("shown", Policy::ttl(MINUTE).shared(), load)
        };
        assert!(!*ada.clone().scoped(shown()).await.unwrap());
        assert_eq!(larder.values::<bool>(Policy::ttl(MINUTE).shared()).get("shown").await, None);
    }
}

#[tokio::test]
async fn a_value_built_around_a_read_that_had_to_bypass_is_not_stored() {
    let larder = larder();
    let unknown = larder.kernel().scope().gathering(Audience::Unknown);
    unknown.clone().scoped(values(&larder).get(NAME)).await;
    assert_eq!(unknown.gathered().no_store, Some(Reason::UnstoredPart));
    set(&larder.read_point(), 1).await;
    let other_type = page(&larder);
    other_type.clone().scoped(larder.values::<String>(MINUTE).get(NAME)).await;
    assert_eq!(other_type.gathered().no_store, Some(Reason::UnstoredPart));
}

/// A point may outlive the page: the page has the parts as soon as they are read.
#[tokio::test]
async fn the_parts_of_a_point_belong_at_once_to_the_scope_in_which_they_are_read() {
    let larder = larder();
    let has_part =
        |scope: &Scope| scope.gathered().tags.tags().iter().any(|tag| tag.as_str() == "t");
    let request = page(&larder);
    let point = request.clone().scoped(async { larder.read_point() }).await;
    let inner = request.gathering_apart();
    inner.clone().scoped(point.read(load(&larder, "part", 1))).await;
    assert!(has_part(&inner), "the loader in which the part was read");
    assert!(has_part(&request), "the request of the point");
    assert_eq!(set(&point, 1).await, SetOutcome::Stored);
    let _ = larder.invalidate("t").await;
    assert_eq!(values(&larder).get(NAME).await, None);
}

#[tokio::test]
async fn a_read_that_is_cancelled_passes_on_what_it_has_read() {
    let larder = larder();
    let request = page(&larder);
    let point = request.clone().scoped(async { larder.read_point() }).await;
    let reading = async {
        load(&larder, "part", 1).await;
        std::future::pending::<()>().await;
    };
    let mut reading = Box::pin(point.read(reading));
    for _ in 0..100 {
        assert!(futures_util::poll!(&mut reading).is_pending());
        tokio::task::yield_now().await;
    }
    drop(reading);
    assert!(request.gathered().tags.tags().iter().any(|tag| tag.as_str() == "t"));
}

#[tokio::test]
async fn values_that_are_set_under_one_point_are_not_parts_of_each_other() {
    let larder = Larder::builder().max_tags(8).build().unwrap();
    let ada = larder.kernel().scope().gathering(Audience::Partition(b"ada"[..].into()));
    let setting = async {
        let point = larder.read_point();
        let private = point.set_many(MINUTE, (0..20_u32).map(|id| (("user", id), id))).await;
        let shared = point.set("shared", Policy::ttl(MINUTE).shared(), 1_u32).await;
        (private, shared)
    };
    let (private, shared) = ada.clone().scoped(setting).await;
    assert_eq!(private, [SetOutcome::Stored; 20]);
    assert_eq!(shared, SetOutcome::Stored);
    let _ = larder.invalidate(("user", 0)).await;
    assert!(ada.clone().scoped(values(&larder).contains(("user", 19))).await);
    let tags = ada.gathered().tags.tags().to_vec();
    assert!(tags.iter().any(|tag| tag.as_str() == "user:19"), "the request depends on them");
}

#[tokio::test(start_paused = true)]
async fn a_value_whose_lifetime_has_ended_before_it_is_set_is_not_stored() {
    let larder = larder();
    let point = larder.read_point();
    tokio::time::advance(MINUTE).await;
    assert_eq!(set(&point, 1).await, SetOutcome::NotStored(Reason::Stale));
    assert_eq!(values(&larder).get(NAME).await, None);
}
