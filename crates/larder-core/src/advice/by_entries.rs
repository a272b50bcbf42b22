//! Advice on parts of keys that do not change the response, from the stored responses.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Advice, AdviceKind};
use crate::{
    entry::AnyEntry, explain::response_parts, kernel::Kernel, key::Kind, traffic::KeyGroup,
};

/// A part of a key that may not matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Part {
    Parameter(String),
    Field(String),
}

/// The responses whose keys differ in nothing but one part.
#[derive(Debug, Default)]
struct Family {
    values: HashSet<u64>,
    digests: HashSet<u64>,
}

pub(super) fn advice(kernel: &Kernel) -> Vec<Advice> {
    let mut families: HashMap<(KeyGroup, Part, u64), Family> = HashMap::new();
    let mut responses = 0;
    kernel.scan(0, LONGEST_SCAN, |entry| {
        if entry.key().kind() == Kind::Response && responses < MOST_RESPONSES {
            responses += usize::from(add(&mut families, entry).is_some());
        }
        false
    });
    let mut parts: BTreeMap<(KeyGroup, Part), (usize, bool)> = BTreeMap::new();
    for ((group, part, _), family) in families {
        let (responses, is_same) = parts.entry((group, part)).or_insert((0, true));
        if family.values.len() > 1 {
            *responses += family.values.len();
            *is_same &= family.digests.len() == 1;
        }
    }
    let useless = parts
        .into_iter()
        .filter(|(_, (responses, is_same))| *is_same && *responses >= FEWEST_RESPONSES);
    let advice = useless.map(|((group, part), (responses, _))| {
        let (kind, about, text) = match part {
            Part::Parameter(name) => (
                AdviceKind::UselessParameter,
                name,
                "their contents are the same: leave the parameter out of the key by `query_params`, or send `No-Vary-Search`",
            ),
            Part::Field(name) => (
                AdviceKind::UselessVary,
                name,
                "their contents are the same: leave the field out of `Vary`",
            ),
        };
        Advice {
            kind,
            cache: group.cache.to_string(),
            route: group.route.as_deref().map(str::to_owned),
            text: format!("{responses} stored responses differ in `{about}` alone, and {text}."),
            about: Some(about),
        }
    });
    advice.collect()
}

fn add(families: &mut HashMap<(KeyGroup, Part, u64), Family>, entry: &AnyEntry) -> Option<()> {
    let digest = entry.digest()?;
    let parts = response_parts(entry.key());
    let parameters = String::from_utf8_lossy(parts.query).into_owned();
    let parameters = parameters.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty());
    let parameters = parameters.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (Part::Parameter(name.to_owned()), value.as_bytes().to_vec())
    });
    let fields = parts.fields.into_iter().map(|(name, value)| {
        (Part::Field(String::from_utf8_lossy(name).into_owned()), value.to_vec())
    });
    let varying: Vec<_> = parameters.chain(fields).collect();
    let group = KeyGroup::of(entry);
    for (place, (part, value)) in varying.iter().enumerate() {
        let mut rest = Xxh3::new();
        rest.update(&parts.others);
        for (_, (part, value)) in varying.iter().enumerate().filter(|(other, _)| *other != place) {
            rest.update(format!("{part:?} {} ", value.len()).as_bytes());
            rest.update(value);
        }
        let family = families.entry((group.clone(), part.clone(), rest.digest())).or_default();
        family.values.insert(xxh3_64(value));
        family.digests.insert(digest);
    }
    Some(())
}

const LONGEST_SCAN: Duration = Duration::from_millis(100);
const MOST_RESPONSES: usize = 20_000;
/// With fewer responses it may be chance that they are the same.
const FEWEST_RESPONSES: usize = 10;
