//! The JSON API.

use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::StatusCode;
use larder::{
    axum::CachePolicy,
    sql::{QueryError, SharedRow},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Shop, fresh, page_of};
use crate::{
    App,
    admin::Admin,
    database::{PAGE, Product},
    seed::AMOUNTS,
};

/// The category and page of a list. An empty value counts as absent.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    #[serde(default)]
    category: String,
    #[serde(default)]
    page: String,
}

/// The fields of a product to change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    price_cents: Option<i64>,
    stock: Option<i64>,
}

/// An error as JSON.
#[derive(Debug)]
pub(crate) struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        tracing::error!(%error, "the database failed");
        Self(StatusCode::INTERNAL_SERVER_ERROR, "the database failed".to_owned())
    }
}

fn no_product(id: i64) -> ApiError {
    ApiError(StatusCode::NOT_FOUND, format!("there is no product {id}"))
}

fn bad(what: impl Into<String>) -> ApiError {
    ApiError(StatusCode::BAD_REQUEST, what.into())
}

pub(crate) async fn show(
    policy: Option<CachePolicy>,
    State(app): Shop,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<SharedRow<Product>>, ApiError> {
    fresh(policy.as_ref());
    let Path(id) = id.map_err(|error| bad(error.body_text()))?;
    app.database.product(id).await?.map(Json).ok_or_else(|| no_product(id))
}

pub(crate) async fn list(
    policy: Option<CachePolicy>,
    State(app): Shop,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    fresh(policy.as_ref());
    let Query(listing) = listing.map_err(|error| bad(error.body_text()))?;
    let page = page_of(&listing.page).map_err(bad)?;
    let category = Some(&*listing.category).filter(|category| !category.is_empty());
    let (products, count) = app.database.list(category, page).await?;
    Ok(Json(json!({ "page": page, "per_page": PAGE, "total": count, "products": *products })))
}

pub(crate) async fn update(
    _: Admin,
    State(app): Shop,
    id: Result<Path<i64>, PathRejection>,
    change: Result<Json<Change>, JsonRejection>,
) -> Result<Json<SharedRow<Product>>, ApiError> {
    let Path(id) = id.map_err(|error| bad(error.body_text()))?;
    let Json(change) = change.map_err(|error| bad(error.body_text()))?;
    for (name, value) in [("price_cents", change.price_cents), ("stock", change.stock)] {
        if let Some(value) = value.filter(|value| !AMOUNTS.contains(value)) {
            let (least, most) = (AMOUNTS.start(), AMOUNTS.end());
            return Err(bad(format!("{name} is {value}, allowed is {least} to {most}")));
        }
    }
    let changed = app.database.update(id, change.price_cents, change.stock).await?;
    changed.map(Json).ok_or_else(|| no_product(id))
}

pub(crate) async fn stats(State(app): State<Arc<App>>) -> Json<larder::Stats> {
    Json(app.larder().stats())
}
