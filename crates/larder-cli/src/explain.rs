//! `larder explain`.

use std::io::Write;

use clap::Args;
use serde_json::Value;

use crate::{
    admin_client::AdminClient,
    error::CliError,
    text::{self, bytes, count, number, time},
};

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The absolute URL, such as https://shop.example/products/42.
    request_url: String,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// A field of the request, such as "Accept-Language: de"; several times for several fields.
    #[arg(long, value_name = "FIELD")]
    header: Vec<String>,
    /// The partition of the user that sends the request.
    #[arg(long, conflicts_with = "anonymous")]
    principal: Option<String>,
    /// Explain it for a visitor without a partition, whatever the fields say.
    #[arg(long)]
    anonymous: bool,
}

pub(crate) fn run(
    client: &AdminClient,
    args: &ExplainArgs,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut parameters = vec![("url", args.request_url.clone()), ("method", args.method.clone())];
    parameters.extend(args.header.iter().map(|field| ("header", field.clone())));
    parameters.extend(args.principal.iter().map(|principal| ("principal", principal.clone())));
    if args.anonymous {
        parameters.push(("anonymous", "1".to_owned()));
    }
    let all = client.get("api/explain", &parameters)?;
    if json {
        return Ok(text::json(&all, out)?);
    }
    let all = all.as_array().cloned().unwrap_or_default();
    if all.is_empty() {
        writeln!(out, "There is no response cache.")?;
    }
    for (place, explanation) in all.iter().enumerate() {
        if place > 0 {
            writeln!(out)?;
        }
        for (title, words) in lines(explanation) {
            writeln!(out, "{title:<16}{words}")?;
        }
    }
    Ok(())
}

/// Returns the lines of an explanation.
fn lines(it: &Value) -> Vec<(&'static str, String)> {
    let mut lines = vec![(
        "Cache",
        match it["route"].as_str() {
            Some(route) => {
                format!("{}, route {}", text::text(&it["cache"]), text::printable(route))
            }
            None => text::text(&it["cache"]),
        },
    )];
    let mut add = |title, word: &Value| {
        if word.is_object() {
            lines.push((
                title,
                format!("{}: {}", text::text(&word["word"]), text::text(&word["sentence"])),
            ));
            if let Some(remedy) = word["remedy"].as_str() {
                lines.push(("", format!("To change that: {remedy}")));
            }
        }
    };
    let (decision, entry) = (&it["decision"], &it["entry"]);
    add("Outcome", &decision["outcome"]);
    add("fwd", &decision["forward"]);
    add("Reason", &decision["reason"]);
    add("Entry", &entry["state"]);
    add("Lifetime from", &entry["lifetime"]);
    add("Ends earlier", &entry["lifetime_cut"]);
    add("Last not stored", &it["last_refusal"]["reason"]);
    if let Some(cause) = decision["cause"].as_str() {
        lines.push(("Because of", text::printable(cause)));
    }
    if let Some(seconds) = decision["changes_in_seconds"].as_u64() {
        lines.push(("Changes in", time(seconds as f64)));
    }
    let part =
        |part: &Value| format!("{} {}", text::text(&part["part"]), text::text(&part["value"]));
    let parts = it["key"]["parts"].as_array().into_iter().flatten().map(part).collect::<Vec<_>>();
    if !parts.is_empty() {
        lines.push(("Key", parts.join("; ")));
    }
    if entry.is_object() {
        lines.push(("Age", time(count(&entry["age_seconds"]) as f64)));
        let level = |level: &Value| {
            format!(
                "{} ({})",
                time(count(&level["fresh_seconds"]) as f64),
                text::text(&level["level"])
            )
        };
        let levels =
            entry["levels"].as_array().into_iter().flatten().map(level).collect::<Vec<_>>();
        lines.push(("Fresh for", levels.join(", ")));
        let step = |step: &Value| {
            format!(
                "{} in {}",
                text::text(&step["state"]["word"]),
                time(count(&step["in_seconds"]) as f64)
            )
        };
        let steps = entry["forecast"].as_array().into_iter().flatten().skip(1).map(step);
        lines.push(("Then", steps.collect::<Vec<_>>().join(", ")));
        lines.push((
            "Fill",
            format!(
                "{}, {} queries",
                time(entry["fill_millis"].as_f64().unwrap_or_default() / 1e3),
                number(count(&entry["queries"]))
            ),
        ));
        lines.push(("Hits", number(count(&entry["hits"]))));
        for tag in entry["tags"].as_array().into_iter().flatten() {
            let words = format!(
                "{} {} (from {})",
                text::text(&tag["class"]),
                text::text(&tag["tag"]),
                text::text(&tag["source"])
            );
            lines.push(("Tag", words));
        }
    }
    if it["response"].is_object() {
        let response = &it["response"];
        let words = format!(
            "status {}, {}",
            count(&response["status"]),
            bytes(count(&response["body_bytes"]))
        );
        lines.push(("Response", words));
    }
    lines
}
