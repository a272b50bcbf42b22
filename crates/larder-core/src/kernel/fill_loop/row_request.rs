//! A request for the tests of the fill loop: it reads a row through the cache.

use std::{any::Any, sync::Arc, time::Duration};

use super::FillRequest;
use crate::{
    Tiers,
    entry::{AnyEntry, Value},
    flight::{FlightResult, FlightRole, Leader},
    kernel::{EntryDraft, EntryState, Kernel},
    key::{Key, Kind},
    lifetime::Lifetime,
    provenance::{LifetimeSource, SourcedTags, TagSource},
    reason::Reason,
    scope::Scope,
    tag::Tag,
};

/// A version of the row, as an entry stores it.
pub(crate) struct RowVersion(pub(crate) u64);

impl Value for RowVersion {
    fn weight(&self) -> usize {
        8
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The row that requests read, and the tag of the entries that depend on it.
pub(crate) type ReadRow = Arc<dyn Fn() -> u64 + Send + Sync>;

/// One read of the row.
pub(crate) struct RowRequest {
    kernel: Kernel,
    scope: Scope,
    key: Key,
    hash: u64,
    arrived: u64,
    read: ReadRow,
    /// How long the request waits for the fill of another.
    patience: Duration,
}

/// How the request was answered, and by which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Hit(u64),
    Led(u64),
    Took(u64),
    ReadAlong,
    Alone(Reason, u64),
    Failed,
}

impl RowRequest {
    pub(crate) fn new(kernel: &Kernel, read: &ReadRow) -> Self {
        let arrived = kernel.sequence();
        let mut key = kernel.key(Kind::Object, "");
        key.push(b"row");
        let key = key.finish().expect("it is short");
        Self {
            scope: kernel.open_scope(),
            hash: kernel.hash(key.as_bytes()),
            kernel: kernel.clone(),
            key,
            arrived,
            read: Arc::clone(read),
            patience: Duration::MAX,
        }
    }

    /// Accepts entries only while the lag is within `bound`.
    pub(crate) fn bounded(mut self, bound: Duration) -> Self {
        self.scope = self.scope.bounded(bound);
        self
    }

    /// Reads in a scope whose values are thrown away.
    pub(crate) fn in_shadow(mut self) -> Self {
        self.scope = self.scope.shadowing();
        self
    }

    /// Waits for another fill for at most `patience`.
    pub(crate) fn patient_for(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(crate) fn tag() -> Tag {
        Tag::new("row")
    }

    pub(crate) fn stamp(&self) -> u64 {
        self.scope.stamp().local
    }

    /// Looks the row up.
    pub(crate) fn look(&self) -> Option<Outcome> {
        let entry = self.kernel.get(self.hash, self.key.as_bytes())?;
        let state = self.kernel.entry_state(&entry, self.kernel.now());
        (state == EntryState::Fresh).then(|| Outcome::Hit(version(&entry)))
    }

    /// Reads the row and stores its version, as a leader does.
    pub(crate) fn fill(&self) -> AnyEntry {
        let minute = Duration::from_secs(60);
        let draft = EntryDraft {
            key: self.key.clone(),
            tags: SourcedTags::of(TagSource::Handler, [Self::tag()]),
            lifetime: Lifetime::fresh_for(minute),
            lifetime_source: LifetimeSource::Policy,
            age: Duration::ZERO,
            filled: self.kernel.now(),
            cost: Duration::ZERO,
            tiers: Tiers::MEMORY,
            idle: None,
        };
        let version = RowVersion((self.read)());
        let entry = self.kernel.entry(draft, &self.scope, version).expect("it is storable");
        self.kernel.store(&entry);
        entry
    }
}

pub(crate) fn version(entry: &AnyEntry) -> u64 {
    entry.value::<RowVersion>().expect("the tests store rows only").0
}

impl FillRequest for RowRequest {
    type Output = Outcome;
    type Failure = ();

    fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    fn scope(&self) -> &Scope {
        &self.scope
    }

    fn restamp(&mut self) {
        self.scope = self.kernel.open_scope().bounded_as(&self.scope);
    }

    fn join(&self) -> FlightRole {
        self.kernel.join((self.hash, &self.key), &self.scope, self.arrived, self.patience)
    }

    fn take(&mut self, entry: &AnyEntry) -> Option<Outcome> {
        Some(Outcome::Took(version(entry)))
    }

    fn read_along(&mut self, _: Arc<dyn Any + Send + Sync>) -> Option<Outcome> {
        Some(Outcome::ReadAlong)
    }

    fn look_again(&mut self) -> Option<Outcome> {
        self.look()
    }

    fn fall_back(&mut self, _: Option<Arc<dyn Any + Send + Sync>>) -> Result<Outcome, ()> {
        Err(())
    }

    async fn lead(self, leader: Leader) -> Outcome {
        let entry = self.fill();
        leader.finish(FlightResult::Filled(entry.clone()));
        Outcome::Led(version(&entry))
    }

    async fn alone(self, reason: Reason) -> Outcome {
        Outcome::Alone(reason, (self.read)())
    }

    fn fail(self, (): ()) -> Outcome {
        Outcome::Failed
    }
}
