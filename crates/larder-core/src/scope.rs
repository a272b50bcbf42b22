//! Scopes: what a request, and each fill inside it, is made of.
//!
//! The outermost larder layer opens a scope for every request. It carries the stamp that every fill inside
//! takes, never a newer one, since the handler may already hold data when a fill begins. A fill opens a
//! scope of its own inside; what it brings becomes a part of the scope around it: its tags, its name, the
//! end of its lifetime, whether it was private or stale. So a page carries the tags of all its queries and
//! fragments, and nobody writes them twice.

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
use tokio::time::Instant;

use crate::{bus::WriterId, clock::Moment, entry::Entry, key::Key, registry::Stamp, tag::Tag};

/// For whom what is made in a scope is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Audience {
    /// For everyone: nothing in the request says who asks.
    #[default]
    Everyone,
    /// For everyone who asks in this way, such as in this language.
    Variant(Arc<[u8]>),
    /// For those who share this partition, and nobody else.
    Partition(Arc<[u8]>),
    /// The request says who asks, but nobody said how to tell them apart: nothing is shared.
    Unknown,
}

impl Audience {
    /// Those who belong to both. Who is unknown in one is unknown in both.
    fn and(self, inner: Self) -> Self {
        let joined = |a: &[u8], b: &[u8]| {
            let length = (a.len() as u64).to_le_bytes();
            [&length, a, b].concat().into()
        };
        match (self, inner) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Everyone, one) | (one, Self::Everyone) => one,
            (Self::Variant(a), Self::Variant(b)) => Self::Variant(joined(&a, &b)),
            (Self::Partition(a) | Self::Variant(a), Self::Partition(b) | Self::Variant(b)) => {
                Self::Partition(joined(&a, &b))
            }
        }
    }
}

/// Where things are read and gathered. Cheap to clone; a clone is the same scope.
#[derive(Clone)]
pub struct Scope {
    origin: WriterId,
    stamp: Stamp,
    parts: Option<Arc<Parts>>,
    /// Whether nothing that is kept may be served here, since it may have been invalidated elsewhere.
    distrusts: bool,
    /// What is kept may be served while it was proved within this time that every invalidation was seen.
    bound: Option<Duration>,
    /// How long the request has waited for a shared store that did not answer. `None` where it may wait for as long as it takes.
    waits: Option<Arc<StoreWaits>>,
}

/// The time that a request has lost to waits for a shared store that gave no answer: one sum for all its reads and fill
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

    /// How long the request may still wait. A task may hold one scope for hours: the sum lapses once no wait was lost for
    /// ten seconds.
    pub(crate) fn left(&self) -> Duration {
        let mut lost = self.lost.lock();
        if lost.1.is_some_and(|last| last.elapsed() >= LAPSES_AFTER) {
            *lost = (Duration::ZERO, None);
        }
        self.limit.saturating_sub(lost.0)
    }

    /// Adds a wait that gave no answer.
    pub(crate) fn add(&self, wait: Duration) {
        let mut lost = self.lost.lock();
        *lost = (lost.0.saturating_add(wait), Some(Instant::now()));
    }
}

#[derive(Debug)]
struct Parts {
    around: Option<Arc<Parts>>,
    fills: Option<Key>,
    audience: Audience,
    gathered: Mutex<ScopeContents>,
}

/// What a scope has gathered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScopeContents {
    /// The tags of all parts and of the application, each once.
    pub tags: Vec<Tag>,
    /// When the first part ends that ends by itself.
    pub until: Moment,
    /// Whether a part was made for one partition only.
    pub private: bool,
    /// Whether a part was made for one variant only.
    pub varied: bool,
    /// Whether a part was stale when it was taken.
    pub stale: bool,
    /// Why what is made here may not be kept, if it may not.
    pub no_store: Option<&'static str>,
    /// The oldest stamp of a part that was stale: what ends its grace ends that of the whole.
    pub(crate) oldest: Option<Stamp>,
}

