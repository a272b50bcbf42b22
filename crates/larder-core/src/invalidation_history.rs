//! The last invalidations that acted in this process, for operators.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    bus::{Record, WriterId},
    record_note::truncated,
    tag::ReadableTag,
    target::{Mode, Selector},
};

/// An invalidation that acted in this process.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PastInvalidation {
    /// A number that grows with each invalidation of this process's memory.
    pub number: u64,
    /// When it acted here, in milliseconds since 1970.
    pub at_millis: u64,
    /// Whether this process made it.
    pub own: bool,
    /// `hard` or `soft`.
    pub mode: &'static str,
    /// The first 20 of its targets, those that rules added included.
    pub targets: Vec<PastTarget>,
    /// The number of its further targets.
    pub more_targets: usize,
    /// Its reason, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Its actor, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A target of an invalidation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PastTarget {
    /// `everything`, `pattern`, `prefix` or the class of a tag, such as `tag` or `path`.
    pub class: &'static str,
    /// The text of the target, its first 256 bytes.
    pub text: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// The last invalidations, the newest last.
#[derive(Debug, Default)]
pub(crate) struct InvalidationHistory(Mutex<History>);

#[derive(Debug, Default)]
struct History {
    next: u64,
    past: VecDeque<Arc<PastInvalidation>>,
}

impl InvalidationHistory {
    /// Adds an invalidation that acts now. It takes the same time for any number of targets.
    pub(crate) fn add(&self, record: &Record, own: WriterId, at: SystemTime) {
        let past = PastInvalidation::of(record, 0, own, at);
        let mut history = self.0.lock();
        history.next += 1;
        let number = history.next;
        if history.past.len() >= MOST_PAST {
            history.past.pop_front();
        }
        history.past.push_back(Arc::new(PastInvalidation { number, ..past }));
    }

    /// Returns the invalidations after a number, the oldest first.
    pub(crate) fn after(&self, number: u64) -> Vec<Arc<PastInvalidation>> {
        let history = self.0.lock();
        history.past.iter().filter(|past| past.number > number).cloned().collect()
    }
}

impl PastInvalidation {
    /// The invalidation of a record that has this number and acts at this time, with partitions as they are.
    pub(crate) fn of(record: &Record, number: u64, own: WriterId, at: SystemTime) -> Self {
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            number,
            at_millis: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            own: record.origin == own,
            mode: if record.mode == Mode::Hard { "hard" } else { "soft" },
            targets: record.what.iter().take(MOST_TARGETS).map(PastTarget::of).collect(),
            more_targets: record.what.len().saturating_sub(MOST_TARGETS),
            because: record.note.because().map(str::to_owned),
            by: record.note.by().map(str::to_owned),
        }
    }
}

impl PastTarget {
    /// Creates the target of a selector, with partitions as they are.
    pub(crate) fn of(selector: &Selector) -> Self {
        let target = Self::whole(selector);
        Self { text: truncated(&target.text), namespace: truncated(&target.namespace), ..target }
    }

    fn whole(selector: &Selector) -> Self {
        match selector {
            Selector::Everything => {
                Self { class: "everything", text: String::new(), namespace: String::new() }
            }
            Selector::Pattern { namespace, glob } => {
                Self { class: "pattern", text: glob.clone(), namespace: namespace.clone() }
            }
            Selector::Tag(tag) => {
                let ReadableTag { class, namespace, text } = tag.readable();
                let below = text.strip_suffix(":*").filter(|_| class == "tag");
                Self {
                    class: if below.is_some() { "prefix" } else { class },
                    text: below.unwrap_or(text).to_owned(),
                    namespace: namespace.to_owned(),
                }
            }
        }
    }
}

/// The number of invalidations that a larder remembers.
const MOST_PAST: usize = 256;
/// The number of targets of each that it remembers.
const MOST_TARGETS: usize = 20;
