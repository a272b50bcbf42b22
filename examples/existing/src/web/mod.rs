//! The pages, rendered on the server.

use std::time::Duration;

use axum::{
    Router,
    http::{HeaderName, header},
    routing::{get, post},
};
use larder::{
    Larder,
    axum::{FinalHeadLayer, HttpCache, identity},
};
use sqlx::PgPool;
use tower::ServiceBuilder;
use tower_sessions::{Expiry, Session, SessionManagerLayer};
use tower_sessions_sqlx_store::PostgresStore;

use crate::{csrf, error::StartError, language::Language, state::AppState};

mod account;
mod comments;
mod home;
mod items;
mod lists;
mod page;

/// The routes of the pages.
pub(crate) fn router() -> Router<AppState> {
    Router::new()
        .route("/", get(home::newest))
        .route("/popular", get(home::popular))
        .route("/users/{name}", get(account::profile))
        .route("/sign-up", get(account::sign_up_form).post(account::sign_up))
        .route("/sign-in", get(account::sign_in_form).post(account::sign_in))
        .route("/sign-out", post(account::sign_out))
        .route("/account", get(account::show).post(account::save))
        .route("/lists", get(lists::own).post(lists::create))
        .route("/lists/{id}", get(lists::show))
        .route("/lists/{id}/title", post(lists::rename))
        .route("/lists/{id}/delete", post(lists::delete))
        .route("/lists/{id}/star", post(lists::star))
        .route("/lists/{id}/items", get(items::of_list).post(items::add))
        .route("/lists/{id}/comments", get(comments::of_list).post(comments::add))
        .route("/items/{id}/read", post(items::set_read))
        .route("/items/{id}/delete", post(items::delete))
}

/// Puts the sessions and the cache around the pages.
///
/// The pages of a session have its token in their forms, so each session has pages of its own. Visitors share.
pub(crate) fn cached(
    pages: Router<AppState>,
    larder: &Larder,
    sessions: SessionManagerLayer<PostgresStore>,
    is_enabled: bool,
) -> Router<AppState> {
    let cache = HttpCache::new(larder).partition_by_identity().responses(move |layer| {
        let layer = layer
            .refuse_if(identity::session_is_written::<Session>)
            .vary_by("language", [header::ACCEPT_LANGUAGE], |head| {
                let accepted = head.headers.get(header::ACCEPT_LANGUAGE);
                Language::of(accepted.and_then(|accepted| accepted.to_str().ok())).code()
            })
            .vary_by("part", [HeaderName::from_static("hx-request")], |head| {
                if head.headers.contains_key("hx-request") { "part" } else { "page" }
            });
        if is_enabled { layer } else { layer.disabled() }
    });
    pages.layer(
        ServiceBuilder::new()
            .layer(FinalHeadLayer::new())
            .layer(sessions)
            .layer(identity::from_session::<Session>(csrf::PAGES))
            .layer(cache),
    )
}

/// The layer of the sessions, which are in the database.
pub(crate) async fn sessions(
    pool: &PgPool,
) -> Result<SessionManagerLayer<PostgresStore>, StartError> {
    let store = PostgresStore::new(pool.clone());
    store.migrate().await?;
    Ok(SessionManagerLayer::new(store)
        // For http://localhost; behind TLS leave it out.
        .with_secure(false)
        .with_expiry(Expiry::OnInactivity(time::Duration::days(14))))
}

/// How long a page is served at most without an invalidation.
pub(crate) const PAGE_LIVES: Duration = Duration::from_secs(600);