impl Default for ScopeContents {
    fn default() -> Self {
        Self {
            tags: Vec::new(),
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
    fn add_tags(&mut self, tags: impl IntoIterator<Item = Tag>) {
        for tag in tags {
            if self.tags.len() >= MOST_TAGS {
                self.no_store = Some("too-many-tags");
                return;
            }
            if !self.tags.contains(&tag) {
                self.tags.push(tag);
            }
        }
    }

    fn add_stamp(&mut self, stamp: Option<Stamp>) {
        self.oldest = match (self.oldest, stamp) {
            (Some(a), Some(b)) => Some(a.older(b)),
            (a, b) => a.or(b),
        };
    }
}

/// Who opened the scope in which a value is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScopeOwner {
    /// Somebody around, who may have read something already.
    Enclosing,
    /// The call itself.
    ThisCall,
}

/// How a part acts on the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartTraits {
    /// Whether the end of its freshness ends that of the whole.
    pub cuts: bool,
    /// Whether it was made for one partition only.
    pub private: bool,
    /// Whether it was made for one variant only.
    pub varied: bool,
    /// Whether it was stale when it was taken.
    pub stale: bool,
}

impl Scope {
    pub(crate) fn open(origin: WriterId, stamp: Stamp) -> Self {
        Self { origin, stamp, parts: None, distrusts: false, bound: None, waits: None }
    }

    /// The scope that the current task is in, if it is one of the larder of this origin.
    pub(crate) fn current(origin: WriterId) -> Option<Self> {
        CURRENT
            .with_borrow(|scopes| scopes.iter().rev().find(|scope| scope.origin == origin).cloned())
    }

    /// Whether the current scope of the larder of this origin, if there is one, takes nothing that is kept.
    pub(crate) fn is_distrusted(origin: WriterId) -> bool {
        CURRENT.with_borrow(|scopes| {
            let own = scopes.iter().rev().find(|scope| scope.origin == origin);
            own.is_some_and(|scope| scope.distrusts)
        })
    }

    /// This scope, for a request that could not be made sure of what others have invalidated: what is made in
    /// it takes nothing that is kept.
    #[must_use]
    pub fn distrusting(mut self) -> Self {
        self.distrusts = true;
        self
    }

    /// This scope, for a request that takes what is kept only while it was proved within `bound` that every
    /// invalidation was seen. The stricter of two bounds holds.
    #[must_use]
    pub fn bounded(mut self, bound: Duration) -> Self {
        self.bound = Some(self.bound.map_or(bound, |before| before.min(bound)));
        self
    }

    /// This scope, bounded as another is, in what it takes and in how long it waits for a shared store.
    #[must_use]
    pub fn bounded_as(self, other: &Self) -> Self {
        Self { bound: other.bound, waits: other.waits.clone(), ..self }
    }

    /// This scope, for a request that waits for a shared store no longer than is left here.
    pub(crate) fn waiting(self, waits: Arc<StoreWaits>) -> Self {
        Self { waits: Some(waits), ..self }
    }

    /// What is left of the time that this request may wait for a shared store. `None` where there is no limit.
    pub(crate) fn store_waits(&self) -> Option<&StoreWaits> {
        self.waits.as_deref()
    }

    /// Within which time it must have been proved that every invalidation was seen, if there is a bound.
    pub fn bound(&self) -> Option<Duration> {
        self.bound
    }

    /// Whether nothing that is kept may be served here.
    pub fn distrusts(&self) -> bool {
        self.distrusts
    }

    /// The stamp that every fill inside takes.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// A scope inside this one that gathers parts. What is made in it is for no more people than what is
    /// made around it.
    #[must_use]
    pub fn gathering(&self, audience: Audience) -> Self {
        self.inside(self.audience().and(audience), None)
    }

    /// A scope inside this one for the fill of a key, for the same audience.
    #[must_use]
    pub fn filling(&self, key: Key) -> Self {
        self.inside(self.audience(), Some(key))
    }

    /// For whom is made what is made here.
    pub fn audience(&self) -> Audience {
        self.parts.as_ref().map(|parts| parts.audience.clone()).unwrap_or_default()
    }

