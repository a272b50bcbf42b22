//! Invalidation by webhooks: a product system calls `POST /webhooks/products` after each change.
//!
//! A sender delivers webhooks at least once, late, and in any order. None of that matters here: an event only names the
//! product that may have changed, and the page is rendered from the source. So an event that is delivered twice costs one render, and an old
//! event that comes late cannot bring old data back.
//!
//! ```text
//! cargo run -p webhook
//! curl -i 127.0.0.1:3003/products/42           # Cache-Status: larder; fwd=uri-miss; stored
//! curl -i 127.0.0.1:3003/products/42           # Cache-Status: larder; hit; ttl=3599
//! curl -i 127.0.0.1:3003/webhooks/products -H 'content-type: application/json' -d '{"id": 42, "category": 7}'
//! curl -i 127.0.0.1:3003/products/42           # Cache-Status: larder; fwd=stale; stored
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use larder::{
    Larder, Target,
    axum::{CachePolicy, ResponseCacheLayer},
};
use serde::Deserialize;

/// The body of a webhook: a domain event.
#[derive(Clone, Deserialize)]
struct ProductChanged {
    id: u64,
    category: u64,
}

#[derive(Clone)]
struct Shop {
    larder: Larder,
    /// How many pages were rendered.
    renders: Arc<AtomicU64>,
}

async fn product(State(shop): State<Shop>, policy: CachePolicy, Path(id): Path<u64>) -> String {
    policy.ttl(Duration::from_secs(3600)).tag(("product", id));
    let render = shop.renders.fetch_add(1, Ordering::Relaxed) + 1;
    format!("product {id}, rendered as page {render}\n")
}

async fn category(State(shop): State<Shop>, policy: CachePolicy, Path(id): Path<u64>) -> String {
    policy.ttl(Duration::from_secs(3600)).tag(("category", id));
    let render = shop.renders.fetch_add(1, Ordering::Relaxed) + 1;
    format!("category {id}, rendered as page {render}\n")
}

/// Acknowledges the event only once it is in effect. Otherwise the sender delivers it again, which is harmless.
async fn changed(State(shop): State<Shop>, Json(event): Json<ProductChanged>) -> StatusCode {
    match shop.larder.emit(&event).await {
        Ok(_) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn app(larder: &Larder) -> Router {
    // The one place that lists the pages of a product.
    larder.on(|event: &ProductChanged| {
        [Target::tag(("product", event.id)), Target::tag(("category", event.category))]
    });
    let pages = Router::new()
        .route("/products/{id}", get(product))
        .route("/categories/{id}", get(category))
        .layer(ResponseCacheLayer::new(larder));
    let shop = Shop { larder: larder.clone(), renders: Arc::default() };
    pages.route("/webhooks/products", post(changed)).with_state(shop)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let larder = Larder::builder().build()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3003").await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app(&larder)).await?)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn send(app: &Router, request: Request<Body>) -> (StatusCode, String) {
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn page(app: &Router, path: &str) -> String {
        let request = Request::get(path).header("host", "shop.example").body(Body::empty());
        send(app, request.unwrap()).await.1
    }

    async fn deliver(app: &Router, id: u64) -> StatusCode {
        let request =
            Request::post("/webhooks/products").header("content-type", "application/json");
        let body = format!(r#"{{"id": {id}, "category": 7}}"#);
        send(app, request.body(body.into()).unwrap()).await.0
    }

    #[tokio::test]
    async fn an_event_that_is_delivered_twice_costs_one_render_and_no_freshness() {
        let app = app(&Larder::builder().build().unwrap());
        let pages = ["/products/42", "/categories/7", "/products/43"];
        for path in pages {
            assert_eq!(page(&app, path).await, page(&app, path).await, "{path} is a hit");
        }
        let other = page(&app, "/products/43").await;
        for _ in 0..2 {
            let before = page(&app, "/products/42").await;
            assert_eq!(deliver(&app, 42).await, StatusCode::NO_CONTENT);
            assert_ne!(page(&app, "/products/42").await, before);
        }
        assert_eq!(page(&app, "/products/43").await, other, "it is not touched");
    }
}
