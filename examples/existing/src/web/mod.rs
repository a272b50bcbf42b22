//! The pages, rendered on the server.

use std::time::Duration;

use axum::{
    Router,
    http::StatusCode,
    routing::{get, post},
};
use sqlx::PgPool;
use tower::ServiceBuilder;
use tower_http::{timeout::TimeoutLayer, trace::TraceLayer};
use tower_sessions::{Expiry, SessionManagerLayer};
use tower_sessions_sqlx_store::PostgresStore;

use crate::{error::StartError, state::AppState};

mod account;
mod comments;
mod home;
mod items;
mod lists;
mod page;

/// The routes of the pages.
pub(crate) fn router() -> Router<AppState> {
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, LONGEST_REQUEST));
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
        .layer(layers)
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

const LONGEST_REQUEST: Duration = Duration::from_secs(30);
