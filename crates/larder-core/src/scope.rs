//! Scopes, which gather the tags, lifetimes and audience of a request, and of each fill inside it.
//!
//! The outermost larder layer opens a scope for every request. Every fill inside the request takes the scope's stamp
//! and never a newer stamp, since the handler may have read data before the fill starts. A fill opens its own scope
//! inside, and its value becomes a part of the enclosing scope: its tags, its name, the end of its lifetime, and
//! whether it was private or stale. So a page carries the tags of all its queries and fragments, and the handler does
//! not have to repeat them.

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::{
    audience::Audience,
    bus::WriterId,
    clock::Moment,
    entry::Entry,
    key::Key,
    provenance::{SourcedTags, TagSource},
    reason::Reason,
    registry::{Stamp, recent_records::OwnRecord},
    tag::Tag,
};

/// The context of the reads of a request or fill: stamp, audience, bounds and gathered parts. It is cheap to clone, and
/// a clone is the same scope.
#[derive(Clone)]
pub struct Scope {
    origin: WriterId,
    stamp: Stamp,
    parts: Option<Arc<Parts>>,
    /// Set if stored entries must not be served in this scope, because another process may have invalidated them.
    distrusts: bool,
    /// The maximum lag of this process at which stored entries may be served in this scope. `None` for no bound.
    bound: Option<Duration>,
    /// The time that the request has spent on waits for a second level that did not answer. `None` if there is no
    /// limit.
    waits: Option<Arc<StoreWaits>>,
    /// The write that this scope belongs to, if it belongs to one.
    write: Option<Arc<OwnRecords>>,
    /// Whether nothing that happens in this scope may have an effect: it renders what is compared and thrown away.
    is_shadow: bool,
}

/// The records of the invalidations that a write makes itself, before its own.
#[derive(Debug, Default)]
pub(crate) struct OwnRecords(Mutex<Vec<OwnRecord>>);

impl OwnRecords {
    pub(crate) fn add(&self, record: OwnRecord) {
        self.0.lock().push(record);
    }

    pub(crate) fn all(&self) -> Vec<OwnRecord> {
        self.0.lock().clone()
    }
}

/// The total time that a request has spent on waits for a second level that did not answer, over all its reads and fill
/// locks.
#[derive(Debug)]
pub(crate) struct StoreWaits {
    limit: Duration,
    lost: Mutex<(Duration, Option<Instant>)>,
}

impl StoreWaits {
    pub(crate) fn new(limit: Duration) -> Arc<Self> {
        Arc::new(Self { limit, lost: Mutex::default() })
    }

    /// Returns how long the request may still wait. A task may hold one scope for hours, so the sum is reset ten
    /// seconds after the last wait without an answer.
    pub(crate) fn left(&self) -> Duration {
        let mut lost = self.lost.lock();
        if lost.1.is_some_and(|last| last.elapsed() >= LAPSES_AFTER) {
            *lost = (Duration::ZERO, None);
        }
        self.limit.saturating_sub(lost.0)
    }

    /// Adds a wait without an answer.
    pub(crate) fn add(&self, wait: Duration) {
        let mut lost = self.lost.lock();
        *lost = (lost.0.saturating_add(wait), Some(Instant::now()));
    }
}

#[derive(Debug)]
struct Parts {
    around: Option<Arc<Parts>>,
    fills: SmallVec<[Key; 1]>,
    audience: Audience,
    gathered: Mutex<ScopeContents>,
}

/// The contents that a scope has gathered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScopeContents {
    /// The tags of all parts and of the application, without duplicates, with their sources.
    pub tags: SourcedTags,
    /// The queries that ran for the value built here and in the fills of its parts.
    pub queries: u32,
    /// The earliest end of freshness of the parts that limit the freshness of the value built here.
    pub until: Moment,
    /// Whether a part belongs to one partition only.
    pub private: bool,
    /// Whether a part belongs to one variant only.
    pub varied: bool,
    /// Whether a part was stale when it was added.
    pub stale: bool,
    /// The reason why the value built here is not storable, if there is one.
    pub no_store: Option<Reason>,
    /// The oldest stamp of the stale parts and of all pieces. The value built here takes it, so that the end of a
    /// part's grace period also reaches this value.
    pub(crate) oldest: Option<Stamp>,
}

