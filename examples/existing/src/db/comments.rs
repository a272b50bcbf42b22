//! Comments on lists.

use larder::{
    sql::values,
    sqlx_08::{SharedQueryRows, cached, invalidating},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Handle;

#[derive(Debug)]
pub(crate) struct Comment {
    pub(crate) author_name: String,
    pub(crate) body: String,
    pub(crate) written: OffsetDateTime,
}

pub(crate) async fn of_list(
    database: impl Into<Handle<'_>>,
    list: Uuid,
) -> Result<SharedQueryRows<Comment>, sqlx::Error> {
    cached([list], move || {
        sqlx::query_as!(
            Comment,
            "SELECT u.name AS author_name, c.body, c.written FROM comments c JOIN users u ON u.id = c.author
        WHERE c.list = $1 ORDER BY c.written, c.id",
            list
        )
    })
    .fetch_all(database)
    .await
}

pub(crate) async fn add(
    database: impl Into<Handle<'_>>,
    list: Uuid,
    author: Uuid,
    body: &str,
) -> Result<(), sqlx::Error> {
    let body = body.to_owned();
    invalidating(values![list, author, &body], move || {
        sqlx::query!(
            "INSERT INTO comments (list, author, body) VALUES ($1, $2, $3)",
            list,
            author,
            body
        )
    })
    .execute(database)
    .await
    .map(|_| ())
}
