//! `larder sql`.

use std::io::Write;

use clap::{Args, Subcommand};
use larder_core::Larder;
use larder_sqlx::v0_9;

use crate::error::CliError;

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    #[command(subcommand)]
    command: SqlCommand,
}

#[derive(Debug, Subcommand)]
enum SqlCommand {
    /// Install the outbox: triggers by which processes learn of the writes of other programs. Run it again after each change
    /// of the schema.
    Install {
        /// The database, such as postgres://user@host/name or sqlite://shop.db.
        #[arg(env = "DATABASE_URL", hide_env_values = true)]
        database: String,
        /// Print the SQL, and do nothing.
        #[arg(long)]
        print: bool,
    },
}

pub(crate) fn run(args: &SqlArgs, out: &mut dyn Write) -> Result<(), CliError> {
    let SqlCommand::Install { database, print } = &args.command;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sql = runtime.block_on(async {
        let failed = |error: &dyn std::fmt::Display| CliError::no_answer(format!("the database: {error}"));
        let service = if database.starts_with("postgres://") || database.starts_with("postgresql://") {
            v0_9::postgres(sqlx::PgPool::connect(database).await.map_err(|error| failed(&error))?)
        } else if database.starts_with("sqlite:") {
            v0_9::sqlite(sqlx::SqlitePool::connect(database).await.map_err(|error| failed(&error))?)
        } else {
            return Err(CliError::usage(format!(
                "the database is {database:?}, allowed is a URL that begins with postgres:// or sqlite:"
            )));
        };
        let larder = Larder::builder().build().map_err(|error| CliError::refused(error.to_string()))?;
        let db = service.cached(&larder).await.map_err(|error| failed(&error))?;
        let outbox = db.outbox();
        let sql = outbox.sql().await.map_err(|error| failed(&error))?;
        if !print {
            outbox.install().await.map_err(|error| CliError::refused(error.to_string()))?;
        }
        Ok(sql)
    })?;
    match print {
        true => writeln!(out, "{sql}")?,
        false => writeln!(out, "The outbox is installed.")?,
    }
    Ok(())
}
