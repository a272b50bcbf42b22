//! [`LoadHandle`], the handle by which a loader sets the lifetime and tags of its value or prevents storing it, and by
//! which the fill ends for its waiters.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    flight::{FlightResult, Leader},
    lifetime::Lifetime,
    policy::Policy,
    reason::Reason,
    tag::Tag,
};

/// The options of a value that is being loaded: lifetime, tags, no-store. Larder passes it to the loader; it is cheap
/// to clone.
#[derive(Clone, Debug)]
pub struct LoadHandle(Arc<Mutex<LoadingState>>);

#[derive(Debug)]
struct LoadingState {
    options: LoadOptions,
    /// The leader of the fill, while requests may wait for it; `None` once the fill has ended.
    leader: Option<Leader>,
}

#[derive(Clone, Debug)]
pub(super) struct LoadOptions {
    /// The lifetime that the loader has set, if it has.
    pub(super) lifetime: Option<Lifetime>,
    pub(super) tags: Vec<Tag>,
    /// The reason why the value is not storable, if there is one.
    pub(super) refused: Option<Reason>,
}

impl LoadHandle {
    pub(super) fn new(policy: &Policy, leader: Option<Leader>) -> Self {
        let options = LoadOptions { lifetime: None, tags: policy.tags.clone(), refused: None };
        Self(Arc::new(Mutex::new(LoadingState { options, leader })))
    }

    /// Sets the lifetime of this value, or of the record of its absence, in place of the lifetimes of the policy.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) {
        self.0.lock().options.lifetime = Some(lifetime.into());
    }

    /// Adds a tag.
    pub fn tag(&self, tag: impl Into<Tag>) {
        self.0.lock().options.tags.push(tag.into());
    }

    /// Makes this value, and any page that includes it, not storable. Its waiters stop waiting and load for themselves
    /// at once, and calls for this name do not coalesce for 10 s (hit-for-miss).
    pub fn no_store(&self) {
        self.refuse(Reason::NoStore);
    }

    /// Makes this value not storable, as [`LoadHandle::no_store`] does, with another reason for the statistics. Only the
    /// first reason is recorded.
    pub fn refuse(&self, why: Reason) {
        self.0.lock().options.refused.get_or_insert(why);
        self.finish(FlightResult::NotShared(why));
    }

    pub(super) fn options(&self) -> LoadOptions {
        self.0.lock().options.clone()
    }

    pub(super) fn finish(&self, result: FlightResult) {
        let leader = self.0.lock().leader.take();
        if let Some(leader) = leader {
            leader.finish(result);
        }
    }
}

/// Ends a fill as abandoned, if nothing has ended it before. This is needed because the loader may have passed its
/// [`LoadHandle`] to a task that outlives it.
pub(super) struct FinishOnDrop<'a>(pub(super) &'a LoadHandle);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish(FlightResult::Abandoned);
    }
}
