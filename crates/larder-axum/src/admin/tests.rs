//! Which requests get in, which requests of another site are refused, and that no cache comes between.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, routing::get};
use http::{Request, Response, StatusCode, header, request};
use larder_core::{Larder, Policy, Target, kernel::Partitions};
use larder_http::{HttpCache, QueryRule};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{AdminAccess, AdminBuilder, admin};

const TOKEN: &str = "a token of at least sixteen bytes";
const READ_ONLY: &str = "another token that only reads";
const MINUTE: Duration = Duration::from_secs(60);

fn larder() -> Larder {
    Larder::builder().build().unwrap()
}

fn app_of(builder: AdminBuilder) -> Router {
    Router::new().nest("/larder", builder.build().unwrap())
}

fn with_tokens(larder: &Larder) -> Router {
    app_of(admin(larder).token(TOKEN).read_only_token(READ_ONLY))
}

fn get_at(path: &str) -> request::Builder {
    Request::get(path).header("host", "shop.example")
}

fn post(path: &str) -> request::Builder {
    Request::post(path).header("host", "shop.example").header("content-type", "application/json")
}

fn bearer(request: request::Builder, token: &str) -> request::Builder {
    request.header("authorization", format!("Bearer {token}"))
}

async fn send(app: &Router, request: request::Builder, body: impl Into<Body>) -> Response<Body> {
    app.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap()
}

async fn status(app: &Router, request: request::Builder) -> StatusCode {
    send(app, request, Body::empty()).await.status()
}

async fn text(response: Response<Body>) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.into()).unwrap()
}

async fn json_of(app: &Router, request: request::Builder, body: Value) -> Value {
    let response = send(app, request, body.to_string()).await;
    assert_eq!(response.status(), 200, "{}", text(response).await);
    serde_json::from_str(&text(response).await).unwrap()
}

async fn store(larder: &Larder, name: &'static str, tag: &'static str) {
    let policy = Policy::ttl(MINUTE).tag(tag);
    larder.get_or_load(name, policy, |_| async { Ok::<_, Infallible>(7_u64) }).await.unwrap();
}

#[test]
fn a_router_without_a_guard_or_with_a_short_token_is_not_built() {
    let larder = larder();
    let error = |builder: AdminBuilder| builder.build().unwrap_err().to_string();
    assert!(error(admin(&larder)).contains("there is no guard, allowed is"));
    assert!(error(admin(&larder).token("short")).contains("has 5 bytes, allowed is 16 or more"));
    assert!(error(admin(&larder).token(TOKEN).read_only_token("")).contains("0 bytes"));
    let shown = format!("{:?}", admin(&larder).token(TOKEN));
    assert!(!shown.contains(TOKEN), "{shown}");
    for lifetime in [Duration::ZERO, Duration::MAX] {
        let refused = error(admin(&larder).token(TOKEN).session_lifetime(lifetime));
        assert!(refused.contains("allowed is 1 second to 400 days"), "{refused}");
    }
    let refused = error(admin(&larder.namespace("tenant 7")).token(TOKEN));
    assert!(
        refused.contains("the namespace \"tenant 7\", allowed is the larder itself"),
        "{refused}"
    );
}

/// Every path, without credentials or with wrong ones, gives nothing away.
#[tokio::test]
async fn a_client_without_credentials_gets_nothing() {
    let app = with_tokens(&larder());
    let gets = [
        "/app.js",
        "/api/stats",
        "/api/live",
        "/api/explain?url=http://a/",
        "/api/entries",
        "/api/graph?tag=a",
        "/api/keys",
        "/api/advice",
        "/api/invalidations",
        "/api/audit",
        "/api/whoami",
        "/nothing",
    ];
    for path in gets {
        for request in
            [get_at(&format!("/larder{path}")), bearer(get_at(&format!("/larder{path}")), "wrong")]
        {
            let response = send(&app, request, Body::empty()).await;
            assert!([401, 429].contains(&response.status().as_u16()), "{path}");
            assert_eq!(response.headers()["cache-control"], "no-store");
        }
    }
    for path in ["/api/preview", "/api/invalidate", "/logout"] {
        let response = send(&app, post(&format!("/larder{path}")), "{\"everything\":true}").await;
        assert_eq!(response.status(), 401, "{path}");
    }
    let page = send(&app, get_at("/larder"), Body::empty()).await;
    assert_eq!(page.status(), 401);
    let page = text(page).await;
    assert!(page.contains("Admin token") && !page.contains("app.js"), "{page}");
    assert_eq!(
        status(&app, get_at(&format!("/larder/api/stats?token={READ_ONLY}").replace(' ', "+")))
            .await,
        401
    );
}

