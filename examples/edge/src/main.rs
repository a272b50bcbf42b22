//! Starts the caching reverse proxy: `cargo run --release -p edge -- --origin http://127.0.0.1:3000`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    program::start(edge::run).await
}
