//! Users of sessions, tokens and cookies behind a cache: each gets a page of its own, and visitors share.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderMap, Request, header},
    response::IntoResponse,
    routing::{get, post},
};
use larder_core::Larder;
use larder_testkit::{TestUser, assert_no_leak, cookies_of};
use tower::{ServiceBuilder, ServiceExt as _};

use crate::{CachePolicy, FinalHeadLayer, HttpCache, Identity, identity};

fn larder() -> Larder {
    Larder::builder().build().unwrap()
}

/// A cache for the pages of users and visitors, which declare a lifetime.
fn cache() -> HttpCache {
    HttpCache::new(&larder()).partition_by_identity()
}

fn page(policy: &CachePolicy, user: Option<&str>) -> String {
    policy.ttl(Duration::from_secs(60)).public();
    format!("<p>Signed in: {}</p>", user.unwrap_or("no"))
}

async fn send(app: &Router, method: &str, path: &str, fields: &HeaderMap) -> (String, HeaderMap) {
    let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    request.headers_mut().extend(fields.clone());
    let response = app.clone().oneshot(request).await.unwrap();
    let (status, cookies) =
        (response.headers().get("cache-status").cloned(), cookies_of(&response));
    axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status.map(|status| status.to_str().unwrap().to_owned()).unwrap_or_default(), cookies)
}

/// A user who signs in by a form at `/sign-in/NAME`.
fn member(name: &'static str) -> TestUser<Router> {
    TestUser::signed_in(name, move |app: Router| async move {
        send(&app, "POST", &format!("/sign-in/{name}"), &HeaderMap::new()).await.1
    })
}

/// Sends requests of two users and two visitors, and checks that they share exactly what they may.
async fn check(app: impl Fn() -> Router, users: [TestUser<Router>; 2], routes: &[&str]) {
    let visitors = ["a visitor", "another visitor"].map(TestUser::anonymous);
    let all: Vec<_> = visitors.into_iter().chain(users).collect();
    assert_no_leak(|| std::future::ready(app()), &all, routes).await;
}

/// Whether the second of two requests with these fields is a hit.
async fn hits(app: &Router, path: &str, fields: &HeaderMap) -> bool {
    send(app, "GET", path, fields).await;
    send(app, "GET", path, fields).await.0.contains("; hit")
}

fn with(name: header::HeaderName, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(name, value.parse().unwrap())])
}

#[tokio::test]
async fn sessions_of_tower_sessions() {
    use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

    async fn greet(policy: CachePolicy, session: Session) -> String {
        let user: Option<serde_json::Value> = session.get("user").await.unwrap();
        page(&policy, user.as_ref().and_then(|user| user.as_str()))
    }
    async fn form(policy: CachePolicy, session: Session) -> String {
        static TOKENS: AtomicU32 = AtomicU32::new(0);
        let token = format!("token-{}", TOKENS.fetch_add(1, Ordering::Relaxed));
        session.insert("csrf", &token).await.unwrap();
        policy.ttl(Duration::from_secs(60)).public();
        token
    }
    async fn sign_in(session: Session, Path(user): Path<String>) {
        session.insert("user", user).await.unwrap();
    }
    async fn flag(session: Session) {
        session.insert("user", true).await.unwrap();
    }
    let app = || {
        Router::new()
            .route("/", get(greet))
            .route("/form", get(form))
            .route("/flag", post(flag))
            .route("/sign-in/{user}", post(sign_in))
            .layer(
                ServiceBuilder::new()
                    .layer(FinalHeadLayer::new())
                    .layer(SessionManagerLayer::new(MemoryStore::default()).with_secure(false))
                    .layer(identity::from_session::<Session>("user"))
                    .layer(cache().responses(|layer| {
                        layer.refuse_if(identity::session_is_written::<Session>)
                    })),
            )
    };
    check(app, [member("ada"), member("bob")], &["/", "/form"]).await;
    let app = app();
    let nothing = HeaderMap::new();
    let ada = send(&app, "POST", "/sign-in/ada", &nothing).await.1;
    assert!(hits(&app, "/", &ada).await && hits(&app, "/", &nothing).await);
    // A value that is no name would put all users into one partition.
    let flag = send(&app, "POST", "/flag", &nothing).await.1;
    assert!(!hits(&app, "/", &flag).await);
    assert!(!hits(&app, "/form", &ada).await && !hits(&app, "/form", &nothing).await);
}

