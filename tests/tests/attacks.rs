//! Attacks on caches, as an attacker would carry them out. Each one works on a naive cache.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{OriginalUri, Request, State},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use clap::Parser;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use http_body_util::BodyExt;
use larder::{
    ByteSize, Larder,
    axum::{InvalidationLayer, ResponseCacheLayer},
    http::{QueryRule, Scheme},
};
use larder_testkit::MemoryStore;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::ServiceExt;

const MINUTE: Duration = Duration::from_secs(60);

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

fn cached(router: Router) -> Router {
    router.layer(ResponseCacheLayer::new(&larder()).ttl(MINUTE)).with_state(())
}

/// A response, with its body read to the end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn is_hit(&self) -> bool {
        self.headers[header::CACHE_STATUS].to_str().unwrap().contains("; hit")
    }
}

async fn send(app: &Router, method: Method, uri: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    if !fields.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "shop.example");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text).into_owned();
    Answer { status: head.status, headers: head.headers, text }
}

pub(crate) async fn ask(app: &Router, uri: &str, fields: &[(&str, &str)]) -> Answer {
    send(app, Method::GET, uri, fields).await
}

/// Echoes every field of which a framework might build links, redirects or pages.
async fn reflecting(request: Request) -> String {
    let fields = request.headers().iter().filter(|(name, _)| *name != header::HOST);
    fields.map(|(name, value)| format!("{name}={}\n", value.to_str().unwrap())).collect()
}

#[tokio::test]
async fn poisoning_through_unkeyed_fields() {
    for field in [
        "forwarded",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-host",
        "x-original-url",
        "x-rewrite-url",
        "x-http-method-override",
        "x-method-override",
        "x-forwarded-scheme",
        "x-forwarded-ssl",
        "x-forwarded-server",
        "front-end-https",
        "x-original-host",
        "x-http-method",
        "x-http-host-override",
        "x-script-name",
        "x-envoy-original-path",
        "x-ms-original-url",
    ] {
        let app = cached(Router::new().route("/", any(reflecting)));
        ask(&app, "/", &[(field, "canary")]).await;
        let clean = ask(&app, "/", &[]).await;
        assert!(clean.is_hit(), "{field}: the request of the attacker used the same key");
        assert!(!clean.text.contains("canary"), "{field}: {}", clean.text);
    }
}

#[tokio::test]
async fn a_field_that_is_declared_reaches_the_handler_and_is_keyed() {
    let field = HeaderName::from_static("x-forwarded-host");
    let layer = ResponseCacheLayer::new(&larder()).ttl(MINUTE).vary_by_header(field);
    let app = Router::new().route("/", any(reflecting)).layer(layer).with_state(());
    for _ in 0..2 {
        for host in ["one.example", "two.example"] {
            let answer = ask(&app, "/", &[("x-forwarded-host", host), ("x-host", "canary")]).await;
            assert_eq!(answer.text, format!("x-forwarded-host={host}\n"));
        }
        assert_eq!(ask(&app, "/", &[]).await.text, "");
    }
    assert!(ask(&app, "/", &[("x-forwarded-host", "one.example")]).await.is_hit());
    // A value that looks like two lines must not share their key.
    ask(&app, "/", &[("x-forwarded-host", "a;1=b")]).await;
    let two = [("x-forwarded-host", "a"), ("x-forwarded-host", "b")];
    assert!(!ask(&app, "/", &two).await.is_hit());
    let (one, two) = ([("x-forwarded-host", "a;=b")], two);
    ask(&app, "/", &two).await;
    assert!(!ask(&app, "/", &one).await.is_hit());
}

