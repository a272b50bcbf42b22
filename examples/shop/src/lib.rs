//! A small shop on axum, and SQLite or PostgreSQL. Every page is cached; a price that changes shows on the next request.
//!
//! `database.rs` reads and writes, `pages/` are the handlers, `app.rs` puts the layers around them.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use tokio::net::TcpListener;

pub use app::{App, router};
pub use database::{Database, DatabaseError};

mod admin;
mod app;
mod database;
mod pages;
mod seed;

/// The flags of the shop.
#[derive(Clone, Debug, Parser)]
#[command(about = "A demo shop that caches everything and shows nothing stale")]
pub struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,
    /// sqlite://FILE or postgres://USER@HOST/NAME, created and seeded when new; in memory without it.
    #[arg(long)]
    pub database: Option<String>,
    /// How many products to seed.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub products: u32,
    /// Products from a CSV file with the columns category,name,description,price_cents,stock, in place of
    /// seeded ones.
    #[arg(long)]
    pub import: Option<PathBuf>,
    /// Asks the database for every page, to compare.
    #[arg(long)]
    pub no_cache: bool,
    /// How many bytes the cache may hold.
    #[arg(long, default_value_t = 64 << 20)]
    pub memory: usize,
    /// A Redis to share the cache with other shops of the same database, such as redis://127.0.0.1:6379;
    /// several times for the nodes of a cluster.
    #[arg(long, requires = "database")]
    pub redis: Vec<String>,
    /// The token that may change products; drawn at random without it.
    #[arg(long)]
    pub admin_token: Option<String>,
}

/// Runs the shop until Ctrl-C.
///
/// # Errors
///
/// One sentence that says what is wrong: a taken port, a broken database, a memory size that is not allowed.
pub async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    let address = listener.local_addr()?;
    let app = App::open(&options).await?;
    let token = app.admin_token();
    println!("shop on http://{address}");
    println!("try: curl -si http://{address}/products/42 | grep -i cache-status   # twice");
    println!(
        "     curl -X PUT http://{address}/api/products/42 -H 'Authorization: Bearer {token}' \
         -H 'Content-Type: application/json' -d '{{\"price_cents\": 1999}}'"
    );
    let larder = app.larder().clone();
    axum::serve(listener, router(app)).with_graceful_shutdown(interrupted()).await?;
    larder.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("Ctrl-C cannot be heard: {error}");
        std::future::pending::<()>().await;
    }
}