#[tokio::test]
async fn a_session_that_cannot_be_read_bypasses_the_cache() {
    use tower_sessions::{
        Session, SessionManagerLayer, SessionStore,
        session::{Id, Record},
        session_store,
    };

    /// A store that does not answer.
    #[derive(Clone, Debug)]
    struct Broken;

    fn broken<T>() -> session_store::Result<T> {
        Err(session_store::Error::Backend("it does not answer".to_owned()))
    }

    #[async_trait::async_trait]
    impl SessionStore for Broken {
        async fn save(&self, _: &Record) -> session_store::Result<()> {
            broken()
        }

        async fn load(&self, _: &Id) -> session_store::Result<Option<Record>> {
            broken()
        }

        async fn delete(&self, _: &Id) -> session_store::Result<()> {
            broken()
        }
    }

    // The handler finds the user in another way.
    async fn greet(policy: CachePolicy, _: Session) -> String {
        page(&policy, Some("ada"))
    }
    let app = Router::new().route("/", get(greet)).layer(
        ServiceBuilder::new()
            .layer(SessionManagerLayer::new(Broken))
            .layer(identity::from_session::<Session>("user"))
            .layer(cache()),
    );
    let cookie = with(header::COOKIE, &format!("id={}", Id::default()));
    for _ in 0..2 {
        let status = send(&app, "GET", "/", &cookie).await.0;
        assert_eq!(status, "larder; fwd=bypass; detail=identity");
    }
}

#[tokio::test]
async fn users_of_axum_login() {
    use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
    use tower_sessions_014::{MemoryStore, Session, SessionManagerLayer};

    #[derive(Clone, Debug)]
    struct User(String);

    impl AuthUser for User {
        type Id = String;

        fn id(&self) -> String {
            self.0.clone()
        }

        fn session_auth_hash(&self) -> &[u8] {
            b"hash"
        }
    }

    #[derive(Clone)]
    struct Users;

    impl AuthnBackend for Users {
        type User = User;
        type Credentials = String;
        type Error = Infallible;

        async fn authenticate(&self, name: String) -> Result<Option<User>, Infallible> {
            Ok(Some(User(name)))
        }

        async fn get_user(&self, name: &String) -> Result<Option<User>, Infallible> {
            Ok(Some(User(name.clone())))
        }
    }

    async fn greet(policy: CachePolicy, session: AuthSession<Users>) -> String {
        page(&policy, session.user.as_ref().map(|user| &*user.0))
    }
    async fn sign_in(mut session: AuthSession<Users>, Path(name): Path<String>) {
        let user = session.authenticate(name).await.unwrap().unwrap();
        session.login(&user).await.unwrap();
    }
    let app =
        || {
            let sessions = SessionManagerLayer::new(MemoryStore::default()).with_secure(false);
            Router::new().route("/", get(greet)).route("/sign-in/{name}", post(sign_in)).layer(
                ServiceBuilder::new()
                    .layer(FinalHeadLayer::new())
                    .layer(AuthManagerLayerBuilder::new(Users, sessions).build())
                    .layer(identity::from_auth_session::<Users>())
                    .layer(cache().responses(|layer| {
                        layer.refuse_if(identity::session_is_written::<Session>)
                    })),
            )
        };
    check(app, [member("ada"), member("bob")], &["/"]).await;
    let app = app();
    let ada = send(&app, "POST", "/sign-in/ada", &HeaderMap::new()).await.1;
    assert!(hits(&app, "/", &ada).await && hits(&app, "/", &HeaderMap::new()).await);
}