#[tokio::test(start_paused = true)]
async fn wrong_tokens_are_limited_for_each_address() {
    let app = with_tokens(&larder());
    let from = |token: &str, address: &str| {
        let address = ConnectInfo(address.parse::<SocketAddr>().unwrap());
        bearer(get_at("/larder/api/stats").extension(address), token)
    };
    for _ in 0..10 {
        assert_eq!(status(&app, from("wrong", "192.0.2.1:1")).await, 401);
    }
    assert_eq!(
        status(&app, from(TOKEN, "192.0.2.1:2")).await,
        429,
        "the right one does not tell either"
    );
    assert_eq!(status(&app, from(TOKEN, "192.0.2.2:1")).await, 200);
    tokio::time::advance(MINUTE).await;
    assert_eq!(status(&app, from(TOKEN, "192.0.2.1:1")).await, 200);
    // An IPv6 client has all addresses of its /64.
    for number in 0..10 {
        let address = format!("[2001:db8:0:1::{number}]:1");
        assert_eq!(status(&app, from("wrong", &address)).await, 401);
    }
    assert_eq!(status(&app, from(TOKEN, "[2001:db8:0:1::ff]:1")).await, 429);
    assert_eq!(status(&app, from(TOKEN, "[2001:db8:0:2::1]:1")).await, 200);
}

/// Many addresses take bounded memory; those for which there is no place count together, for a minute.
#[tokio::test(start_paused = true)]
async fn wrong_tokens_are_limited_also_from_more_addresses_than_are_counted_apart() {
    let app = with_tokens(&larder());
    let from = |token: &str, number: u32| {
        let address = SocketAddr::from(((0x0a00_0000 + number).to_be_bytes(), 1));
        bearer(get_at("/larder/api/stats").extension(ConnectInfo(address)), token)
    };
    for number in 0..1024 + 9 {
        assert_eq!(status(&app, from("wrong", number)).await, 401);
    }
    assert_eq!(status(&app, from(TOKEN, 5_000)).await, 200, "nine of them are not too many");
    assert_eq!(status(&app, from("wrong", 5_001)).await, 401);
    assert_eq!(status(&app, from("wrong", 5_002)).await, 429);
    assert_eq!(status(&app, from(TOKEN, 5_003)).await, 429);
    assert_eq!(status(&app, from(TOKEN, 7)).await, 200, "a listed address counts apart");
    tokio::time::advance(MINUTE).await;
    assert_eq!(status(&app, from(TOKEN, 5_003)).await, 200);
    assert_eq!(status(&app, from("wrong", 5_003)).await, 401);
}

/// Rule: no client locks out another whose address the server does not know.
#[tokio::test]
async fn wrong_tokens_without_an_address_lock_out_no_actor() {
    let app = with_tokens(&larder());
    for _ in 0..30 {
        assert_eq!(status(&app, bearer(get_at("/larder/api/stats"), "wrong")).await, 401);
    }
    assert_eq!(status(&app, bearer(get_at("/larder/api/stats"), TOKEN)).await, 200);

    let proxied = app_of(
        admin(&larder())
            .token(TOKEN)
            .client_address(|head| head.headers.get("x-real-ip")?.to_str().ok()?.parse().ok()),
    );
    let from = |token: &str, client: &str| {
        let proxy = ConnectInfo("10.0.0.1:1".parse::<SocketAddr>().unwrap());
        let request = get_at("/larder/api/stats").extension(proxy).header("x-real-ip", client);
        bearer(request, token)
    };
    for _ in 0..10 {
        assert_eq!(status(&proxied, from("wrong", "192.0.2.1")).await, 401);
    }
    assert_eq!(status(&proxied, from(TOKEN, "192.0.2.1")).await, 429);
    assert_eq!(status(&proxied, from(TOKEN, "192.0.2.2")).await, 200);
}

/// Rule: a bearer token that is not larder's, such as a JWT, is for the closure, which sees the request as the client sent it.
#[tokio::test]
async fn a_closure_sees_the_bearer_token_and_the_url_that_the_client_sent() {
    let by_jwt = |head: &request::Parts| {
        let token = head.headers.get("authorization")?.to_str().ok()?;
        (token == "Bearer jwt-of-ada" && head.uri.path() == "/larder/api/whoami")
            .then(|| AdminAccess::full("ada"))
    };
    for builder in [admin(&larder()).guard(by_jwt), admin(&larder()).guard(by_jwt).token(TOKEN)] {
        let inner = app_of(builder);
        let app = inner.clone().layer(HttpCache::new(&larder()).ttl(MINUTE).shared());
        for app in [inner, app] {
            for _ in 0..20 {
                let address = ConnectInfo("192.0.2.1:1".parse::<SocketAddr>().unwrap());
                let who = bearer(get_at("/larder/api/whoami"), "jwt-of-ada").extension(address);
                assert!(json_of(&app, who, Value::Null).await["actor"] == "ada");
            }
            assert_eq!(status(&app, bearer(get_at("/larder/api/whoami"), "jwt-of-eve")).await, 401);
        }
    }
    // It is no proof against requests of other sites: who knows where the closure took it from?
    let app = app_of(admin(&larder()).guard(|_| Some(AdminAccess::full("all"))).token(TOKEN));
    let act =
        bearer(post("/larder/api/invalidate"), "jwt").header("origin", "https://evil.example");
    assert_eq!(send(&app, act, "{\"tag\":\"t\"}").await.status(), 403);
}

