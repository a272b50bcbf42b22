//! `larder stats`.

use std::io::Write;

use serde_json::Value;

use crate::{
    admin_client::AdminClient,
    error::CliError,
    text::{self, bytes, count, nanos, number, percent, table, time},
};

pub(crate) fn run(client: &AdminClient, json: bool, out: &mut dyn Write) -> Result<(), CliError> {
    let stats = client.get("api/stats", &[])?;
    if json {
        return Ok(text::json(&stats, out)?);
    }
    for line in levels(&stats) {
        writeln!(out, "{line}")?;
    }
    let (caches, routes) = (caches(&stats, "total"), routes(&stats));
    writeln!(out, "\nCaches since the start")?;
    table(&CACHE_TITLES, &caches, out)?;
    if !routes.is_empty() {
        writeln!(out, "\nRoutes since the start, by the time of their fills")?;
        table(&ROUTE_TITLES, &routes, out)?;
    }
    Ok(())
}

/// Returns the states of the levels, the log, the servers and the queues, one in a line.
pub(crate) fn levels(stats: &Value) -> Vec<String> {
    let (memory, shared, log) = (&stats["memory"], &stats["shared"], &stats["log"]);
    let mut lines = vec![format!(
        "First level   {} entries, {} of {}; evicted {} for size, {} expired",
        number(count(&memory["entries"])),
        bytes(count(&memory["bytes"])),
        bytes(count(&memory["capacity_bytes"])),
        number(count(&memory["evictions"]["size"])),
        number(count(&memory["evictions"]["expired"])),
    )];
    if ["hits", "misses", "errors"].iter().any(|key| count(&shared[key]) > 0) {
        lines.push(format!(
            "Second level  {} hits, {} misses, {} errors; read p99 {}",
            number(count(&shared["hits"])),
            number(count(&shared["misses"])),
            number(count(&shared["errors"])),
            nanos(&shared["read_time"]["p99_nanos"]),
        ));
    }
    let lag = match log["shared"].as_bool() {
        Some(true) => {
            let lag = &log["lag"];
            let lag = count(&lag["secs"]) as f64 + count(&lag["nanos"]) as f64 / 1e9;
            format!("lag {}, record {}", time(lag), number(count(&log["applied"])))
        }
        _ => "of this process alone".to_owned(),
    };
    let is_synchronised = log["synchronised"].as_bool().unwrap_or_default();
    lines.push(format!(
        "Log           {}: {lag}; {} invalidations, {} waiting, {} scheduled",
        if is_synchronised { "up to date" } else { "not verified" },
        number(count(&stats["invalidations"])),
        number(count(&stats["invalidations_pending"])),
        number(count(&stats["invalidations_scheduled"])),
    ));
    for server in list(&stats["servers"]) {
        let open = count(&server["open_circuits"]);
        lines.push(format!(
            "Server        {} ({}): {}",
            text::text(&server["address"]),
            text::text(&server["role"]),
            match open {
                0 => "answers".to_owned(),
                open => format!("{open} of {} circuits are open", count(&server["circuits"])),
            }
        ));
    }
    for queue in list(&stats["queues"]) {
        lines.push(format!(
            "Write-behind  {}: {} queued, {} dead letters{}",
            text::text(&queue["name"]),
            number(count(&queue["queued"])),
            number(count(&queue["dead_letters"])),
            queue["stopped"].as_str().map(|why| format!("; stopped: {why}")).unwrap_or_default(),
        ));
    }
    lines
}

/// Returns the rows of the caches that were used, of their counters since the start or in the last minute.
pub(crate) fn caches(stats: &Value, period: &str) -> Vec<Vec<String>> {
    let of = |cache: &Value| {
        let it = &cache[period];
        let sum: u64 =
            ["hits", "stale_hits", "collapsed", "misses"].iter().map(|key| count(&it[key])).sum();
        let requests = sum + count(&it["bypassed"]);
        (requests > 0).then(|| {
            vec![
                text::text(&cache["name"]),
                number(requests),
                if sum > 0 {
                    percent(it["hit_ratio"].as_f64().unwrap_or_default())
                } else {
                    "–".to_owned()
                },
                nanos(&it["hit_time"]["p99_nanos"]),
                nanos(&it["fill_time"]["p99_nanos"]),
                number(count(&it["collapsed"])),
                number(count(&it["stale_hits"]) + count(&it["stale_on_error"])),
                number(count(&it["refused"])),
                number(count(&it["bypassed"])),
            ]
        })
    };
    list(&stats["caches"]).iter().filter_map(of).collect()
}

/// Returns the rows of the routes, those with the most time in fills first.
pub(crate) fn routes(stats: &Value) -> Vec<Vec<String>> {
    let caches = list(&stats["caches"]);
    let mut all: Vec<_> = caches
        .iter()
        .flat_map(|cache| list(&cache["routes"]).iter().map(move |route| (cache, route)))
        .collect();
    all.sort_by_key(|(_, route)| std::cmp::Reverse(count(&route["fill_time_total_nanos"])));
    let row = |(cache, route): (&Value, &Value)| {
        let refusals = route["refusals"].as_object().into_iter().flatten();
        let refusals: Vec<_> =
            refusals.map(|(why, times)| format!("{why} {}", number(count(times)))).collect();
        vec![
            text::text(&route["route"]),
            text::text(&cache["name"]),
            number(count(&route["requests"])),
            percent(route["hit_ratio"].as_f64().unwrap_or_default()),
            nanos(&route["fill_time"]["p50_nanos"]),
            nanos(&route["fill_time"]["p99_nanos"]),
            nanos(&route["fill_time_total_nanos"]),
            refusals.join(", "),
        ]
    };
    all.into_iter().map(row).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) const CACHE_TITLES: [&str; 9] = [
    "cache",
    "requests",
    "hit ratio",
    "hit p99",
    "fill p99",
    "coalesced",
    "stale",
    "not stored",
    "bypassed",
];
pub(crate) const ROUTE_TITLES: [&str; 8] = [
    "route",
    "cache ",
    "requests",
    "hit ratio",
    "fill p50",
    "fill p99",
    "fill time",
    "not stored and bypassed ",
];