#[tokio::test]
async fn claims_of_a_token() {
    #[derive(Clone)]
    struct Claims {
        sub: String,
    }

    async fn greet(policy: CachePolicy, request: Request<Body>) -> String {
        page(&policy, request.extensions().get().map(|claims: &Claims| &*claims.sub))
    }
    /// Stands for a layer that verifies tokens.
    fn verify(mut request: Request<Body>) -> Request<Body> {
        let token = request.headers().get(header::AUTHORIZATION);
        let token = token.and_then(|token| token.to_str().ok()?.strip_prefix("Bearer valid-"));
        if let Some(sub) = token.map(str::to_owned) {
            request.extensions_mut().insert(Claims { sub });
        }
        request
    }
    let app = |cache: HttpCache| {
        Router::new().route("/", get(greet)).layer(
            ServiceBuilder::new()
                .map_request(verify)
                .layer(identity::from_extension(|claims: &Claims| claims.sub.clone()))
                .layer(cache),
        )
    };
    let user = |name, token| TestUser::with_fields(name, [("authorization", token)]);
    let users = [user("ada", "Bearer valid-ada"), user("bob", "Bearer valid-bob")];
    check(|| app(cache()), users, &["/"]).await;
    let nothing = HeaderMap::new();
    let ada = with(header::AUTHORIZATION, "Bearer valid-ada");
    let forged = with(header::AUTHORIZATION, "Bearer forged");
    let partitioned = app(cache());
    assert!(hits(&partitioned, "/", &ada).await && hits(&partitioned, "/", &nothing).await);
    assert!(!hits(&partitioned, "/", &forged).await);
    let bypassing = app(HttpCache::new(&larder()).bypass_users());
    assert!(hits(&bypassing, "/", &nothing).await);
    assert!(!hits(&bypassing, "/", &ada).await && !hits(&bypassing, "/", &forged).await);
}

#[tokio::test]
async fn signed_and_private_cookies() {
    use axum_extra::extract::{
        PrivateCookieJar, SignedCookieJar,
        cookie::{Cookie, Key},
    };

    let key = Key::generate();
    macro_rules! check {
        ($jar:ident, $layer:path, $forged:literal) => {{
            let app = || {
                let (reads, writes) = (key.clone(), key.clone());
                let greet = move |policy: CachePolicy, headers: HeaderMap| {
                    let user = $jar::from_headers(&headers, reads.clone()).get("user");
                    let text = page(&policy, user.as_ref().map(|user| user.value()));
                    std::future::ready(text)
                };
                let sign_in = move |Path(name): Path<String>| {
                    let jar = $jar::new(writes.clone()).add(Cookie::new("user", name));
                    std::future::ready(jar.into_response())
                };
                Router::new()
                    .route("/", get(greet))
                    .route("/sign-in/{name}", post(sign_in))
                    .layer(ServiceBuilder::new().layer($layer("user", key.clone())).layer(cache()))
            };
            check(&app, [member("ada"), member("bob")], &["/"]).await;
            let app = app();
            let ada = send(&app, "POST", "/sign-in/ada", &HeaderMap::new()).await.1;
            assert!(hits(&app, "/", &ada).await && hits(&app, "/", &HeaderMap::new()).await);
            let forged = with(header::COOKIE, $forged);
            let status = send(&app, "GET", "/", &forged).await.0;
            assert_eq!(status, "larder; fwd=bypass; detail=identity");
        }};
    }
    check!(SignedCookieJar, identity::from_signed_cookie, "user=ada");
    check!(PrivateCookieJar, identity::from_private_cookie, "user=ada");
}

#[tokio::test]
async fn without_an_identity_layer_every_request_bypasses_the_cache() {
    let greet = |policy: CachePolicy| async move { page(&policy, None) };
    for cache in [cache(), HttpCache::new(&larder()).bypass_users()] {
        let app = Router::new().route("/", get(greet)).layer(cache);
        assert!(!hits(&app, "/", &HeaderMap::new()).await);
    }
    assert_eq!(Identity::from_lookup(Ok::<_, Infallible>(None::<u64>)), Identity::Anonymous);
    assert_eq!(Identity::from_lookup(Err::<Option<u64>, _>("a failure")), Identity::Unknown);
}