#[tokio::test]
async fn a_read_only_token_reads_and_invalidates_nothing() {
    let larder = larder();
    let app = with_tokens(&larder);
    store(&larder, "a", "t").await;
    let by_tag = json!({ "tag": "t" });
    let preview =
        json_of(&app, bearer(post("/larder/api/preview"), READ_ONLY), by_tag.clone()).await;
    assert_eq!(preview["entries"], 1);
    let refused =
        send(&app, bearer(post("/larder/api/invalidate"), READ_ONLY), by_tag.to_string()).await;
    assert_eq!(refused.status(), 403);
    assert!(text(refused).await.contains("read-only, allowed is full"));
    assert_eq!(larder.stats().invalidations, 0);
}

#[tokio::test]
async fn a_closure_lets_in_the_users_that_the_application_knows() {
    #[derive(Clone)]
    struct User(&'static str);
    let guarded = admin(&larder()).guard(|head| {
        let User(name) = head.extensions.get::<User>()?;
        match *name {
            "ada" => Some(AdminAccess::full("ada")),
            "bob" => Some(AdminAccess::read_only("bob")),
            _ => None,
        }
    });
    let app = app_of(guarded);
    for (user, expected) in [("ada", 200), ("bob", 200), ("eve", 401)] {
        let request = get_at("/larder/api/whoami").extension(User(user));
        let response = send(&app, request, Body::empty()).await;
        assert_eq!(response.status(), expected, "{user}");
        let who = text(response).await;
        assert_eq!(who.contains(&format!("\"actor\":\"{user}\"")), expected == 200, "{who}");
    }
    let act =
        |user| post("/larder/api/invalidate").extension(User(user)).header("x-larder-csrf", "1");
    assert_eq!(send(&app, act("ada"), "{\"tag\":\"t\"}").await.status(), 200);
    assert_eq!(send(&app, act("bob"), "{\"tag\":\"t\"}").await.status(), 403);
    assert_eq!(status(&app, get_at("/larder")).await, 401, "there is no form without a token");
}

/// Rule: a request without an address, through a proxy, or for another host is not one of this machine.
#[tokio::test]
async fn the_loopback_guard_refuses_every_request_that_may_come_from_elsewhere() {
    let app = app_of(admin(&larder()).unguarded_on_loopback_only());
    let from = |address: &str, host: &str| {
        let address = ConnectInfo(address.parse::<SocketAddr>().unwrap());
        Request::get("/larder/api/stats").header("host", host).extension(address)
    };
    for address in ["127.0.0.1:5", "127.9.9.9:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
        for host in ["localhost", "localhost:3000", "127.0.0.1:3000", "[::1]:3000", "LOCALHOST"] {
            assert_eq!(status(&app, from(address, host)).await, 200, "{address} {host}");
        }
    }
    for address in ["192.0.2.1:5", "[2001:db8::1]:5", "0.0.0.0:5"] {
        assert_eq!(status(&app, from(address, "localhost")).await, 401, "{address}");
    }
    for host in ["shop.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "evil:80"]
    {
        assert_eq!(status(&app, from("127.0.0.1:5", host)).await, 401, "{host:?}");
    }
    let fields = [
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "via",
        "cf-connecting-ip",
        "true-client-ip",
        "x-client-ip",
    ];
    for field in fields {
        let request = from("127.0.0.1:5", "localhost").header(field, "127.0.0.1");
        assert_eq!(status(&app, request).await, 401, "{field}");
    }
    let without_address = Request::get("/larder/api/stats").header("host", "localhost");
    assert_eq!(status(&app, without_address).await, 401);
    let address = ConnectInfo("127.0.0.1:5".parse::<SocketAddr>().unwrap());
    let without_host = Request::get("/larder/api/stats").extension(address);
    assert_eq!(status(&app, without_host).await, 401);
    let two = from("127.0.0.1:5", "localhost").header("host", "evil.example");
    assert_eq!(status(&app, two).await, 401);
    let by_http_1_0 = from("127.0.0.1:5", "localhost").version(http::Version::HTTP_10);
    assert_eq!(status(&app, by_http_1_0).await, 401, "some proxies send it");
    for (page, expected) in [
        ("http://localhost:3000/larder/", 200),
        ("http://[::1]:3000", 200),
        ("https://evil.example", 401),
        ("http://localhost@evil.example/", 401),
        ("null", 401),
        ("", 401),
    ] {
        for field in ["origin", "referer"] {
            let request = from("127.0.0.1:5", "localhost").header(field, page);
            assert_eq!(status(&app, request).await, expected, "{field}: {page}");
        }
    }
}

async fn signed_in(app: &Router) -> (String, String) {
    let request = Request::post("/larder/login")
        .header("host", "shop.example")
        .header("origin", "https://shop.example")
        .header("content-type", "application/x-www-form-urlencoded");
    let response = send(app, request, format!("token={}", TOKEN.replace(' ', "+"))).await;
    assert_eq!(response.status(), 303, "{}", text(response).await);
    assert_eq!(response.headers()[header::LOCATION], "/larder");
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    let pair = cookie.split(';').next().unwrap().to_owned();
    let who = get_at("/larder/api/whoami").header("cookie", &pair);
    let who = json_of(app, who, Value::Null).await;
    (cookie, who["csrf"].as_str().unwrap().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_browser_signs_in_by_a_form_and_its_session_ends() {
    let app = with_tokens(&larder());
    let (cookie, _) = signed_in(&app).await;
    assert!(!cookie.contains(TOKEN), "the cookie is not the token");
    for part in ["HttpOnly", "SameSite=Strict", "Path=/larder", "Secure", "Max-Age=43200"] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
    let pair = cookie.split(';').next().unwrap().to_owned();
    let page = || get_at("/larder").header("cookie", format!("theme=dark; {pair}"));
    assert_eq!(status(&app, page()).await, 200);
    tokio::time::advance(12 * 60 * MINUTE).await;
    assert_eq!(status(&app, page()).await, 401);

    let (cookie, csrf) = signed_in(&app).await;
    let pair = cookie.split(';').next().unwrap().to_owned();
    let logout = post("/larder/logout").header("cookie", &pair).header("x-larder-csrf", csrf);
    assert_eq!(send(&app, logout, "{}").await.status(), 303);
    assert_eq!(status(&app, get_at("/larder").header("cookie", pair)).await, 401);

    // A proxy has changed the host; the browser still says which page sent the form, and that it came by TLS.
    let login = |host: &str, origin: &str, site: &str| {
        let request = Request::post("/larder/login").header("host", host).header("origin", origin);
        request.header("sec-fetch-site", site)
    };
    let form = format!("token={}", TOKEN.replace(' ', "+"));
    let behind = login("localhost:3000", "https://shop.example", "same-origin");
    let response = send(&app, behind, form.clone()).await;
    assert_eq!(response.status(), 303);
    assert!(response.headers()["set-cookie"].to_str().unwrap().contains("; Secure"));
    let forged = login("localhost:3000", "http://localhost:3000", "cross-site");
    assert_eq!(send(&app, forged, form.clone()).await.status(), 403);
    let plain = login("localhost:3000", "http://localhost:3000", "same-origin");
    let response = send(&app, plain, form).await;
    assert!(!response.headers()["set-cookie"].to_str().unwrap().contains("Secure"));

    let wrong = Request::post("/larder/login").header("host", "localhost");
    let refused = send(&app, wrong, "token=wrong").await;
    assert_eq!(refused.status(), 401);
    assert!(!refused.headers().contains_key("set-cookie"));
    let cross_site =
        Request::post("/larder/login").header("host", "a").header("origin", "https://evil.example");
    assert_eq!(send(&app, cross_site, format!("token={TOKEN}")).await.status(), 403);
}

/// Everything that a page of another site can make a browser send, which adds the cookie in the worst case.
#[tokio::test]
async fn an_action_of_another_site_is_refused() {
    let larder = larder();
    let app = with_tokens(&larder);
    let (cookie, csrf) = signed_in(&app).await;
    let pair = cookie.split(';').next().unwrap().to_owned();
    let action = || {
        Request::post("/larder/api/invalidate")
            .header("host", "shop.example")
            .header("cookie", &pair)
    };
    let json = |request: request::Builder| request.header("content-type", "application/json");
    let with_csrf = |request: request::Builder| request.header("x-larder-csrf", &csrf);
    let body = "{\"tag\":\"t\"}";
    let forged = [
        ("a form", action().header("content-type", "application/x-www-form-urlencoded")),
        ("text", with_csrf(action().header("content-type", "text/plain"))),
        ("no type", with_csrf(action())),
        ("no csrf", json(action())),
        ("another csrf", json(action()).header("x-larder-csrf", "1")),
        ("another origin", with_csrf(json(action())).header("origin", "https://evil.example")),
        ("an opaque origin", with_csrf(json(action())).header("origin", "null")),
        ("another site", with_csrf(json(action())).header("sec-fetch-site", "cross-site")),
        (
            "another host of the site",
            with_csrf(json(action())).header("sec-fetch-site", "same-site"),
        ),
    ];
    for (what, request) in forged {
        assert_eq!(send(&app, request, body).await.status(), 403, "{what}");
    }
    assert_eq!(larder.stats().invalidations, 0);
    let own = with_csrf(json(action()))
        .header("origin", "https://shop.example")
        .header("sec-fetch-site", "same-origin");
    assert_eq!(send(&app, own, body).await.status(), 200);
    let gets = get_at("/larder/api/invalidate").header("cookie", &pair);
    assert_eq!(status(&app, gets).await, 405, "an action is never a GET");
}

/// Rule: only a bearer token proves that no browser attached the credentials by itself; a browser attaches `Basic` ones to
/// the form of another site.
#[tokio::test]
async fn basic_credentials_do_not_switch_off_the_checks_of_an_action() {
    let larder = larder();
    let api = admin(&larder).guard(|_| Some(AdminAccess::full("proxy"))).build().unwrap();
    let app = Router::new().nest("/larder", api);
    let forged = Request::post("/larder/api/invalidate")
        .header("host", "shop.example")
        .header("authorization", "Basic YWRhOmE=")
        .header("origin", "https://evil.example")
        .header("sec-fetch-site", "cross-site")
        .header("content-type", "text/plain");
    let answer = send(&app, forged, "{\"everything\":true,\"because\":\"=\"}").await;
    assert_eq!(answer.status(), 403);
    assert_eq!(larder.stats().invalidations, 0);
}

/// Rule: under a cache for all clients, which strips credentials and unkeyed parameters, the admin API works as without it.
#[tokio::test]
async fn admin_answers_bypass_a_shared_cache_around_them_from_the_first_request_on() {
    for path in ["/larder", "/internal/larder"] {
        let larder = larder();
        let api = admin(&larder).token(TOKEN).read_only_token(READ_ONLY).build().unwrap();
        let inner = Router::new().route("/", get(async || "home")).nest(path, api);
        let rule = QueryRule::Only(vec!["page".to_owned()]);
        let app = inner.layer(HttpCache::new(&larder).ttl(MINUTE).shared().query_params(rule));
        let url = format!("{path}/api/explain?url=http://shop.example/");
        // The cache does not know yet that this path is larder's own.
        let first = send(&app, bearer(get_at(&url), TOKEN), Body::empty()).await;
        assert_eq!(
            (first.status().as_u16(), &first.headers()["cache-control"]),
            (200, &"no-store".parse().unwrap())
        );
        assert!(
            text(first).await.contains("\"decision\""),
            "with its credentials and its parameter"
        );
        for round in 0..3 {
            let without = send(&app, get_at(&url), Body::empty()).await;
            assert_eq!(without.status(), 401, "{path} {round}");
            let answer = send(&app, bearer(get_at(&url), TOKEN), Body::empty()).await;
            assert_eq!(answer.status(), 200, "{path} {round}: {}", text(answer).await);
            assert_eq!(answer.headers()["cache-control"], "no-store");
            let cache_status = answer.headers()["cache-status"].to_str().unwrap();
            assert!(cache_status.ends_with("detail=own-page"), "{cache_status}");
            assert!(text(answer).await.contains("\"decision\""));
        }
        let (one, other) = tokio::join!(
            send(&app, bearer(get_at(&format!("{path}/api/whoami")), TOKEN), Body::empty()),
            send(&app, bearer(get_at(&format!("{path}/api/whoami")), READ_ONLY), Body::empty()),
        );
        assert!(
            text(one).await.contains("full token") && text(other).await.contains("read-only token")
        );
        assert_eq!(larder.stats().cache("responses").unwrap().total.stored, 0);
        send(&app, get_at("/"), Body::empty()).await;
        let hit = send(&app, get_at("/"), Body::empty()).await;
        assert!(hit.headers()["cache-status"].to_str().unwrap().starts_with("larder; hit"));
    }
}

/// Rule: as long as a cache does not know the path of the admin API, requests come through it; they do not share answers.
#[tokio::test]
async fn the_first_requests_at_once_each_get_their_own_answer_wherever_the_router_is() {
    let inner = |larder: &Larder, path: &str| {
        let api = || admin(larder).token(TOKEN).read_only_token(READ_ONLY).build().unwrap();
        match path {
            "" => Router::new().fallback_service(api()),
            path => (0..5)
                .fold(Router::new(), |app, number| app.nest(&format!("{path}{number}"), api())),
        }
    };
    for (path, mounts) in [("", [""; 5]), ("/l", ["/l0", "/l1", "/l2", "/l3", "/l4"])] {
        let larder = larder();
        let app = inner(&larder, path).layer(HttpCache::new(&larder).ttl(MINUTE).shared());
        for mount in mounts {
            let who = |token| bearer(get_at(&format!("{mount}/api/whoami")), token);
            for _ in 0..2 {
                let (full, reader, nobody, again) = tokio::join!(
                    send(&app, who(TOKEN), Body::empty()),
                    send(&app, who(READ_ONLY), Body::empty()),
                    send(&app, get_at(&format!("{mount}/api/whoami")), Body::empty()),
                    send(&app, who(TOKEN), Body::empty()),
                );
                assert_eq!(nobody.status(), 401, "{mount}");
                let texts = [text(full).await, text(reader).await, text(again).await];
                assert!(texts[0].contains("full token"), "{mount}: {}", texts[0]);
                assert!(texts[1].contains("read-only token"), "{mount}: {}", texts[1]);
                assert_eq!(texts[0], texts[2]);
            }
        }
        assert_eq!(larder.stats().cache("responses").unwrap().total.stored, 0);
    }
}

#[tokio::test]
async fn the_page_and_its_links_are_at_the_path_wherever_it_is_nested() {
    let larder = larder();
    let api = || admin(&larder).token(TOKEN).build().unwrap();
    for (app, path) in [
        (Router::new().nest("/larder", api()), "/larder"),
        (Router::new().nest_service("/larder", api()), "/larder"),
        (Router::new().nest("/a", Router::new().nest("/b", api())), "/a/b"),
        (Router::new().fallback_service(api()), ""),
    ] {
        let at = |rest: &str| bearer(get_at(&format!("{path}{rest}")), TOKEN);
        let root = if path.is_empty() { "/" } else { "" };
        let page = send(&app, at(root), Body::empty()).await;
        assert_eq!(page.status(), 200, "{path}");
        let policy = page.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(page.headers()["x-frame-options"], "DENY");
        let page = text(page).await;
        assert!(page.contains(&format!("src=\"{path}/app.js\"")), "{path}: {page}");
        assert!(!page.contains("http://") && !page.contains("//cdn") && !page.contains("<script>"));
        for rest in ["/app.js", "/style.css", "/api/stats"] {
            assert_eq!(status(&app, at(rest)).await, 200, "{path}{rest}");
        }
        assert_eq!(status(&app, at("/nothing")).await, 404);
    }
    let with_slash = Router::<()>::new().nest_service("/larder", api());
    assert_eq!(status(&with_slash, bearer(get_at("/larder/"), TOKEN)).await, 200);
}

#[tokio::test]
async fn an_invalidation_is_previewed_made_and_audited() {
    let larder = larder();
    let app = with_tokens(&larder);
    for (name, tag) in [("a", "product:1"), ("b", "product:2"), ("c", "other")] {
        store(&larder, name, tag).await;
    }
    let request = json!({ "prefix": "product", "because": "price import <b>" });
    let preview = json_of(&app, bearer(post("/larder/api/preview"), TOKEN), request.clone()).await;
    assert_eq!((&preview["entries"], &preview["is_estimate"]), (&json!(2), &json!(false)));
    assert_eq!(larder.stats().invalidations, 0);
    let done = json_of(&app, bearer(post("/larder/api/invalidate"), TOKEN), request).await;
    assert_eq!(done["outcome"], "logged");
    let past = json_of(&app, bearer(get_at("/larder/api/invalidations"), TOKEN), Value::Null).await;
    assert_eq!(
        (&past[0]["because"], &past[0]["by"]),
        (&json!("price import <b>"), &json!("full token"))
    );
    assert_eq!(past[0]["targets"][0], json!({ "class": "prefix", "text": "product" }));
    let audit = json_of(&app, bearer(get_at("/larder/api/audit"), TOKEN), Value::Null).await;
    assert_eq!(
        (&audit[0]["action"], &audit[0]["because"]),
        (&json!("invalidate"), &json!("price import <b>"))
    );
    let left =
        json_of(&app, bearer(get_at("/larder/api/graph?tag=other"), TOKEN), Value::Null).await;
    assert_eq!(left["kinds"]["object"]["nodes"][0]["name"], "c");
}

#[tokio::test]
async fn the_audit_log_has_a_settable_length() {
    let app = app_of(admin(&larder()).token(TOKEN).audit_events(3));
    for number in 0..5 {
        let request = json!({ "tag": format!("t{number}") });
        json_of(&app, bearer(post("/larder/api/invalidate"), TOKEN), request).await;
    }
    let audit = json_of(&app, bearer(get_at("/larder/api/audit"), TOKEN), Value::Null).await;
    let texts: Vec<_> =
        audit.as_array().unwrap().iter().map(|it| it["targets"][0]["text"].clone()).collect();
    assert_eq!(texts, ["t4", "t3", "t2"]);
}

/// An actor that may only read cannot displace the sessions and the audit events of one that acts.
#[tokio::test]
async fn a_read_only_actor_displaces_neither_sessions_nor_audit_events_of_others() {
    let larder = larder();
    let app = app_of(admin(&larder).token(TOKEN).read_only_token(READ_ONLY).audit_events(5));
    let (cookie, _) = signed_in(&app).await;
    json_of(&app, bearer(post("/larder/api/invalidate"), TOKEN), json!({ "tag": "t" })).await;
    for _ in 0..70 {
        let form = format!("token={}", READ_ONLY.replace(' ', "+"));
        let login = Request::post("/larder/login").header("host", "shop.example");
        assert_eq!(send(&app, login, form).await.status(), 303);
    }
    let page = get_at("/larder").header("cookie", cookie.split(';').next().unwrap());
    assert_eq!(status(&app, page).await, 200);
    let audit = json_of(&app, bearer(get_at("/larder/api/audit"), TOKEN), Value::Null).await;
    let actions: Vec<_> = audit.as_array().unwrap().iter().map(|it| &it["action"]).collect();
    assert_eq!(actions, ["login", "login", "login", "login", "login", "invalidate"]);

    let refused = bearer(post("/larder/api/invalidate"), READ_ONLY);
    assert_eq!(send(&app, refused, "{\"tag\":\"u\"}").await.status(), 403);
    let audit = json_of(&app, bearer(get_at("/larder/api/audit"), TOKEN), Value::Null).await;
    assert_eq!(
        (&audit[0]["outcome"], &audit[0]["targets"][0]["text"]),
        (&json!("refused"), &json!("u"))
    );
}

/// Rule: an operator cannot act without a trace by closing the connection early.
#[tokio::test(start_paused = true)]
async fn an_invalidation_is_audited_also_if_its_client_disconnects() {
    use std::future::Future as _;

    let app = with_tokens(&larder());
    let act =
        bearer(post("/larder/api/invalidate"), TOKEN).body(Body::from(r#"{"tag":"t"}"#)).unwrap();
    let mut answer = Box::pin(app.clone().oneshot(act));
    // The first polls read the request and begin the invalidation.
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(answer.as_mut().poll(&mut context).is_pending());
    drop(answer);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let audit = json_of(&app, bearer(get_at("/larder/api/audit"), TOKEN), Value::Null).await;
    assert_eq!(
        (&audit[0]["action"], &audit[0]["outcome"]),
        (&json!("invalidate"), &json!("logged"))
    );
}

/// Partitions name users. Wherever a target or a tag shows one, it is hashed.
#[tokio::test]
async fn a_partition_is_shown_nowhere_unless_that_is_allowed() {
    let larder = larder();
    let cache = HttpCache::new(&larder).ttl(MINUTE);
    let site = Router::new().route("/cart", get(async || "a cart"));
    let site = site.layer(cache.partition_by(|head: &larder_http::Head<'_>| {
        head.headers.get("cookie").map(|user| user.to_str().unwrap().to_owned())
    }));
    let cart = get_at("/cart").header("cookie", "ada@example.org");
    assert_eq!(status(&site, cart).await, 200);
    let scan = larder.kernel().scan(9, MINUTE, |_| true);
    // The tag has a hash without a secret, which few tries find.
    let shown = scan.entries.iter().map(|it| larder.kernel().explain_entry(it, Partitions::Shown));
    let mut tags = shown.flat_map(|shown| shown.tags);
    let tag = tags.find(|tag| tag.class == "url-in-partition").unwrap();
    let (hash, _) = tag.tag.split_once(' ').unwrap();
    let secrets = ["ada@example.org", hash];
    let target = Target::path_in_partition("http://shop.example", "/cart", b"ada@example.org");
    let _logged = larder.invalidate(target).await;
    for (builder, expected) in [
        (admin(&larder).token(TOKEN), false),
        (admin(&larder).token(TOKEN).show_partitions(), true),
    ] {
        let app = app_of(builder);
        let mut all = String::new();
        for path in [
            "invalidations",
            "entries",
            "explain?url=http://shop.example/cart&principal=ada@example.org",
        ] {
            let answer =
                send(&app, bearer(get_at(&format!("/larder/api/{path}")), TOKEN), Body::empty())
                    .await;
            all += &text(answer).await;
        }
        for secret in secrets {
            assert_eq!(all.contains(secret), expected, "{secret} in {all}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hot_keys_and_advice_are_there_without_further_settings() {
    let larder = larder();
    let app = with_tokens(&larder);
    let names: Vec<String> = (0..100).map(|number| format!("search:{number}")).collect();
    for name in names {
        store(&larder, name.leak(), "t").await;
    }
    for _ in 0..200 {
        store(&larder, "hot", "t").await;
    }
    let keys = json_of(&app, bearer(get_at("/larder/api/keys"), READ_ONLY), Value::Null).await;
    assert_eq!(keys["hot"][0]["key"]["name"], "hot");
    assert_eq!(keys["cold"][0]["requests"], 1);
    let advice = json_of(&app, bearer(get_at("/larder/api/advice"), READ_ONLY), Value::Null).await;
    assert_eq!(
        (&advice[0]["kind"], &advice[0]["about"]),
        (&json!("keys-requested-once"), &json!("object: search:*"))
    );
}

/// A scan or a graph sees the tags of a namespace only if it is asked for them, and only entries that may still be served.
#[tokio::test(start_paused = true)]
async fn a_graph_has_the_tags_of_one_namespace_and_no_invalid_entries() {
    let larder = larder();
    let app = with_tokens(&larder);
    store(&larder, "own", "t").await;
    store(&larder.namespace("tenant"), "theirs", "t").await;
    for (path, expected) in [("tag=t", "own"), ("tag=t&namespace=tenant", "theirs")] {
        let graph = bearer(get_at(&format!("/larder/api/graph?{path}")), TOKEN);
        let graph = json_of(&app, graph, Value::Null).await;
        assert_eq!(graph["kinds"]["object"]["nodes"][0]["name"], expected);
        assert_eq!(graph["kinds"]["object"]["entries"], 1);
        let entries = bearer(get_at(&format!("/larder/api/entries?{path}")), TOKEN);
        let entries = json_of(&app, entries, Value::Null).await;
        assert_eq!(
            (&entries["matched"], &entries["entries"][0]["key"]["name"]),
            (&json!(1), &json!(expected))
        );
    }
    let _logged = larder.invalidate("t").await;
    let graph = bearer(get_at("/larder/api/graph?tag=t"), TOKEN);
    assert_eq!(json_of(&app, graph, Value::Null).await["kinds"], json!({}));
    let preview = bearer(post("/larder/api/preview"), TOKEN);
    assert_eq!(
        json_of(&app, preview, json!({ "everything": true })).await["entries"],
        1,
        "the tenant's"
    );
}

#[tokio::test]
async fn bad_input_gets_an_error_that_says_what_is_allowed() {
    let app = with_tokens(&larder());
    for (path, allowed) in [
        ("/api/entries?kind=page", "response, fragment, query or object"),
        ("/api/entries?sort=size", "hits, bytes, age, fill or ends"),
        ("/api/entries?limit=9999", "0 to 1000"),
        ("/api/entries?limt=3", "limt"),
        ("/api/explain", "url is missing"),
        ("/api/explain?url=/products", "an absolute URL"),
        ("/api/explain?url=http://a/&header=x", "NAME:VALUE"),
        ("/api/explain?url=http://a/&user=x", "allowed is url, method"),
        ("/api/graph", "tag"),
        ("/api/invalidations?after=x", "invalid digit"),
    ] {
        let response =
            send(&app, bearer(get_at(&format!("/larder{path}")), TOKEN), Body::empty()).await;
        assert_eq!(response.status(), 400, "{path}");
        let error = text(response).await;
        assert!(error.contains(allowed), "{path}: {error}");
    }
    for (body, allowed) in [
        ("{}", "no target is given; allowed is one of tag"),
        ("{\"tag\":\"a\",\"path\":\"/a\"}", "several targets"),
        ("{\"tag\":\" \"}", "the target is empty"),
        ("{\"tags\":\"a\"}", "allowed is a JSON object"),
        ("tag=a", "allowed is a JSON object"),
        ("{\"tag\":\"a\",\"grace_seconds\":5}", "allowed with soft"),
    ] {
        let response = send(&app, bearer(post("/larder/api/invalidate"), TOKEN), body).await;
        assert_eq!(response.status(), 400, "{body}");
        let error = text(response).await;
        assert!(error.contains(allowed), "{body}: {error}");
    }
    let long = json!({ "pattern": "*a".repeat(300) }).to_string();
    let response = send(&app, bearer(post("/larder/api/invalidate"), TOKEN), long).await;
    assert!(text(response).await.contains("allowed, which is 512 bytes"));
    let long = "x".repeat(70_000);
    let response = send(&app, bearer(post("/larder/api/invalidate"), TOKEN), long).await;
    assert_eq!(response.status(), 413);
}

#[tokio::test(start_paused = true)]
async fn the_live_stream_has_the_counters_of_each_second_and_new_invalidations() {
    let larder = larder();
    let app = with_tokens(&larder);
    let response = send(&app, bearer(get_at("/larder/api/live"), TOKEN), Body::empty()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut next = async || next_event(&mut body).await.unwrap().1;
    assert_eq!(next().await["stats"]["invalidations"], 0);
    let _logged = larder.invalidate("t").await;
    let second = next().await;
    assert_eq!(
        (&second["stats"]["invalidations"], &second["invalidations"][0]["mode"]),
        (&json!(1), &json!("hard"))
    );
    assert_eq!(next().await["invalidations"], json!([]), "each invalidation comes once");
}

async fn next_event(body: &mut Body) -> Option<(String, Value)> {
    use http_body_util::BodyExt as _;

    let frame = body.frame().await?.unwrap().into_data().unwrap();
    let text = std::str::from_utf8(&frame).unwrap().trim().to_owned();
    let (id, rest) =
        text.strip_prefix("id: ").unwrap().split_once("\nretry: 1000\ndata: ").unwrap();
    Some((id.to_owned(), serde_json::from_str(rest).unwrap()))
}

/// Rule: a stream ends, so that a server can shut down, and its client goes on where it ended.
#[tokio::test(start_paused = true)]
async fn a_live_stream_ends_and_the_next_one_continues_it() {
    let larder = larder();
    let app = with_tokens(&larder);
    let live = || bearer(get_at("/larder/api/live"), TOKEN);
    let _logged = larder.invalidate("first").await;
    let mut body = send(&app, live(), Body::empty()).await.into_body();
    let mut id = String::new();
    for second in 0..30 {
        let (of_event, event) = next_event(&mut body).await.expect("an event each second");
        assert_eq!(event["invalidations"].as_array().unwrap().len(), usize::from(second == 0));
        id = of_event;
    }
    assert!(next_event(&mut body).await.is_none());
    let _logged = larder.invalidate("second").await;
    for (id, expected) in [(&*id, 1), ("0123-1", 2), ("nonsense", 2)] {
        let again = live().header("last-event-id", id);
        let mut body = send(&app, again, Body::empty()).await.into_body();
        let (_, event) = next_event(&mut body).await.unwrap();
        assert_eq!(event["invalidations"].as_array().unwrap().len(), expected, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_stream_ends_with_its_session_and_there_are_not_too_many() {
    let app = with_tokens(&larder());
    let (cookie, csrf) = signed_in(&app).await;
    let pair = cookie.split(';').next().unwrap().to_owned();
    let live = get_at("/larder/api/live").header("cookie", &pair);
    let mut body = send(&app, live, Body::empty()).await.into_body();
    assert!(next_event(&mut body).await.is_some());
    let logout = post("/larder/logout").header("cookie", &pair).header("x-larder-csrf", csrf);
    assert_eq!(send(&app, logout, "{}").await.status(), 303);
    assert!(next_event(&mut body).await.is_none());
    drop(body);

    let mut open = Vec::new();
    for _ in 0..32 {
        open.push(send(&app, bearer(get_at("/larder/api/live"), TOKEN), Body::empty()).await);
    }
    let live = || bearer(get_at("/larder/api/live"), TOKEN);
    assert!(open.iter().all(|answer| answer.status() == 200));
    assert_eq!(status(&app, live()).await, 503);
    open.pop();
    assert_eq!(status(&app, live()).await, 200);
}
