//! Explanations: they agree with what the next request gets, and change nothing.

use super::*;

const URL: &str = "http://shop.example";

async fn explain(
    larder: &Larder,
    change: impl FnOnce(ExplainRequest) -> ExplainRequest,
) -> Explanation {
    explain_at(larder, "/", change).await
}

async fn explain_at(
    larder: &Larder,
    path: &str,
    change: impl FnOnce(ExplainRequest) -> ExplainRequest,
) -> Explanation {
    let request = change(ExplainRequest::get(&format!("{URL}{path}")).unwrap());
    let mut all = request.explain(larder).await;
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn with(name: &'static str, value: &'static str) -> impl Fn(ExplainRequest) -> ExplainRequest {
    move |request| request.header(name, value).unwrap()
}

fn itself(request: ExplainRequest) -> ExplainRequest {
    request
}

/// The decision in the words of `Cache-Status`: outcome, `fwd`, `detail`.
fn words(explanation: &Explanation) -> (&str, Option<&str>, Option<&str>) {
    let decision = &explanation.decision;
    let word = |explained: &Option<larder_core::kernel::Explained>| explained.map(|it| it.word);
    (decision.outcome.word, word(&decision.forward), word(&decision.reason))
}

/// Each explanation is followed by the request that it explains, and `Cache-Status` has to agree.
#[tokio::test(start_paused = true)]
async fn an_explanation_agrees_with_the_cache_status_of_the_request_that_follows() {
    let larder = larder();
    let lifetime =
        Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE).stale_if_error(5 * MINUTE);
    let layer = ResponseCacheLayer::new(&larder)
        .ttl(lifetime)
        .bypass_if(|head| head.uri.path() == "/by-choice");
    let origin = Origin::new(layer, |request, call| match request.uri().path() {
        "/cookie" => Response::builder().header("set-cookie", "a=b").body(text("")).unwrap(),
        "/varied" => Response::builder()
            .header("vary", "accept-language")
            .header("cache-control", "max-age=60")
            .body(text(call.to_string()))
            .unwrap(),
        _ => Response::new(text(call.to_string())),
    });
    let mut compared = std::collections::BTreeSet::new();
    let paths = ["/", "/cookie", "/varied", "/by-choice"];
    let fields: [&[(&str, &str)]; 8] = [
        &[],
        &[],
        &[("cache-control", "no-cache")],
        &[("cache-control", "no-store")],
        &[("cache-control", "only-if-cached")],
        &[("if-match", "\"a\"")],
        &[("cookie", "session=1")],
        &[("accept-language", "de")],
    ];
    for round in 0..10_u64 {
        for path in paths {
            for fields in fields {
                for method in ["GET", "POST", "HEAD"] {
                    let mut sent = request(path).method(method);
                    let mut explained =
                        ExplainRequest::new(method, &format!("{URL}{path}")).unwrap();
                    for (name, value) in fields {
                        sent = sent.header(*name, *value);
                        explained = explained.header(name, value).unwrap();
                    }
                    let explanation = explained.explain(&larder).await.remove(0);
                    let response = origin.send(sent).await;
                    let status = response.headers()["cache-status"].to_str().unwrap().to_owned();
                    drop(response.into_body().collect().await);
                    let (outcome, forward, reason) = words(&explanation);
                    let context =
                        format!("{round} {method} {path} {fields:?}: {status}, {explanation:?}");
                    match outcome {
                        "hit" => assert!(
                            status.contains("; hit; ttl=") && !status.contains("ttl=-"),
                            "{context}"
                        ),
                        "stale-hit" => assert!(status.contains("; hit; ttl=-"), "{context}"),
                        "alone" => {
                            let forward = forward.unwrap_or_else(|| panic!("{context}"));
                            assert!(status.contains(&format!("fwd={forward}")), "{context}");
                            let has_reason = reason.is_some_and(|reason| status.contains(reason));
                            assert!(has_reason || status.contains("stored"), "{context}");
                        }
                        "fill" | "revalidate" | "bypass" => {
                            let forward = forward.unwrap_or_else(|| panic!("{context}"));
                            assert!(status.contains(&format!("fwd={forward}")), "{context}");
                        }
                        "no-stored-response" => {
                            assert!(status.contains("only-if-cached"), "{context}");
                        }
                        outcome => panic!("{outcome}: {context}"),
                    }
                    let shows = reason.is_none_or(|reason| {
                        // Only later does `Cache-Status` learn that the response is for others.
                        status.contains(reason) || reason == "method" || reason == "identified"
                    });
                    assert!(shows, "{context}");
                    compared.insert((outcome.to_owned(), forward.map(str::to_owned)));
                    larder.close(MINUTE).await;
                }
            }
        }
        tokio::time::advance(Duration::from_secs([1, 30, 61, 90, 400][round as usize % 5])).await;
    }
    assert!(compared.len() >= 9, "the requests are varied enough: {compared:?}");
}

