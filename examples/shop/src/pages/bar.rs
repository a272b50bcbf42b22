//! The bar at the foot of each page, which shows what the cache did. A script fills it, so that the stored page is the same
//! with and without it.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::PathRejection},
    response::IntoResponse,
};
use http::{HeaderMap, HeaderValue, header};
use larder::http::ExplainRequest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Shop,
    api::{ApiError, bad, no_product},
};
use crate::{App, database::UpdateError, seed::AMOUNTS};

/// The script of the bar; nothing with `--plain`.
pub(crate) async fn script(State(app): Shop) -> impl IntoResponse {
    let script = if app.has_bar { include_str!("../../static/bar.js") } else { "" };
    let fields = [(header::CONTENT_TYPE, "text/javascript"), (header::CACHE_CONTROL, "no-cache")];
    (fields, script)
}

#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    path: String,
}

/// What the cache knows of a page: its age, the time of its fill, and what it depends on.
pub(crate) async fn page(
    State(app): Shop,
    headers: HeaderMap,
    Query(Page { path }): Query<Page>,
) -> Result<Json<Value>, ApiError> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    if !path.starts_with('/') {
        return Err(bad(format!("path is {path:?}, allowed is a path such as /products/42")));
    }
    let request = ExplainRequest::get(&format!("http://{host}{path}"));
    let request = request.map_err(|error| bad(error.to_string()))?;
    let all = request.explain(app.larder()).await;
    let Some(entry) = all.into_iter().find_map(|explanation| explanation.entry) else {
        return Ok(Json(Value::Null));
    };
    let depends = entry.tags.iter().filter(|tag| tag.class == "tag").map(|tag| &tag.tag);
    Ok(Json(json!({
        "age_seconds": entry.age_seconds,
        "fill_millis": entry.fill_millis,
        "queries": entry.queries,
        "hits": entry.hits,
        "depends": depends.collect::<Vec<_>>(),
    })))
}

/// Changes the price of a product, without the token: the bar is there only while the shop listens on this machine alone.
pub(crate) async fn change_price(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    // A page of another site cannot send this field without asking first, which is refused.
    if !headers.contains_key("x-shop-bar") {
        return Err(ApiError::forbidden("the field X-Shop-Bar is missing"));
    }
    // A page of another site can send it under a name of its own that resolves to this machine.
    let is_loopback = |host: &HeaderValue| {
        let host = host.to_str().unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        ["localhost", "127.0.0.1", "[::1]"].contains(&name)
    };
    let hosts = headers.get_all(header::HOST);
    if hosts.iter().next().is_none() || !hosts.iter().all(is_loopback) {
        return Err(ApiError::forbidden("the host is no loopback name"));
    }
    let Path(id) = id.map_err(|error| bad(error.body_text()))?;
    let product = app.database.product(id).await?.ok_or_else(|| no_product(id))?;
    let price = match product.price_cents + 111 {
        price if AMOUNTS.contains(&price) => price,
        _ => 999,
    };
    match app.database.update(id, Some(price), None, |_| Ok(())).await {
        Ok(Some(changed)) => Ok(Json(json!({
            "before": product.price(),
            "after": changed.price(),
            "pages": [format!("/products/{id}"), format!("/category/{}", changed.category_slug), "/".to_owned()],
        }))),
        Ok(None) => Err(no_product(id)),
        Err(UpdateError::Unmet(_)) => Err(bad("the product has another revision")),
        Err(UpdateError::Failed(error)) => Err(ApiError::database(&*error)),
    }
}
