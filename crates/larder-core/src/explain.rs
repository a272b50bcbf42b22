//! Explains an entry: its key and tags and where they came from, its state, and what becomes of it when.
//!
//! Explaining reads, and changes nothing: it counts no request, moves no entry, and never shows a value.

use std::time::Duration;

use serde::Serialize;

use crate::{
    clock::Moment,
    engine::EntryState,
    entry::AnyEntry,
    kernel::{Kernel, StoreLookup},
    key::{Key, Kind},
    provenance::{LifetimeCut, LifetimeSource, TagSource},
    reason::Reason,
    tag::{ReadableTag, Tag},
};

/// A word of larder with its sentence, and the change that would lift it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explained {
    /// The word, as `Cache-Status`, counters and logs have it.
    pub word: &'static str,
    /// The sentence that explains it.
    pub sentence: &'static str,
    /// The change that would lift it. `None` if it is as it should be, or if no change would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
}

impl Explained {
    /// Creates an explanation without a remedy.
    pub const fn new(word: &'static str, sentence: &'static str) -> Self {
        Self { word, sentence, remedy: None }
    }
}

impl From<Reason> for Explained {
    fn from(reason: Reason) -> Self {
        let (word, sentence, remedy) = (reason.as_str(), reason.sentence(), reason.remedy());
        Self { word, sentence, remedy }
    }
}

impl From<EntryState> for Explained {
    fn from(state: EntryState) -> Self {
        Self::new(state.as_str(), state.sentence())
    }
}

impl From<TagSource> for Explained {
    fn from(source: TagSource) -> Self {
        Self::new(source.as_str(), source.sentence())
    }
}

impl From<LifetimeSource> for Explained {
    fn from(source: LifetimeSource) -> Self {
        Self::new(source.as_str(), source.sentence())
    }
}

impl From<LifetimeCut> for Explained {
    fn from(cut: LifetimeCut) -> Self {
        Self::new(cut.as_str(), cut.sentence())
    }
}

/// Whether partitions are shown as they are. They name users or tenants, so by default they are shown as a hash that is
/// keyed by a secret of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitions {
    /// As a hash: the same hash is the same partition, until the process ends.
    #[default]
    Hashed,
    /// As "(as given)": the partition was named with the question, and its hash would tell which other entries are its own.
    AsGiven,
    /// As they are.
    Shown,
}

/// A key with its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyExplanation {
    /// The kind of the entry: `response`, `fragment`, `query` or `object`.
    pub kind: &'static str,
    /// The name of the object, fragment or query, or the URL of the response.
    pub name: String,
    /// The parts that separate the entry from others, in their order.
    pub parts: Vec<KeyPart>,
}

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyPart {
    /// What the part is: `namespace`, `version`, `layer`, `name`, `origin`, `path`, `query`, `partition`, `input`, `content`,
    /// `audience`, `variant` or `other`.
    pub part: &'static str,
    /// Its value.
    pub value: String,
}

/// A tag of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TagExplanation {
    /// What it stands for: `tag` for a tag of the application; for those of larder `path`, `url`, `url-in-partitions`,
    /// `url-in-partition`, `cache-group`, `query`, `namespace` or `kind`.
    pub class: &'static str,
    /// The tag.
    pub tag: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Where it came from.
    pub source: TagSource,
}

/// What a request for an entry gets, from a time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ForecastStep {
    /// Seconds from now.
    pub in_seconds: u64,
    /// The state of the entry from then on, unless an invalidation reaches it.
    pub state: Explained,
}

/// How much longer a level has an entry fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LevelExplanation {
    /// `first` or `second`.
    pub level: &'static str,
    /// Seconds that it stays fresh there.
    pub fresh_seconds: u64,
}

/// An entry, explained.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EntryExplanation {
    /// Its key.
    pub key: KeyExplanation,
    /// Its state now.
    pub state: Explained,
    /// Seconds since its fill.
    pub age_seconds: u64,
    /// What becomes of it, unless an invalidation reaches it.
    pub forecast: Vec<ForecastStep>,
    /// How much longer each level has it fresh.
    pub levels: Vec<LevelExplanation>,
    /// Which option, directive or field gave it its lifetime.
    pub lifetime: Explained,
    /// What ended its freshness earlier, if anything did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_cut: Option<Explained>,
    /// All of its tags.
    pub tags: Vec<TagExplanation>,
    /// How long its fill took, in milliseconds.
    pub fill_millis: f64,
    /// The queries that ran in its fill.
    pub queries: u32,
    /// The bytes that it takes in memory.
    pub bytes: usize,
    /// Its hits in the first level since it was stored there, of which some may be missing.
    pub hits: u64,
}

