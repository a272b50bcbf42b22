//! Starts the proxy.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    program::start(edge::run).await
}
