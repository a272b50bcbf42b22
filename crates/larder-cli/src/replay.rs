//! `larder replay`.

use std::{io::Write, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use larder_core::{ByteSize, Eviction, ReplaySettings, Trace};
use serde_json::json;

use crate::{
    error::CliError,
    text::{self, bytes, number, percent, table, time},
};

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// A trace that `Larder::record_trace` has recorded.
    trace: PathBuf,
    /// The capacity of the first level, such as 64MiB; several times to compare. By default that of the trace.
    #[arg(long, value_parser = size)]
    memory: Vec<ByteSize>,
    /// The lifetime of each entry in seconds; several times to compare. By default that of the trace.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    ttl: Vec<u64>,
    /// The eviction policy; several times to compare.
    #[arg(long, default_values_t = [EvictionPolicy::Tinylfu])]
    policy: Vec<EvictionPolicy>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EvictionPolicy {
    Tinylfu,
    Lru,
}

impl std::fmt::Display for EvictionPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tinylfu => "tinylfu",
            Self::Lru => "lru",
        })
    }
}

pub(crate) fn run(args: &ReplayArgs, json: bool, out: &mut dyn Write) -> Result<(), CliError> {
    let trace = Trace::read(&args.trace);
    let trace =
        trace.map_err(|error| CliError::usage(format!("{}: {error}", args.trace.display())))?;
    let memories = if args.memory.is_empty() { vec![trace.memory()] } else { args.memory.clone() };
    let recorded = vec![None];
    let ttls = match args.ttl.is_empty() {
        true => recorded,
        false => args.ttl.iter().copied().map(Some).collect(),
    };
    let mut all = Vec::new();
    let mut rows = Vec::new();
    for memory in &memories {
        for ttl in &ttls {
            for policy in &args.policy {
                let eviction = match policy {
                    EvictionPolicy::Tinylfu => Eviction::TinyLfu,
                    EvictionPolicy::Lru => Eviction::Lru,
                };
                let mut settings = ReplaySettings::new(*memory).eviction(eviction);
                if let Some(seconds) = ttl {
                    settings = settings.ttl(Duration::from_secs(*seconds));
                }
                let counts = trace.replay(&settings);
                rows.push(vec![
                    bytes(memory.as_bytes() as u64),
                    ttl.map_or_else(|| "recorded".to_owned(), |seconds| time(seconds as f64)),
                    policy.to_string(),
                    percent(counts.hit_ratio()),
                    number(counts.requests),
                    number(counts.expired),
                    number(counts.invalid),
                ]);
                all.push(json!({
                    "memory": memory.as_bytes(),
                    "ttl_seconds": ttl,
                    "policy": policy.to_string(),
                    "hit_ratio": counts.hit_ratio(),
                    "counts": counts,
                }));
            }
        }
    }
    if json {
        return Ok(text::json(&json!(all), out)?);
    }
    table(
        &["memory", "ttl", "policy ", "hit ratio", "requests", "expired", "invalidated"],
        &rows,
        out,
    )?;
    if trace.patterns() > 0 {
        writeln!(out, "{} invalidations by a pattern are left out.", number(trace.patterns()))?;
    }
    Ok(())
}

/// Reads a size, such as `64MiB`.
fn size(text: &str) -> Result<ByteSize, String> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[end..].trim() {
        "" | "B" => Some(1_usize),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let size = text[..end].parse::<usize>().ok().zip(factor);
    let bytes = size.and_then(|(size, factor)| size.checked_mul(factor)).filter(|bytes| *bytes > 0);
    bytes
        .map(ByteSize::bytes)
        .ok_or_else(|| "allowed is a number with B, KiB, MiB or GiB, such as 64MiB".to_owned())
}
