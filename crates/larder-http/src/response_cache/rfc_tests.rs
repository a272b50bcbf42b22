//! Tests of conformance with the RFCs. They are scripts of requests, with the request that the origin gets, its answer,
//! and the response that the client gets. Each script names its section.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use larder_core::Larder;
use parking_lot::Mutex;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};

use super::ResponseCacheLayer;
use crate::CacheBody;

type Fields = Vec<(&'static str, &'static str)>;
type TestBody = UnsyncBoxBody<Bytes, io::Error>;
type Layered = BoxCloneService<Request<Empty<Bytes>>, Response<CacheBody<TestBody>>, Infallible>;

/// One request of a script.
#[derive(Clone, Debug)]
struct Step {
    query: &'static str,
    wait: u64,
    method: Method,
    fields: Fields,
    origin: Option<(u16, Fields, &'static str)>,
    saw: Vec<(&'static str, Option<&'static str>)>,
    gets: (u16, &'static str),
    with: Fields,
    says: Option<&'static str>,
}

fn ask(fields: &[(&'static str, &'static str)]) -> Step {
    Step {
        query: "",
        wait: 0,
        method: Method::GET,
        fields: fields.to_vec(),
        origin: None,
        saw: Vec::new(),
        gets: (200, ""),
        with: Vec::new(),
        says: None,
    }
}

/// A plain request, this many seconds after the previous one.
fn after(seconds: u64) -> Step {
    Step { wait: seconds, ..ask(&[]) }
}

impl Step {
    fn of(self, query: &'static str) -> Self {
        Self { query, ..self }
    }

    fn head(self) -> Self {
        Self { method: Method::HEAD, ..self }
    }

    fn asking(self, fields: &[(&'static str, &'static str)]) -> Self {
        Self { fields: fields.to_vec(), ..self }
    }

    /// The origin is called and sends this answer.
    fn origin(
        self,
        status: u16,
        fields: &[(&'static str, &'static str)],
        body: &'static str,
    ) -> Self {
        Self { origin: Some((status, fields.to_vec(), body)), gets: (status, body), ..self }
    }

    /// The request that reached the origin had this field with this value, or did not have it.
    fn saw(mut self, name: &'static str, value: impl Into<Option<&'static str>>) -> Self {
        self.saw.push((name, value.into()));
        self
    }

    fn gets(self, status: u16, body: &'static str) -> Self {
        Self { gets: (status, body), ..self }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.with.push((name, value));
        self
    }

    /// The `Cache-Status` line contains this text.
    fn says(self, word: &'static str) -> Self {
        Self { says: Some(word), ..self }
    }
}

#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<(u16, Fields, &'static str)>>,
    seen: Mutex<Vec<HeaderMap>>,
}

fn headers(fields: &Fields) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

fn answer(script: &Script, request: &Request<Empty<Bytes>>) -> Response<TestBody> {
    script.seen.lock().push(request.headers().clone());
    let next = script.answers.lock().pop_front();
    let (status, fields, body) = next.unwrap_or((599, Vec::new(), "the origin must not be called"));
    let body = if request.method() == Method::HEAD { "" } else { body };
    let body = Full::from(body).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    *response.headers_mut() = headers(&fields);
    response
}

type Changes = fn(ResponseCacheLayer) -> ResponseCacheLayer;

/// Runs a script against a layer of its own.
async fn run(name: &str, change: Changes, steps: &[Step]) {
    let larder = Larder::builder().tag_table_slots(1 << 12).build().unwrap();
    let script = Arc::new(Script::default());
    let inner = service_fn({
        let script = Arc::clone(&script);
        move |request| {
            let response = answer(&script, &request);
            async move { Ok::<_, Infallible>(response) }
        }
    });
    let layer = change(ResponseCacheLayer::new(&larder));
    let service: Layered = BoxCloneService::new(layer.layer(inner));
    for (at, step) in steps.iter().enumerate() {
        tokio::time::sleep(Duration::from_secs(step.wait)).await;
        // Background refreshes have ended.
        assert!(larder.close(Duration::from_secs(1)).await);
        let place = format!("{name}, step {}", at + 1);
        script.answers.lock().extend(step.origin.clone());
        let uri = format!("/a{}", step.query);
        let mut request = Request::builder().method(&step.method).uri(uri);
        request.headers_mut().unwrap().extend(headers(&step.fields));
        let asked = request.header("host", "a.example").body(Empty::new()).unwrap();
        let response = service.clone().oneshot(asked).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let (status, text) = step.gets;
        let text = if step.method == Method::HEAD { "" } else { text };
        let said = head.headers.get(header::CACHE_STATUS).map(|said| said.to_str().unwrap());
        assert_eq!(
            (head.status.as_u16(), &body[..]),
            (status, text.as_bytes()),
            "{place}: {said:?}"
        );
        assert!(larder.close(Duration::from_secs(1)).await);
        assert!(script.answers.lock().is_empty(), "{place}: the origin was not called: {said:?}");
        for (field, expected) in &step.with {
            let found = head.headers.get_all(*field).iter().map(|value| value.to_str().unwrap());
            assert_eq!(found.collect::<Vec<_>>().join(", "), *expected, "{place}: {field}");
        }
        if let Some(word) = step.says {
            assert!(said.is_some_and(|said| said.contains(word)), "{place}: {said:?}");
        }
        let seen = script.seen.lock().last().cloned();
        for (field, expected) in &step.saw {
            let found = seen.as_ref().and_then(|seen| seen.get(*field)).cloned();
            let found = found.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(found, *expected, "{place}: {field} of the request");
        }
    }
}

const BOTH: [(&str, Changes); 2] =
    [("careful", |layer| layer), ("conformance", ResponseCacheLayer::conformance)];

async fn run_both(name: &str, steps: &[Step]) {
    for (profile, change) in BOTH {
        run(&format!("{name} ({profile})"), change, steps).await;
    }
}

const A: (&str, &str) = ("etag", "\"a\"");
const B: (&str, &str) = ("etag", "\"b\"");
const MINUTE: (&str, &str) = ("cache-control", "max-age=60");
const NO_CACHE: (&str, &str) = ("cache-control", "no-cache");
const PAST: (&str, &str) = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");

#[tokio::test(start_paused = true)]
async fn stale_responses_are_validated() {
    let renewed = ask(&[]).gets(200, "one").says("hit");
    run_both(
        "RFC 9111 4.3.1, 4.3.3: a 304 freshens, by tag",
        &[
            ask(&[]).origin(200, &[A, MINUTE, ("x", "old")], "one"),
            after(61)
                .origin(304, &[A, MINUTE, ("x", "new")], "")
                .saw("if-none-match", "\"a\"")
                .gets(200, "one")
                .with("x", "new")
                .says("fwd=stale; fwd-status=304; stored"),
            renewed.clone().with("x", "new"),
            after(59).gets(200, "one").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.1: by date",
        &[
            ask(&[]).origin(200, &[PAST, MINUTE], "one"),
            after(61).origin(304, &[], "").saw("if-modified-since", PAST.1).gets(200, "one"),
            renewed.clone(),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.3: a full response replaces",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            after(61).origin(200, &[B, MINUTE], "two").saw("if-none-match", "\"a\""),
            ask(&[]).gets(200, "two").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 5.2.2.4: no-cache is kept, and validated each time",
        &[
            ask(&[]).origin(200, &[A, NO_CACHE], "one"),
            ask(&[]).origin(304, &[A], "").saw("if-none-match", "\"a\"").gets(200, "one"),
            ask(&[]).origin(200, &[B, NO_CACHE], "two").saw("if-none-match", "\"a\""),
            ask(&[]).origin(304, &[B], "").saw("if-none-match", "\"b\"").gets(200, "two"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.3: a 304 that makes the response not storable",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            after(61).origin(304, &[("cache-control", "no-store")], "").gets(200, "one"),
            ask(&[]).origin(200, &[], "two").saw("if-none-match", None),
        ],
    )
    .await;
    run_both(
        "RFC 9111 5.2.1.4: a client that demands it has a fresh one validated",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            ask(&[NO_CACHE]).origin(304, &[A], "").saw("if-none-match", "\"a\"").gets(200, "one"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.1: the date of one variant is not sent for another",
        &[
            ask(&[("accept-language", "en")]).origin(
                200,
                &[PAST, MINUTE, ("vary", "accept-language")],
                "english",
            ),
            ask(&[("accept-language", "fr")])
                .origin(200, &[PAST, MINUTE, ("vary", "accept-language")], "français")
                .saw("if-modified-since", None)
                .saw("if-none-match", None),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.4: a 304 with another tag answers its condition, and updates nothing",
        &[
            ask(&[]).origin(200, &[A, NO_CACHE], "one"),
            ask(&[]).origin(304, &[B], "").gets(200, "one").says("revalidation"),
            ask(&[]).origin(200, &[B, NO_CACHE], "two").saw("if-none-match", None),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.2: without Last-Modified, Date",
        &[
            ask(&[]).origin(200, &[MINUTE, ("date", "Sun, 06 Nov 2044 08:49:37 GMT")], "one"),
            ask(&[("if-modified-since", "Sun, 06 Nov 2044 08:49:37 GMT")]).gets(304, ""),
        ],
    )
    .await;
    run_both(
        "an authenticated request does not remove a stored response",
        &[
            ask(&[]).origin(200, &[MINUTE], "one"),
            ask(&[("authorization", "x"), NO_CACHE]).origin(200, &[MINUTE], "two"),
            ask(&[]).gets(200, "one").says("hit"),
        ],
    )
    .await;
    run_both(
        "an error does not stand in for an error",
        &[
            ask(&[]).origin(503, &[("cache-control", "max-age=2, stale-if-error=60")], "one"),
            after(3).origin(503, &[], "two"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.4: a 304 with another tag freshens nothing, and the old tag is not sent again",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            after(61).origin(304, &[B, MINUTE], "").gets(200, "one").says("revalidation"),
            ask(&[]).origin(200, &[B, MINUTE], "two").saw("if-none-match", None),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn variants_are_validated_together() {
    let vary = ("vary", "accept-language");
    run_both(
        "RFC 9111 4.3.1: the tag of the variant that was used last is sent; 4.3.4: it is selected",
        &[
            ask(&[("accept-language", "de")]).origin(200, &[A, MINUTE, vary], "deutsch"),
            ask(&[("accept-language", "en")])
                .origin(200, &[B, MINUTE, vary], "english")
                .saw("if-none-match", "\"a\"")
                .says("fwd=vary-miss"),
            ask(&[("accept-language", "en-GB")])
                .origin(304, &[B, MINUTE, vary], "")
                .saw("if-none-match", "\"b\"")
                .gets(200, "english"),
            ask(&[("accept-language", "en-GB")]).gets(200, "english").says("hit"),
            ask(&[("accept-language", "DE ; q=1.0")]).gets(200, "deutsch").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.4: a 304 without a tag freshens the validated variant; others stay",
        &[
            ask(&[("accept-language", "de")]).origin(200, &[A, MINUTE, vary], "deutsch"),
            after(50).asking(&[("accept-language", "en")]).origin(
                200,
                &[B, MINUTE, vary],
                "english",
            ),
            after(11)
                .asking(&[("accept-language", "de")])
                .origin(304, &[MINUTE], "")
                .saw("if-none-match", "\"a\"")
                .gets(200, "deutsch"),
            ask(&[("accept-language", "en")]).gets(200, "english").says("hit"),
            ask(&[("accept-language", "de")]).gets(200, "deutsch").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.4: a 304 with an unknown tag is no error, and unrelated variants stay",
        &[
            ask(&[("accept-language", "en")]).origin(200, &[B, MINUTE, vary], "english"),
            ask(&[("accept-language", "de")]).origin(
                200,
                &[("etag", "\"a-gzip\""), NO_CACHE, vary],
                "deutsch",
            ),
            ask(&[("accept-language", "de")])
                .origin(304, &[A, NO_CACHE, vary], "")
                .saw("if-none-match", "\"a-gzip\"")
                .gets(200, "deutsch"),
            ask(&[("accept-language", "de")])
                .origin(200, &[("etag", "\"a-gzip\""), NO_CACHE, vary], "neu")
                .saw("if-none-match", "\"b\""),
            ask(&[("accept-language", "de")])
                .origin(304, &[A, NO_CACHE, vary], "")
                .gets(200, "neu"),
            ask(&[("accept-language", "en")]).gets(200, "english").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.1: a response without Vary does not take the place of variants",
        &[
            ask(&[("accept-language", "de")]).origin(200, &[A, MINUTE, vary], "deutsch"),
            ask(&[]).origin(200, &[B, MINUTE], "default"),
            ask(&[("accept-language", "de")]).gets(200, "deutsch").says("hit"),
            ask(&[("accept-language", "fr")]).gets(200, "default").says("hit"),
            ask(&[("accept-language", "fr"), NO_CACHE]).origin(
                200,
                &[("etag", "\"c\""), MINUTE, vary],
                "français",
            ),
            ask(&[("accept-language", "fr")]).gets(200, "français").says("hit"),
            ask(&[("accept-language", "de")]).gets(200, "deutsch").says("hit"),
            ask(&[]).gets(200, "default").says("hit"),
            after(61).origin(200, &[B, MINUTE], "anew").saw("if-none-match", "\"b\""),
            ask(&[("accept-language", "es")]).gets(200, "anew").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.1: nor where it came first",
        &[
            ask(&[]).origin(200, &[B, MINUTE], "default"),
            ask(&[("accept-language", "de"), NO_CACHE]).origin(200, &[A, MINUTE, vary], "deutsch"),
            ask(&[]).origin(200, &[B, MINUTE], "default"),
            ask(&[("accept-language", "de")]).gets(200, "deutsch").says("hit"),
            ask(&[]).gets(200, "default").says("hit"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_content_digest_is_sent_only_with_the_content_that_it_is_of() {
    let digest = ("content-digest", "sha-256=:AA==:");
    let other = ("content-digest", "sha-256=:BB==:");
    let whole = ("repr-digest", "sha-256=:CC==:");
    run_both(
        "RFC 9530 2",
        &[
            ask(&[]).origin(200, &[A, MINUTE, digest, whole], "0123456789"),
            ask(&[]).gets(200, "0123456789").with("content-digest", digest.1).says("hit"),
            ask(&[]).head().gets(200, "").with("content-digest", "").with("repr-digest", whole.1),
            ask(&[("range", "bytes=0-1")]).gets(206, "01").with("content-digest", ""),
            ask(&[("if-none-match", "\"a\"")]).gets(304, "").with("content-digest", ""),
            after(61)
                .origin(304, &[A, MINUTE, other], "")
                .gets(200, "0123456789")
                .with("content-digest", digest.1),
        ],
    )
    .await;
    run_both(
        "RFC 9530 2: combined partial responses have no digest",
        &[
            ask(&[("range", "bytes=0-4")]).origin(
                206,
                &[A, MINUTE, digest, ("content-range", "bytes 0-4/10")],
                "01234",
            ),
            ask(&[("range", "bytes=0-4")]).gets(206, "01234").with("content-digest", digest.1),
            ask(&[("range", "bytes=0-3")]).gets(206, "0123").with("content-digest", ""),
            ask(&[("range", "bytes=5-9")]).origin(
                206,
                &[A, MINUTE, other, ("content-range", "bytes 5-9/10")],
                "56789",
            ),
            ask(&[]).gets(200, "0123456789").with("content-digest", "").says("hit"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn conditional_requests_are_answered_from_stored_responses() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    run_both(
        "RFC 9111 4.3.2",
        &[
            ask(&[("if-none-match", "\"a\"")])
                .origin(200, &[A, MINUTE, PAST, ("vary", "x")], "one")
                .saw("if-none-match", None)
                .gets(304, "")
                .with("etag", "\"a\"")
                .with("cache-control", "max-age=60")
                .with("vary", "x"),
            ask(&[("if-none-match", "\"x\", W/\"a\"")]).gets(304, "").says("hit"),
            ask(&[("if-none-match", "*")]).gets(304, ""),
            ask(&[("if-none-match", "\"b\""), ("if-modified-since", date)]).gets(200, "one"),
            ask(&[("if-modified-since", date)]).gets(304, ""),
            ask(&[("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT")]).gets(200, "one"),
            ask(&[("if-none-match", "\"a\"")]).head().gets(304, ""),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.2: If-Match is for the origin alone",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            ask(&[("if-match", "\"b\"")]).origin(412, &[], "").saw("if-match", "\"b\""),
            ask(&[]).gets(200, "one").says("hit"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn ranges_are_served_from_stored_responses() {
    run_both(
        "RFC 9110 14.2: of a whole response",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "0123456789"),
            ask(&[("range", "bytes=2-4")])
                .gets(206, "234")
                .with("content-range", "bytes 2-4/10")
                .with("content-length", "3")
                .says("hit"),
            ask(&[("range", "bytes=-2")]).gets(206, "89"),
            ask(&[("range", "bytes=8-")]).gets(206, "89"),
            ask(&[("range", "bytes=99-")]).gets(416, "").with("content-range", "bytes */10"),
            ask(&[("range", "bytes=2-4"), ("if-range", "\"b\"")]).gets(200, "0123456789"),
            ask(&[("range", "bytes=2-4"), ("if-none-match", "\"a\"")]).gets(304, ""),
            ask(&[("range", "bytes=2-4")]).head().gets(200, ""),
        ],
    )
    .await;
    let part = |range, body| {
        ask(&[("range", range)]).origin(206, &[A, MINUTE, ("content-range", body)], "01234")
    };
    run_both(
        "RFC 9111 3.3, 3.4: a part is kept, serves parts of it, and becomes whole",
        &[
            part("bytes=0-4", "bytes 0-4/10").saw("range", "bytes=0-4"),
            ask(&[("range", "bytes=1-3")])
                .gets(206, "123")
                .with("content-range", "bytes 1-3/10")
                .says("hit"),
            ask(&[("range", "bytes=5-9")])
                .origin(206, &[A, MINUTE, ("content-range", "bytes 5-9/10")], "56789")
                .saw("range", "bytes=5-9"),
            ask(&[]).gets(200, "0123456789").says("hit"),
        ],
    )
    .await;
    const TEXT: (&str, &str) = ("content-type", "text/plain");
    run_both(
        "RFC 9110 15.3.7: fields that a 206 leaves out stay as they are in the whole",
        &[
            ask(&[("range", "bytes=0-4")]).origin(
                206,
                &[A, MINUTE, TEXT, ("content-range", "bytes 0-4/10")],
                "01234",
            ),
            ask(&[("range", "bytes=5-9"), ("if-range", "\"a\"")]).origin(
                206,
                &[A, MINUTE, ("content-range", "bytes 5-9/10")],
                "56789",
            ),
            ask(&[]).gets(200, "0123456789").with("content-type", "text/plain").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9110 13.2.2: the precondition comes first, also for a 206 from the origin",
        &[ask(&[("range", "bytes=0-4"), ("if-none-match", "\"a\"")])
            .origin(206, &[A, MINUTE, ("content-range", "bytes 0-4/10")], "01234")
            .gets(304, "")],
    )
    .await;
    run_both(
        "RFC 9111 3.4: parts of two representations are never put together",
        &[
            part("bytes=0-4", "bytes 0-4/10"),
            ask(&[("range", "bytes=5-9")]).origin(
                206,
                &[B, MINUTE, ("content-range", "bytes 5-9/10")],
                "fghij",
            ),
            ask(&[]).origin(200, &[B, MINUTE], "abcdefghij"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 3.4: parts under a weak tag are kept, and never put together",
        &[
            ask(&[("range", "bytes=0-4")]).origin(
                206,
                &[("etag", "W/\"a\""), MINUTE, ("content-range", "bytes 0-4/10")],
                "01234",
            ),
            ask(&[("range", "bytes=1-2")]).gets(206, "12").says("hit"),
            ask(&[("range", "bytes=5-9")]).origin(
                206,
                &[("etag", "W/\"a\""), MINUTE, ("content-range", "bytes 5-9/10")],
                "56789",
            ),
            ask(&[]).origin(200, &[A, MINUTE], "0123456789"),
        ],
    )
    .await;
    run_both(
        "an error of a range is not one of the whole",
        &[
            ask(&[("range", "bytes=99-")]).origin(416, &[MINUTE], ""),
            ask(&[]).origin(200, &[A, MINUTE], "0123456789"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_is_served_if_that_is_allowed() {
    let revalidate = ("cache-control", "max-age=60, must-revalidate");
    run_both(
        "RFC 9111 5.2.1.2: max-stale",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            after(70).asking(&[("cache-control", "max-stale=20")]).gets(200, "one").says("ttl=-10"),
            after(20)
                .asking(&[("cache-control", "max-stale=20")])
                .origin(304, &[A], "")
                .gets(200, "one"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 5.2.2.2: must-revalidate forbids it",
        &[
            ask(&[]).origin(200, &[A, revalidate], "one"),
            after(70).asking(&[("cache-control", "max-stale")]).origin(503, &[], "down"),
        ],
    )
    .await;
    run_both(
        "RFC 5861 4: stale-if-error, of the response and of the request",
        &[
            ask(&[]).origin(200, &[A, ("cache-control", "max-age=60, stale-if-error=30")], "one"),
            after(70).origin(503, &[], "down").gets(200, "one").says("fwd=stale; fwd-status=503"),
        ],
    )
    .await;
    run(
        "RFC 5861 4: of the request",
        |layer| layer,
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            after(70)
                .asking(&[("cache-control", "stale-if-error=30")])
                .origin(503, &[], "down")
                .gets(200, "one"),
            ask(&[]).origin(503, &[], "down"),
        ],
    )
    .await;
    run(
        "RFC 9111 4.2.4: a dead origin",
        ResponseCacheLayer::conformance,
        &[
            ask(&[]).origin(200, &[MINUTE], "one"),
            after(70).origin(502, &[], "gone").gets(200, "one"),
        ],
    )
    .await;
    for forbids in ["max-age=60, must-revalidate", "s-maxage=60", "max-age=60, proxy-revalidate"] {
        run(
            "RFC 9111 4.2.4: a dead origin, where it is forbidden",
            ResponseCacheLayer::conformance,
            &[
                ask(&[]).origin(200, &[A, ("cache-control", forbids)], "one"),
                after(70).origin(502, &[], "gone"),
            ],
        )
        .await;
    }
    run_both(
        "RFC 5861 3: stale-while-revalidate answers at once, and one 304 behind it renews",
        &[
            ask(&[]).origin(
                200,
                &[A, ("cache-control", "max-age=60, stale-while-revalidate=30")],
                "one",
            ),
            after(70).origin(304, &[A], "").gets(200, "one").says("ttl=-10"),
            ask(&[]).gets(200, "one").says("ttl=60"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_head_freshens_or_invalidates_the_response_to_get() {
    run_both(
        "RFC 9111 4.3.5: it confirms",
        &[
            ask(&[]).origin(200, &[A, MINUTE, ("x", "old")], "one"),
            after(70).head().origin(200, &[A, MINUTE, ("x", "new")], ""),
            ask(&[]).gets(200, "one").with("x", "new").says("hit"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 4.3.5: it does not",
        &[
            ask(&[]).origin(200, &[A, MINUTE], "one"),
            after(70).head().origin(200, &[B, MINUTE], ""),
            ask(&[]).origin(200, &[B, MINUTE], "two").saw("if-none-match", None),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn lifetimes_come_from_the_specified_fields() {
    let kept = |status: u16, fields: &[(&'static str, &'static str)]| {
        [ask(&[]).origin(status, fields, "one"), ask(&[]).gets(status, "one").says("hit")]
    };
    for status in [200, 203, 299, 302, 404, 410] {
        run_both("RFC 9111 3: explicit freshness", &kept(status, &[MINUTE])).await;
    }
    for status in [400, 500, 501, 599] {
        let kept = kept(status, &[MINUTE]);
        run("RFC 9111 3: of an error, too", ResponseCacheLayer::conformance, &kept).await;
        let refused = [
            ask(&[]).origin(status, &[MINUTE], "one").says("detail=error"),
            ask(&[]).origin(200, &[MINUTE], "two"),
        ];
        run("an error is not kept by default", |layer| layer, &refused).await;
    }
    run("RFC 9111 4.2.2: a guess", ResponseCacheLayer::conformance, &kept(200, &[PAST])).await;
    run(
        "a guess is off by default",
        |layer| layer,
        &[ask(&[]).origin(200, &[PAST], "one"), ask(&[]).origin(200, &[PAST], "two")],
    )
    .await;
    run_both(
        "RFC 9213 2.2: a targeted field, which passes on",
        &[
            ask(&[]).origin(
                200,
                &[("cache-control", "no-store"), ("cdn-cache-control", "max-age=60")],
                "one",
            ),
            ask(&[]).gets(200, "one").with("cdn-cache-control", "max-age=60").says("hit"),
        ],
    )
    .await;
    run(
        "RFC 9213 2.2: hidden on request, and still obeyed",
        ResponseCacheLayer::strip_targeted_fields,
        &[
            ask(&[])
                .origin(200, &[("cdn-cache-control", "max-age=60")], "one")
                .with("cdn-cache-control", ""),
            ask(&[]).gets(200, "one").with("cdn-cache-control", "").says("hit"),
        ],
    )
    .await;
    run(
        "RFC 9211 2.7: the key on request",
        ResponseCacheLayer::cache_status_with_key,
        &[
            ask(&[]).origin(200, &[MINUTE], "one"),
            ask(&[]).gets(200, "one").says("larder; hit; ttl=60; key=\"http://a.example/a\""),
        ],
    )
    .await;
    run_both(
        "RFC 9211 2: larder's member comes after those of caches nearer to the origin",
        &[
            ask(&[])
                .origin(200, &[MINUTE, ("cache-status", "origin; hit")], "one")
                .with("cache-status", "origin; hit, larder; fwd=uri-miss; stored"),
            ask(&[]).gets(200, "one").with("cache-status", "origin; hit, larder; hit; ttl=60"),
        ],
    )
    .await;
    run_both(
        "RFC 9111 5.2.2.3: must-understand",
        &kept(200, &[("cache-control", "max-age=60, no-store, must-understand")]),
    )
    .await;
    run(
        "RFC 9111 5.2.2.7: fields that are private are not kept",
        ResponseCacheLayer::conformance,
        &[
            ask(&[])
                .origin(200, &[("cache-control", "max-age=60, private=\"x\""), ("x", "1")], "one")
                .with("x", "1"),
            ask(&[]).gets(200, "one").with("x", "").says("hit"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_private_cache_stores_private_responses() {
    run(
        "RFC 9111 5.2.2.7, 5.2.2.10",
        ResponseCacheLayer::private_cache,
        &[
            ask(&[("authorization", "a")]).origin(
                200,
                &[("cache-control", "private, max-age=60, s-maxage=0")],
                "one",
            ),
            ask(&[("authorization", "a")]).gets(200, "one").says("hit"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn equivalent_queries_share_a_response() {
    let ignores_a = ("no-vary-search", "params=(\"a\"), key-order");
    let vary = ("vary", "x");
    run(
        "draft-ietf-httpbis-no-vary-search",
        ResponseCacheLayer::no_vary_search,
        &[
            ask(&[]).of("?b=2&a=1&c=3").origin(200, &[MINUTE, ignores_a, vary], "one"),
            ask(&[]).of("?c=3&b=2&a=9").gets(200, "one").says("hit"),
            ask(&[]).of("?c=3&b=2").head().gets(200, "").says("hit"),
            ask(&[]).of("?c=4&b=2").origin(200, &[MINUTE, ignores_a, vary], "two"),
            ask(&[("x", "1")]).of("?c=3&b=2").origin(200, &[MINUTE, ignores_a, vary], "three"),
            ask(&[("x", "1")]).of("?b=2&c=3&a").gets(200, "three").says("hit"),
            after(61).of("?a=2&b=2&c=3").origin(200, &[MINUTE], "four"),
        ],
    )
    .await;
    run(
        "off by default",
        |layer| layer,
        &[
            ask(&[]).of("?a=1").origin(200, &[MINUTE, ignores_a], "one"),
            ask(&[]).of("?a=2").origin(200, &[MINUTE, ignores_a], "two"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_no_store_answer_does_not_prevent_storing_the_next() {
    run_both(
        "RFC 9111 3",
        &[
            ask(&[]).origin(200, &[("cache-control", "no-store")], "odd"),
            ask(&[]).origin(200, &[MINUTE], "one").says("stored"),
            ask(&[]).gets(200, "one").says("hit"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_age_on_receipt_reduces_the_freshness_lifetime() {
    run_both(
        "RFC 9111 4.2.3, 5.1",
        &[
            ask(&[]).origin(200, &[("cache-control", "max-age=100"), ("age", "30")], "one"),
            after(10).gets(200, "one").with("age", "40").says("ttl=60"),
            after(61).origin(200, &[], "two"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_with_only_if_cached_does_not_reach_the_origin() {
    for company in ["only-if-cached, no-store", "no-store, only-if-cached, max-age=0"] {
        let demand = ("cache-control", company);
        run_both(
            "RFC 9111 5.2.1.7: with no-store",
            &[
                ask(&[demand])
                    .gets(504, "only-if-cached: the cache has no response to this request\n"),
                ask(&[]).origin(200, &[A, MINUTE], "one"),
                ask(&[demand])
                    .gets(504, "only-if-cached: the cache has no response to this request\n"),
            ],
        )
        .await;
    }
    let demand = ("cache-control", "only-if-cached");
    run_both(
        "RFC 9111 5.2.1.7: with a condition that only the origin judges",
        &[
            ask(&[demand, ("if-match", "\"a\"")])
                .gets(504, "only-if-cached: the cache has no response to this request\n"),
            ask(&[demand, ("if-unmodified-since", PAST.1)])
                .gets(504, "only-if-cached: the cache has no response to this request\n"),
        ],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn expectations_beyond_the_rfcs_are_met() {
    let careful: Changes = |layer| layer.ttl(Duration::from_secs(60));
    run(
        "Pragma of a response is no-cache where nothing else is said",
        careful,
        &[
            ask(&[]).origin(200, &[("pragma", "no-cache")], "one").says("detail=no-cache"),
            ask(&[]).origin(200, &[("pragma", "no-cache"), MINUTE], "two").says("stored"),
        ],
    )
    .await;
    run(
        "a coding that a client refuses is not served to it, with or without Vary",
        careful,
        &[
            ask(&[("accept-encoding", "gzip")]).origin(
                200,
                &[("content-encoding", "gzip"), MINUTE],
                "coded",
            ),
            ask(&[("accept-encoding", "gzip")]).gets(200, "coded").says("hit"),
            ask(&[("accept-encoding", "identity")]).origin(200, &[MINUTE], "plain"),
            ask(&[("accept-encoding", "gzip")]).gets(200, "coded").says("hit"),
            ask(&[("accept-encoding", "identity")]).gets(200, "plain").says("hit"),
        ],
    )
    .await;
    run_both(
        "a part of nothing is all of it",
        &[
            ask(&[]).origin(200, &[A, MINUTE], ""),
            ask(&[("range", "bytes=0-")]).gets(200, "").says("hit"),
            ask(&[("range", "bytes=-5")]).gets(200, "").says("hit"),
        ],
    )
    .await;
    let part = ask(&[("range", "bytes=0-4")]).origin(
        206,
        &[MINUTE, ("content-range", "bytes 0-4/10")],
        "01234",
    );
    run(
        "RFC 9111 3.3: a stored part answers ranges within it, also without a validator",
        ResponseCacheLayer::conformance,
        &[
            part.clone(),
            ask(&[("range", "bytes=1-2")]).gets(206, "12").says("hit"),
            ask(&[("range", "bytes=5-9")]).origin(
                206,
                &[MINUTE, ("content-range", "bytes 5-9/10")],
                "56789",
            ),
            ask(&[]).origin(200, &[MINUTE], "0123456789"),
        ],
    )
    .await;
    run("but not to the careful", |layer| layer, &[part.clone(), part.saw("range", "bytes=0-4")])
        .await;
}
