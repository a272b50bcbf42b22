//! The answers that only read.

use std::{cmp::Reverse, collections::BTreeMap};

use http::Uri;
use larder_core::{
    Kind, Tag,
    kernel::{AnyEntry, EntryExplanation, TagSource},
};
use larder_http::{ExplainRequest, Explanation};
use serde::{Deserialize, Serialize};

use super::{
    Admin, LONGEST_SCAN,
    query::{ClientError, pairs, parameters},
};

/// The entries that a request asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EntryQuery {
    kind: Option<String>,
    contains: Option<String>,
    tag: Option<String>,
    sort: Option<String>,
    limit: Option<usize>,
}

/// The entries of the first level that match.
#[derive(Debug, Serialize)]
pub(super) struct Entries {
    /// How many match.
    matched: usize,
    /// Whether that is the number of a part, because the time for the scan was not enough.
    is_part: bool,
    entries: Vec<EntryExplanation>,
}

/// Lists entries.
pub(super) fn entries(admin: &Admin, uri: &Uri) -> Result<Entries, ClientError> {
    let query: EntryQuery = parameters(uri)?;
    let limit = query.limit.unwrap_or(50);
    if limit > MOST_ENTRIES {
        return Err(ClientError::bad_request(format!(
            "limit is {limit}, allowed is 0 to {MOST_ENTRIES}"
        )));
    }
    let kind = query.kind.as_deref().map(kind_of).transpose()?;
    let rank = rank_by(query.sort.as_deref().unwrap_or("hits"))?;
    let tag = query.tag.as_deref().map(Tag::new);
    let contains = query.contains.unwrap_or_default();
    let kernel = admin.larder.kernel();
    let mut best: Vec<(u64, AnyEntry)> = Vec::new();
    let scan = kernel.scan(0, LONGEST_SCAN, |entry| {
        let is = kind.is_none_or(|kind| entry.key().kind() == kind)
            && tag.as_ref().is_none_or(|tag| entry.tags().contains(tag))
            && (contains.is_empty() || entry.key().name().contains(&*contains));
        if is {
            best.push((rank(admin, entry), AnyEntry::clone(entry)));
            if best.len() >= 2 * MOST_ENTRIES {
                keep_best(&mut best, limit);
            }
        }
        is
    });
    keep_best(&mut best, limit);
    let explained = best.iter().map(|(_, entry)| kernel.explain_entry(entry, admin.partitions));
    Ok(Entries { matched: scan.matched, is_part: !scan.is_complete, entries: explained.collect() })
}

fn keep_best(best: &mut Vec<(u64, AnyEntry)>, most: usize) {
    best.sort_by_key(|(rank, entry)| (Reverse(*rank), entry.key().to_string()));
    best.truncate(most);
}

fn kind_of(name: &str) -> Result<Kind, ClientError> {
    Kind::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
        ClientError::bad_request(format!(
            "kind is {name:?}, allowed is response, fragment, query or object"
        ))
    })
}

/// Returns the function by which entries are sorted, the greatest first.
fn rank_by(name: &str) -> Result<fn(&Admin, &AnyEntry) -> u64, ClientError> {
    Ok(match name {
        "hits" => |_, entry| entry.hits(),
        "bytes" => |_, entry| entry.weight() as u64,
        "age" => |admin, entry| admin.larder.kernel().now().since(entry.ends().filled()).as_secs(),
        "fill" => |_, entry| u64::try_from(entry.cost().as_micros()).unwrap_or(u64::MAX),
        "ends" => |admin, entry| {
            u64::MAX - entry.fresh_until().since(admin.larder.kernel().now()).as_secs()
        },
        _ => {
            return Err(ClientError::bad_request(format!(
                "sort is {name:?}, allowed is hits, bytes, age, fill or ends"
            )));
        }
    })
}

/// Explains a request.
pub(super) async fn explain(admin: &Admin, uri: &Uri) -> Result<Vec<Explanation>, ClientError> {
    let pairs = pairs(uri)?;
    let all = |wanted: &str| -> Vec<&str> {
        let found = pairs.iter().filter(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str()).collect()
    };
    const ALLOWED: [&str; 5] = ["url", "method", "principal", "anonymous", "header"];
    if let Some((unknown, _)) = pairs.iter().find(|(name, _)| !ALLOWED.contains(&&**name)) {
        return Err(ClientError::bad_request(format!(
            "the parameter {unknown:?} is given, allowed is {}",
            ALLOWED.join(", ")
        )));
    }
    let url = *all("url")
        .first()
        .ok_or_else(|| ClientError::bad_request("the parameter url is missing"))?;
    let method = all("method").first().copied().unwrap_or("GET");
    let mut request = ExplainRequest::new(method, url).map_err(ClientError::bad_request)?;
    for field in all("header") {
        let (name, value) = field.split_once(':').ok_or_else(|| {
            ClientError::bad_request(format!("header is {field:?}, allowed is NAME:VALUE"))
        })?;
        request = request.header(name, value.trim()).map_err(ClientError::bad_request)?;
    }
    if let Some(principal) = all("principal").first() {
        request = request.principal((*principal).to_owned());
    } else if !all("anonymous").is_empty() {
        request = request.anonymous();
    }
    if admin.partitions == larder_core::kernel::Partitions::Shown {
        request = request.show_partitions();
    }
    Ok(request.explain(&admin.larder).await)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphQuery {
    tag: String,
}

/// The entries that carry a tag, by their kinds: what becomes invalid with a row, a table or a value.
#[derive(Debug, Serialize)]
pub(super) struct Graph {
    tag: String,
    is_part: bool,
    /// For each kind the number of entries, and the names of some of them with their tags of the application.
    kinds: BTreeMap<&'static str, GraphKind>,
}

#[derive(Debug, Default, Serialize)]
struct GraphKind {
    entries: usize,
    nodes: Vec<GraphNode>,
}

/// An entry of the graph.
#[derive(Debug, Serialize)]
struct GraphNode {
    name: String,
    /// The parts that it was made of, as their kinds and names, as far as its tags tell.
    parts: Vec<String>,
    hits: u64,
}

/// Returns the entries that carry a tag.
pub(super) fn graph(admin: &Admin, uri: &Uri) -> Result<Graph, ClientError> {
    let GraphQuery { tag } = parameters(uri)?;
    let wanted = Tag::new(&tag);
    let mut kinds: BTreeMap<&'static str, GraphKind> = BTreeMap::new();
    let kernel = admin.larder.kernel();
    let mut found = Vec::new();
    let scan = kernel.scan(0, LONGEST_SCAN, |entry| {
        let is = entry.tags().contains(&wanted);
        if is {
            let kind = kinds.entry(entry.key().kind().as_str()).or_default();
            kind.entries += 1;
            if kind.entries <= MOST_NODES {
                found.push(AnyEntry::clone(entry));
            }
        }
        is
    });
    for entry in found {
        let explained = kernel.explain_entry(&entry, admin.partitions);
        let parts = explained.tags.iter().filter(|tag| {
            matches!(
                tag.source,
                TagSource::Query
                    | TagSource::Fragment
                    | TagSource::Object
                    | TagSource::ResponsePart
                    | TagSource::Statement
            )
        });
        let parts = parts.map(|tag| format!("{}: {}", tag.source.as_str(), tag.tag)).collect();
        let node = GraphNode { name: explained.key.name, parts, hits: explained.hits };
        kinds.entry(entry.key().kind().as_str()).or_default().nodes.push(node);
    }
    Ok(Graph { tag, is_part: !scan.is_complete, kinds })
}

const MOST_ENTRIES: usize = 1000;
const MOST_NODES: usize = 50;
