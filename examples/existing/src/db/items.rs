//! The entries of a list.

use larder::{
    sql::values,
    sqlx_08::{SharedQueryRow, SharedQueryRows, cached, invalidating},
};
use serde::Serialize;
use sqlx::types::Json;
use uuid::Uuid;

use super::Handle;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Item {
    pub(crate) id: Uuid,
    pub(crate) list: Uuid,
    pub(crate) title: String,
    pub(crate) url: Option<String>,
    pub(crate) is_read: bool,
    pub(crate) labels: Json<Vec<String>>,
}

pub(crate) async fn of_list(
    database: impl Into<Handle<'_>>,
    list: Uuid,
) -> Result<SharedQueryRows<Item>, sqlx::Error> {
    cached([list], move || {
        sqlx::query_as!(
            Item,
            r#"SELECT id, list, title, url, is_read, labels AS "labels: Json<Vec<String>>"
        FROM items WHERE list = $1 ORDER BY position"#,
            list
        )
    })
    .fetch_all(database)
    .await
}

pub(crate) async fn get(
    database: impl Into<Handle<'_>>,
    id: Uuid,
) -> Result<SharedQueryRow<Item>, sqlx::Error> {
    cached([id], move || {
        sqlx::query_as!(
            Item,
            r#"SELECT id, list, title, url, is_read, labels AS "labels: Json<Vec<String>>"
        FROM items WHERE id = $1"#,
            id
        )
    })
    .fetch_one(database)
    .await
}

/// Adds an entry at the end of a list. Runs in a transaction, which locks the list.
pub(crate) async fn add(
    database: impl Into<Handle<'_>>,
    list: Uuid,
    title: &str,
    url: Option<&str>,
    labels: &[String],
) -> Result<Uuid, sqlx::Error> {
    let mut database = database.into();
    cached([list], move || {
        sqlx::query_scalar!("SELECT id FROM lists WHERE id = $1 FOR UPDATE", list)
    })
    .fetch_one(&mut database)
    .await?;
    let position = cached([list], move || {
        sqlx::query_scalar!(
            r#"SELECT coalesce(max(position), 0) + 1 AS "position!" FROM items WHERE list = $1"#,
            list
        )
    });
    let position = *position.fetch_one(&mut database).await?;
    let (title, url) = (title.to_owned(), url.map(str::to_owned));
    let labels = labels.to_vec();
    let values = values![list, &title, url.clone(), serde_json::json!(labels), position];
    invalidating(values, move || {
        sqlx::query_scalar!(
            "INSERT INTO items (list, title, url, labels, position) VALUES ($1, $2, $3, $4, $5) RETURNING id",
            list,
            title,
            url.as_deref(),
            Json(&labels) as _,
            position
        )
    })
    .fetch_one(database)
    .await
}

pub(crate) async fn set_read(
    database: impl Into<Handle<'_>>,
    id: Uuid,
    is_read: bool,
) -> Result<(), sqlx::Error> {
    invalidating((is_read, id), move || {
        sqlx::query!("UPDATE items SET is_read = $1 WHERE id = $2", is_read, id)
    })
    .execute(database)
    .await
    .map(|_| ())
}

pub(crate) async fn delete(database: impl Into<Handle<'_>>, id: Uuid) -> Result<(), sqlx::Error> {
    invalidating([id], move || sqlx::query!("DELETE FROM items WHERE id = $1", id))
        .execute(database)
        .await
        .map(|_| ())
}