#[tokio::test(start_paused = true)]
async fn explaining_changes_nothing_and_shows_no_body() {
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder).ttl(MINUTE).partition_by_identity();
    let origin = Origin::new(layer, |_, _| {
        let response = Response::builder().header("cache-control", "private, max-age=60");
        response.header("x-secret", "a-secret-header").body(text("a-secret-body")).unwrap()
    });
    let sent = request("/").extension(crate::Identity::user("ada@example.com"));
    drop(origin.send(sent).await.into_body().collect().await);
    let before = format!("{:?}", larder.stats());
    for _ in 0..100 {
        let ada = explain(&larder, |request| request.principal("ada@example.com")).await;
        assert_eq!(words(&ada).0, "hit");
        let json = format!("{ada:?}");
        assert!(!json.contains("secret") && !json.contains("ada@"), "{json}");
        let bob = explain(&larder, |request| request.principal("bob")).await;
        assert_eq!(words(&bob), ("fill", Some("uri-miss"), None));
        explain_at(&larder, "/never-requested", itself).await;
    }
    assert_eq!(format!("{:?}", larder.stats()), before, "nothing was counted, stored or removed");
    assert_eq!(origin.calls(), 1);
    let shown = explain(&larder, |request| request.principal("ada@example.com").show_partitions());
    assert!(format!("{:?}", shown.await).contains("ada@example.com"));
}

#[tokio::test(start_paused = true)]
async fn an_entry_says_where_its_tags_and_its_lifetime_came_from_and_what_becomes_of_it() {
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder)
        .ttl(Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE));
    let inner = larder.clone();
    let origin = Origin::asynchronous(layer, move |request, _| {
        let larder = inner.clone();
        async move {
            let overrides = request.extensions().get::<ResponseOverrides>().unwrap().clone();
            overrides.tag("by-handler").note_route("/products/{id}");
            let policy = larder_core::Policy::ttl(10 * MINUTE).tag("by-value").until_invalidated();
            let load = |_| async { Ok::<_, Infallible>(7_u64) };
            larder.get_or_load("value", policy, load).await.unwrap();
            Response::new(text("a page"))
        }
    });
    origin.get("/products/1").await;
    tokio::time::advance(MINUTE / 4).await;
    let explanation = explain_at(&larder, "/products/1", itself).await;
    assert_eq!(explanation.route.as_deref(), Some("/products/{id}"));
    let entry = explanation.entry.unwrap();
    assert_eq!(
        (entry.age_seconds, entry.lifetime.word, entry.lifetime_cut),
        (15, "layer-ttl", None)
    );
    let forecast: Vec<_> =
        entry.forecast.iter().map(|step| (step.in_seconds, step.state.word)).collect();
    assert_eq!(forecast, [(0, "fresh"), (45, "stale-while-revalidate"), (105, "expired")]);
    let source = |tag: &str| {
        let found = entry.tags.iter().find(|found| found.tag == tag);
        found.map(|found| (found.class, found.source.as_str()))
    };
    assert_eq!(source("by-handler"), Some(("tag", "handler")));
    assert_eq!(source("by-value"), Some(("tag", "object")));
    assert_eq!(source("value"), Some(("tag", "object")));
    assert_eq!(source("/products/1"), Some(("path", "route")));
    assert_eq!(source("response"), Some(("kind", "larder")));
    let parts: Vec<_> = entry.key.parts.iter().map(|part| (part.part, &*part.value)).collect();
    assert!(
        parts.contains(&("path", "/products/1")) && parts.contains(&("origin", URL)),
        "{parts:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_refusal_of_a_route_stays_known_with_its_cause_and_its_remedy() {
    let larder = larder();
    let origin = Origin::new(ResponseCacheLayer::new(&larder).ttl(MINUTE), |request, _| {
        let overrides = request.extensions().get::<ResponseOverrides>().unwrap();
        overrides.note_route("/own/{id}");
        Response::builder().header("set-cookie", "session=secret").body(text("")).unwrap()
    });
    origin.get("/own/1").await;
    let now = explain_at(&larder, "/own/1", itself).await;
    assert_eq!(words(&now), ("alone", Some("uri-miss"), Some("set-cookie")));
    assert_eq!(now.decision.cause.as_deref(), Some("set-cookie: session"));
    assert_eq!(now.decision.changes_in_seconds, Some(10), "then the refusal is forgotten");
    assert!(now.decision.reason.unwrap().remedy.unwrap().contains("another route"));

    tokio::time::advance(100 * MINUTE).await;
    let later = explain_at(&larder, "/own/2", itself).await;
    assert_eq!(words(&later), ("fill", Some("uri-miss"), None));
    let last = later.last_refusal.unwrap();
    assert_eq!((last.reason.word, last.seconds_ago), ("set-cookie", 6_000));
    assert_eq!(last.cause.as_deref(), Some("set-cookie: session"));
}

