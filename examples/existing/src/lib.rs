//! Reading lists that users share: an application of middle size, as teams have them.
//!
//! It renders pages on the server in two languages, with partial responses for htmx, has sessions with a sign-up form and
//! tokens against request forgery, and a JSON API for clients with a JWT. Its queries are macros of sqlx 0.8, checked at
//! compile time, and its helpers take a connection, so that they run in transactions too.

use std::time::Duration;

use axum::{Router, http::StatusCode};
use larder::{
    Larder,
    sql::{QueryCacheLayer, SqlDialect},
    sqlx_08::CachedPool,
};
use sqlx::postgres::PgPoolOptions;
use tower::ServiceBuilder;
use tower_http::{timeout::TimeoutLayer, trace::TraceLayer};

pub use self::{config::Config, error::StartError};

mod access;
mod api;
mod auth;
mod config;
mod csrf;
mod db;
mod error;
mod input;
mod language;
mod state;
mod web;

/// Opens the database, migrates it, and builds the application on it.
///
/// # Errors
///
/// When the database does not answer, or refuses a migration.
pub async fn open(database: &str, config: Config, larder: &Larder) -> Result<Router, StartError> {
    let pool = PgPoolOptions::new().max_connections(16).connect(database).await?;
    sqlx::migrate!().run(&pool).await?;
    let sessions = web::sessions(&pool).await?;
    let layer = QueryCacheLayer::new(larder, SqlDialect::Postgres);
    let layer = if config.cache { layer } else { layer.disabled() };
    let pool = CachedPool::with_layer(pool, layer).await?;
    pool.outbox().install().await?;
    let following = pool.outbox().follow().await?;
    let pages = web::cached(web::router(), larder, sessions, config.cache);
    let api = api::cached(api::router(), larder, &config);
    let state = state::AppState::new(pool, following, config);
    // Outermost, so that hits are traced and waiters time out, too.
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, LONGEST_REQUEST));
    Ok(Router::new().merge(pages).nest("/api", api).layer(layers).with_state(state))
}

const LONGEST_REQUEST: Duration = Duration::from_secs(30);
