//! Starts the shop.

use std::process::ExitCode;

use clap::Parser;
use shop::Options;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // One line: what is wrong, without the usage that follows it.
            let text = error.to_string();
            let said: Vec<&str> =
                text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
            eprintln!("{}", said.join(" "));
            return ExitCode::from(2);
        }
    };
    match shop::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
