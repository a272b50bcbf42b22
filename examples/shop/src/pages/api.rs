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
use http::{StatusCode, header};
use larder::{
    LoadError,
    axum::{CachePolicy, Conditional, Invalidate},
    sql::QueryError,
    write_behind::WriteError,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Shop, fresh, page_of};
use crate::{
    App,
    admin::Admin,
    database::{PAGE, Product, UpdateError},
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

impl ApiError {
    pub(super) fn forbidden(why: &str) -> Self {
        Self(StatusCode::FORBIDDEN, why.to_owned())
    }

    pub(super) fn database(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "the database failed");
        Self(StatusCode::INTERNAL_SERVER_ERROR, "the database failed".to_owned())
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        Self::database(&error)
    }
}

impl<E: std::error::Error + 'static> From<LoadError<E>> for ApiError {
    fn from(error: LoadError<E>) -> Self {
        Self::database(&error)
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        tracing::error!(%error, "a view was not counted");
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

pub(super) fn no_product(id: i64) -> ApiError {
    ApiError(StatusCode::NOT_FOUND, format!("there is no product {id}"))
}

pub(super) fn bad(what: impl Into<String>) -> ApiError {
    ApiError(StatusCode::BAD_REQUEST, what.into())
}

pub(crate) async fn show(
    policy: Option<CachePolicy>,
    State(app): Shop,
    id: Result<Path<i64>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    fresh(policy.as_ref());
    let Path(id) = id.map_err(|error| bad(error.body_text()))?;
    let product = app.database.product(id).await?.ok_or_else(|| no_product(id))?;
    Ok(([(header::ETAG, product.revision().to_string())], Json(product)))
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

/// Changes a product. With `If-Match` and the `ETag` of [`show`], a change that another client has made in the meantime is
/// not overwritten.
pub(crate) async fn update(
    _: Admin,
    State(app): Shop,
    conditional: Conditional,
    id: Result<Path<i64>, PathRejection>,
    change: Result<Json<Change>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Path(id) = id.map_err(|error| bad(error.body_text()))?;
    let Json(change) = change.map_err(|error| bad(error.body_text()))?;
    for (name, value) in [("price_cents", change.price_cents), ("stock", change.stock)] {
        if let Some(value) = value.filter(|value| !AMOUNTS.contains(value)) {
            let (least, most) = (AMOUNTS.start(), AMOUNTS.end());
            return Err(bad(format!("{name} is {value}, allowed is {least} to {most}")));
        }
    }
    let check = move |product: &Product| conditional.check(product.revision());
    match app.database.update(id, change.price_cents, change.stock, check).await {
        Ok(Some(product)) => {
            Ok(([(header::ETAG, product.revision().to_string())], Json(product)).into_response())
        }
        Ok(None) => Err(no_product(id)),
        Err(UpdateError::Unmet(unmet)) => Ok(unmet.into_response()),
        Err(UpdateError::Failed(error)) => Err(ApiError::database(&*error)),
    }
}

/// A page to make anew.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Purge {
    path: String,
}

/// Makes a page anew, after something that larder cannot see: a template was changed, or a backup was restored.
pub(crate) async fn purge(
    _: Admin,
    invalidate: Invalidate,
    purge: Result<Json<Purge>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(Purge { path }) = purge.map_err(|error| bad(error.body_text()))?;
    if !path.starts_with('/') {
        return Err(bad(format!("path is {path:?}, allowed is a path such as /products/42")));
    }
    invalidate.path(path);
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn stats(State(app): State<Arc<App>>) -> Json<larder::Stats> {
    Json(app.larder().stats())
}
