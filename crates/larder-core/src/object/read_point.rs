//! Read points: a stamp that is taken before a value is read, so that a value which the application read itself can be
//! stored without a race.

use std::{
    borrow::Cow,
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    call::{Call, CallContext, NamedKey},
    fill::LoadOptions,
    value::{CacheValue, ValueSpec},
};
use crate::{
    clock::Moment,
    kernel::Kernel,
    key::{IntoName, Kind},
    metrics::Event,
    policy::Policy,
    provenance::TagSource,
    reason::Reason,
    scope::{Scope, ScopeOwner},
};

/// A point in the order of invalidations, taken before a value is read. [`ReadPoint::set`] stores the value under it.
///
/// An invalidation after the point reaches the value, although it came before the call of `set`. In a request, so does
/// each invalidation since the request began, because the value may be made of anything that the request has read. So a
/// value that was read from the database before an invalidation is never served after it:
///
/// 1. `larder.read_point()`;
/// 2. read the value, inside of [`ReadPoint::read`] if larder caches what it is made of;
/// 3. `point.set(name, policy, value)`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Larder, Policy};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let policy = || Policy::ttl(Duration::from_secs(60));
/// let stock = larder.values::<u32>(policy());
///
/// let point = larder.read_point();
/// let read = 8_u32; // from the database
/// point.set(("stock", 42), policy(), read).await;
/// assert_eq!(stock.get(("stock", 42)).await.as_deref(), Some(&8));
///
/// let point = larder.read_point();
/// let read = 8_u32; // from the database, just before another request sells one and invalidates:
/// let _logged = larder.invalidate(("stock", 42)).await;
/// point.set(("stock", 42), policy(), read).await;
/// assert_eq!(stock.get(("stock", 42)).await, None, "the old value is not stored");
/// # Ok(())
/// # }
/// ```
#[doc(alias("set", "put", "cache aside", "compare and set", "lease"))]
#[derive(Debug)]
#[must_use = "a read point does nothing until a value is set"]
pub struct ReadPoint {
    kernel: Kernel,
    /// Gathers the parts that are read under this point.
    scope: Scope,
    /// The scope in which the point was taken.
    around: Scope,
    /// Gathers the values that are set under this point. They join `around` when the point is dropped, so that the next
    /// value does not take them for its parts.
    values: Scope,
    /// Whether the point has read in a request of another audience.
    is_mixed: AtomicBool,
    opened: ScopeOwner,
    began: Moment,
}

/// Whether a value that was set is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetOutcome {
    /// It is stored, or a newer value of the name is.
    Stored,
    /// It is not stored, for this reason: the next read loads it.
    NotStored(Reason),
}

impl ReadPoint {
    pub(crate) fn new(kernel: &Kernel) -> Self {
        let began = kernel.tick();
        let (around, opened) = kernel.scope_of_value();
        let scope = around.gathering_apart();
        let (values, is_mixed) = (around.gathering_apart(), AtomicBool::new(false));
        Self { kernel: kernel.clone(), scope, around, values, is_mixed, opened, began }
    }

    /// Runs a future whose reads belong to the value: the tags, ends, audience and refusals of the cached values and
    /// queries that it reads become those of the value.
    ///
    /// If the current request has another audience than the scope in which the point was taken, no value is stored under
    /// the point from then on.
    pub async fn read<F: Future>(&self, reading: F) -> F::Output {
        let current = self.kernel.current_scope();
        if current.as_ref().is_some_and(|current| self.is_of_another_audience(current)) {
            self.is_mixed.store(true, Ordering::Relaxed);
        }
        // Inside of the current scope: its bound, its partition and its chain of fills hold here, too.
        let inside = current.as_ref().unwrap_or(&self.around).gathering_apart();
        let outside = [&self.scope, &self.around].into_iter().chain(&current).cloned().collect();
        let _passed_on = PassOnDrop { inside: inside.clone(), outside };
        inside.scoped(reading).await
    }

    /// Whether the point is used in a scope of another audience than the scope in which it was taken. Then its values
    /// belong to neither.
    fn is_of_another_audience(&self, current: &Scope) -> bool {
        current.audience() != self.around.audience()
    }

