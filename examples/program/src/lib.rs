//! Shared by the example programs: flags, logs, exit codes, and shutdown signals.

use std::{error::Error, future::Future, io, process::ExitCode};

use clap::Parser;
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// Runs a program with its command line flags. An error is one line on stderr, and exit code 2.
pub async fn start<O, Fut>(run: impl FnOnce(O) -> Fut) -> ExitCode
where
    O: Parser,
    Fut: Future<Output = Result<(), Box<dyn Error>>>,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let options = match O::try_parse() {
        Ok(options) => options,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // Only the message, without the usage text that follows it.
            let text = error.to_string();
            let said: Vec<&str> =
                text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
            eprintln!("{}", said.join(" "));
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Completes on Ctrl-C or SIGTERM.
pub async fn interrupted() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(error) => unheard(&error).await,
        }
    };
    let interrupted = async {
        if let Err(error) = ctrl_c().await {
            unheard(&error).await;
        }
    };
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}

async fn unheard(error: &io::Error) {
    eprintln!("cannot listen for a shutdown signal: {error}");
    std::future::pending::<()>().await;
}
