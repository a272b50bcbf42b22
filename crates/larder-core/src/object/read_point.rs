//! Read points: a stamp that is taken before a value is read, so that a value which the application read itself can be
//! stored without a race.

use std::future::Future;

use serde::{Serialize, de::DeserializeOwned};

use super::{Call, fill::LoadOptions, value::Object};
use crate::{
    clock::Moment,
    kernel::Kernel,
    key::{IntoName, Kind},
    metrics::Event,
    policy::Policy,
    reason::Reason,
    scope::{Scope, ScopeOwner},
};

/// A point in the order of invalidations, taken before a value is read. [`ReadPoint::set`] stores the value under it.
///
/// An invalidation after the point reaches the value, although it came before the call of `set`. So a value that was read
/// from the database before an invalidation is never served after it:
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
/// let stock = larder.values::<u32>();
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
    /// The scope around this point, to which the value and everything that is read under the point belong.
    around: Scope,
    opened: ScopeOwner,
    began: Moment,
}

/// Whether a value that was set is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetOutcome {
    /// It is stored.
    Stored,
    /// It is not stored, for this reason: the next read loads it.
    NotStored(Reason),
}

impl ReadPoint {
    pub(crate) fn new(kernel: &Kernel) -> Self {
        let began = kernel.tick();
        let (around, opened) = kernel.scope_of_value();
        let scope = around.gathering_apart();
        Self { kernel: kernel.clone(), scope, around, opened, began }
    }

    /// Runs a future whose reads belong to the value: the tags, ends, audience and refusals of the cached values and
    /// queries that it reads become those of the value.
    pub async fn read<F: Future>(&self, reading: F) -> F::Output {
        self.scope.clone().scoped(reading).await
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
        // Waits for nothing today; a store that acknowledges writes will make it wait.
        std::future::ready(self.set_now(name.into_name(), policy.into(), value)).await
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
        let policy = policy.into();
        let set = |(name, value): (N, T)| self.set_now(name.into_name(), policy.clone(), value);
        std::future::ready(values.into_iter().map(set).collect()).await
    }

    fn set_now<T>(&self, name: String, policy: Policy, value: T) -> SetOutcome
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let scope = self.around.clone();
        let (call, bypass) =
            Call::of(&self.kernel, Kind::Object, name, policy, (scope, self.opened, self.began));
        let refused = bypass.or_else(|| self.is_too_old().then_some(Reason::OldReadPoint));
        if self.opened == ScopeOwner::Enclosing {
            // The request may have made the value of anything that it has read.
            self.scope.add_contents(self.around.gathered());
        }
        let options =
            LoadOptions { lifetime: call.policy.lifetime, tags: call.policy.tags.clone(), refused };
        match call.store(Object::new(value), &options, &self.scope, self.began) {
            Ok((entry, is_stored)) => {
                call.add_to_whole(&entry, false);
                match is_stored {
                    true => SetOutcome::Stored,
                    false => SetOutcome::NotStored(Reason::Overtaken),
                }
            }
            Err(why) => {
                call.record(Event::Refused(why), self.kernel.now());
                call.depend_on_absence();
                call.scope.add_tags(options.tags.iter().map(|tag| self.kernel.own_tag(tag)));
                SetOutcome::NotStored(why)
            }
        }
    }

    /// Whether bans since the point may have been forgotten.
    fn is_too_old(&self) -> bool {
        self.kernel.now().since(self.began) >= self.kernel.max_lifetime()
    }
}

impl Drop for ReadPoint {
    fn drop(&mut self) {
        // The request depends on what it has read under the point, also if it has set no value.
        self.around.add_contents(self.scope.gathered());
    }
}
