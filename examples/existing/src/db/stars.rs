//! The lists that users have starred.

use sqlx::PgConnection;
use uuid::Uuid;

pub(crate) async fn count(connection: &mut PgConnection, list: Uuid) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM stars WHERE list = $1"#, list)
        .fetch_one(connection)
        .await
}

pub(crate) async fn has(
    connection: &mut PgConnection,
    list: Uuid,
    user: Uuid,
) -> Result<bool, sqlx::Error> {
    let row = sqlx::query_scalar!(
        r#"SELECT true AS "has!" FROM stars WHERE list = $1 AND starred_by = $2"#,
        list,
        user
    );
    Ok(row.fetch_optional(connection).await?.is_some())
}

/// Stars a list, or takes the star back. Returns whether it is starred now. Runs in a transaction.
pub(crate) async fn toggle(
    connection: &mut PgConnection,
    list: Uuid,
    user: Uuid,
) -> Result<bool, sqlx::Error> {
    let removed = sqlx::query!("DELETE FROM stars WHERE list = $1 AND starred_by = $2", list, user)
        .execute(&mut *connection)
        .await?;
    if removed.rows_affected() > 0 {
        return Ok(false);
    }
    sqlx::query!("INSERT INTO stars (list, starred_by) VALUES ($1, $2)", list, user)
        .execute(connection)
        .await?;
    Ok(true)
}
