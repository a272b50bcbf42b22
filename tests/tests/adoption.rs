//! Regressions from real applications that adopted larder by following the documentation to the letter.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Form, Router,
    body::Body,
    extract::Path,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use http::{HeaderMap, Request, StatusCode, header};
use larder::{
    Larder,
    axum::{CachePolicy, ConditionalLayer, InvalidationLayer, ResponseCacheLayer},
    http::FinalHeadLayer,
};
use tower::ServiceBuilder;
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

use crate::attacks::{Answer, ask};

const MINUTE: Duration = Duration::from_secs(60);

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

/// The cookie that a response sets.
fn cookie(answer: &Answer) -> Option<String> {
    let cookie = answer.headers.get(header::SET_COOKIE)?.to_str().unwrap();
    Some(cookie.split(';').next().unwrap().to_owned())
}

/// A form with a token of the session, against cross-site request forgery.
async fn signup(session: Session) -> String {
    let token = match session.get::<String>("token").await.unwrap() {
        Some(token) => token,
        None => {
            use std::hash::{BuildHasher as _, RandomState};
            let token = format!("{:x}", RandomState::new().hash_one(0));
            session.insert("token", &token).await.unwrap();
            token
        }
    };
    format!("token {token}")
}

async fn about(_: Session) -> &'static str {
    "about us"
}

fn with_sessions(outermost: bool, cache: ResponseCacheLayer, larder: &Larder) -> Router {
    let pages = Router::new().route("/signup", get(signup)).route("/about", get(about));
    let inside = ServiceBuilder::new()
        .layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false))
        .layer(ConditionalLayer::new(larder))
        .layer(InvalidationLayer::new(larder))
        .layer(cache);
    match outermost {
        true => pages.layer(ServiceBuilder::new().layer(FinalHeadLayer::new()).layer(inside)),
        false => pages.layer(inside),
    }
}

#[tokio::test]
async fn a_page_with_a_new_session_is_not_shared_between_visitors() {
    for (what, outermost, asks) in
        [("final head", true, false), ("tower-sessions", false, true), ("both", true, true)]
    {
        let larder = larder();
        let mut cache = ResponseCacheLayer::new(&larder).ttl(MINUTE);
        if asks {
            cache = cache.refuse_written_sessions();
        }
        let app = with_sessions(outermost, cache, &larder);
        let mut tokens = Vec::new();
        for _ in 0..5 {
            let page = ask(&app, "/signup", &[]).await;
            assert!(!tokens.contains(&page.text), "{what}: the token of another");
            let cookie = cookie(&page).expect("each visitor has a session of its own");
            let again = ask(&app, "/signup", &[("cookie", &cookie)]).await;
            assert_eq!(again.text, page.text, "{what}: the token stays with its session");
            tokens.push(page.text);
        }
        ask(&app, "/about", &[]).await;
        assert!(
            ask(&app, "/about", &[]).await.is_hit(),
            "{what}: a page that does not touch the session"
        );
    }
}

/// A paste bin whose pastes may need a password, sent in a header field of its own.
async fn paste(Path(id): Path<String>, headers: HeaderMap) -> Response {
    let given = headers.get("wastebin-password").map(|password| password.as_bytes());
    match (&*id, given) {
        ("secret", Some(b"pw")) => "the protected paste".into_response(),
        ("secret", _) => (StatusCode::UNAUTHORIZED, "password?").into_response(),
        _ => "a paste".into_response(),
    }
}

async fn negotiated(headers: HeaderMap) -> Response {
    let says = |name: &str, text: &str| {
        headers.get(name).is_some_and(|value| value.to_str().unwrap().starts_with(text))
    };
    if headers.contains_key("hx-request") {
        return "a part".into_response();
    }
    if says("accept", "application/json") {
        return "{}".into_response();
    }
    if says("accept-language", "de") { "deutsch" } else { "english" }.into_response()
}

