use larder_core::Tiers;
use larder_semantics::storing::Role;

use super::*;
use crate::Scheme;

#[test]
fn setters_refuse_values_that_they_cannot_hold() {
    fn layer() -> ResponseCacheLayer {
        ResponseCacheLayer::new(&larder())
    }
    let rows: [(&str, fn()); 3] = [
        ("max_variants is 0", || drop(layer().max_variants(0))),
        ("browser_cache_control", || drop(layer().browser_cache_control("a\nb"))),
        ("cdn_cache_control", || drop(layer().cdn_cache_control("\u{e9}"))),
    ];
    for (expected, set) in rows {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(set)).unwrap_err();
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn no_setter_depends_on_the_order_of_calls() {
    let layer = || ResponseCacheLayer::new(&larder());
    let pairs = [
        (
            layer().tiers(Tiers::BOTH).require_sealing(),
            layer().require_sealing().tiers(Tiers::BOTH),
        ),
        (
            layer().private_cache().scheme(Scheme::Https),
            layer().scheme(Scheme::Https).private_cache(),
        ),
        (
            layer().private_cache().targeted_fields([REGION]),
            layer().targeted_fields([REGION]).private_cache(),
        ),
        (
            layer().ttl(MINUTE).override_ttl(2 * MINUTE),
            layer().override_ttl(2 * MINUTE).ttl(MINUTE),
        ),
    ];
    for (one, other) in pairs {
        let facts = |layer: &ResponseCacheLayer| {
            let options = layer.options();
            let lifetimes = (options.lifetime, options.override_lifetime);
            (options.tiers.requires_sealing(), options.role == Role::Private, lifetimes)
        };
        assert_eq!(facts(&one), facts(&other));
        let [one, other] = [&one, &other].map(ResponseCacheLayer::options);
        assert_eq!(format!("{:?}", one.scheme), format!("{:?}", other.scheme));
        assert_eq!(one.targets, other.targets);
    }
    assert!(layer().require_sealing().tiers(Tiers::BOTH).options().tiers.requires_sealing());
}

#[tokio::test(start_paused = true)]
async fn an_override_prevails_over_the_lifetime_of_the_layer_and_of_the_handler() {
    let layer = layer(&larder()).override_ttl(2 * MINUTE).ttl(3 * MINUTE);
    let origin = Origin::new(layer, with(&[("cache-control", "max-age=7")]));
    origin.get("/").await;
    assert_eq!(origin.get("/").await.0, "larder; hit; ttl=120");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_a_soft_invalidation_made_stale_has_no_ttl_left() {
    let larder = larder();
    let origin = Origin::new(layer(&larder).stale_while_revalidate(MINUTE), numbered);
    origin.get("/").await;
    let soft = larder_core::Invalidation::from(Target::path("/")).soft(None);
    let _ = larder.invalidate(soft).await;
    assert_eq!(origin.get("/").await, ("larder; hit; ttl=0".into(), "answer 1".into()));
}

#[tokio::test]
async fn a_partition_may_be_named_by_a_number() {
    #[derive(Clone)]
    struct User(u64);
    let layer =
        layer(&larder()).partition_by(|head| head.extensions.get::<User>().map(|user| user.0));
    let origin = Origin::new(layer, numbered);
    for (user, expected) in [(1, "answer 1"), (2, "answer 2"), (12, "answer 3"), (1, "answer 1")] {
        let mut ask = empty(request("/"));
        ask.extensions_mut().insert(User(user));
        let answer = origin.service.clone().oneshot(ask).await.unwrap();
        assert_eq!(read(answer).await.1, expected, "{user}");
    }
}

const REGION: HeaderName = HeaderName::from_static("x-region");