#[tokio::test]
async fn deception_by_paths_that_look_like_files() {
    let account = |headers: HeaderMap| async move {
        let user = headers.get(header::COOKIE).map_or("nobody", |cookie| cookie.to_str().unwrap());
        format!("the account of {user}")
    };
    let app = cached(Router::new().route("/account/{*rest}", get(account)));
    for path in [
        "/account/x.css",
        "/account/;x.css",
        "/account/x%2f..%2fy.css",
        "/account/%00.css",
        "/account//x.css",
        "/account/./x.css",
        "/account/x.css%3fy",
        "/account/x.css.",
    ] {
        let victim = ask(&app, path, &[("cookie", "session=victim")]).await;
        assert!(victim.text.contains("victim"), "{path}");
        let attacker = ask(&app, path, &[]).await;
        assert!(!attacker.text.contains("victim"), "{path}");
        let other = ask(&app, path, &[("cookie", "session=attacker")]).await;
        assert!(other.text.contains("attacker") && !other.text.contains("victim"), "{path}");
    }
}

/// Refuses malformed requests, with a lifetime that a careless team has set on every response.
async fn easily_upset(method: Method, headers: HeaderMap) -> Response {
    let upset =
        headers.values().any(|value| value.len() > 8192 || value.as_bytes().contains(&b'\t'))
            || headers.contains_key("x-http-method-override")
            || headers.contains_key("x-upset")
            || method != Method::GET;
    let status = if upset { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    (status, [(header::CACHE_CONTROL, "max-age=60")], "page").into_response()
}

#[tokio::test]
async fn denial_of_service_by_a_stored_error() {
    let oversized = "x".repeat(9000);
    let attacks: [(&str, &str); 4] = [
        ("x-oversized", &oversized),
        ("x-meta", "a\tb"),
        ("x-http-method-override", "DELETE"),
        ("x-upset", "1"),
    ];
    for (field, value) in attacks {
        let app = cached(Router::new().route("/", any(easily_upset)));
        assert_eq!(ask(&app, "/", &[]).await.status, StatusCode::OK);
        // A client may demand a new response, and its own request is the one that is forwarded.
        ask(&app, "/", &[(field, value), ("cache-control", "no-cache")]).await;
        let clean = ask(&app, "/", &[]).await;
        assert_eq!(clean.status, StatusCode::OK, "{field}");
        assert!(clean.is_hit(), "{field}: the good response is still stored");
    }
}

/// As [`easily_upset`], in two languages.
async fn easily_upset_in_two_languages(method: Method, headers: HeaderMap) -> Response {
    let mut response = easily_upset(method, headers).await;
    if response.status().is_success() {
        response.headers_mut().insert(header::VARY, "accept-language".parse().unwrap());
    }
    response
}

/// Regression: the error of one client replaced all variants, or filled a URL that had no response yet.
#[tokio::test]
async fn denial_of_service_by_an_error_where_no_good_response_is_stored() {
    let upset = [("x-upset", "1"), ("accept-language", "xx")];
    let varied = cached(Router::new().route("/", any(easily_upset_in_two_languages)));
    for language in ["de", "en"] {
        ask(&varied, "/", &[("accept-language", language)]).await;
    }
    assert_eq!(ask(&varied, "/", &upset).await.status, StatusCode::BAD_REQUEST);
    let clean = ask(&varied, "/", &[("accept-language", "de")]).await;
    assert!(clean.is_hit() && clean.status == StatusCode::OK, "{}", clean.status);
    let cold = cached(Router::new().route("/", any(easily_upset)));
    assert_eq!(ask(&cold, "/", &upset).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(ask(&cold, "/", &[]).await.status, StatusCode::OK);
}

/// A 404 may be stored, but must not replace the variants of its URL.
#[tokio::test]
async fn a_404_of_one_variant_does_not_replace_the_others() {
    let page = |headers: HeaderMap| async move {
        let found = headers.get(header::ACCEPT_LANGUAGE).is_some_and(|language| language != "xx");
        let mut response = (StatusCode::NOT_FOUND, "none").into_response();
        if found {
            response = ([(header::VARY, "accept-language")], "page").into_response();
        }
        let minute = "max-age=60".parse().unwrap();
        response.headers_mut().insert(header::CACHE_CONTROL, minute);
        response
    };
    let app = cached(Router::new().route("/", get(page)));
    for language in ["de", "en"] {
        ask(&app, "/", &[("accept-language", language)]).await;
    }
    assert_eq!(ask(&app, "/", &[("accept-language", "xx")]).await.status, StatusCode::NOT_FOUND);
    for language in ["de", "en"] {
        let clean = ask(&app, "/", &[("accept-language", language)]).await;
        assert!(clean.is_hit() && clean.status == StatusCode::OK, "{language}: {}", clean.status);
    }
}

/// Identity fields of an authenticating proxy reach the handler, but their responses are not shared.
#[tokio::test]
async fn identity_fields_of_a_proxy_reach_the_handler_and_are_not_shared() {
    let app = cached(Router::new().route("/", any(reflecting)));
    for field in ["x-forwarded-user", "x-forwarded-groups", "x-forwarded-email"] {
        let signed_in = ask(&app, "/", &[(field, "ada")]).await;
        assert_eq!(signed_in.text, format!("{field}=ada\n"));
        assert!(!ask(&app, "/", &[]).await.text.contains("ada"), "{field}");
    }
}

/// Regression: without the scheme field, a redirect to https looped for ever.
#[tokio::test]
async fn the_scheme_that_reaches_a_handler_is_that_of_the_key() {
    for (scheme, said) in [(Scheme::Https, "https"), (Scheme::Http, "http")] {
        let layer = ResponseCacheLayer::new(&larder()).ttl(MINUTE).scheme(scheme);
        let app = Router::new().route("/", any(reflecting)).layer(layer).with_state(());
        for claimed in ["http", "https", "canary"] {
            let answer = ask(&app, "/", &[("x-forwarded-proto", claimed)]).await;
            assert_eq!(answer.text, format!("x-forwarded-proto={said}\n"));
        }
    }
}

/// An error may be stored once the stale page may no longer be served; before that it must not replace the page.
#[tokio::test(start_paused = true)]
async fn a_stored_error_does_not_replace_a_page_still_served_stale() {
    let down = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&down);
    let page = move || {
        let down = told.load(std::sync::atomic::Ordering::SeqCst);
        let status = if down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        async move { (status, [(header::CACHE_CONTROL, "max-age=60, stale-if-error=600")], "page") }
    };
    let negative = larder::Lifetime::fresh_for(MINUTE);
    let layer = ResponseCacheLayer::new(&larder())
        .negative_ttl([StatusCode::SERVICE_UNAVAILABLE], negative);
    let app = Router::new().route("/", get(page)).layer(layer).with_state(());
    ask(&app, "/", &[]).await;
    tokio::time::advance(MINUTE + Duration::from_secs(10)).await;
    down.store(true, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(ask(&app, "/", &[]).await.status, StatusCode::OK);
    }
}

/// Regression: the layer removed the parameter from the URI, but axum had a copy of it.
#[tokio::test]
async fn poisoning_through_unkeyed_query_parameters() {
    let reflecting = |OriginalUri(original): OriginalUri, request: Request| async move {
        format!("{original} {}", request.uri())
    };
    let rule = QueryRule::without_trackers();
    let layer = || ResponseCacheLayer::new(&larder()).ttl(MINUTE).query_params(rule.clone());
    for app in [
        Router::new().route("/", get(reflecting)).layer(layer()).with_state(()),
        Router::new().nest("/in", Router::new().route("/", get(reflecting)).layer(layer())),
    ] {
        for path in ["/", "/in"] {
            ask(&app, &format!("{path}?utm_source=canary"), &[]).await;
            let clean = ask(&app, path, &[]).await;
            assert!(!clean.text.contains("canary"), "{}", clean.text);
            assert!(clean.status == StatusCode::NOT_FOUND || clean.is_hit(), "{path}");
        }
    }
}

/// Regression: any client could keep a page fresh for ever, or have fields of its own request stored with it.
#[tokio::test(start_paused = true)]
async fn a_head_without_a_validator_does_not_freshen() {
    let page = |headers: HeaderMap| async move {
        let host =
            headers.get("x-forwarded-host").map_or("shop.example", |host| host.to_str().unwrap());
        ([(header::LINK, format!("<https://{host}/>; rel=canonical"))], "page")
    };
    let app = cached(Router::new().route("/", get(page)));
    ask(&app, "/", &[]).await;
    let demand = ("cache-control", "no-cache");
    for _ in 0..3 {
        tokio::time::advance(MINUTE / 2).await;
        send(&app, Method::HEAD, "/", &[demand, ("x-forwarded-host", "evil.example")]).await;
    }
    let clean = ask(&app, "/", &[]).await;
    assert!(!clean.is_hit(), "a minute and a half later");
    assert!(!clean.headers[header::LINK].to_str().unwrap().contains("evil"));
}

/// Regression: the response to a POST was stored for GET, as RFC 9110 allows, with a link that the sender chose.
#[tokio::test]
async fn poisoning_by_a_post_response_stored_for_get() {
    let page = |headers: HeaderMap| async move {
        let host =
            headers.get("x-forwarded-host").map_or("shop.example", |host| host.to_str().unwrap());
        let fields = [
            (header::CONTENT_LOCATION, "/form".to_owned()),
            (header::CACHE_CONTROL, "max-age=60".to_owned()),
            (HeaderName::from_static("x-request-id"), "7".to_owned()),
        ];
        (fields, format!("see {host}"))
    };
    let larder = larder();
    let layers = || {
        tower::ServiceBuilder::new()
            .layer(InvalidationLayer::new(&larder))
            .layer(ResponseCacheLayer::new(&larder))
    };
    let app = Router::new().route("/form", any(page)).layer(layers()).with_state(());
    send(&app, Method::POST, "/form", &[("x-forwarded-host", "evil.example")]).await;
    let clean = ask(&app, "/form", &[]).await;
    assert!(!clean.is_hit() && !clean.text.contains("evil"));
    send(&app, Method::POST, "/form", &[]).await;
    let kept = ask(&app, "/form", &[]).await;
    assert!(kept.is_hit(), "the response to an ordinary POST is stored");
    assert!(
        !kept.headers.contains_key("x-request-id"),
        "but without the fields of that one response"
    );
}

#[tokio::test]
async fn an_error_without_an_explicit_lifetime_is_never_stored() {
    let upset = |headers: HeaderMap| async move {
        let upset = headers.contains_key("x-upset");
        if upset { (StatusCode::BAD_REQUEST, "no") } else { (StatusCode::OK, "page") }
    };
    let app = cached(Router::new().route("/", get(upset)));
    assert_eq!(ask(&app, "/", &[("x-upset", "1")]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(ask(&app, "/", &[]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn ten_thousand_user_agents_take_no_more_memory_than_the_variant_limit() {
    let page = || async { ([(header::VARY, "user-agent")], "page ".repeat(100)) };
    let larder = larder();
    let layer = ResponseCacheLayer::new(&larder).ttl(MINUTE);
    let app = Router::new().route("/", get(page)).layer(layer).with_state(());
    for agent in 0..10_000 {
        ask(&app, "/", &[("user-agent", &format!("agent {agent}"))]).await;
    }
    let stats = larder.stats();
    assert!(stats.memory.entries <= 34, "{} entries", stats.memory.entries);
}

#[tokio::test]
async fn unique_urls_take_no_more_memory_than_allowed() {
    let larder =
        Larder::builder().tag_table_slots(1 << 12).memory(ByteSize::mib(1)).build().unwrap();
    let layer = ResponseCacheLayer::new(&larder).ttl(MINUTE);
    let page = || async { "page ".repeat(100) };
    let app = Router::new().route("/{*any}", get(page)).layer(layer).with_state(());
    for number in 0..20_000 {
        ask(&app, &format!("/{number}?{number}"), &[]).await;
    }
    let memory = larder.stats().memory;
    assert!(memory.bytes <= (1 << 20) + (1 << 17), "{} bytes", memory.bytes);
}

#[tokio::test]
async fn two_users_never_share_a_response_under_any_directive() {
    let whose = |headers: HeaderMap| async move {
        let of = |name| headers.get(name).map_or("", |value| value.to_str().unwrap());
        let control = of(HeaderName::from_static("x-answer-with")).to_owned();
        let text = format!("{} {}", of(header::COOKIE), of(header::AUTHORIZATION));
        ([(header::CACHE_CONTROL, control)], text)
    };
    let controls = ["max-age=60", "private, max-age=60", "max-age=60, must-revalidate", "no-cache"];
    for control in controls {
        for field in ["cookie", "authorization", "x-api-key"] {
            let app = cached(Router::new().route("/", get(whose)));
            let answer_with = ("x-answer-with", control);
            let first = ask(&app, "/", &[(field, "alice"), answer_with]).await;
            let second = ask(&app, "/", &[(field, "bob"), answer_with]).await;
            let nobody = ask(&app, "/", &[answer_with]).await;
            assert!(!second.text.contains("alice") && !nobody.text.contains("alice"), "{control}");
            assert!(!first.is_hit() && !second.is_hit(), "{field} {control}");
        }
    }
}

#[tokio::test]
async fn fields_that_were_tampered_with_in_the_store_do_not_split_a_response() {
    let store = MemoryStore::new();
    let open = || {
        let larder =
            Larder::builder().tag_table_slots(1 << 12).store(store.clone()).build().unwrap();
        let layer = ResponseCacheLayer::new(&larder).ttl(MINUTE).depends_on_url_alone();
        let page = || async { ([("x-mark", "0123456789")], "page") };
        (larder, Router::new().route("/", get(page)).layer(layer).with_state(()))
    };
    let (first, app) = open();
    ask(&app, "/", &[]).await;
    assert!(first.close(MINUTE).await);
    for key in store.keys() {
        store.tamper(&key, |bytes| {
            let at = bytes.windows(10).position(|window| window == b"0123456789").unwrap();
            let mut bytes = bytes.to_vec();
            bytes[at..at + 10].copy_from_slice(b"a\r\nset-x:1");
            bytes
        });
    }
    let (_second, app) = open();
    let answer = ask(&app, "/", &[]).await;
    assert_eq!(answer.headers["x-mark"], "0123456789");
    assert!(!answer.headers.contains_key("set-x"));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_delays_only_its_own_reader() {
    let drip = |State(()): State<()>, request: Request| async move {
        if request.headers().contains_key("x-slow") {
            let bytes = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok::<_, std::convert::Infallible>("x"), ()))
            });
            return Body::from_stream(bytes);
        }
        Body::from("page")
    };
    let app = Router::new().route("/", get(drip)).with_state(());
    let app = app.layer(ResponseCacheLayer::new(&larder()).ttl(MINUTE)).with_state(());
    let request = Request::get("/").header("x-slow", "1").body(Body::empty()).unwrap();
    let mut dripping = app.clone().oneshot(request).await.unwrap().into_body();
    dripping.frame().await.unwrap().unwrap();
    let began = tokio::time::Instant::now();
    let reading = tokio::spawn(async move { while dripping.frame().await.is_some() {} });
    assert_eq!(ask(&app, "/", &[]).await.text, "page");
    assert!(began.elapsed() <= Duration::from_secs(11), "the wait has a limit");
    reading.abort();
}

#[test]
fn an_attacker_cannot_choose_colliding_keys() {
    // Each process hashes with a secret of its own, and compares whole keys besides.
    let [one, other] = [larder(), larder()];
    let differ = (0..100_u64).filter(|key| {
        let key = key.to_le_bytes();
        one.kernel().hash(&key) != other.kernel().hash(&key)
    });
    assert!(differ.count() > 90);
}

#[tokio::test]
async fn many_ranges_are_answered_with_the_whole() {
    let page = || async { "page ".repeat(100) };
    let app = cached(Router::new().route("/", get(page)));
    ask(&app, "/", &[]).await;
    let ranges = format!("bytes={}", vec!["0-400"; 200].join(","));
    let answer = ask(&app, "/", &[("range", &ranges)]).await;
    assert_eq!((answer.status, answer.text.len()), (StatusCode::OK, 500));
}

/// Key parts that a naive key would confuse, since they read alike when concatenated.
fn hostile() -> impl Strategy<Value = (String, String, String, String)> {
    let host = "(a|a\\.example|a:81|A)";
    let path = "/[a:/;%2.]{0,4}";
    let query = "(|\\?|\\?[a=&:/?]{0,4})";
    let partition = "[a:/ ]{0,3}";
    (host, path, query, partition)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn two_different_requests_never_share_an_entry(requests in prop::collection::vec(hostile(), 2..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let layer = ResponseCacheLayer::new(&larder()).ttl(MINUTE).partition_by(|head| {
                head.headers.get("x-user").map(|user| user.as_bytes().to_vec())
            });
            let echo = |request: Request| async move {
                let user = request.headers().get("x-user").map(|user| user.to_str().unwrap());
                let host = request.headers()[header::HOST].to_str().unwrap().to_ascii_lowercase();
                format!("{host} {} {user:?}", request.uri())
            };
            let app = Router::new().fallback(echo).layer(layer).with_state(());
            for (host, path, query, user) in &requests {
                let Ok(uri) = format!("{path}{query}").parse::<http::Uri>() else { continue };
                let fields = [("host", &**host), ("x-user", &**user)];
                let answer = ask(&app, &uri.to_string(), &fields).await;
                let own = format!("{} {uri} {:?}", host.to_ascii_lowercase(), Some(user));
                assert_eq!(answer.text, own);
            }
        });
    }
}

/// An origin that answers every connection with these bytes.
async fn raw_origin(bytes: &'static str) -> (std::net::SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                drop(stream.write_all(bytes.as_bytes()).await);
            }
        }
    });
    (address, serving)
}

