//! Writes a trace of the requests of a larder. Keys and tags are written as keyed hashes, so it has no names and no personal
//! data.
//!
//! A line begins with `r` (a request), `f` (a fill), `i` (an invalidation) or `p` (one by a pattern), and with the milliseconds
//! since the start.

use std::{
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io::{self, BufWriter, Write as _},
    path::Path,
};

use crate::{bus::Record, clock::Moment, entry::AnyEntry, tag::Tag, target::Selector};

/// Writes a trace.
#[derive(Debug)]
pub(crate) struct TraceWriter {
    out: BufWriter<File>,
    began: Moment,
    tags: RandomState,
}

impl TraceWriter {
    pub(crate) fn create(file: &Path, memory: usize, now: Moment) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(64 * 1024, File::create(file)?);
        writeln!(out, "{TRACE_HEADER} {memory}")?;
        Ok(Self { out, began: now, tags: RandomState::new() })
    }

    pub(crate) fn request(&mut self, key: u64, now: Moment) -> io::Result<()> {
        let millis = self.millis(now);
        writeln!(self.out, "r {millis} {key:x}")
    }

    pub(crate) fn fill(&mut self, entry: &AnyEntry, now: Moment) -> io::Result<()> {
        let (millis, key, weight) = (self.millis(now), entry.hash, entry.weight());
        let lifetime = entry.fresh_until().since(entry.ends().filled()).as_millis();
        let lifetime = u64::try_from(lifetime).unwrap_or(u64::MAX);
        let ancestors = entry.tags().iter().flat_map(Tag::ancestors);
        let tags = self.hashes(entry.tags().iter().cloned().chain(ancestors));
        writeln!(self.out, "f {millis} {key:x} {weight} {lifetime} {tags}")
    }

    pub(crate) fn invalidation(&mut self, record: &Record, now: Moment) -> io::Result<()> {
        let millis = self.millis(now);
        if record.what.contains(&Selector::Everything) {
            return writeln!(self.out, "i {millis} ");
        }
        let tags = record.what.iter().filter_map(|selector| match selector {
            Selector::Tag(tag) => Some(tag.clone()),
            Selector::Everything | Selector::Pattern { .. } => None,
        });
        let tags = self.hashes(tags);
        if record.what.iter().any(|selector| matches!(selector, Selector::Pattern { .. })) {
            writeln!(self.out, "p {millis}")?;
        }
        if tags.is_empty() { Ok(()) } else { writeln!(self.out, "i {millis} {tags}") }
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn hashes(&self, tags: impl Iterator<Item = Tag>) -> String {
        let mut hashes: Vec<u64> = tags.map(|tag| self.tags.hash_one(tag.as_str())).collect();
        hashes.sort_unstable();
        hashes.dedup();
        hashes.iter().map(|hash| format!("{hash:x}")).collect::<Vec<_>>().join(",")
    }

    fn millis(&self, now: Moment) -> u64 {
        u64::try_from(now.since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// What a trace begins with, before the capacity of the first level.
pub(crate) const TRACE_HEADER: &str = "larder trace 1";