impl Kernel {
    /// Explains an entry of the first level.
    pub fn explain_entry(&self, entry: &AnyEntry, partitions: Partitions) -> EntryExplanation {
        let now = self.now();
        let state = self.entry_state(entry, now);
        let cut = entry.lifetime_cut();
        let fresh = match state {
            EntryState::Fresh => entry.fresh_until().since(now).as_secs(),
            _ => 0,
        };
        EntryExplanation {
            key: self.explain_key(entry.key(), partitions),
            state: state.into(),
            age_seconds: now.since(entry.ends().filled()).as_secs(),
            forecast: self.forecast(entry, now),
            levels: vec![LevelExplanation { level: "first", fresh_seconds: fresh }],
            lifetime: entry.lifetime_source().into(),
            lifetime_cut: (cut != LifetimeCut::None).then(|| cut.into()),
            tags: self.explain_tags(entry, partitions),
            fill_millis: entry.cost().as_secs_f64() * 1000.0,
            queries: entry.queries(),
            bytes: entry.weight(),
            hits: entry.touches(),
        }
    }

    /// Returns how much longer the second level has an entry fresh. `None` if it does not have the entry, or does not
    /// answer. The entry is not promoted.
    pub async fn peek(&self, wanted: StoreLookup<'_>) -> Option<LevelExplanation> {
        let shared = self.engine().shared.as_ref()?;
        let left: Duration = shared.peek(self.engine(), wanted).await?;
        Some(LevelExplanation { level: "second", fresh_seconds: left.as_secs() })
    }

    /// Explains a key.
    pub fn explain_key(&self, key: &Key, partitions: Partitions) -> KeyExplanation {
        let shown = |name: &'static str, value: &[u8], is_secret: bool| {
            let shown_as = match (name, partitions) {
                ("partition", _) | (_, Partitions::Shown) => partitions,
                _ if is_secret => Partitions::Hashed,
                _ => Partitions::Shown,
            };
            let value = self.shown_partition(value, shown_as);
            KeyPart { part: name, value }
        };
        let names = names_of(key.kind());
        // The value of a field follows its name.
        let mut field: &[u8] = b"";
        let parts = key.parts().enumerate().map(|(place, part)| match names.get(place) {
            Some(name) => shown(name, part, false),
            None => {
                let (name, value) = marked(part);
                let is_value = name == "variant" && value.starts_with(b"=");
                let is_secret = name == "input"
                    || name == "audience"
                    || (is_value && !SELECTS_REPRESENTATIONS.contains(&field));
                field = if is_value { b"" } else { value };
                shown(name, value, is_secret)
            }
        });
        let parts = parts.filter(|part| !part.value.is_empty()).collect();
        KeyExplanation { kind: key.kind().as_str(), name: key.name(), parts }
    }

    fn explain_tags(&self, entry: &AnyEntry, partitions: Partitions) -> Vec<TagExplanation> {
        let of = |(tag, source): (&Tag, TagSource)| {
            let ReadableTag { class, namespace, text } = tag.readable();
            let tag = self.shown_tag(class, text, partitions);
            TagExplanation { class, tag, namespace: namespace.to_owned(), source }
        };
        entry.sourced_tags().map(of).collect()
    }

    /// Returns the text of a tag as operators see it.
    pub(crate) fn shown_tag(&self, class: &str, text: &str, partitions: Partitions) -> String {
        // The tag has a hash of the partition, but of one without a secret, and few users can be tried.
        match (class, text.split_once(' ')) {
            ("url-in-partition", Some((partition, url))) => {
                format!("{} {url}", self.shown_partition(partition.as_bytes(), partitions))
            }
            ("kind", _) => {
                let kind = Kind::ALL.into_iter().find(|kind| text == kind.letter().to_string());
                kind.map_or_else(|| text.to_owned(), |kind| kind.as_str().to_owned())
            }
            _ => text.to_owned(),
        }
    }

    fn shown_partition(&self, partition: &[u8], partitions: Partitions) -> String {
        match partitions {
            Partitions::Hashed => format!("#{:016x}", self.hash(partition)),
            Partitions::AsGiven => "(as given)".to_owned(),
            Partitions::Shown => String::from_utf8_lossy(partition).into_owned(),
        }
    }

    /// Returns the states of an entry from now on, one for each change.
    fn forecast(&self, entry: &AnyEntry, now: Moment) -> Vec<ForecastStep> {
        let ends = entry.ends();
        let mut moments = vec![
            now,
            entry.fresh_until(),
            ends.refreshed_until(),
            ends.on_error_until(),
            ends.served_until(),
            ends.gone_at(),
        ];
        moments.retain(|moment| *moment >= now && *moment != Moment::NEVER);
        moments.sort_unstable();
        let mut steps: Vec<ForecastStep> = Vec::new();
        for moment in moments {
            let state = Explained::from(self.entry_state(entry, moment));
            if steps.last().is_none_or(|last| last.state != state) {
                steps.push(ForecastStep { in_seconds: moment.since(now).as_secs(), state });
            }
        }
        steps
    }
}

