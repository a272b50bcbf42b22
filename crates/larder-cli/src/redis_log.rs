//! `larder invalidate` and `larder tail` straight through Redis or Valkey, without a running service.

use std::{io::Write, time::Duration};

use larder_core::{
    Invalidation, Target,
    store::{LogClient, LogClientError},
};
use larder_redis::Redis;
use serde_json::json;

use crate::{
    admin_client::Server,
    error::CliError,
    invalidate::InvalidateArgs,
    tail::{TailArgs, line},
    text::{self, target},
};

pub(crate) fn invalidate(
    server: &Server,
    args: &InvalidateArgs,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut invalidation = Invalidation::from(target_of(args)).by("larder command");
    if args.soft {
        invalidation = invalidation.soft(args.grace.map(Duration::from_secs));
    }
    if let Some(because) = &args.because {
        invalidation = invalidation.because(because);
    }
    let (client, runtime) = (client(server)?, runtime()?);
    let targets = runtime.block_on(async {
        match args.dry_run {
            true => client.targets(&namespace(args), invalidation).await,
            false => client.invalidate(&namespace(args), invalidation).await,
        }
    });
    let targets = json!(targets.map_err(failed)?);
    let outcome = if args.dry_run { "not made" } else { "logged" };
    if json {
        return Ok(text::json(&json!({ "outcome": outcome, "targets": targets }), out)?);
    }
    writeln!(out, "The invalidation is {outcome}.")?;
    for it in targets.as_array().into_iter().flatten() {
        writeln!(out, "  {}", target(it))?;
    }
    Ok(())
}

pub(crate) fn tail(
    server: &Server,
    args: &TailArgs,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let client = client(server)?;
    let mut left = args.count.unwrap_or(usize::MAX);
    runtime()?.block_on(async {
        let mut log = client.follow().await.map_err(failed)?;
        while left > 0 {
            for past in log.next().await.map_err(failed)?.iter().take(left) {
                left -= 1;
                line(&json!(past), json, out)?;
            }
        }
        Ok(())
    })
}

fn namespace(args: &InvalidateArgs) -> String {
    args.namespace.clone()
}

fn target_of(args: &InvalidateArgs) -> Target {
    let target = &args.target;
    let text = [
        target.tag.as_ref().map(|tag| Target::tag(tag.as_str())),
        target.name.as_ref().map(|name| Target::name(name.as_str())),
        target.path.as_ref().map(Target::path),
        target.prefix.as_ref().map(|prefix| Target::prefix(prefix.as_str())),
        target.pattern.as_ref().map(|pattern| Target::pattern(pattern.as_str())),
    ];
    // The arguments have exactly one target.
    text.into_iter().flatten().next().unwrap_or_else(Target::everything)
}

fn client(server: &Server) -> Result<LogClient, CliError> {
    let urls = server.redis.iter().map(String::as_str);
    let redis = match &*server.redis {
        [url] => Redis::open(url),
        _ => Redis::cluster(urls),
    };
    let mut redis = redis.map_err(|error| CliError::usage(format!("--redis: {error}")))?;
    if let Some(name) = &server.log_name {
        redis = redis.name(name);
    }
    Ok(LogClient::new(redis.bus()))
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn failed(error: LogClientError) -> CliError {
    match error {
        LogClientError::Bus(error) => {
            CliError::no_answer(format!("the log does not answer: {error}"))
        }
        error => CliError::refused(format!(
            "{error}; use --url with a running service, or start a process of the application"
        )),
    }
}
