//! Users and their profiles.

use larder::{
    sql::values,
    sqlx_08::{SharedQueryRow, cached, invalidating},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Handle;

#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) joined: OffsetDateTime,
}

pub(crate) struct Login {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) password_hash: String,
}

/// Creates a user. `None` if the name is taken.
pub(crate) async fn create(
    database: impl Into<Handle<'_>>,
    name: &str,
    password_hash: &str,
) -> Result<Option<Uuid>, sqlx::Error> {
    let (name, password_hash) = (name.to_owned(), password_hash.to_owned());
    invalidating(values![&name, &password_hash], move || {
        sqlx::query_scalar!(
            "INSERT INTO users (name, password_hash) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING id",
            name,
            password_hash
        )
    })
    .fetch_optional(database)
    .await
}

pub(crate) async fn login(
    database: impl Into<Handle<'_>>,
    name: &str,
) -> Result<Option<SharedQueryRow<Login>>, sqlx::Error> {
    let name = name.to_owned();
    // The hash of a password stays out of the cache.
    cached(values![&name], move || {
        sqlx::query_as!(Login, "SELECT id, name, password_hash FROM users WHERE name = $1", name)
    })
    .uncached()
    .fetch_optional(database)
    .await
}

pub(crate) async fn profile(
    database: impl Into<Handle<'_>>,
    id: Uuid,
) -> Result<SharedQueryRow<Profile>, sqlx::Error> {
    cached([id], move || {
        sqlx::query_as!(Profile, "SELECT id, name, about, joined FROM users WHERE id = $1", id)
    })
    .fetch_one(database)
    .await
}

pub(crate) async fn profile_by_name(
    database: impl Into<Handle<'_>>,
    name: &str,
) -> Result<SharedQueryRow<Profile>, sqlx::Error> {
    let name = name.to_owned();
    cached(values![&name], move || {
        sqlx::query_as!(Profile, "SELECT id, name, about, joined FROM users WHERE name = $1", name)
    })
    .fetch_one(database)
    .await
}

pub(crate) async fn set_about(
    database: impl Into<Handle<'_>>,
    id: Uuid,
    about: &str,
) -> Result<(), sqlx::Error> {
    let about = about.to_owned();
    invalidating(values![&about, id], move || {
        sqlx::query!("UPDATE users SET about = $1 WHERE id = $2", about, id)
    })
    .execute(database)
    .await
    .map(|_| ())
}
