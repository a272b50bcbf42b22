//! The typed view of values: reads, loads, sets and removals by name, under one policy.

use std::{borrow::Cow, convert::Infallible, fmt, future::Future, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    adaptive::AdaptiveLifetime,
    call::{Call, CallContext, LookupResult, NamedKey},
    error::LoadError,
    fill::LoadHandle,
    format::Codec,
    get_or_fill,
    read_point::{ReadPoint, SetOutcome},
    value::{Answer as _, ValueSpec},
};
use crate::{
    entry::AnyEntry,
    kernel::Kernel,
    key::{IntoName, Kind},
    metrics::Event,
    policy::Policy,
    reason::Reason,
    target::{Invalidated, Invalidation, Target},
};

/// The values of type `T` in a larder, by name, under one policy. Cheap to clone.
///
/// It shares its values with [`Larder::get_or_load`](crate::Larder::get_or_load) and with every other view of the type
/// whose policy names the same audience and levels. A page or value that is built around one of its reads depends on the
/// value, and on its absence too.
///
/// # Examples
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use larder_core::Larder;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let names = larder.values::<String>(Duration::from_secs(60));
/// assert_eq!(names.get(("user", 7)).await, None);
///
/// let load = |_| async { Ok::<_, Infallible>("Ada".to_owned()) };
/// assert_eq!(*names.get_or_load(("user", 7), load).await?, "Ada");
/// assert_eq!(names.get(("user", 7)).await.as_deref().map(String::as_str), Some("Ada"));
/// assert!(names.remaining_ttl(("user", 7)).await > Some(Duration::from_secs(59)));
///
/// let _logged = names.remove(("user", 7)).await;
/// assert!(!names.contains(("user", 7)).await);
/// # Ok(())
/// # }
/// ```
#[doc(alias("typed cache", "get", "contains", "has", "peek"))]
pub struct Values<T: 'static> {
    kernel: Kernel,
    policy: Policy,
    spec: ValueSpec<T>,
}

