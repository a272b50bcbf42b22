//! The example of an application as teams have them.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
};
use existing::Config;
use tests::postgres::Server;
use tower::ServiceExt as _;

fn config() -> Config {
    Config::new("a secret of thirty-two characters").unwrap().with_cheap_passwords()
}

/// A response, read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: String,
}

impl Answer {
    /// The value after `name="csrf" value="`.
    fn csrf(&self) -> String {
        let (_, rest) = self.body.split_once(r#"name="csrf" value=""#).expect("a form");
        rest.split('"').next().unwrap().to_owned()
    }

    fn location(&self) -> &str {
        self.fields.get(header::LOCATION).map_or("", |location| location.to_str().unwrap())
    }
}

/// A browser or a client of the API: its fields, which other instances of the application accept, too.
#[derive(Clone, Debug, Default)]
struct Client {
    fields: HeaderMap,
    csrf: Arc<str>,
}

impl Client {
    fn visitor(language: &'static str) -> Self {
        let fields =
            HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, HeaderValue::from_static(language))]);
        Self { fields, csrf: "".into() }
    }

    /// A user who signs up by the form.
    async fn signed_up(app: &Router, name: &str, language: &'static str) -> Self {
        let mut client = Self::visitor(language);
        let form = client.get(app, "/sign-up").await;
        client.take_cookie(&form);
        client.csrf = form.csrf().into();
        let answer =
            client.post(app, "/sign-up", &format!("name={name}&password=a+long+password")).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{answer:?}");
        client.take_cookie(&answer);
        client.csrf = client.get(app, "/lists").await.csrf().into();
        client
    }

    /// A client of the API with a token of a user who has signed up.
    async fn with_token(app: &Router, name: &str) -> Self {
        let credentials = format!(r#"{{"name":"{name}","password":"a long password"}}"#);
        let answer = Self::default().json(app, Method::POST, "/api/token", &credentials).await;
        let token: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let token = format!("Bearer {}", token["token"].as_str().unwrap());
        let mut client = Self::default();
        client.fields.insert(header::AUTHORIZATION, token.parse().unwrap());
        client
    }

    fn take_cookie(&mut self, answer: &Answer) {
        if let Some(cookie) = answer.fields.get(header::SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            self.fields.insert(header::COOKIE, pair.parse().unwrap());
        }
    }

    async fn send(&self, app: &Router, request: Request<Body>) -> Answer {
        let (mut parts, body) = request.into_parts();
        parts.headers.extend(self.fields.clone());
        let response = app.clone().oneshot(Request::from_parts(parts, body)).await.unwrap();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: head.status, fields: head.headers, body }
    }

    async fn get(&self, app: &Router, path: &str) -> Answer {
        self.send(app, Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, app: &Router, path: &str, form: &str) -> Answer {
        let form = format!("csrf={}&{form}", self.csrf);
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(form));
        self.send(app, request.unwrap()).await
    }

    async fn json(&self, app: &Router, method: Method, path: &str, json: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(json.to_owned()));
        self.send(app, request.unwrap()).await
    }

    /// Creates a list, and returns its path.
    async fn new_list(&self, app: &Router, title: &str, is_public: bool) -> String {
        let public = if is_public { "&is_public=on" } else { "" };
        let answer = self.post(app, "/lists", &format!("title={title}{public}")).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{answer:?}");
        answer.location().to_owned()
    }
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn users_share_lists_and_see_no_private_ones_of_others() {
    let server = Server::start();
    let app = existing::open(&server.url(), config()).await.unwrap();
    let ada = Client::signed_up(&app, "ada", "en").await;
    let bob = Client::signed_up(&app, "bob", "de").await;
    let visitor = Client::visitor("de");
    let public = ada.new_list(&app, "Novels", true).await;
    let private = ada.new_list(&app, "Secrets", false).await;
    let item = format!("{public}/items");
    ada.post(&app, &item, "title=Middlemarch&url=https://example.org/&labels=long,english").await;
    let home = visitor.get(&app, "/").await.body;
    assert!(home.contains("Novels") && home.contains("1 Einträge, 0 Sterne"), "{home}");
    assert!(!home.contains("Secrets"));
    let page = bob.get(&app, &public).await.body;
    assert!(page.contains("Middlemarch") && page.contains("<small>english</small>"), "{page}");
    assert!(!page.contains("Löschen"), "it belongs to another user");
    assert_eq!(bob.get(&app, &private).await.status, StatusCode::NOT_FOUND);
    assert!(ada.get(&app, &private).await.body.contains("Secrets"));
    bob.post(&app, &format!("{public}/star"), "").await;
    bob.post(&app, &format!("{public}/comments"), "body=A+long+one").await;
    let page = ada.get(&app, &public).await.body;
    assert!(page.contains("1 stars") && page.contains("A long one"), "{page}");
    assert!(bob.get(&app, "/lists").await.body.contains("Novels"), "it is starred");
    let refused = bob.post(&app, &format!("{public}/title"), "title=Mine").await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let mut forged = bob.clone();
    forged.csrf = "forged".into();
    let refused = forged.post(&app, "/account", "about=x").await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    // The API.
    let api = Client::with_token(&app, "ada").await;
    let path = format!("/api{private}");
    let shown: serde_json::Value = serde_json::from_str(&api.get(&app, &path).await.body).unwrap();
    assert_eq!((&shown["title"], &shown["owner"]), (&"Secrets".into(), &"ada".into()));
    let added = api
        .json(&app, Method::POST, &format!("{path}/items"), r#"{"title":"A diary","labels":["x"]}"#)
        .await;
    assert_eq!(added.status, StatusCode::CREATED, "{added:?}");
    let added: serde_json::Value = serde_json::from_str(&added.body).unwrap();
    let change = format!("/api/items/{}", added["id"].as_str().unwrap());
    let changed = api.json(&app, Method::PATCH, &change, r#"{"is_read":true}"#).await;
    assert!(changed.body.contains("\"is_read\":true"), "{changed:?}");
    let other = Client::with_token(&app, "bob").await;
    assert_eq!(other.get(&app, &path).await.status, StatusCode::NOT_FOUND);
    assert_eq!(visitor.get(&app, &path).await.status, StatusCode::UNAUTHORIZED);
    // htmx gets a part of a page.
    let mut htmx = ada.clone();
    htmx.fields.insert("hx-request", HeaderValue::from_static("true"));
    let part = htmx.get(&app, &item).await.body;
    assert!(part.starts_with("<ol id=\"items\">") && part.contains("Middlemarch"), "{part}");
    assert_eq!(ada.get(&app, &item).await.location(), public);
}