#[tokio::test]
async fn a_lifetime_for_a_whole_router_leaks_nothing() {
    let larder = larder();
    let layers = ServiceBuilder::new()
        .layer(ConditionalLayer::new(&larder))
        .layer(InvalidationLayer::new(&larder))
        .layer(ResponseCacheLayer::new(&larder).ttl(MINUTE));
    let app: Router =
        Router::new().route("/raw/{id}", get(paste)).route("/", get(negotiated)).layer(layers);
    let password = [("wastebin-password", "pw")];
    for _ in 0..2 {
        assert_eq!(ask(&app, "/raw/secret", &password).await.text, "the protected paste");
        assert_eq!(ask(&app, "/raw/secret", &[]).await.text, "password?");
    }
    let requests: [(&[(&str, &str)], &str); 5] = [
        (&[("accept-language", "de")], "deutsch"),
        (&[("accept-language", "en")], "english"),
        (&[("hx-request", "true")], "a part"),
        (&[("accept", "application/json")], "{}"),
        (&[], "english"),
    ];
    for _ in 0..2 {
        for (fields, text) in requests {
            assert_eq!(ask(&app, "/", fields).await.text, text, "{fields:?}");
        }
    }
    for (fields, _) in requests {
        assert!(ask(&app, "/", fields).await.is_hit(), "{fields:?}");
    }
}

#[tokio::test]
async fn if_the_user_cannot_be_identified_the_page_bypasses_the_cache() {
    #[derive(Clone)]
    struct Unreadable;
    type User = Result<Option<String>, Unreadable>;
    let larder = larder();
    let broken = Arc::new(AtomicBool::new(true));
    // The session store fails for the layer, and works for the handler a moment later.
    let authentication = {
        let broken = broken.clone();
        move |mut request: Request<Body>| {
            let user: User = match broken.load(Ordering::SeqCst) {
                true => Err(Unreadable),
                false => Ok(request.headers().get("x-user").map(|_| "alice".to_owned())),
            };
            request.extensions_mut().insert(user);
            request
        }
    };
    let cache = ResponseCacheLayer::new(&larder)
        .partition_by(|head| head.extensions.get::<User>().cloned().unwrap_or(Err(Unreadable)));
    let home = |policy: CachePolicy, headers: HeaderMap| async move {
        policy.ttl(MINUTE);
        if headers.contains_key("x-user") { "hello alice" } else { "hello" }
    };
    let app: Router = Router::new()
        .route("/", get(home))
        .layer(ServiceBuilder::new().map_request(authentication).layer(cache));
    let alice = ask(&app, "/", &[("x-user", "alice")]).await;
    assert_eq!(alice.text, "hello alice");
    let status = alice.headers[header::CACHE_STATUS].to_str().unwrap();
    assert!(status.contains("detail=identity"), "{status}");
    broken.store(false, Ordering::SeqCst);
    assert_eq!(ask(&app, "/", &[]).await.text, "hello");
    assert_eq!(ask(&app, "/", &[("x-user", "alice")]).await.text, "hello alice");
}

#[tokio::test]
async fn a_handler_may_give_a_redirect_a_lifetime() {
    let cases = [
        (StatusCode::MOVED_PERMANENTLY, true),
        (StatusCode::FOUND, true),
        (StatusCode::SEE_OTHER, true),
        (StatusCode::TEMPORARY_REDIRECT, true),
        (StatusCode::PERMANENT_REDIRECT, true),
        (StatusCode::ACCEPTED, true),
        (StatusCode::NOT_FOUND, false),
        (StatusCode::INTERNAL_SERVER_ERROR, false),
    ];
    for (status, is_stored) in cases {
        let short = move |policy: CachePolicy| async move {
            policy.ttl(MINUTE).tag(("link", 7));
            (status, [(header::LOCATION, "https://long.example/")])
        };
        let larder = larder();
        let app: Router =
            Router::new().route("/7", get(short)).layer(ResponseCacheLayer::new(&larder));
        ask(&app, "/7", &[]).await;
        let second = ask(&app, "/7", &[]).await;
        assert_eq!((second.status, second.is_hit()), (status, is_stored));
        let _ = larder.invalidate(("link", 7)).await;
        assert!(!ask(&app, "/7", &[]).await.is_hit());
    }
}

#[tokio::test]
async fn a_lifetime_of_the_layer_is_not_one_of_a_redirect() {
    let larder = larder();
    let app: Router = Router::new()
        .route("/", get(|| async { Redirect::to("/login") }).post(|_: Form<()>| async {}))
        .layer(ResponseCacheLayer::new(&larder).ttl(MINUTE));
    ask(&app, "/", &[]).await;
    assert!(!ask(&app, "/", &[]).await.is_hit());
}