/// The response of the edge to these bytes, in front of an origin that answers with `origin`.
async fn through_the_edge(request: &str, origin: &'static str) -> String {
    let (behind, _serving) = raw_origin(origin).await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let options = edge::Options::parse_from(["edge", "--origin", &format!("http://{behind}")]);
    let mut edge = JoinSet::new();
    edge.spawn(async move {
        edge::Edge::new(&options).unwrap().serve(front, std::future::pending()).await;
    });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn two_lengths_of_one_message_are_refused_at_the_edge() {
    let plain = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let two = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabcde";
    assert!(through_the_edge(plain, two).await.starts_with("HTTP/1.1 502"));
    let good = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc";
    let asked = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabcde";
    assert!(through_the_edge(asked, good).await.starts_with("HTTP/1.1 400"));
    let both = "POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: 0\r\n\r\n";
    let answer = through_the_edge(both, good).await;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    let hosts = "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n";
    assert!(through_the_edge(hosts, good).await.starts_with("HTTP/1.1 400"));
    assert!(through_the_edge(plain, good).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn interim_responses_do_not_confuse_the_edge() {
    let plain = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let origin = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n\
                  content-length: 3\r\nconnection: close\r\n\r\nabc";
    let answer = through_the_edge(plain, origin).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("abc"), "{answer}");
    assert!(!answer.contains("link"), "{answer}");
}

#[tokio::test]
async fn hit_for_miss_is_not_poisoned_by_one_odd_request() {
    let page = |headers: HeaderMap| async move {
        let odd = headers.contains_key("x-odd");
        let control = if odd { "no-store" } else { "max-age=60" };
        ([(header::CACHE_CONTROL, control)], "page")
    };
    let app = cached(Router::new().route("/", get(page)));
    ask(&app, "/", &[("x-odd", "1")]).await;
    ask(&app, "/", &[]).await;
    assert!(ask(&app, "/", &[]).await.is_hit());
}

/// A handler that redirects every other spelling of its host to the canonical one, as many frameworks do.
async fn canonical(OriginalUri(original): OriginalUri, request: Request) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap().to_owned());
    let spelt = [
        host.as_deref(),
        request.uri().authority().map(http::uri::Authority::as_str),
        original.authority().map(http::uri::Authority::as_str),
    ];
    match spelt.into_iter().flatten().find(|spelt| *spelt != "shop.example") {
        Some(other) => {
            let fields = [
                (header::LOCATION, "http://shop.example/".to_owned()),
                (header::CACHE_CONTROL, "max-age=60".to_owned()),
                (HeaderName::from_static("x-host-seen"), other.to_owned()),
            ];
            (StatusCode::MOVED_PERMANENTLY, fields).into_response()
        }
        None => ([(header::CACHE_CONTROL, "max-age=60")], "the shop").into_response(),
    }
}

