//! Serves the requests of the admin API.

use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    extract::{OriginalUri, Request},
    response::Response,
};
use http::{
    HeaderValue, Method, StatusCode, Uri,
    header::{self, AsHeaderName},
    request::Parts,
    uri::Authority,
};
use larder_http::own_pages::UnchangedHead;
use serde::Serialize;

use super::{
    Admin,
    access::{AdminAccess, Admitted, Denied, is_loopback_name},
    actions::{self, InvalidationRequest},
    api,
    audit::{Action, AuditEvent},
    live, page,
    query::ClientError,
    sessions::{COOKIE, Session},
};

/// A request.
struct Call {
    /// Its head as the client sent it, before an enclosing cache or router changed it.
    parts: Parts,
    body: Body,
    /// The path under which the router is nested.
    mount: String,
    /// The path below it.
    path: String,
}

impl Call {
    fn of(request: Request) -> Self {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let original = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |uri| &uri.0);
        let full = original.path();
        let mount = match &*path {
            "/" => full.trim_end_matches('/'),
            path => full.strip_suffix(path).unwrap_or_default(),
        };
        let mount = mount.to_owned();
        let (uri, headers) = UnchangedHead::of(&parts.extensions, original, &parts.headers);
        (parts.uri, parts.headers) = (uri.clone(), headers.clone());
        Self { parts, body, mount, path }
    }

    /// Returns the value of a field, if it is text.
    fn field(&self, name: impl AsHeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Returns the host that the client requested.
    fn host(&self) -> &str {
        let host = self.field(header::HOST);
        host.or_else(|| self.parts.uri.authority().map(Authority::as_str)).unwrap_or_default()
    }

    /// Whether a page of another origin sent the request, as far as the browser tells. A proxy may change `Host`, but not
    /// what the browser says about the page, so that decides if it is there.
    fn is_cross_site(&self) -> bool {
        if let Some(site) = self.field("sec-fetch-site") {
            return !matches!(site, "same-origin" | "none");
        }
        self.field(header::ORIGIN).is_some_and(|origin| {
            origin.split_once("://").is_none_or(|(_, host)| !host.eq_ignore_ascii_case(self.host()))
        })
    }

    /// Whether the browser certainly reaches this machine without TLS, by a loopback name, and through no proxy with TLS.
    fn is_plain_loopback(&self) -> bool {
        let is_by_tls = self.field(header::ORIGIN).is_some_and(|it| it.starts_with("https://"));
        is_loopback_name(self.host()) && !is_by_tls
    }

    async fn body(&mut self) -> Result<Vec<u8>, ClientError> {
        let body = std::mem::take(&mut self.body);
        let bytes = to_bytes(body, LONGEST_BODY).await.map_err(|_| {
            let text = format!("the content is longer than allowed, which is {LONGEST_BODY} bytes");
            ClientError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        })?;
        Ok(bytes.into())
    }
}

/// The actor of a request, and its session if it is a browser.
struct Actor {
    access: AdminAccess,
    session: Option<Session>,
    by_bearer_token: bool,
}

/// Answers a request.
pub(super) async fn serve(admin: Arc<Admin>, request: Request) -> Response {
    let mut call = Call::of(request);
    admin.own_pages.note(&call.mount);
    let answer = match dispatch(&admin, &mut call).await {
        Ok(answer) => answer,
        Err(ClientError { status, text }) => {
            json_with(status, &serde_json::json!({ "error": text }))
        }
    };
    guarded(answer)
}

