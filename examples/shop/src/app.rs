//! The router of the shop: the pages and the layers around them.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{MethodRouter, get, post, put},
};
use http::StatusCode;
use larder::{
    ByteSize, Larder,
    axum::{ConditionalLayer, HttpCache, InvalidationLayer},
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
    database::{DEFAULT_PRODUCTS, Database, Views},
    pages::{api, bar, cart, catalogue, metrics, views},
    traffic::{Sent, Traffic, TrafficSwitch},
};

/// The state that all handlers share.
#[derive(Clone, Debug)]
pub struct App {
    pub(crate) database: Database,
    pub(crate) admin: AdminToken,
    /// How often each product was seen.
    pub(crate) views: Views,
    larder: Larder,
    /// The dashboard of the cache.
    dashboard: Router,
    cached: bool,
    /// Whether pages show what the cache did.
    pub(crate) has_bar: bool,
    pub(crate) traffic: Option<Traffic>,
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
        let views = database.views(&larder, options).await?;
        let admin = AdminToken::new(options.admin_token.as_deref());
        let dashboard = larder::axum::admin::admin(&larder).token(admin.as_str()).build();
        let dashboard = dashboard.map_err(|error| format!("--admin-token: {error}"))?;
        let products = options.products.unwrap_or(DEFAULT_PRODUCTS);
        let traffic = options.traffic.map(|per_second| Traffic {
            per_second,
            products,
            sent: Sent::default(),
            switch: TrafficSwitch::default(),
        });
        Ok(Self {
            database,
            admin,
            views,
            larder,
            dashboard,
            cached: !options.no_cache,
            // Its buttons change prices without the token.
            has_bar: !options.plain && options.listen.ip().is_loopback(),
            traffic,
        })
    }

    /// The cache.
    pub fn larder(&self) -> &Larder {
        &self.larder
    }

    /// How often each product was seen: a write-behind queue.
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// What `--traffic` has sent.
    pub fn sent(&self) -> Option<&Sent> {
        self.traffic.as_ref().map(|traffic| &traffic.sent)
    }

    /// The switch that ends the traffic of `--traffic`.
    pub fn traffic_switch(&self) -> TrafficSwitch {
        self.traffic.as_ref().map_or_else(TrafficSwitch::default, |it| it.switch.clone())
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
        .merge(front_page(&app))
        .merge(shared_pages(&app))
        .merge(own_pages(&app))
        .nest_service("/larder", app.dashboard.clone())
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
    let cache = pages_cache(app);
    let pages = Router::new()
        .route("/category/{slug}", get(catalogue::category))
        .route("/products/{id}", get(catalogue::product))
        .route("/search", get(catalogue::search))
        .route("/api/purge", write(app, post(api::purge)))
        .route("/api/products", get(api::list))
        .route("/api/products/{id}", get(api::show).merge(write(app, put(api::update))));
    if !app.cached {
        return pages;
    }
    pages.layer(cache)
}

/// The first page. It is the most requested page, so it is refreshed before it expires, and no visitor waits for it.
fn front_page(app: &Arc<App>) -> Router<Arc<App>> {
    let page = Router::new().route("/", get(catalogue::home));
    if !app.cached {
        return page;
    }
    page.layer(pages_cache(app).responses(|cache| cache.refresh_ahead(0.2)))
}

/// A route that writes. The cache brings the layers of its extractors along.
fn write(app: &Arc<App>, route: MethodRouter<Arc<App>>) -> MethodRouter<Arc<App>> {
    if app.cached {
        return route;
    }
    let layers = ServiceBuilder::new().layer(ConditionalLayer::new(&app.larder));
    route.layer(layers.layer(InvalidationLayer::new(&app.larder)))
}

fn pages_cache(app: &Arc<App>) -> HttpCache {
    let (seconds, has_bar) = (Duration::from_secs(10), app.has_bar);
    HttpCache::new(&app.larder).shared().query_params(QueryRule::without_trackers()).responses(
        |cache| {
            let cache = cache.name("pages").negative_ttl([StatusCode::NOT_FOUND], seconds);
            if has_bar { cache.server_timing() } else { cache }
        },
    )
}

/// The cart of one visitor, the health check and the statistics: never cached.
fn own_pages(app: &Arc<App>) -> Router<Arc<App>> {
    let bar = match app.has_bar {
        true => Router::new()
            .route("/bar/page", get(bar::page))
            .route("/bar/products/{id}/price", post(bar::change_price)),
        false => Router::new(),
    };
    bar.route("/bar.js", get(bar::script))
        .route("/cart", post(cart::add).get(cart::show))
        .route("/products/{id}/views", post(views::count))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/stats", get(api::stats))
        .route("/metrics", get(metrics::show))
        .layer(InvalidationLayer::new(&app.larder).explicit_only())
}