#[tokio::test]
async fn a_redirect_loop_by_another_spelling_of_the_host() {
    let spellings = [
        "Shop.Example",
        "shop.example:80",
        "shop.example:",
        "SHOP.example:080",
        "%73hop.example",
        "user:password@shop.example",
    ];
    for host in spellings {
        for (uri, fields) in [
            ("/".to_owned(), vec![("host", host)]),
            (format!("http://{host}/"), vec![("host", host)]),
            // As in HTTP/2, where axum takes the host from the URI.
            (format!("http://{host}/"), vec![("host", "shop.example")]),
        ] {
            if uri.parse::<http::Uri>().is_err() {
                // A text that `http` does not accept as an authority never becomes a request.
                continue;
            }
            let app = cached(Router::new().route("/", any(canonical)));
            let first = ask(&app, &uri, &fields).await;
            assert_eq!(first.status, StatusCode::OK, "{uri} {host}: {:?}", first.headers);
            let second = ask(&app, "/", &[]).await;
            assert!(second.is_hit() && second.text == "the shop", "{uri} {host}");
        }
    }
}

#[tokio::test]
async fn all_spellings_of_a_host_are_invalidated_together() {
    let larder = larder();
    let layers = tower::ServiceBuilder::new()
        .layer(InvalidationLayer::new(&larder))
        .layer(ResponseCacheLayer::new(&larder));
    let app = Router::new().route("/", any(canonical)).layer(layers).with_state(());
    ask(&app, "/", &[("host", "SHOP.example:80")]).await;
    assert!(ask(&app, "/", &[]).await.is_hit());
    send(&app, Method::POST, "/", &[("host", "shop.example:")]).await;
    assert!(!ask(&app, "/", &[("host", "shop.example:80")]).await.is_hit());
}