impl Default for ScopeContents {
    fn default() -> Self {
        Self {
            tags: SourcedTags::default(),
            queries: 0,
            until: Moment::NEVER,
            private: false,
            varied: false,
            stale: false,
            no_store: None,
            oldest: None,
        }
    }
}

impl ScopeContents {
    fn add_tags(&mut self, tags: impl IntoIterator<Item = (Tag, TagSource)>) {
        for (tag, source) in tags {
            if self.tags.len() >= MOST_TAGS {
                self.no_store = Some(Reason::TooManyTags);
                return;
            }
            self.tags.add(tag, source);
        }
    }

    /// Notes why the value built here is not storable. The first reason stays, but a part that failed gives way to any
    /// other reason, since a failure may be remembered although a part has failed.
    fn refuse(&mut self, why: Option<Reason>) {
        self.no_store = match self.no_store {
            None | Some(Reason::FailedPart) => why.or(self.no_store),
            earlier => earlier,
        };
    }

    fn add_stamp(&mut self, stamp: Option<Stamp>) {
        self.oldest = match (self.oldest, stamp) {
            (Some(a), Some(b)) => Some(a.older(b)),
            (a, b) => a.or(b),
        };
    }
}

/// The opener of the scope in which a value is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScopeOwner {
    /// An enclosing layer, fill or task, which may have read data already.
    Enclosing,
    /// The call itself.
    ThisCall,
}

/// The effects of a part on the value that includes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartTraits {
    /// Whether the end of its freshness also ends the freshness of the value that includes it.
    pub cuts: bool,
    /// Whether it belongs to one partition only.
    pub private: bool,
    /// Whether it belongs to one variant only.
    pub varied: bool,
    /// Whether it was stale when it was added.
    pub stale: bool,
}

impl Scope {
    pub(crate) fn open(origin: WriterId, stamp: Stamp) -> Self {
        let (parts, bound, waits, write) = (None, None, None, None);
        Self { origin, stamp, parts, distrusts: false, bound, waits, write, is_shadow: false }
    }

    /// Returns the innermost current scope of the larder with this origin, if there is one.
    pub(crate) fn current(origin: WriterId) -> Option<Self> {
        CURRENT
            .with_borrow(|scopes| scopes.iter().rev().find(|scope| scope.origin == origin).cloned())
    }

    /// Whether the larder with this origin has a current scope that only renders what is compared and thrown away.
    pub(crate) fn is_in_shadow(origin: WriterId) -> bool {
        CURRENT.with_borrow(|scopes| {
            scopes.iter().any(|scope| scope.origin == origin && scope.is_shadow)
        })
    }

    /// Returns this scope for a response that is compared and thrown away. Nothing that is read in it comes from the cache, and
    /// nothing in it is stored, invalidated or emitted.
    #[must_use]
    pub fn shadowing(self) -> Self {
        Self { is_shadow: true, ..self.distrusting() }
    }

    /// Returns whether nothing that happens in this scope may have an effect.
    pub(crate) fn is_shadow(&self) -> bool {
        self.is_shadow
    }

    /// Whether the larder with this origin has a current scope in which stored entries must not be served.
    pub(crate) fn is_distrusted(origin: WriterId) -> bool {
        CURRENT.with_borrow(|scopes| {
            let own = scopes.iter().rev().find(|scope| scope.origin == origin);
            own.is_some_and(|scope| scope.distrusts)
        })
    }

    /// Returns this scope for a request that could not catch up with the invalidations of other processes. Stored
    /// entries are not served in it.
    #[must_use]
    pub fn distrusting(mut self) -> Self {
        self.distrusts = true;
        self
    }

    /// Returns this scope with a bound on the lag. Stored entries are served only if larder has verified within `bound`
    /// that this process had applied every invalidation. If the scope already has a bound, the stricter bound applies.
    #[must_use]
    pub fn bounded(mut self, bound: Duration) -> Self {
        self.bound = Some(self.bound.map_or(bound, |before| before.min(bound)));
        self
    }

    /// Returns this scope with the lag bound of another scope, and with its limit on waits for the second level.
    #[must_use]
    pub fn bounded_as(self, other: &Self) -> Self {
        Self { bound: other.bound, waits: other.waits.clone(), ..self }
    }

    /// Returns this scope for a request that waits for the second level no longer than `waits` has left.
    pub(crate) fn waiting(self, waits: Arc<StoreWaits>) -> Self {
        Self { waits: Some(waits), ..self }
    }