/// Adds the fields that every answer has.
fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("cache-control", "no-store"),
        ("content-security-policy", page::POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        // With `no-referrer`, browsers send the form with `Origin: null`, like a page of another site.
        ("referrer-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn dispatch(admin: &Arc<Admin>, call: &mut Call) -> Result<Response, ClientError> {
    let method = match &call.parts.method {
        &Method::HEAD => Method::GET,
        method => method.clone(),
    };
    let path = call.path.clone();
    match (method.as_str(), &*path) {
        ("GET", "/style.css") => return Ok(page::style()),
        ("GET", "/icon.svg") => return Ok(page::icon()),
        ("POST", "/login") => return login(admin, call).await,
        _ => {}
    }
    let actor = match actor_of(admin, call) {
        Ok(actor) => actor,
        Err(denied) => return denied_answer(admin, call, denied),
    };
    match (method.as_str(), &*path) {
        ("GET", "/" | "") => Ok(page::dashboard(&call.mount)),
        ("GET", "/app.js") => Ok(page::script()),
        ("GET", "/api/stats") => {
            admin.larder.kernel().ask_for_usage().await;
            Ok(json(&admin.larder.stats()))
        }
        ("GET", "/api/live") => {
            let last = call.field("last-event-id").map_or(0, |id| admin.last_number(id));
            Ok(event_stream(live::body(admin, actor.session, last)?))
        }
        ("GET", "/api/explain") => Ok(json(&api::explain(admin, &call.parts.uri).await?)),
        ("GET", "/api/entries") => Ok(json(&api::entries(admin, &call.parts.uri).await?)),
        ("GET", "/api/graph") => Ok(json(&api::graph(admin, &call.parts.uri).await?)),
        ("GET", "/api/keys") => Ok(json(&api::keys(admin).await)),
        ("GET", "/api/advice") => Ok(json(&api::advice(admin).await)),
        ("GET", "/api/invalidations") => {
            let after = super::query::parameters::<After>(&call.parts.uri)?.after;
            Ok(json(&admin.larder.kernel().past_invalidations(after, admin.partitions)))
        }
        ("GET", "/api/audit") => Ok(json(&admin.audit.all())),
        ("GET", "/api/whoami") => Ok(json(&serde_json::json!({
            "actor": actor.access.actor,
            "role": actor.access.role.as_str(),
            "csrf": actor.session.as_ref().map_or("1", |session| &*session.csrf),
        }))),
        ("POST", "/api/preview") => {
            check_action(call, &actor)?;
            let request = InvalidationRequest::read(&call.body().await?)?;
            Ok(json(&actions::preview(admin, request).await?))
        }
        ("POST", "/api/invalidate") => {
            check_action(call, &actor)?;
            let request = InvalidationRequest::read(&call.body().await?)?;
            Ok(json(&actions::invalidate(admin, actor.access, request).await?))
        }
        ("POST", "/logout") => {
            check_action(call, &actor)?;
            Ok(logout(admin, call, &actor))
        }
        (_, known) if GETS.contains(&known) => Err(not_allowed("GET")),
        (_, known) if POSTS.contains(&known) => Err(not_allowed("POST")),
        _ => Err(ClientError::new(StatusCode::NOT_FOUND, format!("there is no {path} here"))),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct After {
    #[serde(default)]
    after: u64,
}

fn actor_of(admin: &Admin, call: &Call) -> Result<Actor, Denied> {
    if let Some(session) = admin.sessions.of(&call.parts.headers) {
        let access = session.access.clone();
        return Ok(Actor { access, session: Some(session), by_bearer_token: false });
    }
    let Admitted { access, by_bearer_token } = admin.access.of(&call.parts)?;
    Ok(Actor { access, session: None, by_bearer_token })
}

fn denied_answer(admin: &Admin, call: &Call, denied: Denied) -> Result<Response, ClientError> {
    if denied == Denied::TooManyAttempts {
        let text = "too many wrong tokens; try again in a minute";
        return Err(ClientError::new(StatusCode::TOO_MANY_REQUESTS, text));
    }
    if call.path == "/" && call.parts.method == Method::GET && admin.access.has_tokens() {
        return Ok(page::login(StatusCode::UNAUTHORIZED, &call.mount, ""));
    }
    let text = "the request has no credentials, or wrong ones";
    let mut answer = json_with(StatusCode::UNAUTHORIZED, &serde_json::json!({ "error": text }));
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Ok(answer)
}

/// Refuses an action that a page of another site may have sent. A form of another site cannot send JSON or a field of its
/// own, and its script may not without a preflight, which is refused. A bearer token is proof enough.
fn check_action(call: &Call, actor: &Actor) -> Result<(), ClientError> {
    let refused = |text: &str| Err(ClientError::new(StatusCode::FORBIDDEN, text));
    if actor.by_bearer_token {
        return Ok(());
    }
    if call.is_cross_site() {
        return refused("the request comes from a page of another site");
    }
    let has_csrf = match (&actor.session, call.field(CSRF_FIELD)) {
        (Some(session), Some(csrf)) => session.has_csrf(csrf),
        (None, csrf) => csrf.is_some(),
        (Some(_), None) => false,
    };
    let is_json = call
        .field(header::CONTENT_TYPE)
        .is_some_and(|of| of.split(';').next() == Some("application/json"));
    match has_csrf && is_json {
        true => Ok(()),
        false => refused(
            "the request lacks Content-Type: application/json, or X-Larder-Csrf with the value of api/whoami",
        ),
    }
}

async fn login(admin: &Admin, call: &mut Call) -> Result<Response, ClientError> {
    if call.is_cross_site() {
        return Err(ClientError::new(
            StatusCode::FORBIDDEN,
            "the request comes from a page of another site",
        ));
    }
    let body = call.body().await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    let form: Uri = format!("/?{body}").parse().map_err(ClientError::bad_request)?;
    let pairs = super::query::pairs(&form)?;
    let token = pairs.iter().find(|(name, _)| name == "token").map_or("", |(_, token)| token);
    let access = match admin.access.by_token(token, &call.parts) {
        Ok(access) => access,
        Err(Denied::TooManyAttempts) => {
            let text = "Too many wrong tokens. Try again in a minute.";
            return Ok(page::login(StatusCode::TOO_MANY_REQUESTS, &call.mount, text));
        }
        Err(Denied::Unauthorized) => {
            return Ok(page::login(
                StatusCode::UNAUTHORIZED,
                &call.mount,
                "This is not the token.",
            ));
        }
    };
    admin.audit.add(AuditEvent::of(&access, Action::Login));
    let id = admin.sessions.begin(access);
    Ok(to_dashboard(call, &cookie(admin, call, &id, admin.sessions.max_age())))
}

fn logout(admin: &Admin, call: &Call, actor: &Actor) -> Response {
    admin.sessions.end(&call.parts.headers);
    admin.audit.add(AuditEvent::of(&actor.access, Action::Logout));
    to_dashboard(call, &cookie(admin, call, "", 0))
}

fn cookie(admin: &Admin, call: &Call, id: &str, max_age: u64) -> String {
    let path = if call.mount.is_empty() { "/" } else { &call.mount };
    let secure = match admin.has_secure_cookie && !call.is_plain_loopback() {
        true => "; Secure",
        false => "",
    };
    format!("{COOKIE}={id}; HttpOnly; SameSite=Strict; Path={path}; Max-Age={max_age}{secure}")
}

fn to_dashboard(call: &Call, cookie: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let mount = if call.mount.is_empty() { "/" } else { &call.mount };
    let location = HeaderValue::from_str(mount);
    let cookie = HeaderValue::from_str(cookie);
    if let (Ok(location), Ok(cookie)) = (location, cookie) {
        response.headers_mut().insert(header::LOCATION, location);
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn not_allowed(allowed: &str) -> ClientError {
    ClientError::new(StatusCode::METHOD_NOT_ALLOWED, format!("allowed is {allowed}"))
}

fn json(value: &impl Serialize) -> Response {
    json_with(StatusCode::OK, value)
}

fn json_with(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("answers are JSON");
    page::typed(status, "application/json", text)
}

fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

const GETS: [&str; 13] = [
    "/",
    "/app.js",
    "/style.css",
    "/api/stats",
    "/api/live",
    "/api/explain",
    "/api/entries",
    "/api/graph",
    "/api/keys",
    "/api/advice",
    "/api/audit",
    "/api/whoami",
    "/api/invalidations",
];
const POSTS: [&str; 4] = ["/api/preview", "/api/invalidate", "/login", "/logout"];
const LONGEST_BODY: usize = 64 * 1024;
/// The field that an action of a browser needs.
const CSRF_FIELD: &str = "x-larder-csrf";
