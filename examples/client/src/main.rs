//! Shows the response cache around an HTTP client, where it obeys the cache directives of another service as a browser
//! does, coalesces concurrent requests for the same URL, and invalidates stored responses by tag: `cargo run -p client`.

use std::{
    error::Error,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::{Router, extract::Path, http::HeaderMap, response::IntoResponse, routing::get};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, Error as ClientError},
    rt::TokioExecutor,
};
use larder::{
    Larder,
    http::{CacheBody, ResponseCacheLayer, ResponseOverrides},
};
use tower::{ServiceBuilder, ServiceExt as _, util::BoxCloneService};

/// A client that stores the responses that are storable in a private cache.
type CachedClient =
    BoxCloneService<Request<Full<Bytes>>, Response<CacheBody<Incoming>>, ClientError>;

fn client(larder: &Larder) -> CachedClient {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = ServiceBuilder::new()
        .layer(ResponseCacheLayer::new(larder).private_cache().name("rates"))
        .map_request(|request: Request<Full<Bytes>>| {
            // One tag for all responses of the service, to invalidate them together.
            if let Some(choices) = request.extensions().get::<ResponseOverrides>() {
                choices.tag("rates");
            }
            request
        })
        .service(client);
    BoxCloneService::new(service)
}

async fn ask(client: &CachedClient, uri: String) -> Result<String, Box<dyn Error + Send + Sync>> {
    let request = Request::get(uri).body(Full::default())?;
    let response = client.clone().oneshot(request).await?;
    let status = response.headers().get(header::CACHE_STATUS).cloned();
    let text = response.into_body().collect().await?.to_bytes();
    let status = status.as_ref().and_then(|status| status.to_str().ok()).unwrap_or_default();
    Ok(format!("{} ({status})", String::from_utf8_lossy(&text)))
}

/// The number of requests that reached the service.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// A service of exchange rates that a private cache may store for a minute and revalidate afterwards.
async fn rates() -> std::io::Result<SocketAddr> {
    let rate = |Path(currency): Path<String>, headers: HeaderMap| async move {
        ASKED.fetch_add(1, Ordering::Relaxed);
        let tag = format!("\"{currency}-1\"");
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == *tag);
        let fields = [(header::CACHE_CONTROL, "private, max-age=60"), (header::ETAG, &tag)];
        if known {
            return (StatusCode::NOT_MODIFIED, fields).into_response();
        }
        (fields, format!("1 EUR = 1.1 {currency}")).into_response()
    };
    let service = Router::new().route("/rates/{currency}", get(rate));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, service).await });
    Ok(address)
}

async fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let larder = Larder::builder().build()?;
    let client = client(&larder);
    let address = rates().await?;
    let usd = || ask(&client, format!("http://{address}/rates/USD"));

    println!("first:             {}", usd().await?);
    println!("again:             {}", usd().await?);
    let chf = || ask(&client, format!("http://{address}/rates/CHF"));
    let (one, _, _) = tokio::try_join!(chf(), chf(), chf())?;
    println!("three at once:     {one}");
    let _queued_or_logged = larder.invalidate("rates").await;
    println!("after a change:    {}", usd().await?);
    println!("the service got {} requests for 6 responses", ASKED.load(Ordering::Relaxed));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    run().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn six_answers_take_three_calls() {
        run().await.unwrap();
        assert_eq!(ASKED.load(Ordering::Relaxed), 3);
    }
}
