//! Each input of the key that a downstream cache can see is named in `Vary`; an input that it cannot see makes the
//! response private.

use super::*;

const REGION: HeaderName = HeaderName::from_static("x-region");

fn lines(response: &Response<CacheBody<TestBody>>, name: &HeaderName) -> Vec<String> {
    let lines = response.headers().get_all(name).iter();
    lines.map(|line| line.to_str().unwrap().to_owned()).collect()
}

fn device(layer: ResponseCacheLayer) -> ResponseCacheLayer {
    layer.vary_by("device", [header::USER_AGENT], |head| {
        let agent = head.headers.get(header::USER_AGENT);
        agent.is_some_and(|agent| agent.as_bytes().ends_with(b"Mobile")).to_string()
    })
}

#[tokio::test]
async fn vary_names_the_key_fields_in_every_kind_of_answer() {
    type Configure = fn(ResponseCacheLayer) -> ResponseCacheLayer;
    let rows: [(Configure, &[&str]); 4] = [
        (|layer| layer.vary_by_header(REGION).cdn_cache_control("max-age=60"), &["x-region"]),
        (device, &["user-agent"]),
        (|layer| device(layer).vary_by_header(REGION), &["user-agent, x-region"]),
        (|layer| layer.cdn_cache_control("max-age=60"), &[]),
    ];
    for (configure, expected) in rows {
        let layer = configure(layer(&larder())).depends_on_url_alone();
        let origin = Origin::new(layer, |request, call| {
            let mut response = numbered(request, call);
            response
                .headers_mut()
                .insert("last-modified", "Thu, 01 Jan 1970 00:00:00 GMT".parse().unwrap());
            response
        });
        for way in ["miss", "hit"] {
            let answer = origin.send(request("/")).await;
            assert_eq!(lines(&answer, &header::VARY), expected, "{way}");
        }
        let etag = origin.send(request("/")).await.headers()[header::ETAG].clone();
        let ways = [
            ("304", request("/").header("if-none-match", etag)),
            ("206", request("/").header("range", "bytes=0-1")),
            ("416", request("/").header("range", "bytes=99-")),
            ("HEAD", request("/").method(Method::HEAD)),
            ("bypass", request("/").header("cache-control", "no-store")),
        ];
        for (way, ask) in ways {
            let answer = origin.send(ask).await;
            assert_eq!(lines(&answer, &header::VARY), expected, "{way}");
        }
    }
}

#[tokio::test]
async fn key_fields_in_vary_add_no_variants() {
    let origin = Origin::new(device(layer(&larder())), |request, call| {
        let mut response = numbered(request, call);
        response.headers_mut().append(header::VARY, "accept-language".parse().unwrap());
        response
    });
    let ask = |agent: &'static str, language: &'static str| {
        origin.send(request("/").header("user-agent", agent).header("accept-language", language))
    };
    for (agent, language, calls) in [
        ("a", "de", 1),
        ("b", "de", 1),
        ("a", "en", 2),
        ("b", "en", 2),
        ("c Mobile", "de", 3),
        ("d Mobile", "de", 3),
    ] {
        let answer = ask(agent, language).await;
        assert_eq!(lines(&answer, &header::VARY), ["accept-language", "user-agent"]);
        assert_eq!(origin.calls(), calls, "{agent} {language}");
    }
}

#[tokio::test]
async fn an_input_that_no_downstream_cache_can_see_makes_the_response_private() {
    let layer = layer(&larder()).cdn_cache_control("max-age=60").vary_by("theme", [], |_| "dark");
    let origin = Origin::new(layer, with(&[("cache-control", "public, max-age=60")]));
    for _ in 0..2 {
        let answer = origin.send(request("/")).await;
        assert_eq!(lines(&answer, &header::CACHE_CONTROL), ["private, max-age=60"]);
        assert!(!answer.headers().contains_key("cdn-cache-control"));
    }
}

#[tokio::test]
async fn coalesced_readers_get_the_vary_of_the_key() {
    let (frames, body) = mpsc::channel(4);
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let origin = Origin::new(layer(&larder()).vary_by_header(REGION), move |_, _| {
        let body = body.lock().take().expect("one request reaches the origin");
        Response::builder().header("content-length", "4").body(stream(body)).unwrap()
    });
    frames.send(Ok(Frame::data("te".into()))).await.unwrap();
    let leader = origin.send(request("/")).await;
    let waiter = origin.send(request("/")).await;
    for (who, answer) in [("leader", &leader), ("waiter", &waiter)] {
        assert_eq!(lines(answer, &header::VARY), ["x-region"], "{who}");
    }
    frames.send(Ok(Frame::data("xt".into()))).await.unwrap();
    drop(frames);
    assert_eq!(read(leader).await.1, read(waiter).await.1);
}

#[test]
fn an_invalid_field_value_is_refused_by_the_setter() {
    for text in ["max-age=60\nx", "max-age=60\r\nset-cookie: a", "täglich", "\u{0}"] {
        for refused in [
            std::panic::catch_unwind(|| drop(layer(&larder()).browser_cache_control(text))),
            std::panic::catch_unwind(|| drop(layer(&larder()).cdn_cache_control(text))),
        ] {
            let panic = *refused.unwrap_err().downcast::<String>().unwrap();
            assert!(panic.contains(&format!("{text:?}")), "{panic}");
        }
    }
}

#[tokio::test]
async fn an_invalid_field_value_from_a_handler_becomes_no_store() {
    let origin = Origin::new(layer(&larder()), |request, call| {
        let choices = request.extensions().get::<ResponseOverrides>().unwrap();
        choices.browser_cache_control("max-age=60\nx").cdn_cache_control("max-age=60\nx");
        numbered(request, call)
    });
    for _ in 0..2 {
        let answer = origin.send(request("/")).await;
        assert_eq!(lines(&answer, &header::CACHE_CONTROL), ["no-store"]);
        assert_eq!(answer.headers()["cdn-cache-control"], "no-store");
    }
}
