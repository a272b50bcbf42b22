//! The pages and their resources, which are part of the program.

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};

/// Nothing from another origin, nothing inline, in no frame.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
    img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Returns the dashboard, whose links begin with the path under which it is nested.
pub(super) fn dashboard(mount: &str) -> Response {
    let page = include_str!("dashboard.html").replace("{mount}", &escaped(mount));
    typed(StatusCode::OK, HTML, page)
}

/// Returns the form for the token, with a message if there is one.
pub(super) fn login(status: StatusCode, mount: &str, message: &'static str) -> Response {
    let page = include_str!("login.html").replace("{mount}", &escaped(mount));
    typed(status, HTML, page.replace("{message}", message))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

pub(super) fn style() -> Response {
    typed(StatusCode::OK, "text/css", include_str!("style.css"))
}

pub(super) fn icon() -> Response {
    typed(StatusCode::OK, "image/svg+xml", include_str!("icon.svg"))
}

pub(super) fn script() -> Response {
    typed(StatusCode::OK, "text/javascript", include_str!("app.js"))
}

/// Returns text of a type.
pub(super) fn typed(status: StatusCode, kind: &str, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let kind = HeaderValue::from_str(&format!("{kind}; charset=utf-8"));
    let kind = kind.expect("the types are ASCII");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

const HTML: &str = "text/html";