    /// Returns this scope for a write, which collects the records of the invalidations that are made inside.
    pub(crate) fn writing(self, write: Arc<OwnRecords>) -> Self {
        Self { write: Some(write), ..self }
    }

    /// Returns the records of the write that this scope belongs to.
    pub(crate) fn write(&self) -> Option<Arc<OwnRecords>> {
        self.write.clone()
    }

    /// Returns whether this scope belongs to a value that is written through.
    pub fn is_writing(&self) -> bool {
        self.write.is_some()
    }

    /// Returns the sum of the waits for the second level. `None` if there is no limit.
    pub(crate) fn store_waits(&self) -> Option<&StoreWaits> {
        self.waits.as_deref()
    }

    /// Returns the maximum lag at which stored entries may be served in this scope, if there is a bound.
    pub fn bound(&self) -> Option<Duration> {
        self.bound
    }

    /// Returns whether stored entries must not be served in this scope.
    pub fn distrusts(&self) -> bool {
        self.distrusts
    }

    /// Returns the stamp that every fill inside takes.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Returns a scope inside this scope that gathers parts. Its audience is never wider than the audience of this
    /// scope.
    #[must_use]
    pub fn gathering(&self, audience: Audience) -> Self {
        self.inside(self.audience().and(audience), SmallVec::new())
    }

    /// Returns a scope inside this scope that gathers parts, with the same audience.
    pub(crate) fn gathering_apart(&self) -> Self {
        self.inside(self.audience(), SmallVec::new())
    }

    /// Returns a scope inside this scope for the fill of a key, with the same audience.
    #[must_use]
    pub fn filling(&self, key: Key) -> Self {
        self.filling_all(std::iter::once(key))
    }

    /// Returns a scope inside this scope for one fill of several keys, with the same audience.
    pub(crate) fn filling_all(&self, keys: impl IntoIterator<Item = Key>) -> Self {
        self.inside(self.audience(), keys.into_iter().collect())
    }

    /// Returns the audience of values that are built in this scope.
    pub fn audience(&self) -> Audience {
        self.parts.as_ref().map(|parts| parts.audience.clone()).unwrap_or_default()
    }

    /// Adds tags of one source; a tag that is already present is not added again.
    pub fn add_tags(&self, source: TagSource, tags: impl IntoIterator<Item = Tag>) {
        self.add_sourced_tags(tags.into_iter().map(|tag| (tag, source)));
    }

    /// Adds tags with their sources; a tag that is already present is not added again.
    pub fn add_sourced_tags(&self, tags: impl IntoIterator<Item = (Tag, TagSource)>) {
        self.gather(|gathered| gathered.add_tags(tags));
    }

    /// Adds a query that ran for the value built here.
    pub fn add_query(&self) {
        self.gather(|gathered| gathered.queries = gathered.queries.saturating_add(1));
    }

    /// Adds an entry as a part.
    pub fn add_part<V: ?Sized>(&self, entry: &Entry<V>, part: PartTraits) {
        self.add_tags(TagSource::of_part(entry.key().kind()), entry.tags().iter().cloned());
        self.gather(|gathered| {
            gathered.queries = gathered.queries.saturating_add(entry.queries());
            if part.cuts {
                gathered.until = gathered.until.min(entry.fresh_until());
            }
            gathered.private |= part.private;
            gathered.varied |= part.varied;
            gathered.stale |= part.stale;
            gathered.add_stamp(part.stale.then(|| entry.stamp()));
        });
    }

    /// Adds an entry as a piece of the same response. A combination of pieces has the oldest stamp, the earliest end of
    /// freshness, and all the tags.
    pub fn add_piece<V: ?Sized>(&self, entry: &Entry<V>) {
        self.add_sourced_tags(entry.sourced_tags().map(|(tag, source)| (tag.clone(), source)));
        self.gather(|gathered| {
            gathered.until = gathered.until.min(entry.fresh_until());
            gathered.add_stamp(Some(entry.stamp()));
        });
    }

    /// Adds the contents of a part that is not stored, for this reason. The value built in this scope is then not
    /// storable either.
    pub fn add_unstored(&self, part: ScopeContents, why: Reason) {
        self.add_contents(part);
        self.gather(|gathered| gathered.refuse(Some(why)));
    }

