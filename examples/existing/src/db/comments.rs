//! Comments on lists.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Debug)]
pub(crate) struct Comment {
    pub(crate) author_name: String,
    pub(crate) body: String,
    pub(crate) written: OffsetDateTime,
}

pub(crate) async fn of_list(
    connection: &mut PgConnection,
    list: Uuid,
) -> Result<Vec<Comment>, sqlx::Error> {
    sqlx::query_as!(
        Comment,
        "SELECT u.name AS author_name, c.body, c.written FROM comments c JOIN users u ON u.id = c.author
        WHERE c.list = $1 ORDER BY c.written, c.id",
        list
    )
    .fetch_all(connection)
    .await
}

pub(crate) async fn add(
    connection: &mut PgConnection,
    list: Uuid,
    author: Uuid,
    body: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO comments (list, author, body) VALUES ($1, $2, $3)",
        list,
        author,
        body
    )
    .execute(connection)
    .await
    .map(|_| ())
}
