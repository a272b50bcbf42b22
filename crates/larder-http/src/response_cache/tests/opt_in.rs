//! A response whose lifetime comes from the layer alone is stored under all request fields that may have selected it.

use super::*;

/// Answers with the value of a request field as body, and with these response fields.
fn reflecting(
    name: &'static str,
    fields: &'static [(&'static str, &'static str)],
) -> impl Fn(Request<Empty<Bytes>>, usize) -> Response<TestBody> + Clone + Send {
    move |request, _| {
        let mut response = Response::builder();
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let value = request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        response.body(text(value.unwrap_or_else(|| "none".to_owned()))).unwrap()
    }
}

async fn ask(origin: &Origin, fields: &[(&str, &str)]) -> (String, String) {
    let mut ask = request("/");
    for (name, value) in fields {
        ask = ask.header(*name, *value);
    }
    read(origin.send(ask).await).await
}

#[tokio::test]
async fn no_field_of_one_request_affects_the_response_to_another() {
    // A field, and whether responses to requests that have it are stored.
    let rows = [
        ("wastebin-password", false),
        ("x-theme", false),
        ("x-tenant", false),
        ("x-experiment", false),
        ("accept", true),
        ("accept-language", true),
        ("hx-request", true),
        ("turbo-frame", true),
        ("x-requested-with", true),
        ("origin", true),
        ("save-data", true),
    ];
    for (name, is_stored) in rows {
        let origin = Origin::new(layer(&larder()), reflecting(name, &[]));
        for _ in 0..2 {
            for value in ["one", "two"] {
                assert_eq!(ask(&origin, &[(name, value)]).await.1, value, "{name}");
            }
            assert_eq!(ask(&origin, &[]).await.1, "none", "{name}");
        }
        let (status, _) = ask(&origin, &[(name, "one")]).await;
        assert_eq!(status.contains("; hit"), is_stored, "{name}: {status}");
        assert!(ask(&origin, &[]).await.0.contains("; hit"), "{name}");
    }
}

#[tokio::test]
async fn an_unknown_field_is_the_reason_of_a_bypass() {
    let origin = Origin::new(layer(&larder()), reflecting("x-theme", &[]));
    for _ in 0..3 {
        let (status, _) = ask(&origin, &[("x-theme", "dark")]).await;
        assert_eq!(status, "larder; fwd=bypass; detail=unknown-field");
    }
    ask(&origin, &[]).await;
    let (status, _) = ask(&origin, &[("x-theme", "dark")]).await;
    assert_eq!(status, "larder; fwd=bypass; detail=unknown-field");
    let (status, _) = ask(&origin, &[("x-my-password", "dark")]).await;
    assert!(status.contains("detail=identified"), "{status}");
}

#[tokio::test]
async fn harmless_fields_do_not_prevent_a_hit() {
    let origin = Origin::new(layer(&larder()), numbered);
    ask(&origin, &[]).await;
    for field in [
        "user-agent",
        "accept-encoding",
        "referer",
        "sec-fetch-mode",
        "sec-ch-ua",
        "traceparent",
        "x-request-id",
        "cf-ray",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "priority",
        "dnt",
    ] {
        let (status, text) = ask(&origin, &[(field, "x")]).await;
        assert!(status.contains("; hit"), "{field}: {status}");
        assert_eq!(text, "answer 1");
    }
}

