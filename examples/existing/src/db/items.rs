//! The entries of a list.

use serde::Serialize;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

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
    connection: &mut PgConnection,
    list: Uuid,
) -> Result<Vec<Item>, sqlx::Error> {
    sqlx::query_as!(
        Item,
        r#"SELECT id, list, title, url, is_read, labels AS "labels: Json<Vec<String>>"
        FROM items WHERE list = $1 ORDER BY position"#,
        list
    )
    .fetch_all(connection)
    .await
}

pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Item, sqlx::Error> {
    sqlx::query_as!(
        Item,
        r#"SELECT id, list, title, url, is_read, labels AS "labels: Json<Vec<String>>"
        FROM items WHERE id = $1"#,
        id
    )
    .fetch_one(connection)
    .await
}

/// Adds an entry at the end of a list. Runs in a transaction, which locks the list.
pub(crate) async fn add(
    connection: &mut PgConnection,
    list: Uuid,
    title: &str,
    url: Option<&str>,
    labels: &[String],
) -> Result<Uuid, sqlx::Error> {
    sqlx::query!("SELECT id FROM lists WHERE id = $1 FOR UPDATE", list)
        .fetch_one(&mut *connection)
        .await?;
    let position = sqlx::query_scalar!(
        r#"SELECT coalesce(max(position), 0) + 1 AS "position!" FROM items WHERE list = $1"#,
        list
    )
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query_scalar!(
        "INSERT INTO items (list, title, url, labels, position) VALUES ($1, $2, $3, $4, $5) RETURNING id",
        list,
        title,
        url,
        Json(labels) as _,
        position
    )
    .fetch_one(connection)
    .await
}

pub(crate) async fn set_read(
    connection: &mut PgConnection,
    id: Uuid,
    is_read: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE items SET is_read = $1 WHERE id = $2", is_read, id)
        .execute(connection)
        .await
        .map(|_| ())
}

pub(crate) async fn delete(connection: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM items WHERE id = $1", id).execute(connection).await.map(|_| ())
}