    /// Adds the contents of another scope.
    pub(crate) fn add_contents(&self, contents: ScopeContents) {
        self.gather(|gathered| {
            gathered.add_tags(contents.tags);
            gathered.queries = gathered.queries.saturating_add(contents.queries);
            gathered.until = gathered.until.min(contents.until);
            gathered.private |= contents.private;
            gathered.varied |= contents.varied;
            gathered.stale |= contents.stale;
            gathered.add_stamp(contents.oldest);
            gathered.refuse(contents.no_store);
        });
    }

    /// Adds the audience of a part that has no entry.
    pub(crate) fn add_audience(&self, part: PartTraits) {
        self.gather(|gathered| {
            gathered.private |= part.private;
            gathered.varied |= part.varied;
        });
    }

    /// Marks values that are built in this scope as dependent on the user.
    pub fn note_private(&self) {
        self.gather(|gathered| gathered.private = true);
    }

    /// Ends the freshness of values that are built in this scope at `until` at the latest.
    pub fn cut(&self, until: Moment) {
        self.gather(|gathered| gathered.until = gathered.until.min(until));
    }

    /// Returns the contents gathered so far.
    pub fn gathered(&self) -> ScopeContents {
        self.parts.as_ref().map(|parts| parts.gathered.lock().clone()).unwrap_or_default()
    }

    /// Makes this the current scope of the thread until the guard is dropped.
    pub fn enter(&self) -> ScopeGuard {
        CURRENT.with_borrow_mut(|scopes| scopes.push(self.clone()));
        ScopeGuard(PhantomData)
    }

    /// Wraps `future` so that each poll runs inside this scope, for example to carry the scope into a spawned task.
    pub fn scoped<F: Future>(self, future: F) -> Scoped<F> {
        Scoped { future, scope: self }
    }

    /// Returns the keys of the enclosing fills, the innermost first.
    pub(crate) fn fills(&self) -> Vec<Key> {
        let around = |parts: &Arc<Parts>| parts.around.clone();
        std::iter::successors(self.parts.clone(), around)
            .flat_map(|parts| parts.fills.clone())
            .collect()
    }

    /// Returns this scope for background work, for which no enclosing fill waits.
    #[must_use]
    pub fn in_background(&self) -> Self {
        let outside = Self { parts: None, waits: None, write: None, ..self.clone() };
        outside.inside(self.audience(), SmallVec::new())
    }

    fn inside(&self, audience: Audience, fills: SmallVec<[Key; 1]>) -> Self {
        let gathered = Mutex::default();
        let parts = Parts { around: self.parts.clone(), fills, audience, gathered };
        Self { parts: Some(Arc::new(parts)), ..self.clone() }
    }

    fn gather(&self, change: impl FnOnce(&mut ScopeContents)) {
        if let Some(parts) = &self.parts {
            change(&mut parts.gathered.lock());
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

/// Restores the former scope of the thread when dropped. It is not `Send`, because a guard held across an `.await`
/// could remove the scope of another task.
#[derive(Debug)]
pub struct ScopeGuard(PhantomData<*const ()>);

impl Drop for ScopeGuard {
    fn drop(&mut self) {
        // The scope is dropped after the borrow has ended, since its drop may run any code.
        drop(CURRENT.with_borrow_mut(Vec::pop));
    }
}

pin_project! {
    /// A future that is polled inside a scope.
    #[derive(Debug)]
    pub struct Scoped<F> {
        #[pin]
        future: F,
        scope: Scope,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.scope.enter();
        this.future.poll(cx)
    }
}

thread_local! {
    /// The entered scopes of all larders, the innermost last.
    static CURRENT: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

/// Maximum number of gathered tags, which no entry may exceed; beyond it, the value is not storable.
const MOST_TAGS: usize = 10_000;
/// How long after the last wait without an answer a request may wait for the second level again.
const LAPSES_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_lost_to_a_store_lapses_ten_seconds_after_the_last_wait() {
        let waits = StoreWaits::new(Duration::from_millis(60));
        waits.add(Duration::from_millis(40));
        assert_eq!(waits.left(), Duration::from_millis(20));
        tokio::time::advance(Duration::from_secs(9)).await;
        waits.add(Duration::from_millis(40));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(waits.left(), Duration::ZERO, "nine seconds after the last one");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(waits.left(), Duration::from_millis(60));
    }
}
