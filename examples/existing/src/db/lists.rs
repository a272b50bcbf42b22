//! Reading lists.

use larder::{
    sql::values,
    sqlx_08::{SharedQueryRow, SharedQueryRows, cached, invalidating},
};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use uuid::Uuid;

use super::Handle;

/// The settings of a list, a JSON document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) color: Option<String>,
    pub(crate) allows_comments: bool,
}

#[derive(Debug)]
pub(crate) struct List {
    pub(crate) id: Uuid,
    pub(crate) owner: Uuid,
    pub(crate) owner_name: String,
    pub(crate) title: String,
    pub(crate) is_public: bool,
    pub(crate) settings: Json<Settings>,
}

/// A list in an overview, with its numbers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListSummary {
    pub(crate) id: Uuid,
    pub(crate) title: String,
    pub(crate) owner_name: String,
    pub(crate) is_public: bool,
    pub(crate) items: i64,
    pub(crate) stars: i64,
}

pub(crate) async fn create(
    database: impl Into<Handle<'_>>,
    owner: Uuid,
    title: &str,
    is_public: bool,
    settings: &Settings,
) -> Result<Uuid, sqlx::Error> {
    let (title, settings) = (title.to_owned(), settings.clone());
    let values = values![owner, &title, is_public, serde_json::json!(settings)];
    invalidating(values, move || {
        sqlx::query_scalar!(
            "INSERT INTO lists (owner, title, is_public, settings) VALUES ($1, $2, $3, $4) RETURNING id",
            owner,
            title,
            is_public,
            Json(&settings) as _
        )
    })
    .fetch_one(database)
    .await
}

/// Reads a list with the name of its owner.
pub(crate) async fn get(
    database: impl Into<Handle<'_>>,
    id: Uuid,
) -> Result<SharedQueryRow<List>, sqlx::Error> {
    cached([id], move || {
        sqlx::query_as!(
            List,
            r#"SELECT l.id, l.owner, u.name AS owner_name, l.title, l.is_public, l.settings AS "settings: Json<Settings>"
        FROM lists l JOIN users u ON u.id = l.owner WHERE l.id = $1"#,
            id
        )
    })
    .fetch_one(database)
    .await
}

pub(crate) async fn newest(
    database: impl Into<Handle<'_>>,
    limit: i64,
) -> Result<SharedQueryRows<ListSummary>, sqlx::Error> {
    cached([limit], move || {
        sqlx::query_as!(
            ListSummary,
            r#"SELECT l.id, l.title, u.name AS owner_name, l.is_public,
            (SELECT count(*) FROM items i WHERE i.list = l.id) AS "items!",
            (SELECT count(*) FROM stars s WHERE s.list = l.id) AS "stars!"
        FROM lists l JOIN users u ON u.id = l.owner
        WHERE l.is_public ORDER BY l.created DESC, l.id LIMIT $1"#,
            limit
        )
    })
    .fetch_all(database)
    .await
}

pub(crate) async fn popular(
    database: impl Into<Handle<'_>>,
    limit: i64,
) -> Result<SharedQueryRows<ListSummary>, sqlx::Error> {
    cached([limit], move || {
        sqlx::query_as!(
            ListSummary,
            r#"SELECT l.id, l.title, u.name AS owner_name, l.is_public,
            (SELECT count(*) FROM items i WHERE i.list = l.id) AS "items!", count(s.list) AS "stars!"
        FROM lists l JOIN users u ON u.id = l.owner JOIN stars s ON s.list = l.id
        WHERE l.is_public GROUP BY l.id, u.name ORDER BY count(s.list) DESC, l.id LIMIT $1"#,
            limit
        )
    })
    .fetch_all(database)
    .await
}

/// Reads the lists of a user: all of them, or only the public ones.
pub(crate) async fn of_user(
    database: impl Into<Handle<'_>>,
    owner: Uuid,
    with_private: bool,
) -> Result<SharedQueryRows<ListSummary>, sqlx::Error> {
    cached((owner, with_private), move || {
        sqlx::query_as!(
            ListSummary,
            r#"SELECT l.id, l.title, u.name AS owner_name, l.is_public,
            (SELECT count(*) FROM items i WHERE i.list = l.id) AS "items!",
            (SELECT count(*) FROM stars s WHERE s.list = l.id) AS "stars!"
        FROM lists l JOIN users u ON u.id = l.owner
        WHERE l.owner = $1 AND (l.is_public OR $2) ORDER BY l.created DESC, l.id"#,
            owner,
            with_private
        )
    })
    .fetch_all(database)
    .await
}

pub(crate) async fn starred_by(
    database: impl Into<Handle<'_>>,
    user: Uuid,
) -> Result<SharedQueryRows<ListSummary>, sqlx::Error> {
    cached([user], move || {
        sqlx::query_as!(
            ListSummary,
            r#"SELECT l.id, l.title, u.name AS owner_name, l.is_public,
            (SELECT count(*) FROM items i WHERE i.list = l.id) AS "items!",
            (SELECT count(*) FROM stars o WHERE o.list = l.id) AS "stars!"
        FROM stars s JOIN lists l ON l.id = s.list JOIN users u ON u.id = l.owner
        WHERE s.starred_by = $1 AND l.is_public ORDER BY l.title, l.id"#,
            user
        )
    })
    .fetch_all(database)
    .await
}

pub(crate) async fn rename(
    database: impl Into<Handle<'_>>,
    id: Uuid,
    title: &str,
) -> Result<(), sqlx::Error> {
    let title = title.to_owned();
    invalidating(values![&title, id], move || {
        sqlx::query!("UPDATE lists SET title = $1 WHERE id = $2", title, id)
    })
    .execute(database)
    .await
    .map(|_| ())
}

pub(crate) async fn delete(database: impl Into<Handle<'_>>, id: Uuid) -> Result<(), sqlx::Error> {
    invalidating([id], move || sqlx::query!("DELETE FROM lists WHERE id = $1", id))
        .execute(database)
        .await
        .map(|_| ())
}