/// Fields whose values in the key of a variant say nothing about the user. The values of all others, such as `Cookie` under
/// `Vary: Cookie`, are shown as hashes.
const SELECTS_REPRESENTATIONS: [&[u8]; 3] = [b"accept", b"accept-encoding", b"accept-language"];

/// Returns the names of the parts that keys of a kind begin with.
fn names_of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Response => &["namespace", "version", "layer", "origin", "path", "query"],
        Kind::Fragment | Kind::Query | Kind::Object => &["namespace", "version", "layer", "name"],
    }
}

/// The parts of the key of a response that advice compares.
pub(crate) struct ResponseParts<'a> {
    pub(crate) query: &'a [u8],
    /// The fields of `Vary` with their values.
    pub(crate) fields: Vec<(&'a [u8], &'a [u8])>,
    /// All other parts.
    pub(crate) others: Vec<u8>,
}

/// Returns the parts of the key of a response.
pub(crate) fn response_parts(key: &Key) -> ResponseParts<'_> {
    let mut parts = ResponseParts { query: b"", fields: Vec::new(), others: Vec::new() };
    let names = names_of(key.kind());
    let mut field: &[u8] = b"";
    for (place, part) in key.parts().enumerate() {
        match names.get(place) {
            Some(&"query") => parts.query = part,
            None if !part.starts_with(b" ") => match part.strip_prefix(b"=") {
                Some(value) => parts.fields.push((field, value)),
                None => field = part,
            },
            _ => {
                parts.others.extend(part.len().to_le_bytes());
                parts.others.extend(part);
            }
        }
    }
    parts
}

/// Returns the name and the value of a part that begins with its mark.
fn marked(part: &[u8]) -> (&'static str, &[u8]) {
    const MARKS: [(&[u8], &str); 6] = [
        (b" by ", "partition"),
        (b" for ", "partition"),
        (b" as ", "input"),
        (b" of ", "content"),
        (b" in ", "audience"),
        (b" ", "other"),
    ];
    for (mark, name) in MARKS {
        if let Some(value) = part.strip_prefix(mark) {
            return (name, value);
        }
    }
    ("variant", part)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each word that a decision can have, also a word that is added later, explains itself.
    #[test]
    fn each_word_has_a_sentence() {
        let reasons = Reason::ALL.iter().map(|word| Explained::from(*word));
        let states = EntryState::ALL.iter().map(|word| Explained::from(*word));
        let tags = TagSource::ALL.iter().map(|word| Explained::from(*word));
        let lifetimes = LifetimeSource::ALL.iter().map(|word| Explained::from(*word));
        let cuts = LifetimeCut::ALL.iter().map(|word| Explained::from(*word));
        for explained in reasons.chain(states).chain(tags).chain(lifetimes).chain(cuts) {
            assert!(!explained.word.is_empty());
            assert!(explained.sentence.ends_with('.'), "{explained:?}");
        }
    }
}
