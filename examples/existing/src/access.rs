//! Which lists a user may see and change, on the pages and in the API.

use larder::sqlx_08::SharedQueryRow;
use uuid::Uuid;

use crate::{
    db::{
        Handle,
        lists::{self, List},
    },
    error::AppError,
};

/// Reads a list, if this user may see it. A private list does not exist for others.
pub(crate) async fn visible_list(
    database: impl Into<Handle<'_>>,
    id: Uuid,
    user: Option<Uuid>,
) -> Result<SharedQueryRow<List>, AppError> {
    let list = lists::get(database, id).await?;
    let is_visible = list.is_public || user == Some(list.owner);
    if is_visible { Ok(list) } else { Err(AppError::NotFound) }
}

/// Reads a list that this user may change.
pub(crate) async fn own_list(
    database: impl Into<Handle<'_>>,
    id: Uuid,
    user: Uuid,
) -> Result<SharedQueryRow<List>, AppError> {
    let list = visible_list(database, id, Some(user)).await?;
    if list.owner == user { Ok(list) } else { Err(AppError::NotAllowed) }
}