#[tokio::test]
async fn an_opted_in_response_answers_requests_with_other_fields() {
    type Opt = fn(&ResponseOverrides);
    type Fields = &'static [(&'static str, &'static str)];
    let rows: [(&str, Fields, Opt, bool); 7] = [
        ("not opted in", &[], |_| {}, false),
        ("a tag is no promise", &[], |choices| _ = choices.tag("t"), false),
        ("its own lifetime", &[("cache-control", "max-age=60")], |_| {}, true),
        ("Expires", &[("expires", "Fri, 01 Jan 2100 00:00:00 GMT")], |_| {}, true),
        ("public", &[("cache-control", "public")], |_| {}, true),
        ("the policy", &[], |choices| _ = choices.ttl(MINUTE), true),
        ("the policy, for all", &[], |choices| _ = choices.public(), true),
    ];
    for (what, fields, opt, shared) in rows {
        let reflect = reflecting("x-theme", fields);
        let origin = Origin::new(layer(&larder()), move |request, call| {
            opt(request.extensions().get::<ResponseOverrides>().unwrap());
            reflect(request, call)
        });
        let first = ask(&origin, &[("x-theme", "dark")]).await.1;
        let second = ask(&origin, &[("x-theme", "light"), ("accept", "text/html")]).await;
        assert_eq!(first, "dark");
        assert_eq!(second.0.contains("; hit"), shared, "{what}: {second:?}");
    }
}

#[tokio::test]
async fn layer_options_declare_fields_harmless() {
    let theme = HeaderName::from_static("x-theme");
    let rows: [(&str, ResponseCacheLayer, bool); 4] = [
        ("nothing said", layer(&larder()), false),
        ("all", layer(&larder()).depends_on_url_alone(), true),
        ("harmless", layer(&larder()).harmless_field(theme.clone()), true),
        ("by the letter", layer(&larder()).conformance(), true),
    ];
    for (what, layer, shared) in rows {
        let origin = Origin::new(layer, numbered);
        ask(&origin, &[]).await;
        let (status, _) = ask(&origin, &[("x-theme", "dark")]).await;
        assert_eq!(status.contains("; hit"), shared, "{what}: {status}");
    }
    let origin = Origin::new(layer(&larder()).vary_by_header(theme), reflecting("x-theme", &[]));
    for _ in 0..2 {
        for theme in ["dark", "light"] {
            assert_eq!(ask(&origin, &[("x-theme", theme)]).await.1, theme);
        }
    }
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn vary_of_the_response_names_its_selecting_fields() {
    let fields = &[("vary", "accept-language")];
    let origin = Origin::new(layer(&larder()), reflecting("accept-language", fields));
    ask(&origin, &[("accept-language", "de"), ("accept", "a/b")]).await;
    let (status, text) = ask(&origin, &[("accept-language", "de"), ("accept", "c/d")]).await;
    assert!(status.contains("; hit"), "{status}");
    assert_eq!(text, "de");
    let (status, _) = ask(&origin, &[("accept-language", "de"), ("x-theme", "dark")]).await;
    assert_eq!(status, "larder; fwd=bypass; detail=unknown-field");
}

#[tokio::test]
async fn variants_of_a_field_are_bounded() {
    let larder = larder();
    let origin = Origin::new(layer(&larder).max_variants(4), numbered);
    for language in 0..100 {
        ask(&origin, &[("accept-language", &format!("l{language}"))]).await;
    }
    assert_eq!(origin.calls(), 100);
    let entries = larder.stats().memory.entries;
    assert!(entries <= 4 + 1, "{entries}");
}

#[tokio::test]
async fn waiters_with_another_field_value_get_their_own_response() {
    let go = Arc::new(Notify::new());
    let origin = {
        let go = go.clone();
        let reflect = reflecting("accept-language", &[]);
        Origin::asynchronous(layer(&larder()), move |request, call| {
            let (go, reflect) = (go.clone(), reflect.clone());
            async move {
                if call == 1 {
                    go.notified().await;
                }
                reflect(request, call)
            }
        })
    };
    let ask = |language: &'static str| {
        let answer = origin.send(request("/").header("accept-language", language));
        tokio::spawn(async move { read(answer.await).await.1 })
    };
    let (first, second, third) = (ask("de"), ask("en"), ask("de"));
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(first.await.unwrap(), "de");
    assert_eq!(second.await.unwrap(), "en");
    assert_eq!(third.await.unwrap(), "de");
    assert_eq!(origin.calls(), 2, "one for each language");
}
