//! Reading lists that users share: an application of middle size, as teams have them.
//!
//! It renders pages on the server in two languages, with partial responses for htmx, has sessions with a sign-up form and
//! tokens against request forgery, and a JSON API for clients with a JWT. Its queries are macros of sqlx 0.8, checked at
//! compile time, and its helpers take a connection, so that they run in transactions too.

use axum::Router;
use sqlx::postgres::PgPoolOptions;

pub use self::{config::Config, error::StartError};

mod api;
mod auth;
mod config;
mod csrf;
mod db;
mod error;
mod language;
mod state;
mod web;

/// Opens the database, migrates it, and builds the application on it.
///
/// # Errors
///
/// When the database does not answer, or refuses a migration.
pub async fn open(database: &str, config: Config) -> Result<Router, StartError> {
    let pool = PgPoolOptions::new().max_connections(16).connect(database).await?;
    sqlx::migrate!().run(&pool).await?;
    let sessions = web::sessions(&pool).await?;
    let state = state::AppState::new(pool, config);
    let pages = web::router().layer(sessions);
    Ok(Router::new().merge(pages).nest("/api", api::router()).with_state(state))
}
