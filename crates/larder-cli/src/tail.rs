//! `larder tail`.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde_json::Value;

use crate::{
    admin_client::{AdminClient, Server},
    error::CliError,
    text::{self, count, target},
};

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// End after this many invalidations.
    #[arg(long, short = 'n', value_name = "NUMBER")]
    pub(crate) count: Option<usize>,
}

pub(crate) fn run(
    server: &Server,
    args: &TailArgs,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    #[cfg(feature = "redis")]
    if !server.redis.is_empty() {
        return crate::redis_log::tail(server, args, json, out);
    }
    let mut left = args.count.unwrap_or(usize::MAX);
    let mut is_past = true;
    AdminClient::of(server)?.live(|event| {
        // The first event has all invalidations that the process remembers.
        if std::mem::take(&mut is_past) {
            return Ok(left > 0);
        }
        for past in event.data["invalidations"].as_array().into_iter().flatten() {
            if left == 0 {
                break;
            }
            left -= 1;
            line(past, json, out)?;
        }
        Ok(left > 0)
    })
}

/// Writes an invalidation in a line.
pub(crate) fn line(past: &Value, json: bool, out: &mut dyn Write) -> Result<(), CliError> {
    if json {
        writeln!(out, "{past}")?;
        return Ok(out.flush()?);
    }
    let targets = past["targets"].as_array().into_iter().flatten().map(target);
    let mut words = vec![
        clock(count(&past["at_millis"])),
        text::text(&past["mode"]),
        targets.collect::<Vec<_>>().join(", "),
    ];
    if count(&past["more_targets"]) > 0 {
        words.push(format!("and {} more", count(&past["more_targets"])));
    }
    if let Some(by) = past["by"].as_str() {
        words.push(format!("by {}", text::printable(by)));
    }
    if let Some(because) = past["because"].as_str() {
        words.push(format!("because: {}", text::printable(because)));
    }
    writeln!(out, "{}", words.join("  "))?;
    // A reader of a pipe sees each line at once.
    Ok(out.flush()?)
}

/// Writes the time of a day, in UTC.
fn clock(millis: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
