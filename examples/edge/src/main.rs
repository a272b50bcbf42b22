//! Starts the proxy.

use std::process::ExitCode;

use clap::Parser;
use edge::Options;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
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
    match edge::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
