//! Advice on responses, from traffic of which the right answer is known.

use larder_core::{Advice, AdviceKind};

use super::*;

fn advice(larder: &Larder, kind: AdviceKind) -> Vec<Advice> {
    larder.advice().into_iter().filter(|advice| advice.kind == kind).collect()
}

/// Of the parameters, only `id` decides about the content; of the fields of `Vary`, only `Accept-Language`.
#[tokio::test(start_paused = true)]
async fn parameters_and_fields_that_do_not_matter_are_found_and_those_that_matter_are_not() {
    let larder = larder();
    let origin = Origin::new(ResponseCacheLayer::new(&larder).ttl(MINUTE), |request, _| {
        request.extensions().get::<ResponseOverrides>().unwrap().note_route("/product");
        let query = request.uri().query().unwrap_or_default().to_owned();
        let id =
            query.split('&').find(|pair| pair.starts_with("id=")).unwrap_or_default().to_owned();
        let language = request.headers().get("accept-language").cloned();
        let text = text(format!("{id} {language:?}"));
        Response::builder().header("vary", "accept-language, accept").body(text).unwrap()
    });
    for id in 0..4 {
        for campaign in 0..4 {
            for (language, accept) in [("de", "a/b"), ("de", "a/c"), ("en", "a/b"), ("en", "a/c")] {
                let request = request(&format!("/product?id={id}&campaign={campaign}"));
                let request = request.header("accept-language", language).header("accept", accept);
                origin.send(request).await;
            }
        }
    }
    let parameters = advice(&larder, AdviceKind::UselessParameter);
    let fields = advice(&larder, AdviceKind::UselessVary);
    let about =
        |all: &[Advice]| -> Vec<_> { all.iter().map(|it| it.about.clone().unwrap()).collect() };
    assert_eq!(
        (about(&parameters), about(&fields)),
        (vec!["campaign".to_owned()], vec!["accept".to_owned()])
    );
    assert_eq!(
        (&*parameters[0].cache, parameters[0].route.as_deref()),
        ("responses", Some("/product"))
    );
    assert!(
        parameters[0].text.starts_with("64 stored responses differ in `campaign` alone"),
        "{}",
        parameters[0].text
    );
}

#[tokio::test(start_paused = true)]
async fn a_route_whose_hits_save_less_than_storing_costs_is_found_and_others_are_not() {
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder).ttl(MINUTE);
    let origin = Origin::asynchronous(layer, |request, _| async move {
        let path = request.uri().path().to_owned();
        let route = if path.starts_with("/slow") { "/slow/{id}" } else { "/quick/{id}" };
        request.extensions().get::<ResponseOverrides>().unwrap().note_route(route);
        if route.starts_with("/slow") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Response::new(text(path))
    });
    // Each has a hit ratio of about 1 %, which pays for a fill of 10 ms, and not for one that takes no time.
    for number in 0..1_000 {
        for kind in ["slow", "quick"] {
            origin.get(&format!("/{kind}/{number}")).await;
            if number % 100 == 0 {
                origin.get(&format!("/{kind}/{number}")).await;
            }
        }
    }
    let found = advice(&larder, AdviceKind::NotWorthCaching);
    let routes: Vec<_> = found.iter().map(|it| it.route.as_deref().unwrap()).collect();
    assert_eq!(routes, ["/quick/{id}"], "{found:?}");
    assert!(found[0].text.contains("hit ratio is 1.0 %"), "{}", found[0].text);
}

/// The digest of a response is that of its content, also if its fields differ.
#[tokio::test(start_paused = true)]
async fn a_page_that_is_the_same_after_each_refill_could_live_longer() {
    let larder = larder();
    larder.watch_traffic();
    let origin = Origin::new(ResponseCacheLayer::new(&larder).ttl(MINUTE), |request, call| {
        request.extensions().get::<ResponseOverrides>().unwrap().note_route("/about");
        Response::builder().header("x-call", call.to_string()).body(text("about us")).unwrap()
    });
    for _ in 0..15 {
        origin.get("/about").await;
        tokio::time::advance(2 * MINUTE).await;
    }
    let found = advice(&larder, AdviceKind::LongerTtl);
    assert_eq!(found.len(), 1, "{:?}", larder.advice());
    assert_eq!((&*found[0].cache, found[0].route.as_deref()), ("responses", Some("/about")));
}
