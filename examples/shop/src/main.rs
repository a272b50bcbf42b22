//! Starts the shop, which shows larder in a whole application: `cargo run --release -p shop`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    program::start(shop::run).await
}
