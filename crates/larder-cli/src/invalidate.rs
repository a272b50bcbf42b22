//! `larder invalidate`.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use crate::{
    admin_client::{AdminClient, Server},
    error::CliError,
    text::{self, bytes, count, number, target},
};

#[derive(Debug, Args)]
pub(crate) struct InvalidateArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// The namespace of the target.
    #[arg(long, default_value = "")]
    pub(crate) namespace: String,
    /// Make entries stale, so that they are refreshed while they are served, and do not drop them.
    #[arg(long)]
    pub(crate) soft: bool,
    /// The seconds after which a soft invalidation becomes hard.
    #[arg(long, value_name = "SECONDS", requires = "soft")]
    pub(crate) grace: Option<u64>,
    /// The reason, for the log of invalidations.
    #[arg(long, value_name = "REASON")]
    pub(crate) because: Option<String>,
    /// Print the entries that it would reach, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// The target of an invalidation.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TargetArgs {
    /// Everything with this tag, such as product:42.
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// The value, fragment or query of this name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// All responses of this path.
    #[arg(long)]
    pub(crate) path: Option<String>,
    /// Everything with this tag or one below it.
    #[arg(long)]
    pub(crate) prefix: Option<String>,
    /// Everything whose name or tag matches; * stands for any text, and ? for a character.
    #[arg(long)]
    pub(crate) pattern: Option<String>,
    /// Everything.
    #[arg(long)]
    pub(crate) everything: bool,
}

pub(crate) fn run(
    server: &Server,
    args: &InvalidateArgs,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    #[cfg(feature = "redis")]
    if !server.redis.is_empty() {
        return crate::redis_log::invalidate(server, args, json, out);
    }
    let client = AdminClient::of(server)?;
    let body = body(args);
    let answer = match args.dry_run {
        true => client.post("api/preview", &body)?,
        false => client.post("api/invalidate", &body)?,
    };
    if json {
        return Ok(text::json(&answer, out)?);
    }
    if args.dry_run {
        let about = if answer["is_estimate"].as_bool() == Some(true) { "about " } else { "" };
        writeln!(
            out,
            "It would reach {about}{} entries of this process, {}.",
            number(count(&answer["entries"])),
            bytes(count(&answer["bytes"]))
        )?;
    } else {
        writeln!(out, "The invalidation is {}.", text::text(&answer["outcome"]))?;
    }
    for it in answer["targets"].as_array().into_iter().flatten() {
        writeln!(out, "  {}", target(it))?;
    }
    for example in answer["examples"].as_array().into_iter().flatten() {
        writeln!(out, "  for example {}", text::text(example))?;
    }
    Ok(())
}

fn body(args: &InvalidateArgs) -> Value {
    let mut body = json!({ "namespace": args.namespace, "soft": args.soft });
    let texts = [
        ("tag", &args.target.tag),
        ("name", &args.target.name),
        ("path", &args.target.path),
        ("prefix", &args.target.prefix),
        ("pattern", &args.target.pattern),
        ("because", &args.because),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            body[name] = json!(text);
        }
    }
    if args.target.everything {
        body["everything"] = json!(true);
    }
    if let Some(seconds) = args.grace {
        body["grace_seconds"] = json!(seconds);
    }
    body
}
