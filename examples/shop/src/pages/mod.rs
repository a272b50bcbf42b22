//! The handlers.

use std::{fmt, sync::Arc, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Response},
};
use http::StatusCode;
use larder::{Lifetime, LoadError, axum::CachePolicy, sql::QueryError};

use crate::App;

pub(crate) mod api;
pub(crate) mod bar;
pub(crate) mod cart;
pub(crate) mod catalogue;
pub(crate) mod metrics;
pub(crate) mod views;

pub(crate) type Shop = State<Arc<App>>;

/// The error of a page.
#[derive(Debug)]
pub(crate) enum PageError {
    NotFound,
    BadInput(String),
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl From<QueryError> for PageError {
    fn from(error: QueryError) -> Self {
        Self::Broken(error.into())
    }
}

impl From<LoadError<QueryError>> for PageError {
    fn from(error: LoadError<QueryError>) -> Self {
        Self::Broken(error.into())
    }
}

impl From<askama::Error> for PageError {
    fn from(error: askama::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("This page or product does not exist."),
            Self::BadInput(why) => f.write_str(why),
            Self::Broken(_) => {
                f.write_str("The shop could not render this page. Please try again later.")
            }
        }
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage {
    title: &'static str,
    text: String,
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let (status, title) = match &self {
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found"),
            Self::BadInput(_) => (StatusCode::BAD_REQUEST, "Bad request"),
            Self::Broken(error) => {
                tracing::error!(%error, "a page could not be rendered");
                (StatusCode::INTERNAL_SERVER_ERROR, "Error")
            }
        };
        let page = ErrorPage { title, text: self.to_string() };
        let html = page.render().unwrap_or_else(|_| title.to_owned());
        (status, Html(html)).into_response()
    }
}

/// Parses the page number of a list; empty means the first.
fn page_of(given: &str) -> Result<i64, String> {
    match given {
        "" => Ok(1),
        given => given
            .parse()
            .ok()
            .filter(|page| (1..=1_000_000).contains(page))
            .ok_or_else(|| format!("page is {given}, allowed is 1 to 1000000")),
    }
}

/// Sets the lifetime of a page, unless a row that it was rendered from changes, and the time after it during which it
/// may replace an error. Without a cache there is no policy.
fn fresh(policy: Option<&CachePolicy>) {
    if let Some(policy) = policy {
        policy.ttl(Lifetime::fresh_for(PAGE_LIVES).stale_if_error(PAGE_LIVES));
    }
}

const PAGE_LIVES: Duration = Duration::from_secs(600);

/// Renders a template.
fn html(page: &impl Template) -> Result<Html<String>, PageError> {
    Ok(Html(page.render()?))
}