#[tokio::test]
async fn a_redirect_to_https_and_the_key_use_the_same_scheme() {
    /// Redirects to https unless the proxy says that the request came over https.
    async fn secure(headers: HeaderMap) -> Response {
        match headers.get("x-forwarded-proto").map(|proto| proto.as_bytes()) {
            Some(b"https") => "secure".into_response(),
            _ => (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "https://shop.example/")])
                .into_response(),
        }
    }
    type Fields = &'static [(&'static str, &'static str)];
    let rows: [(Scheme, Fields, StatusCode); 6] = [
        (Scheme::Https, &[], StatusCode::OK),
        (Scheme::Https, &[("x-forwarded-proto", "http")], StatusCode::OK),
        (Scheme::Https, &[("x-forwarded-proto", "HTTPS")], StatusCode::OK),
        (Scheme::Http, &[("x-forwarded-proto", "https")], StatusCode::MOVED_PERMANENTLY),
        (Scheme::TrustForwarded, &[], StatusCode::MOVED_PERMANENTLY),
        (Scheme::TrustForwarded, &[("x-forwarded-proto", "HTTPS")], StatusCode::OK),
    ];
    for (scheme, fields, expected) in rows {
        let layer = ResponseCacheLayer::new(&larder()).ttl(MINUTE).scheme(scheme);
        let app = Router::new().route("/", get(secure)).layer(layer).with_state(());
        for _ in 0..2 {
            assert_eq!(ask(&app, "/", fields).await.status, expected, "{scheme:?} {fields:?}");
        }
        assert!(ask(&app, "/", fields).await.is_hit());
    }
}

