//! Starts the shop.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    program::start(shop::run).await
}
