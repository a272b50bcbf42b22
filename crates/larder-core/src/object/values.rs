//! The typed view of values: `get`, `contains`, `remaining_ttl` and `remove` by name, without a loader.

use std::{convert::Infallible, fmt, marker::PhantomData, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::call::{Call, LookupResult};
use crate::{
    entry::AnyEntry,
    kernel::Kernel,
    key::{IntoName, Kind},
    lifetime::Lifetime,
    metrics::Event,
    policy::Policy,
    reason::Reason,
    target::{Invalidated, Invalidation, Target},
};

/// The values of type `T` in a larder, by name. Cheap to clone.
///
/// It finds the values that [`Larder::get_or_load`](crate::Larder::get_or_load) and
/// [`ReadPoint::set`](crate::values::ReadPoint::set) have stored, if [`Values::with`] names the same audience and
/// levels. A page or value that is built around one of its reads depends on the value, and on its absence too.
///
/// # Examples
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use larder_core::{Larder, Policy};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let names = larder.values::<String>();
/// assert_eq!(names.get(("user", 7)).await, None);
///
/// let load = |_| async { Ok::<_, Infallible>("Ada".to_owned()) };
/// larder.get_or_load(("user", 7), Policy::ttl(Duration::from_secs(60)), load).await?;
/// assert_eq!(names.get(("user", 7)).await.as_deref().map(String::as_str), Some("Ada"));
/// assert!(names.remaining_ttl(("user", 7)).await > Some(Duration::from_secs(59)));
///
/// let _logged = names.remove(("user", 7)).await;
/// assert!(!names.contains(("user", 7)).await);
/// # Ok(())
/// # }
/// ```
#[doc(alias("typed cache", "get", "contains", "has", "peek"))]
pub struct Values<T> {
    kernel: Kernel,
    policy: Policy,
    value: PhantomData<fn() -> T>,
}

impl<T> Values<T>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn new(kernel: &Kernel) -> Self {
        // Reads have no use for a lifetime.
        let policy = Policy::from(Lifetime::fresh_for(Duration::ZERO));
        Self { kernel: kernel.clone(), policy, value: PhantomData }
    }

    /// Reads with the options of this policy: audience ([`Policy::shared`]), levels, consistency, maximum age and the
    /// name under which reads are counted. Its lifetime and tags have no effect.
    #[must_use]
    pub fn with(mut self, policy: impl Into<Policy>) -> Self {
        self.policy = policy.into();
        self
    }

    /// Returns the value of a name, if it is fresh: from the first level, otherwise from the second. Stale windows need
    /// a loader, so a stale value is not returned.
    ///
    /// Costs as much as a hit of [`Larder::get_or_load`](crate::Larder::get_or_load). A value of another type under this
    /// name is not returned; larder logs an error.
    #[doc(alias("cache lookup", "peek"))]
    pub async fn get(&self, name: impl IntoName) -> Option<Arc<T>> {
        let mut call = self.begin(name).await?;
        if let Some(found) = self.look_in_memory(&call) {
            return found.map(|(entry, value)| call.hit(&entry, value));
        }
        let fetched = self.fetch(&mut call).await;
        self.take_fetched(&call, fetched)
    }

    /// Returns the values of several names, in their order: from the first level, and those that are not there in one
    /// round trip from the second.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder_core::Larder;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// larder.read_point().set(("stock", 1), Duration::from_secs(60), 8_u32).await;
    ///
    /// let stock = larder.values::<u32>().get_many([("stock", 1), ("stock", 2)]).await;
    /// assert_eq!(stock[0].as_deref(), Some(&8));
    /// assert_eq!(stock[1], None);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("mget", "multi get", "batch"))]
    pub async fn get_many<N: IntoName>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Vec<Option<Arc<T>>> {
        let names = names.into_iter().map(IntoName::into_name);
        let calls =
            Call::begin_many(&self.kernel, Kind::Object, names.collect(), &self.policy).await;
        let looked: Vec<_> = calls
            .iter()
            .map(|(call, bypass)| match bypass {
                Some(why) => {
                    self.note_bypass(call, *why);
                    Some(None)
                }
                None => self.look_in_memory(call),
            })
            .collect();
        let missing = calls.iter().zip(&looked).filter(|(_, looked)| looked.is_none());
        let missing: Vec<_> = missing.map(|((call, _), _)| call).collect();
        let waits = !missing.is_empty() && self.kernel.shares(self.policy.tiers);
        let fetched = if waits { Call::fetch_many::<T>(&missing).await } else { Vec::new() };
        let mut fetched = fetched.into_iter();
        let take = |((call, _), looked): (&(Call<'_>, _), Option<Option<Hit<T>>>)| {
            match looked {
                // The read of the second level takes time, in which an invalidation may reach a value of the first.
                Some(Some((entry, value))) if !waits || call.is_usable(&entry) => {
                    Some(call.hit(&entry, value))
                }
                Some(Some(_)) => self.take_fetched(call, None),
                Some(None) => None,
                None => self.take_fetched(call, fetched.next().flatten()),
            }
        };
        calls.iter().zip(looked).map(take).collect()
    }

    /// Returns whether [`get`](Self::get) would return a value. Does not count as a hit or miss.
    pub async fn contains(&self, name: impl IntoName) -> bool {
        self.remaining_ttl(name).await.is_some()
    }

    /// Returns the rest of the freshness lifetime of a value. `None` if [`get`](Self::get) would return no value. Does
    /// not count as a hit or miss.
    #[doc(alias("ttl", "expires in"))]
    pub async fn remaining_ttl(&self, name: impl IntoName) -> Option<Duration> {
        let mut call = self.begin(name).await?;
        let found = match self.look_in_memory(&call) {
            Some(found) => found.map(|(entry, _)| entry),
            None => self.fetch(&mut call).await,
        };
        match found {
            Some(entry) => {
                call.add_to_whole(&entry, false);
                Some(entry.ends().fresh_until().since(self.kernel.now()))
            }
            None => {
                call.depend_on_absence();
                None
            }
        }
    }

    /// Removes the value of a name for all users and in all processes: a hard invalidation of its name, which also
    /// reaches the pages and values that depend on it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    #[doc(alias("delete", "evict", "del"))]
    pub async fn remove(&self, name: impl IntoName) -> Invalidated {
        self.kernel.invalidate(Target::name(name)).await
    }

    /// Removes the values of several names, in one append to the log.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    pub async fn remove_many<N: IntoName>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Invalidated {
        let targets: Vec<_> = names.into_iter().map(Target::name).collect();
        self.kernel.invalidate(Invalidation::from(targets)).await
    }

    /// Begins a read. `None` if the read has to bypass the cache: then nothing is known about the value.
    async fn begin(&self, name: impl IntoName) -> Option<Call<'_>> {
        let name = name.into_name();
        let (call, bypass) =
            Call::begin(&self.kernel, Kind::Object, name, self.policy.clone()).await;
        if let Some(why) = bypass {
            self.note_bypass(&call, why);
            return None;
        }
        Some(call)
    }

    fn note_bypass(&self, call: &Call<'_>, why: Reason) {
        call.record(Event::Bypass(why), call.began);
        call.depend_on_the_unknown();
    }

    /// Looks a value up in the first level. `None` if the second level has to be read.
    fn look_in_memory(&self, call: &Call<'_>) -> Option<Option<Hit<T>>> {
        match call.look::<T, Infallible>() {
            Ok(LookupResult::Fresh(entry, value)) => return Some(Some((entry, value))),
            Ok(LookupResult::Gone(event)) => call.record(event, call.began),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(target: "larder", %error, "a value was not returned");
                call.depend_on_the_unknown();
                return Some(None);
            }
        }
        None
    }

    /// Returns the value of an entry from the second level, and adds it to the enclosing scope. Without an entry the
    /// value is absent.
    fn take_fetched(&self, call: &Call<'_>, fetched: Option<AnyEntry>) -> Option<Arc<T>> {
        let Some(entry) = fetched else {
            call.record(Event::Miss, call.began);
            if self.policy.tiers.in_memory().is_some() {
                self.kernel.note_miss(call.hash);
            }
            call.depend_on_absence();
            return None;
        };
        let value = call.value::<T, Infallible>(&entry).ok()?;
        call.record(Event::SharedHit, call.began);
        call.add_to_whole(&entry, false);
        Some(value)
    }

    async fn fetch(&self, call: &mut Call<'_>) -> Option<AnyEntry> {
        if !self.kernel.shares(self.policy.tiers) {
            return None;
        }
        call.scope = call.waiting_scope();
        call.fetch_once::<T>().await
    }
}

/// A fresh entry of the first level, and its value.
type Hit<T> = (AnyEntry, Arc<T>);

impl<T> Clone for Values<T> {
    fn clone(&self) -> Self {
        Self { kernel: self.kernel.clone(), policy: self.policy.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").field("policy", &self.policy).finish_non_exhaustive()
    }
}