    /// Stores a value under this point. Not a write: pages and values that were built without it stay valid.
    ///
    /// The lifetime counts from the point, not from this call. The value gets the tags of the policy, of its name and of
    /// everything that was read under the point, in a request also of everything that the request has read before.
    ///
    /// It is not stored if an invalidation since the point reaches it, if the point is older than
    /// [`LarderBuilder::max_lifetime`](crate::LarderBuilder::max_lifetime), or for the reasons for which the value of a
    /// loader is not stored.
    pub async fn set<T>(
        &self,
        name: impl IntoName,
        policy: impl Into<Policy>,
        value: T,
    ) -> SetOutcome
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let named = NamedKey::new(&self.kernel, Kind::Object, name);
        self.set_value(named, Cow::Owned(policy.into()), ValueSpec::message_pack(), value).await
    }

    /// Stores several values under this point, in their order.
    pub async fn set_many<N, T>(
        &self,
        policy: impl Into<Policy>,
        values: impl IntoIterator<Item = (N, T)>,
    ) -> Vec<SetOutcome>
    where
        N: IntoName,
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let named = |(name, value)| (NamedKey::new(&self.kernel, Kind::Object, name), value);
        let values = values.into_iter().map(named).collect();
        self.set_values(values, &policy.into(), ValueSpec::message_pack()).await
    }

    #[expect(clippy::unused_async, reason = "a store that acknowledges writes will make it wait")]
    pub(super) async fn set_value<T: CacheValue>(
        &self,
        named: NamedKey,
        policy: Cow<'_, Policy>,
        spec: ValueSpec<T>,
        value: T,
    ) -> SetOutcome {
        self.gather_request();
        self.set_now(named, policy, spec, value)
    }

    #[expect(clippy::unused_async, reason = "as `set_value`")]
    pub(super) async fn set_values<T: CacheValue>(
        &self,
        values: Vec<(NamedKey, T)>,
        policy: &Policy,
        spec: ValueSpec<T>,
    ) -> Vec<SetOutcome> {
        self.gather_request();
        let set = |(named, value)| self.set_now(named, Cow::Borrowed(policy), spec, value);
        values.into_iter().map(set).collect()
    }

    /// Adds the contents of the request to those of the point: the request may have made the value of anything that it
    /// has read.
    fn gather_request(&self) {
        if self.opened == ScopeOwner::Enclosing {
            self.scope.add_contents(self.around.gathered());
        }
    }

    fn set_now<T: CacheValue>(
        &self,
        named: NamedKey,
        policy: Cow<'_, Policy>,
        spec: ValueSpec<T>,
        value: T,
    ) -> SetOutcome {
        let scope = self.around.clone();
        let context = CallContext { scope, opened: self.opened, began: self.began };
        let (mut call, bypass) = Call::new(&self.kernel, named, policy, spec, context);
        call.scope = self.values.clone();
        let refused = bypass.or_else(|| self.refused());
        let options = LoadOptions { lifetime: None, tags: call.policy.tags.clone(), refused };
        let why = match call.store(spec.object(Some(value)), &options, &self.scope, self.began) {
            Ok((entry, is_stored)) => {
                call.add_to_whole(&entry, false);
                let now = self.kernel.now();
                match is_stored {
                    false => Reason::Overtaken,
                    true if entry.ends().fresh_until() <= now => Reason::Stale,
                    true => return SetOutcome::Stored,
                }
            }
            Err(why) => {
                call.record(Event::Refused(why), self.kernel.now());
                call.depend_on_absence();
                let own = options.tags.iter().map(|tag| self.kernel.own_tag(tag));
                call.scope.add_tags(TagSource::Handler, own);
                why
            }
        };
        SetOutcome::NotStored(why)
    }

    /// Returns the reason, if any, why no value may be stored under this point now.
    fn refused(&self) -> Option<Reason> {
        let current = self.kernel.current_scope();
        let is_of_another = |current: &Scope| self.is_of_another_audience(current);
        if self.is_mixed.load(Ordering::Relaxed) || current.as_ref().is_some_and(is_of_another) {
            return Some(Reason::PrivatePart);
        }
        let distrusts =
            |current: Scope| current.distrusts() || !self.kernel.is_within_bound_of(&current);
        if current.is_some_and(distrusts) {
            return Some(Reason::Unsynchronised);
        }
        self.is_too_old().then_some(Reason::OldReadPoint)
    }

    /// Whether bans since the point may have been forgotten.
    fn is_too_old(&self) -> bool {
        self.kernel.now().since(self.began) >= self.kernel.max_lifetime()
    }
}

impl Drop for ReadPoint {
    fn drop(&mut self) {
        self.around.add_contents(self.values.gathered());
    }
}

/// Passes the parts of a read on to the scopes that depend on them, also if the read is cancelled.
struct PassOnDrop {
    inside: Scope,
    outside: Vec<Scope>,
}

impl Drop for PassOnDrop {
    fn drop(&mut self) {
        for scope in &self.outside {
            scope.add_contents(self.inside.gathered());
        }
    }
}