#[tokio::test(start_paused = true)]
async fn a_bypass_and_a_withheld_response_name_their_cause() {
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder)
        .ttl(MINUTE)
        .bypass_if(|_| false)
        .bypass_if(|head| head.uri.path() == "/by-choice");
    let origin = Origin::new(layer, |_, _| Response::new(text("")));
    origin.get("/").await;
    let cause = |explanation: Explanation| explanation.decision.cause.unwrap_or_default();
    assert_eq!(cause(explain_at(&larder, "/by-choice", itself).await), "bypass_if number 2");
    assert_eq!(cause(explain(&larder, with("if-match", "\"a\"")).await), "if-match");
    let signed_in = explain(&larder, with("authorization", "Bearer a-secret")).await;
    assert_eq!(words(&signed_in), ("fill", Some("uri-miss"), Some("identified")));
    assert!(!format!("{signed_in:?}").contains("a-secret"));
    assert_eq!(cause(signed_in), "authorization");
    let unknown = explain(&larder, with("x-experiment", "b")).await;
    assert_eq!(
        (words(&unknown).2, &*cause(unknown.clone())),
        (Some("unknown-field"), "x-experiment")
    );
}

/// The variant that was used least recently goes first, and an explanation is no use.
#[tokio::test(start_paused = true)]
async fn explaining_a_variant_does_not_make_it_used() {
    let larder = larder();
    let origin = Origin::new(ResponseCacheLayer::new(&larder).max_variants(2), |_, call| {
        let response = Response::builder().header("vary", "accept-language");
        response.header("cache-control", "max-age=600").body(text(call.to_string())).unwrap()
    });
    let get = async |language: &'static str| {
        let answer = origin.send(request("/").header("accept-language", language)).await;
        drop(answer.into_body().collect().await);
    };
    get("de").await;
    get("fr").await;
    let german = explain(&larder, with("accept-language", "de")).await;
    assert_eq!(words(&german).0, "hit");
    get("it").await;
    let outcome = async |language| {
        words(&explain(&larder, with("accept-language", language)).await).0.to_owned()
    };
    assert_eq!((outcome("de").await, outcome("fr").await), ("fill".into(), "hit".into()));
}

/// A cookie in the key of a variant is a credential.
#[tokio::test(start_paused = true)]
async fn the_value_of_a_cookie_that_selects_a_variant_is_hashed() {
    let larder = larder();
    let origin = Origin::new(ResponseCacheLayer::new(&larder), |_, _| {
        let response = Response::builder().header("vary", "cookie, accept-language");
        response.header("cache-control", "public, max-age=60").body(text("")).unwrap()
    });
    let sent = request("/").header("cookie", "session=a-secret").header("accept-language", "de");
    drop(origin.send(sent).await.into_body().collect().await);
    let all = larder.kernel().scan(10, MINUTE, |_| true).entries;
    let explained = |shown| {
        format!(
            "{:?}",
            all.iter().map(|it| larder.kernel().explain_entry(it, shown)).collect::<Vec<_>>()
        )
    };
    let hashed = explained(larder_core::kernel::Partitions::Hashed);
    assert!(!hashed.contains("a-secret") && hashed.contains("=de"), "{hashed}");
    assert!(explained(larder_core::kernel::Partitions::Shown).contains("a-secret"));
}

/// axum makes the services of a layer anew for each connection: what one has learnt, the others know.
#[tokio::test(start_paused = true)]
async fn services_of_one_layer_share_their_routes_and_are_explained_once() {
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder).ttl(MINUTE).bypass_if(|_| false);
    let other = ResponseCacheLayer::new(&larder).ttl(MINUTE).bypass_if(|_| true);
    let page = |request: Request<Empty<Bytes>>, _: usize| {
        if let Some(overrides) = request.extensions().get::<ResponseOverrides>() {
            overrides.note_route("/products/{id}");
        }
        Response::new(text(""))
    };
    let first = Origin::new(layer.clone(), page);
    first.get("/products/1").await;
    let alive: Vec<_> = (0..100).map(|_| Origin::new(layer.clone(), page)).collect();
    let _other = Origin::new(other, page);
    drop(first);
    let explained = explain_at(&larder, "/products/1", itself).await;
    assert_eq!((explained.route.as_deref(), words(&explained).0), (Some("/products/{id}"), "hit"));
    drop(alive);
    let none = ExplainRequest::get(&format!("{URL}/products/1")).unwrap().explain(&larder).await;
    assert_eq!(none.len(), 1, "only the other layer is left: {none:?}");
}

#[test]
fn a_request_that_is_no_request_is_refused_with_what_is_allowed() {
    for (method, url) in [("GET", "/products/42"), ("GET", "not a url"), ("B\u{e4}D", URL)] {
        let error = ExplainRequest::new(method, url).unwrap_err().to_string();
        assert!(error.contains("allowed is"), "{error}");
    }
    assert!(ExplainRequest::get(URL).unwrap().header("a b", "c").is_err());
}