    /// Adds tags. Each is kept once.
    pub fn add_tags(&self, tags: impl IntoIterator<Item = Tag>) {
        self.gather(|gathered| gathered.add_tags(tags));
    }

    /// Adds an entry as a part.
    pub fn add_part<V: ?Sized>(&self, entry: &Entry<V>, part: PartTraits) {
        self.add_tags(entry.tags().iter().cloned());
        self.gather(|gathered| {
            if part.cuts {
                gathered.until = gathered.until.min(entry.ends().fresh_until());
            }
            gathered.private |= part.private;
            gathered.varied |= part.varied;
            gathered.stale |= part.stale;
            gathered.add_stamp(part.stale.then(|| entry.stamp()));
        });
    }

    /// Adds an entry as a piece of the same thing: what is put together of both is no younger, no longer
    /// fresh, and depends on no less.
    pub fn add_piece<V: ?Sized>(&self, entry: &Entry<V>) {
        self.add_tags(entry.tags().iter().cloned());
        self.gather(|gathered| {
            gathered.until = gathered.until.min(entry.ends().fresh_until());
            gathered.add_stamp(Some(entry.stamp()));
        });
    }

    /// Adds what was gathered for a part that is not kept, for this reason: then neither is the whole.
    pub fn add_unkept(&self, part: ScopeContents, why: &'static str) {
        self.gather(|gathered| {
            gathered.add_tags(part.tags);
            gathered.until = gathered.until.min(part.until);
            gathered.private |= part.private;
            gathered.varied |= part.varied;
            gathered.stale |= part.stale;
            gathered.add_stamp(part.oldest);
            gathered.no_store = gathered.no_store.or(part.no_store).or(Some(why));
        });
    }

    /// Says that what is made here depends on who asks.
    pub fn note_private(&self) {
        self.gather(|gathered| gathered.private = true);
    }

    /// Ends the freshness of what is made here at `until` at the latest.
    pub fn cut(&self, until: Moment) {
        self.gather(|gathered| gathered.until = gathered.until.min(until));
    }

    /// What was gathered so far.
    pub fn gathered(&self) -> ScopeContents {
        self.parts.as_ref().map(|parts| parts.gathered.lock().clone()).unwrap_or_default()
    }

    /// Makes this the current scope of the thread until the guard is dropped.
    pub fn enter(&self) -> ScopeGuard {
        CURRENT.with_borrow_mut(|scopes| scopes.push(self.clone()));
        ScopeGuard(PhantomData)
    }

    /// Polls `future` inside this scope, wherever it is polled. A task that is spawned by hand takes its
    /// scope along this way.
    pub fn scoped<F: Future>(self, future: F) -> Scoped<F> {
        Scoped { future, scope: self }
    }

    /// The keys of the fills that this is inside of, the innermost first.
    pub(crate) fn fills(&self) -> Vec<Key> {
        let around = |parts: &Arc<Parts>| parts.around.clone();
        std::iter::successors(self.parts.clone(), around)
            .filter_map(|parts| parts.fills.clone())
            .collect()
    }

    /// This scope for work that no fill around it waits for.
    #[must_use]
    pub fn in_background(&self) -> Self {
        let outside = Self { parts: None, waits: None, ..self.clone() };
        outside.inside(self.audience(), None)
    }

    fn inside(&self, audience: Audience, fills: Option<Key>) -> Self {
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

/// Gives the thread its former scope back when dropped. It stays on its thread: held over an `.await` it could
/// take a scope from another.
#[derive(Debug)]
pub struct ScopeGuard(PhantomData<*const ()>);

impl Drop for ScopeGuard {
    fn drop(&mut self) {
        // Dropped after the borrow has ended: what a scope holds may be anything.
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
    /// The scopes that are entered, the innermost last: those of several larders lie among each other.
    static CURRENT: RefCell<Vec<Scope>> = const { RefCell::new(Vec::new()) };
}

/// More tags than any entry may carry are not worth gathering.
const MOST_TAGS: usize = 10_000;
/// This long after the last lost wait a request may wait for a shared store anew.
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