#[tokio::test]
async fn a_write_invalidates_responses_stored_under_either_scheme() {
    for (stored, written) in [
        (Scheme::Https, Scheme::Http),
        (Scheme::Http, Scheme::Https),
        (Scheme::TrustForwarded, Scheme::Http),
        (Scheme::Https, Scheme::Https),
    ] {
        for host in ["shop.example", "shop.example:443", "shop.example:80"] {
            let larder = larder();
            let layers = tower::ServiceBuilder::new()
                .layer(InvalidationLayer::new(&larder).scheme(written))
                .layer(ResponseCacheLayer::new(&larder).ttl(MINUTE).scheme(stored));
            let app = Router::new().route("/p", any(reflecting)).layer(layers).with_state(());
            let fields = [("host", host), ("x-forwarded-proto", "https")];
            ask(&app, "/p", &fields).await;
            assert!(ask(&app, "/p", &fields).await.is_hit());
            send(&app, Method::POST, "/p", &fields).await;
            assert!(!ask(&app, "/p", &fields).await.is_hit(), "{stored:?} {written:?} {host}");
        }
    }
}

#[tokio::test]
async fn two_schemes_of_one_host_have_separate_entries() {
    let layer = ResponseCacheLayer::new(&larder()).ttl(MINUTE).scheme(Scheme::TrustForwarded);
    let app = Router::new().route("/", any(reflecting)).layer(layer).with_state(());
    let https = [("x-forwarded-proto", "https")];
    assert_eq!(ask(&app, "/", &https).await.text, "x-forwarded-proto=https\n");
    let plain = ask(&app, "/", &[]).await;
    assert!(!plain.is_hit());
    assert_eq!(plain.text, "");
    assert!(ask(&app, "/", &https).await.is_hit());
}

