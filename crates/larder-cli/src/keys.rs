//! `larder hot` and `larder advice`.

use std::io::Write;

use clap::Args;
use serde_json::Value;

use crate::{
    admin_client::AdminClient,
    error::CliError,
    text::{self, bytes, count, number, table, time},
};

#[derive(Debug, Args)]
pub(crate) struct HotArgs {
    /// How many keys to print.
    #[arg(long, short = 'n', default_value_t = 20)]
    number: usize,
    /// Print the stored keys that were not requested for longest.
    #[arg(long)]
    cold: bool,
}

pub(crate) fn hot(
    client: &AdminClient,
    args: &HotArgs,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let report = client.get("api/keys", &[])?;
    if json {
        return Ok(text::json(&report, out)?);
    }
    let name = |key: &Value| {
        format!("{}: {}", text::text(&key["key"]["kind"]), text::text(&key["key"]["name"]))
    };
    let keys = |which: &str| {
        report[which].as_array().map(Vec::as_slice).unwrap_or_default().iter().take(args.number)
    };
    if args.cold {
        let rows: Vec<_> = keys("cold")
            .map(|key| {
                let idle = time(count(&key["idle_seconds"]) as f64);
                vec![name(key), idle, number(count(&key["requests"])), bytes(count(&key["bytes"]))]
            })
            .collect();
        return Ok(table(&["key", "not requested for", "requests", "bytes"], &rows, out)?);
    }
    let seconds = report["hot_seconds"].as_f64().unwrap_or(1.0);
    let rows: Vec<_> = keys("hot")
        .map(|key| {
            let requests = count(&key["requests"]);
            vec![name(key), number(requests), format!("{:.1}", requests as f64 / seconds)]
        })
        .collect();
    writeln!(out, "Requests of the last {seconds:.0} s")?;
    Ok(table(&["key", "requests", "a second"], &rows, out)?)
}

pub(crate) fn advice(
    client: &AdminClient,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let all = client.get("api/advice", &[])?;
    if json {
        return Ok(text::json(&all, out)?);
    }
    let all = all.as_array().cloned().unwrap_or_default();
    if all.is_empty() {
        writeln!(out, "There is no advice yet.")?;
    }
    for it in all {
        let about = ["cache", "route", "about"].map(|key| text::text(&it[key]));
        let about: Vec<_> = about.into_iter().filter(|text| !text.is_empty()).collect();
        writeln!(
            out,
            "{}  {}\n    {}",
            text::text(&it["kind"]),
            about.join(", "),
            text::text(&it["text"])
        )?;
    }
    Ok(())
}
