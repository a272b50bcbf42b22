//! The `larder` command: looks into a running larder by its admin API, and invalidates, also straight through Redis.
//!
//! ```text
//! export LARDER_URL=http://127.0.0.1:3000/larder LARDER_TOKEN=...
//! larder stats
//! larder explain https://shop.example/products/42
//! larder invalidate --tag product:42 --because "price import" --dry-run
//! ```
//!
//! # Exit codes
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the server refused, or failed |
//! | 2 | a wrong argument |
//! | 3 | the server, or Redis, did not answer |
//! | 4 | the token is missing, wrong, or may only read |

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use self::{
    admin_client::{AdminClient, Server},
    error::CliError,
    invalidate::InvalidateArgs,
};

mod admin_client;
mod error;
mod explain;
mod invalidate;
mod keys;
#[cfg(feature = "redis")]
mod redis_log;
mod replay;
#[cfg(feature = "sql")]
mod sql;
mod stats;
mod tail;
mod text;
mod top;
mod warm;

/// Looks into a running larder, and invalidates.
#[derive(Debug, Parser)]
#[command(name = "larder", version, after_help = EXIT_CODES)]
struct Args {
    #[command(flatten)]
    server: Server,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the counters of caches and routes, the levels and the log.
    Stats,
    /// Show the counters live, until `q` is pressed.
    Top,
    /// Explain the decision of the caches on a request, and its reason.
    Explain(explain::ExplainArgs),
    /// Invalidate entries.
    Invalidate(InvalidateArgs),
    /// Print each invalidation as it happens, until it is interrupted.
    Tail(tail::TailArgs),
    /// Print the keys with the most requests, and the stored keys that were not requested for longest.
    Hot(keys::HotArgs),
    /// Print advice on the settings.
    Advice,
    /// Print the hit ratio that other settings would have had for a recorded trace.
    Replay(replay::ReplayArgs),
    /// Request URLs, so that the next visitors get hits.
    Warm(warm::WarmArgs),
    /// Prepare a database.
    #[cfg(feature = "sql")]
    Sql(sql::SqlArgs),
    /// Print the completions of a shell, such as: larder completions bash > /etc/bash_completion.d/larder.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command with the arguments of the process.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os(), &mut io::stdout().lock(), &mut io::stderr()))
}

/// Runs the command with these arguments, of which the first one is its name. Returns the exit code.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            let is_wrong = error.use_stderr();
            drop(if is_wrong { write!(err, "{error}") } else { write!(out, "{error}") });
            return if is_wrong { 2 } else { 0 };
        }
    };
    match args.run(out) {
        Ok(()) => 0,
        Err(error) if error.is_broken_pipe() => 0,
        Err(error) => {
            drop(writeln!(err, "error: {error}"));
            error.code()
        }
    }
}

impl Args {
    fn run(&self, out: &mut dyn Write) -> Result<(), CliError> {
        let json = self.json;
        match &self.command {
            Command::Stats => stats::run(&self.client()?, json, out),
            Command::Top => top::run(&self.client()?),
            Command::Explain(args) => explain::run(&self.client()?, args, json, out),
            Command::Invalidate(args) => invalidate::run(&self.server, args, json, out),
            Command::Tail(args) => tail::run(&self.server, args, json, out),
            Command::Hot(args) => keys::hot(&self.client()?, args, json, out),
            Command::Advice => keys::advice(&self.client()?, json, out),
            Command::Replay(args) => replay::run(args, json, out),
            Command::Warm(args) => warm::run(&self.server, args, json, out),
            #[cfg(feature = "sql")]
            Command::Sql(args) => sql::run(args, out),
            Command::Completions { shell } => {
                clap_complete::generate(*shell, &mut Self::command(), "larder", &mut &mut *out);
                Ok(())
            }
        }
    }

    fn client(&self) -> Result<AdminClient, CliError> {
        AdminClient::of(&self.server)
    }
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the server refused or failed; 2 a wrong argument; 3 no answer; \
    4 the token is missing, wrong, or may only read.";