#[tokio::test]
async fn nested_routers_have_pages_of_their_own_under_every_layer_there_is() {
    let larder = larder();
    let nested = |text: &'static str| {
        Router::new()
            .route("/p", any(move || async move { text }))
            .layer(larder::http::ResponseCacheLayer::new(&larder).ttl(MINUTE))
    };
    let app = Router::new()
        .nest("/a", nested("a"))
        .nest("/b", nested("b"))
        .layer(larder::http::InvalidationLayer::new(&larder))
        .with_state(());
    for _ in 0..2 {
        assert_eq!(ask(&app, "/a/p", &[]).await.text, "a");
        assert_eq!(ask(&app, "/b/p", &[]).await.text, "b");
    }
    send(&app, Method::POST, "/a/p", &[]).await;
    assert!(!ask(&app, "/a/p", &[]).await.is_hit());
    assert!(ask(&app, "/b/p", &[]).await.is_hit());
}

/// A cache partitioned by a user field that an authentication layer has verified.
fn by_user(larder: &Larder) -> ResponseCacheLayer {
    let verified = HeaderName::from_static("x-verified");
    ResponseCacheLayer::new(larder)
        .ttl(MINUTE)
        .harmless_field(verified)
        .partition_by(|head| head.headers.get("x-verified").map(|user| user.as_bytes().to_vec()))
}

