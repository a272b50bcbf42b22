//! The answers that only read.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use http::Uri;
use larder_core::{
    Advice, Kind, Tag,
    kernel::{AnyEntry, EntryExplanation, KeyReport, Moment, TagSource},
};
use larder_http::{ExplainRequest, Explanation};
use serde::{Deserialize, Serialize};

use super::{
    Admin, LONGEST_SCAN,
    query::{ClientError, pairs, parameters, view},
};

/// The entries that a request asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EntryQuery {
    kind: Option<String>,
    contains: Option<String>,
    tag: Option<String>,
    /// The namespace of the tag.
    namespace: String,
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
pub(super) async fn entries(admin: &Arc<Admin>, uri: &Uri) -> Result<Entries, ClientError> {
    let query: EntryQuery = parameters(uri)?;
    let limit = query.limit.unwrap_or(50);
    if limit > MOST_ENTRIES {
        return Err(ClientError::bad_request(format!(
            "limit is {limit}, allowed is 0 to {MOST_ENTRIES}"
        )));
    }
    let kind = query.kind.as_deref().map(kind_of).transpose()?;
    let rank = rank_by(query.sort.as_deref().unwrap_or("hits"))?;
    let tag = query.tag.map(|tag| tag_in(admin, &query.namespace, &tag));
    let contains = query.contains.unwrap_or_default();
    let (larder, partitions) = (admin.larder.clone(), admin.partitions);
    let scan = move || {
        let kernel = larder.kernel();
        let now = kernel.now();
        let mut best: Vec<(Reverse<u64>, AnyEntry)> = Vec::new();
        let scan = kernel.scan(0, LONGEST_SCAN, |entry| {
            let is = kind.is_none_or(|kind| entry.key().kind() == kind)
                && tag.as_ref().is_none_or(|tag| entry.tags().contains(tag))
                && (contains.is_empty() || entry.key().name().contains(&*contains));
            if is && limit > 0 {
                best.push((Reverse(rank(entry, now)), AnyEntry::clone(entry)));
                if best.len() >= 2 * limit + 64 {
                    best.select_nth_unstable_by_key(limit, |(rank, _)| *rank);
                    best.truncate(limit);
                }
            }
            is
        });
        best.sort_by_cached_key(|(rank, entry)| (*rank, entry.key().to_string()));
        best.truncate(limit);
        let explained = best.iter().map(|(_, entry)| kernel.explain_entry(entry, partitions));
        Entries { matched: scan.matched, is_part: !scan.is_complete, entries: explained.collect() }
    };
    Ok(admin.scan(scan).await)
}

/// Returns the tag of a namespace.
fn tag_in(admin: &Admin, namespace: &str, tag: &str) -> Tag {
    let view = view(&admin.larder, namespace);
    view.kernel().own_tag(&Tag::new(tag))
}

fn kind_of(name: &str) -> Result<Kind, ClientError> {
    Kind::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
        ClientError::bad_request(format!(
            "kind is {name:?}, allowed is response, fragment, query or object"
        ))
    })
}

/// Returns the function by which entries are sorted, the greatest first.
fn rank_by(name: &str) -> Result<fn(&AnyEntry, Moment) -> u64, ClientError> {
    Ok(match name {
        "hits" => |entry, _| entry.hits(),
        "bytes" => |entry, _| entry.weight() as u64,
        "age" => |entry, now| now.since(entry.ends().filled()).as_secs(),
        "fill" => |entry, _| u64::try_from(entry.cost().as_micros()).unwrap_or(u64::MAX),
        "ends" => |entry, now| u64::MAX - entry.fresh_until().since(now).as_secs(),
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
    #[serde(default)]
    namespace: String,
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

/// Returns the entries that carry a tag, except those that are invalid or expired.
pub(super) async fn graph(admin: &Arc<Admin>, uri: &Uri) -> Result<Graph, ClientError> {
    let GraphQuery { tag, namespace } = parameters(uri)?;
    let wanted = tag_in(admin, &namespace, &tag);
    let (larder, partitions) = (admin.larder.clone(), admin.partitions);
    let scan = move || {
        let kernel = larder.kernel();
        let now = kernel.now();
        let mut kinds: BTreeMap<&'static str, GraphKind> = BTreeMap::new();
        let scan = kernel.scan(0, LONGEST_SCAN, |entry| {
            let is =
                entry.tags().contains(&wanted) && kernel.entry_state(entry, now).may_be_served();
            if is {
                let kind = kinds.entry(entry.key().kind().as_str()).or_default();
                kind.entries += 1;
                if kind.nodes.len() < MOST_NODES {
                    kind.nodes.push(GraphNode::of(&kernel.explain_entry(entry, partitions)));
                }
            }
            is
        });
        Graph { tag, is_part: !scan.is_complete, kinds }
    };
    Ok(admin.scan(scan).await)
}

impl GraphNode {
    fn of(explained: &EntryExplanation) -> Self {
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
        Self { name: explained.key.name.clone(), parts, hits: explained.hits }
    }
}

/// Returns the hot and the cold keys.
pub(super) async fn keys(admin: &Arc<Admin>) -> Option<KeyReport> {
    let (larder, partitions) = (admin.larder.clone(), admin.partitions);
    admin.scan(move || larder.kernel().key_report(partitions)).await
}

/// Returns advice.
pub(super) async fn advice(admin: &Arc<Admin>) -> Vec<Advice> {
    let larder = admin.larder.clone();
    admin.scan(move || larder.advice()).await
}

const MOST_ENTRIES: usize = 1000;
const MOST_NODES: usize = 50;
