//! Shows larder in a whole axum application, a small shop with SQLite or PostgreSQL in which every page is cached and a
//! changed price shows on the next request: `cargo run --release -p shop`.
//!
//! `database/` reads and writes, `pages/` are the handlers, and `app.rs` puts the layers around them.

use std::{future::IntoFuture as _, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use larder::warming::{AppHandle, HotUrls, Warmer, Warming};
use program::interrupted;
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};

pub use app::{App, router};
pub use database::{Database, DatabaseError, Views};
pub use traffic::{Sent, TrafficSwitch};

mod admin;
mod app;
mod database;
mod pages;
mod seed;
mod traffic;

/// The flags of the shop.
#[derive(Clone, Debug, Parser)]
#[command(about = "A demo shop that caches everything and shows nothing stale")]
pub struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,
    /// sqlite://FILE, created when new, or postgres://USER@HOST/NAME, which has to exist. Missing tables are created
    /// and seeded. Without this flag the database is in memory.
    #[arg(long)]
    pub database: Option<String>,
    /// The number of products to seed a new database with; 10000 by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub products: Option<u32>,
    /// Products for a new database from a CSV file with the columns category,name,description,price_cents,stock,
    /// in place of seeded ones.
    #[arg(long, conflicts_with = "products")]
    pub import: Option<PathBuf>,
    /// Read the database for every page, for comparison.
    #[arg(long)]
    pub no_cache: bool,
    /// The size of the cache in memory, in bytes.
    #[arg(long, default_value_t = 64 << 20)]
    pub memory: usize,
    /// A Redis to share the cache with other shops of the same database, such as redis://127.0.0.1:6379;
    /// several times for the nodes of a cluster.
    #[arg(long, requires = "database")]
    pub redis: Vec<String>,
    /// The name of this shop, for `--journal`. Give each shop of a database its own.
    #[arg(long, default_value = "shop", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub name: String,
    /// A directory for the views of products that are counted and not in the database yet, so that a crash loses none. It
    /// belongs to one shop.
    #[arg(long, requires = "database")]
    pub journal: Option<PathBuf>,
    /// A file with the most requested pages: they are made before the shop listens, and written to the file when it ends.
    #[arg(long, conflicts_with = "no_cache")]
    pub warm: Option<PathBuf>,
    /// Leave the bar out that shows on each page what the cache did. It is also left out if --listen is not an address of this
    /// machine alone, since its buttons change prices without the token.
    #[arg(long)]
    pub plain: bool,
    /// Send requests to the shop, this many in a second; 200 without a number. One in a hundred changes a price.
    #[arg(long, value_name = "REQUESTS", num_args = 0..=1, default_missing_value = "200",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub traffic: Option<u32>,
    /// The token that authorises product changes; random by default.
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub admin_token: Option<String>,
}

/// Runs the shop until Ctrl-C.
///
/// # Errors
///
/// One sentence with the cause: the port is taken, the database is broken, or the memory size is not allowed.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let app = App::open(&options).await?;
    let (warming, hot) = match &options.warm {
        Some(file) => {
            let hot = HotUrls::load(file);
            let hot = hot.map_err(|error| format!("--warm {}: {error}", file.display()))?;
            (Some(warm(&app, hot.clone()).await), hot)
        }
        None => (None, HotUrls::default()),
    };
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    let address = listener.local_addr()?;
    let token = app.admin_token();
    println!("shop on http://{address}");
    println!("dashboard on http://{address}/larder/, with the token {token}; metrics on /metrics");
    println!("try: curl -si http://{address}/products/42 | grep -i cache-status   # twice");
    println!(
        "     curl -X PUT http://{address}/api/products/42 -H 'Authorization: Bearer {token}' \
         -H 'Content-Type: application/json' -d '{{\"price_cents\": 1999}}'"
    );
    let larder = app.larder().clone();
    serve(listener, app, interrupted(), GRACE).await?;
    // What is still to be warmed is not needed any more.
    drop(warming);
    if let Some(file) = &options.warm {
        let hot = HotUrls::of(&larder, MOST_WARMED).followed_by(hot, MOST_WARMED);
        hot.save(file).map_err(|error| format!("--warm {}: {error}", file.display()))?;
    }
    Ok(())
}

/// Makes the most requested pages of the last run, until that takes too long or the shop is to stop.
async fn warm(app: &App, hot: HotUrls) -> Warming {
    let warmer = Warmer::new(app.larder(), AppHandle::axum(router(app.clone())));
    let mut warming = warmer.show_progress("warming").start(hot);
    let report = tokio::select! {
        report = warming.warmed(LONGEST_WARMING) => report,
        () = interrupted() => None,
    };
    match report {
        Some(report) => println!("warmed: {report}"),
        None => println!("warming goes on while the shop serves"),
    }
    warming
}

/// Serves until `until` completes, then lets running requests finish for `grace`, or until Ctrl-C is pressed again.
///
/// # Errors
///
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    app: App,
    until: impl Future<Output = ()> + Send,
    grace: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let (larder, views) = (app.larder().clone(), app.views().clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let (token, traffic) = (app.admin_token().to_owned(), app.traffic.clone());
    let shop = router(app);
    // The traffic ends with this function.
    let mut visitors = JoinSet::new();
    if let Some(traffic) = traffic {
        visitors.spawn(traffic::run(shop.clone(), token, traffic));
    }
    // The admin API limits wrong tokens by the addresses of clients.
    let service = shop.into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(async move {
        // The sender is dropped to signal the end, so an error is the signal waited for.
        drop(stopped.await);
    });
    let cut_off = async move {
        until.await;
        drop(stop);
        // A client that never finishes its request would keep the shop from stopping.
        tokio::select! {
            () = tokio::time::sleep(grace) => {}
            () = interrupted() => {}
        }
    };
    tokio::select! {
        served = serving.into_future() => served?,
        () = cut_off => tracing::warn!("requests that did not finish within the grace period were aborted"),
    }
    let left = views.close(Duration::from_secs(5)).await;
    if left > 0 {
        tracing::warn!(left, "views of products are not in the database yet");
    }
    larder.close(Duration::from_secs(5)).await;
    Ok(())
}

/// 128 bits that cannot be guessed.
pub(crate) fn secret() -> u128 {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the system has random bits");
    u128::from_ne_bytes(bits)
}

/// The time that running requests get to finish at shutdown.
const GRACE: Duration = Duration::from_secs(5);
/// The time after which the shop serves although pages are still being warmed.
const LONGEST_WARMING: Duration = Duration::from_secs(30);
/// The number of pages that are remembered for the next start.
const MOST_WARMED: usize = 5_000;