#[tokio::test]
async fn a_redirect_after_sign_in_does_not_invalidate_pages_of_other_users() {
    for (reaches_all, status, location) in [
        (false, StatusCode::SEE_OTHER, "/"),
        (false, StatusCode::FOUND, "http://shop.example/"),
        (true, StatusCode::SEE_OTHER, "/"),
        (true, StatusCode::CREATED, "/"),
    ] {
        let larder = larder();
        let mut invalidation = InvalidationLayer::new(&larder);
        if reaches_all && status.is_redirection() {
            invalidation = invalidation.redirects_reach_partitions();
        }
        let layers = tower::ServiceBuilder::new().layer(invalidation).layer(by_user(&larder));
        let login = move || async move { (status, [(header::LOCATION, location)]) };
        let app = Router::new()
            .route("/", get(|| async { "home" }))
            .route("/login", axum::routing::post(login))
            .layer(layers)
            .with_state(());
        let users: [&[(&str, &str)]; 3] =
            [&[("x-verified", "alice")], &[("x-verified", "bob")], &[]];
        for user in users {
            ask(&app, "/", user).await;
            assert!(ask(&app, "/", user).await.is_hit());
        }
        send(&app, Method::POST, "/login", users[1]).await;
        let stays = [!reaches_all, false, false];
        for (user, stays) in users.into_iter().zip(stays) {
            assert_eq!(ask(&app, "/", user).await.is_hit(), stays, "{status} {user:?}");
        }
    }
}
