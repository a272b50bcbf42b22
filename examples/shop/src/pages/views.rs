//! How often a product was seen. The number is on a part of its own, which the page requests, so that the page of the product
//! stays in the cache although its number changes with each visitor.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use larder::write_behind::Add;
use serde_json::{Value, json};

use super::{
    Shop,
    api::{ApiError, bad, no_product},
};

/// Counts a view, and returns the number of views. The write is durable when this returns if the shop has a journal, and the
/// database is written ten times a second.
pub(crate) async fn count(
    State(app): Shop,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|error| bad(error.body_text()))?;
    app.database.product(id).await?.ok_or_else(|| no_product(id))?;
    let _logged_or_queued = app.views.write(id, Add(1)).await?;
    let views = app.views.get(&id).await?.as_deref().copied().unwrap_or_default();
    Ok(Json(json!({ "product": id, "views": views })))
}
