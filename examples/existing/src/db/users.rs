//! Users and their profiles.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

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
    connection: &mut PgConnection,
    name: &str,
    password_hash: &str,
) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "INSERT INTO users (name, password_hash) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING id",
        name,
        password_hash
    )
    .fetch_optional(connection)
    .await
}

pub(crate) async fn login(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<Login>, sqlx::Error> {
    sqlx::query_as!(Login, "SELECT id, name, password_hash FROM users WHERE name = $1", name)
        .fetch_optional(connection)
        .await
}

pub(crate) async fn profile(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Profile, sqlx::Error> {
    sqlx::query_as!(Profile, "SELECT id, name, about, joined FROM users WHERE id = $1", id)
        .fetch_one(connection)
        .await
}

pub(crate) async fn profile_by_name(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Profile, sqlx::Error> {
    sqlx::query_as!(Profile, "SELECT id, name, about, joined FROM users WHERE name = $1", name)
        .fetch_one(connection)
        .await
}

pub(crate) async fn set_about(
    connection: &mut PgConnection,
    id: Uuid,
    about: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE users SET about = $1 WHERE id = $2", about, id)
        .execute(connection)
        .await
        .map(|_| ())
}
