//! Serves the reading lists: `cargo run --release -p existing -- --database postgres://USER@HOST/NAME --secret SECRET`, with
//! a secret of 32 characters or more.

use std::{error::Error, net::SocketAddr, process::ExitCode};

use clap::Parser;
use existing::{Config, open};
use larder::Larder;
use tokio::net::TcpListener;

/// The flags of the program.
#[derive(Clone, Debug, Parser)]
#[command(about = "Reading lists")]
struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:3004")]
    listen: SocketAddr,
    /// postgres://USER@HOST/NAME, an existing database.
    #[arg(long)]
    database: String,
    /// The secret by which the tokens of the API are signed, 32 characters or more.
    #[arg(long)]
    secret: String,
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let config = Config::new(&options.secret).map_err(|error| error.to_string())?;
    let larder = Larder::builder().build()?;
    let app = open(&options.database, config, &larder).await.map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", options.listen))?;
    println!("reading lists on http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(program::interrupted()).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    program::start(run).await
}
