//! `larder warm`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use clap::Args;
use parking_lot::Mutex;
use serde_json::json;

use crate::{
    admin_client::{AdminClient, Server, agent},
    error::CliError,
    text::{self, number, table},
};

#[derive(Debug, Args)]
pub(crate) struct WarmArgs {
    /// URLs, or paths below --base.
    urls: Vec<String>,
    /// A file with a URL or a path in each line; - for the input.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The most requested responses of the larder at --url, this many.
    #[arg(long, value_name = "NUMBER")]
    hot: Option<usize>,
    /// The beginning of the URLs of paths, such as https://shop.example. The URLs of --hot are requested there too.
    #[arg(long, value_name = "URL")]
    base: Option<String>,
    /// How many requests are under way at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    concurrency: u16,
}

pub(crate) fn run(
    server: &Server,
    args: &WarmArgs,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let urls = urls(server, args)?;
    let outcomes = Mutex::new(BTreeMap::<String, u64>::new());
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..args.concurrency {
            scope.spawn(|| {
                let agent = agent();
                while let Some(url) = urls.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match request(&agent, url) {
                        Ok(outcome) => {
                            let mut outcomes = outcomes.lock();
                            *outcomes.entry(outcome).or_default() += 1;
                        }
                        Err(error) => {
                            let mut failures = failures.lock();
                            failures.push(format!("{url}: {error}"));
                        }
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner();
    let failures = failures.into_inner();
    if json {
        text::json(&json!({ "outcomes": outcomes, "failures": failures }), out)?;
    } else {
        let rows: Vec<_> =
            outcomes.iter().map(|(what, times)| vec![what.clone(), number(*times)]).collect();
        table(&["outcome", "requests"], &rows, out)?;
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => Err(CliError::no_answer(format!(
            "{} of {} requests failed; the first one: {first}",
            failures.len(),
            urls.len()
        ))),
    }
}

fn urls(server: &Server, args: &WarmArgs) -> Result<Vec<String>, CliError> {
    let mut all = args.urls.clone();
    if let Some(file) = &args.from {
        let failed =
            |error: std::io::Error| CliError::usage(format!("--from {}: {error}", file.display()));
        let lines = match file.as_os_str() == "-" {
            true => BufReader::new(std::io::stdin()).lines().collect::<Result<Vec<_>, _>>(),
            false => {
                std::fs::read_to_string(file).map(|text| text.lines().map(str::to_owned).collect())
            }
        };
        let lines = lines.map_err(failed)?;
        all.extend(
            lines.into_iter().filter(|line| !line.trim().is_empty() && !line.starts_with('#')),
        );
    }
    if let Some(most) = args.hot {
        let report = AdminClient::of(server)?.get("api/keys", &[])?;
        let hot = report["hot"].as_array().into_iter().flatten();
        let pages = hot.filter(|it| it["key"]["kind"] == "response");
        all.extend(pages.filter_map(|it| it["key"]["name"].as_str()).take(most).map(str::to_owned));
    }
    if all.is_empty() {
        return Err(CliError::usage("no URL is given; allowed are URLs, --from and --hot"));
    }
    all.into_iter()
        .map(|url| absolute(url.trim(), args.base.as_deref(), args.hot.is_some()))
        .collect()
}

/// Returns the URL of a line: a path below the base, or a URL, which `moves` to the base.
fn absolute(url: &str, base: Option<&str>, moves: bool) -> Result<String, CliError> {
    let base = base.map(|base| base.trim_end_matches('/'));
    let path = url.split_once("://").map(|(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
    match (path, base) {
        (Some(path), Some(base)) if moves => Ok(format!("{base}{path}")),
        (Some(_), _) => Ok(url.to_owned()),
        (None, Some(base)) if url.starts_with('/') => Ok(format!("{base}{url}")),
        (None, _) => Err(CliError::usage(format!(
            "{url:?} is given, allowed is a URL, or with --base a path that begins with /"
        ))),
    }
}

/// Requests a URL. Returns the status and the outcome in `Cache-Status`.
fn request(agent: &ureq::Agent, url: &str) -> Result<String, ureq::Error> {
    let mut response = agent.get(url).call()?;
    let status = response.status().as_u16();
    let cache_status = response.headers().get("cache-status").and_then(|value| value.to_str().ok());
    let outcome = cache_status.and_then(|value| value.split(';').nth(1)).map(str::trim);
    let outcome =
        format!("{status} {}", text::printable(outcome.unwrap_or("without Cache-Status")));
    std::io::copy(&mut response.body_mut().as_reader(), &mut std::io::sink())?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_need_a_base_and_hot_urls_move_to_it() {
        let base = Some("https://b/");
        assert_eq!(absolute("/a?b=c", base, false).unwrap(), "https://b/a?b=c");
        assert_eq!(absolute("http://x/a", base, false).unwrap(), "http://x/a");
        assert_eq!(absolute("http://x/a", base, true).unwrap(), "https://b/a");
        assert_eq!(absolute("http://x", base, true).unwrap(), "https://b/");
        assert_eq!(absolute("/a", None, false).unwrap_err().code(), 2);
        assert_eq!(absolute("a", base, false).unwrap_err().code(), 2);
    }
}
