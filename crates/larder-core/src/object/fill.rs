//! What a loader may say about its value, and the place of the flight that others wait at meanwhile.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    flight::{FlightResult, Leader},
    lifetime::Lifetime,
    policy::Policy,
    tag::Tag,
};

/// What a loader may say about the value it loads. Handed to the loader; cheap to clone.
#[derive(Clone, Debug)]
pub struct Loading(Arc<Mutex<LoadingState>>);

#[derive(Debug)]
struct LoadingState {
    wishes: LoadOptions,
    /// The place of the flight, while others may wait for what comes.
    lead: Option<Leader>,
}

#[derive(Clone, Debug)]
pub(super) struct LoadOptions {
    pub(super) lifetime: Lifetime,
    pub(super) tags: Vec<Tag>,
    /// Why it is not to be kept, if it is not.
    pub(super) refused: Option<&'static str>,
}

impl Loading {
    pub(super) fn new(policy: &Policy, lead: Option<Leader>) -> Self {
        let wishes =
            LoadOptions { lifetime: policy.lifetime, tags: policy.tags.clone(), refused: None };
        Self(Arc::new(Mutex::new(LoadingState { wishes, lead })))
    }

    /// The lifetime of this value, in place of the policy's.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) {
        self.0.lock().wishes.lifetime = lifetime.into();
    }

    /// Adds a tag.
    pub fn tag(&self, tag: impl Into<Tag>) {
        self.0.lock().wishes.tags.push(tag.into());
    }

    /// This value is not kept, nor is a page it becomes part of. Who waits for it is let go at once, and for a
    /// while nobody waits for this name any more.
    pub fn no_store(&self) {
        self.refuse("no-store");
    }

    /// As [`Loading::no_store`], with a reason of its own for those who count.
    pub fn refuse(&self, why: &'static str) {
        self.0.lock().wishes.refused.get_or_insert(why);
        self.land(FlightResult::NotShared(why));
    }

    pub(super) fn wishes(&self) -> LoadOptions {
        self.0.lock().wishes.clone()
    }

    pub(super) fn land(&self, landing: FlightResult) {
        let lead = self.0.lock().lead.take();
        if let Some(lead) = lead {
            lead.land(landing);
        }
    }
}

/// Ends the flight of a fill that ends without a word: the loader may have left its [`Loading`] with somebody who
/// lives on.
pub(super) struct FinishOnDrop<'a>(pub(super) &'a Loading);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.land(FlightResult::Abandoned);
    }
}