impl<T: Send + Sync + 'static> Values<T> {
    pub(crate) fn message_pack(kernel: &Kernel, policy: Policy) -> Self
    where
        T: Serialize + DeserializeOwned,
    {
        Self { kernel: kernel.clone(), policy, spec: ValueSpec::message_pack() }
    }

    pub(crate) fn of_codec<C: Codec<T>>(kernel: &Kernel, policy: Policy) -> Self {
        Self { kernel: kernel.clone(), policy, spec: ValueSpec::of_codec::<C>() }
    }

    pub(crate) fn in_process(kernel: &Kernel, policy: Policy) -> Self {
        Self { kernel: kernel.clone(), policy, spec: ValueSpec::local() }
    }

    /// Weighs the values by this function, which returns the bytes that a value takes in memory. By default larder
    /// estimates them from what serde or the codec writes.
    #[must_use]
    #[doc(alias("weigher", "cost function"))]
    pub fn weigh_by(mut self, weigh: fn(&T) -> usize) -> Self {
        self.spec.weigh = Some(weigh);
        self
    }

    /// Adapts the freshness lifetime of each value to its changes: it begins at `floor`, grows while loads return the same
    /// value, up to `ceiling`, and shrinks when they return another. It replaces the freshness lifetime of the policy;
    /// the stale windows stay.
    ///
    /// Each process observes the changes for itself, and forgets them after an invalidation of the value. A loader that
    /// sets a lifetime itself is obeyed. Use it for values that change without an invalidation, at rates that differ by
    /// value or over time: for a value that changes at a constant rate, the right fixed lifetime serves fewer old values.
    ///
    /// # Panics
    ///
    /// If `floor` is zero or above `ceiling`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::Larder;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let second = Duration::from_secs(1);
    /// let weather = larder.values::<String>(60 * second).adaptive(10 * second, 600 * second);
    /// let mut longest = second;
    /// for _ in 0..150 {
    ///     let load = |_| async { Ok::<_, Infallible>("sunny".to_owned()) };
    ///     weather.get_or_load("Paris", load).await?;
    ///     longest = longest.max(weather.remaining_ttl("Paris").await.unwrap_or_default());
    ///     tokio::time::advance(10 * second).await;
    /// }
    /// assert!(longest > 60 * second, "it never changed");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    #[doc(alias("adaptive ttl", "alex protocol"))]
    pub fn adaptive(mut self, floor: Duration, ceiling: Duration) -> Self
    where
        T: PartialEq,
    {
        assert!(
            !floor.is_zero() && floor <= ceiling,
            "adaptive is {floor:?} to {ceiling:?}, allowed is a floor that is more than zero and no more than the ceiling"
        );
        self.spec.adaptive = Some(AdaptiveLifetime { floor, ceiling, is_same: T::eq });
        self
    }

    /// Returns this view with another policy, for example with another lifetime for one call.
    #[must_use]
    pub fn with(mut self, policy: impl Into<Policy>) -> Self {
        self.policy = policy.into();
        self
    }

    /// Returns the value of this name: from the first level, the second level, a fill in flight, or `load`, as
    /// [`Larder::get_or_load`](crate::Larder::get_or_load) does. A hit does not allocate.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    #[doc(alias("cache-aside", "lazy loading", "get_or_insert_with", "memoize"))]
    pub async fn get_or_load<E, F, Fut>(
        &self,
        name: impl IntoName,
        load: F,
    ) -> Result<Arc<T>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let named = NamedKey::new(&self.kernel, Kind::Object, name);
        get_or_fill(&self.kernel, named, Cow::Borrowed(&self.policy), self.spec, load).await
    }

    /// Returns the value of this name, if its source has one. If it has none, larder stores a negative result with a
    /// lifetime of its own ([`Policy::negative_ttl`]), so that requests for names that do not exist do not all reach the source.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::Larder;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let users = larder.values::<String>(Duration::from_secs(60));
    /// let find = async |row: Option<&'static str>| {
    ///     let load = move |_| async move { Ok::<_, Infallible>(row.map(str::to_owned)) };
    ///     users.get_or_load_optional(("user", 7), load).await
    /// };
    /// assert_eq!(find(None).await?, None);
    /// assert_eq!(find(Some("Ada")).await?, None, "the source is not asked again");
    ///
    /// let _logged = larder.invalidate(("user", 7)).await; // after the INSERT
    /// assert_eq!(find(Some("Ada")).await?.as_deref().map(String::as_str), Some("Ada"));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("negative caching", "cache null", "cache penetration"))]
    pub async fn get_or_load_optional<E, F, Fut>(
        &self,
        name: impl IntoName,
        load: F,
    ) -> Result<Option<Arc<T>>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let named = NamedKey::new(&self.kernel, Kind::Object, name);
        get_or_fill(&self.kernel, named, Cow::Borrowed(&self.policy), self.spec, load).await
    }

    /// Returns the value of a name, if it is fresh: from the first level, otherwise from the second. Stale windows need
    /// a loader, so a stale value is not returned.
    ///
    /// Costs as much as a hit of [`get_or_load`](Self::get_or_load). A value of another type under this name is not
    /// returned; larder logs an error.
    #[doc(alias("cache lookup", "peek"))]
    pub async fn get(&self, name: impl IntoName) -> Option<Arc<T>> {
        let mut call = self.begin(name).await?;
        if let Some(found) = self.look_in_memory(&call) {
            return found.and_then(|(entry, value)| call.hit(&entry, value));
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
    /// let stock = larder.values::<u32>(Duration::from_secs(60));
    /// stock.set(&larder.read_point(), ("stock", 1), 8).await;
    ///
    /// let found = stock.get_many([("stock", 1), ("stock", 2)]).await;
    /// assert_eq!(found[0].as_deref(), Some(&8));
    /// assert_eq!(found[1], None);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("mget", "multi get", "batch"))]
    pub async fn get_many<N: IntoName>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Vec<Option<Arc<T>>> {
        let calls = self.begin_many(names).await;
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
        let waits = missing.first().is_some_and(|call| call.is_shared());
        let fetched = if waits { Call::fetch_many(&missing).await } else { Vec::new() };
        let mut fetched = fetched.into_iter();
        let take = |((call, _), looked): (&(Call<'_, T>, _), Option<Option<Hit<T>>>)| {
            match looked {
                // The read of the second level takes time, in which an invalidation may reach a value of the first.
                Some(Some((entry, value))) if !waits || call.is_usable(&entry) => {
                    call.hit(&entry, value)
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
        let Some(entry) = found else {
            call.depend_on_absence();
            return None;
        };
        call.add_to_whole(&entry, false);
        Option::<Arc<T>>::of_entry(&entry)??;
        Some(entry.fresh_until().since(self.kernel.now()))
    }

    /// Stores a value under a read point that was taken before the value was read, as [`ReadPoint::set`] does.
    #[doc(alias("put", "insert"))]
    pub async fn set(&self, point: &ReadPoint, name: impl IntoName, value: T) -> SetOutcome {
        let named = NamedKey::new(&self.kernel, Kind::Object, name);
        point.set_value(named, Cow::Borrowed(&self.policy), self.spec, value).await
    }

    /// Stores several values under a read point, as [`ReadPoint::set_many`] does.
    pub async fn set_many<N: IntoName>(
        &self,
        point: &ReadPoint,
        values: impl IntoIterator<Item = (N, T)>,
    ) -> Vec<SetOutcome> {
        let named = |(name, value)| (NamedKey::new(&self.kernel, Kind::Object, name), value);
        let values = values.into_iter().map(named).collect();
        point.set_values(values, &self.policy, self.spec).await
    }

    /// Lets the freshness of a stored value end `time` from now, and returns the rest of its lifetime. `None` if
    /// [`get`](Self::get) would return no value.
    ///
    /// The value keeps its stamp: an invalidation reaches it as before, and it never lives longer than
    /// [`LarderBuilder::max_lifetime`](crate::LarderBuilder::max_lifetime) after its load. `time` may also be shorter than
    /// the rest of the lifetime. In the second level larder writes the lifetime at most once a minute, from a minute
    /// after the load, and only if no other process has stored another value there. A value that the first level does not
    /// store ([`Tiers::SHARED`](crate::Tiers::SHARED)) is not extended.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder_core::Larder;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let minute = Duration::from_secs(60);
    /// let reports = larder.values::<String>(minute);
    /// reports.set(&larder.read_point(), "today", "all quiet".to_owned()).await;
    ///
    /// tokio::time::advance(minute / 2).await;
    /// assert_eq!(reports.extend("today", 5 * minute).await, Some(5 * minute));
    /// assert_eq!(reports.extend("tomorrow", 5 * minute).await, None);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("touch", "expire", "persist", "renew"))]
    pub async fn extend(&self, name: impl IntoName, time: Duration) -> Option<Duration> {
        let mut call = self.begin(name).await?;
        if self.look_in_memory(&call).is_none() {
            // It brings the value into the first level.
            drop(self.fetch(&mut call).await);
        }
        let extended = call.extend(time);
        if extended.is_none() {
            call.depend_on_absence();
        }
        extended.map(|ends| ends.since(self.kernel.now()))
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

    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Loads a value although it may be stored, and stores the new value.
    pub(super) async fn reload<E, F, Fut>(
        &self,
        name: impl IntoName,
        load: F,
    ) -> Result<Option<Arc<T>>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let (call, bypass) = self.call(name).await;
        match bypass {
            Some(why) => {
                call.record(Event::Bypass(why), call.began);
                call.alone(None, load).await
            }
            None => Box::pin(call.reload(load)).await,
        }
    }

    /// Creates the call for a name, after catching up with the log. The reason says why the call has to bypass the cache.
    pub(super) async fn call(&self, name: impl IntoName) -> (Call<'_, T>, Option<Reason>) {
        let named = NamedKey::new(&self.kernel, Kind::Object, name);
        let context = CallContext::new(&self.kernel, self.policy.consistency).await;
        Call::new(&self.kernel, named, Cow::Borrowed(&self.policy), self.spec, context)
    }

    /// Begins a read. `None` if the read has to bypass the cache: then nothing is known about the value.
    async fn begin(&self, name: impl IntoName) -> Option<Call<'_, T>> {
        let (call, bypass) = self.call(name).await;
        if let Some(why) = bypass {
            self.note_bypass(&call, why);
            return None;
        }
        Some(call)
    }

    /// Begins the calls for several names: catches up with the log once, and opens one scope for all.
    pub(super) async fn begin_many<N: IntoName>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Vec<(Call<'_, T>, Option<Reason>)> {
        let named = |name| NamedKey::new(&self.kernel, Kind::Object, name);
        let named: Vec<_> = names.into_iter().map(named).collect();
        let context = CallContext::new(&self.kernel, self.policy.consistency).await;
        let policy = || Cow::Borrowed(&self.policy);
        let call = |named| Call::new(&self.kernel, named, policy(), self.spec, context.clone());
        named.into_iter().map(call).collect()
    }

    fn note_bypass(&self, call: &Call<'_, T>, why: Reason) {
        call.record(Event::Bypass(why), call.began);
        call.depend_on_the_unknown();
    }

    /// Looks a value up in the first level. `None` if the second level has to be read.
    fn look_in_memory(&self, call: &Call<'_, T>) -> Option<Option<Hit<T>>> {
        match call.look::<Option<Arc<T>>, Infallible>() {
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
    fn take_fetched(&self, call: &Call<'_, T>, fetched: Option<AnyEntry>) -> Option<Arc<T>> {
        let Some(entry) = fetched else {
            call.note_miss();
            call.depend_on_absence();
            return None;
        };
        call.record_served(Event::SharedHit, &entry, call.began);
        call.add_to_whole(&entry, false);
        self.kernel.slide(&entry);
        Option::<Arc<T>>::of_entry(&entry)?
    }

    async fn fetch(&self, call: &mut Call<'_, T>) -> Option<AnyEntry> {
        if !call.is_shared() {
            return None;
        }
        call.scope = call.waiting_scope();
        call.fetch_once().await
    }
}

/// A fresh entry of the first level, and its value; `None` for a negative result.
type Hit<T> = (AnyEntry, Option<Arc<T>>);

impl<T> Clone for Values<T> {
    fn clone(&self) -> Self {
        Self { kernel: self.kernel.clone(), policy: self.policy.clone(), spec: self.spec }
    }
}

impl<T> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").field("policy", &self.policy).finish_non_exhaustive()
    }
}
