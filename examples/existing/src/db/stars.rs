//! The lists that users have starred.

use larder::sqlx_08::{cached, invalidating};
use uuid::Uuid;

use super::Handle;

pub(crate) async fn count(database: impl Into<Handle<'_>>, list: Uuid) -> Result<i64, sqlx::Error> {
    let count = cached([list], move || {
        sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM stars WHERE list = $1"#, list)
    });
    Ok(*count.fetch_one(database).await?)
}

pub(crate) async fn has(
    database: impl Into<Handle<'_>>,
    list: Uuid,
    user: Uuid,
) -> Result<bool, sqlx::Error> {
    let row = cached((list, user), move || {
        sqlx::query_scalar!(
            r#"SELECT true AS "has!" FROM stars WHERE list = $1 AND starred_by = $2"#,
            list,
            user
        )
    });
    Ok(row.fetch_optional(database).await?.is_some())
}

/// Stars a list, or takes the star back. Returns whether it is starred now. Runs in a transaction.
pub(crate) async fn toggle(
    database: impl Into<Handle<'_>>,
    list: Uuid,
    user: Uuid,
) -> Result<bool, sqlx::Error> {
    let mut database = database.into();
    let removed = invalidating((list, user), move || {
        sqlx::query!("DELETE FROM stars WHERE list = $1 AND starred_by = $2", list, user)
    });
    if removed.execute(&mut database).await?.rows_affected() > 0 {
        return Ok(false);
    }
    invalidating((list, user), move || {
        sqlx::query!("INSERT INTO stars (list, starred_by) VALUES ($1, $2)", list, user)
    })
    .execute(database)
    .await?;
    Ok(true)
}
