//! The router of the shop: the pages and the layers around them.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{get, post},
};
use http::StatusCode;
use larder::{
    ByteSize, Larder,
    axum::{HttpCache, InvalidationLayer},
    http::{FinalHeadLayer, QueryRule},
    redis::Redis,
};
use tower::ServiceBuilder;
use tower_http::{
    compression::CompressionLayer, services::ServeDir, timeout::TimeoutLayer, trace::TraceLayer,
};

use crate::{
    Options,
    admin::AdminToken,
    database::Database,
    pages::{api, cart, catalogue},
};

/// The state that all handlers share.
#[derive(Clone, Debug)]
pub struct App {
    pub(crate) database: Database,
    pub(crate) admin: AdminToken,
    larder: Larder,
    cached: bool,
}

impl App {
    /// Opens the database and builds the cache.
    ///
    /// # Errors
    ///
    /// When the database cannot be opened, or an option is not allowed.
    pub async fn open(options: &Options) -> Result<Self, Box<dyn std::error::Error>> {
        let mut builder = Larder::builder()
            .memory(ByteSize::bytes(options.memory))
            .version(env!("CARGO_PKG_VERSION"));
        let redis = match &options.redis[..] {
            [] => None,
            [url] => Some(Redis::open(url)),
            nodes => Some(Redis::cluster(nodes.iter().map(String::as_str))),
        };
        if let Some(redis) = redis {
            let redis = redis.map_err(|error| format!("--redis: {error}"))?;
            builder = builder.second_level(redis.name("shop"));
        }
        let larder = builder.build().map_err(|error| format!("--{error}"))?;
        let database = Database::open(options, &larder).await?;
        let admin = AdminToken::new(options.admin_token.as_deref());
        Ok(Self { database, admin, larder, cached: !options.no_cache })
    }

    /// The cache.
    pub fn larder(&self) -> &Larder {
        &self.larder
    }

    /// The token that authorises product changes.
    pub fn admin_token(&self) -> &str {
        self.admin.as_str()
    }
}

/// All routes, with their layers.
pub fn router(app: App) -> Router {
    let app = Arc::new(app);
    Router::new()
        .merge(shared_pages(&app))
        .merge(own_pages(&app))
        .nest_service(
            "/static",
            ServeDir::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("static")),
        )
        .layer(
            // From the outside: the report of the final head, a span, a time limit, then compression, so that the cache
            // stores a page once and not once for each encoding.
            ServiceBuilder::new()
                .layer(FinalHeadLayer::new())
                .layer(TraceLayer::new_for_http())
                .layer(TimeoutLayer::with_status_code(
                    StatusCode::GATEWAY_TIMEOUT,
                    Duration::from_secs(30),
                ))
                .layer(CompressionLayer::new()),
        )
        .with_state(app)
}

/// Pages that are the same for every visitor; their handlers set the lifetime. Visitors have a cookie for their cart;
/// `shared` declares that these pages do not depend on it.
fn shared_pages(app: &Arc<App>) -> Router<Arc<App>> {
    let cache = HttpCache::new(&app.larder)
        .shared()
        .query_params(QueryRule::without_trackers())
        .responses(|cache| {
            cache.name("pages").negative_ttl([StatusCode::NOT_FOUND], Duration::from_secs(10))
        });
    let pages = Router::new()
        .route("/", get(catalogue::home))
        .route("/category/{slug}", get(catalogue::category))
        .route("/products/{id}", get(catalogue::product))
        .route("/search", get(catalogue::search))
        .route("/api/products", get(api::list))
        .route("/api/products/{id}", get(api::show).put(api::update));
    if !app.cached {
        return pages;
    }
    pages.layer(cache)
}

/// The cart of one visitor, the health check and the statistics: never cached.
fn own_pages(app: &Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .route("/cart", post(cart::add).get(cart::show))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/stats", get(api::stats))
        .layer(InvalidationLayer::new(&app.larder).explicit_only())
}
