//! [`Policy`]: how an object, fragment or query is stored.

use std::{borrow::Cow, time::Duration};

use crate::{
    consistency::Consistency, key::Kind, lifetime::Lifetime, refresh_ahead::RefreshAhead, tag::Tag,
    tiers::Tiers,
};

/// The policy for a value: its lifetime, tags, audience, levels and limits.
///
/// A `Duration` or a [`Lifetime`] converts into a policy.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use larder_core::{Lifetime, Policy};
///
/// let minute = Duration::from_secs(60);
/// let policy = Policy::from(Lifetime::fresh_for(minute).stale_while_revalidate(minute))
///     .tag(("product", 42))
///     .name("products");
/// # let _ = policy;
/// ```
#[doc(alias("cache options", "cache profile"))]
#[derive(Clone, Debug)]
#[must_use = "a policy does nothing until it is given to a call"]
pub struct Policy {
    pub(crate) lifetime: Lifetime,
    name: Option<Cow<'static, str>>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) shared: bool,
    pub(crate) until_invalidated: bool,
    pub(crate) coalesce_timeout: Duration,
    pub(crate) deadline: Duration,
    pub(crate) consistency: Consistency,
    pub(crate) max_age: Option<Duration>,
    pub(crate) tiers: Tiers,
    pub(crate) fill_lock: Option<Duration>,
    negative: Option<Lifetime>,
    pub(crate) error_backoff: Option<Duration>,
    pub(crate) refresh_ahead: Option<RefreshAhead>,
    pub(crate) idle: Option<Duration>,
}

impl Policy {
    /// Creates a policy with this freshness lifetime and no stale windows.
    pub fn ttl(fresh: Duration) -> Self {
        Self::from(fresh)
    }

    /// Adds a tag. The loader may add more.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::{Larder, Policy};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let price = async |cents: u32| {
    ///     let policy = Policy::ttl(Duration::from_secs(60)).tag(("product", 42));
    ///     larder.get_or_load("price of 42", policy, move |_| async move { Ok::<_, Infallible>(cents) }).await
    /// };
    /// assert_eq!(*price(1999).await?, 1999);
    /// assert_eq!(*price(999).await?, 1999, "the stored value");
    ///
    /// let _logged = larder.invalidate(("product", 42)).await;
    /// assert_eq!(*price(999).await?, 999);
    /// # Ok(())
    /// # }
    /// ```
    pub fn tag(mut self, tag: impl Into<Tag>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Adds tags. The loader may add more.
    pub fn tags<G: Into<Tag>>(mut self, tags: impl IntoIterator<Item = G>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Sets the cache name under which [`Stats`](crate::Stats) counts this; `objects`, `fragments` or `queries` by
    /// default.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::{Larder, Policy};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let policy = Policy::ttl(Duration::from_secs(60)).name("rates");
    /// let load = |_| async { Ok::<_, Infallible>(1.08) };
    /// larder.get_or_load(("rate", "EUR"), policy, load).await?;
    ///
    /// let stats = larder.stats();
    /// assert_eq!(stats.cache("rates").map(|rates| rates.total.misses), Some(1));
    /// assert!(stats.cache("objects").is_none(), "the default name is not used");
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    pub(crate) fn cache_name(&self, kind: Kind) -> &str {
        let by_kind = match kind {
            Kind::Response => "responses",
            Kind::Fragment => "fragments",
            Kind::Query => "queries",
            Kind::Object => "objects",
        };
        self.name.as_deref().unwrap_or(by_kind)
    }

    /// Sets the lifetime of a negative result: of the record that the source has no value of this name, which
    /// [`Values::get_or_load_optional`](crate::values::Values::get_or_load_optional) and the batch methods store. By
    /// default it is fresh for as long as a value, but for a minute at most, and it has no stale windows.
    ///
    /// A negative result has the tags of the value, so the invalidation after an `INSERT` reaches it too.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::{Larder, Policy};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let policy = Policy::ttl(Duration::from_secs(3600)).negative_ttl(Duration::from_secs(5));
    /// let users = larder.values::<String>(policy);
    /// let find = async |row: Option<&'static str>| {
    ///     let load = move |_| async move { Ok::<_, Infallible>(row.map(str::to_owned)) };
    ///     users.get_or_load_optional(("user", 7), load).await
    /// };
    /// assert_eq!(find(None).await?, None);
    /// assert_eq!(find(Some("Ada")).await?, None, "the negative result is stored");
    ///
    /// tokio::time::advance(Duration::from_secs(5)).await;
    /// assert_eq!(find(Some("Ada")).await?.as_deref().map(String::as_str), Some("Ada"));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("negative caching", "cache null", "cache penetration", "not found"))]
    pub fn negative_ttl(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.negative = Some(lifetime.into());
        self
    }

    pub(crate) fn negative_lifetime(&self) -> Lifetime {
        self.negative.unwrap_or_else(|| {
            let lifetime = Lifetime::fresh_for(self.lifetime.fresh().min(LONGEST_NEGATIVE));
            self.lifetime.expiry().map_or(lifetime, |expiry| lifetime.expires_at(expiry))
        })
    }

    /// Remembers a failure of the loader for this long, in this process: calls for the name get the same error without
    /// loading, so that a source in trouble is not asked again at once. Off by default.
    ///
    /// A stale value that may be served on errors comes first. An invalidation of the name or of a tag ends the backoff.
    /// Errors are never stored as values, and each process learns of the failure for itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{io, time::Duration};
    /// # use larder_core::{Larder, LoadError, Policy};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let rate = async |loaded: io::Result<f64>| {
    ///     let policy = Policy::ttl(Duration::from_secs(60)).error_backoff(Duration::from_secs(2));
    ///     larder.get_or_load("rate", policy, move |_| async move { loaded }).await
    /// };
    /// assert!(rate(Err(io::Error::other("the bank is closed"))).await.is_err());
    /// assert!(matches!(rate(Ok(1.08)).await, Err(LoadError::Failed(_))), "the bank is not asked again");
    ///
    /// tokio::time::advance(Duration::from_secs(2)).await;
    /// assert_eq!(*rate(Ok(1.08)).await?, 1.08);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("circuit breaker", "cache errors", "retry after"))]
    pub fn error_backoff(mut self, backoff: Duration) -> Self {
        self.error_backoff = Some(backoff);
        self
    }

    /// Refreshes a fresh value in the background once less than this share of its freshness lifetime is left, so that a
    /// value that is requested often enough never expires. Larder answers the request that triggers the refresh at once.
    ///
    /// A value that is not requested is not refreshed. Refreshes run within
    /// [`LarderBuilder::refresh_budget`](crate::LarderBuilder::refresh_budget), read the second level first, and take
    /// the fill lock of [`fill_once_per_cluster`](Self::fill_once_per_cluster); after a refresh
    /// that has failed, the next one waits for a request a second later, then for one two seconds later, up to 64.
    ///
    /// # Panics
    ///
    /// If the share is not more than 0 and less than 1.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::{Larder, Policy};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let minute = Duration::from_secs(60);
    /// let rates = larder.values::<f64>(Policy::ttl(minute).refresh_ahead(0.2));
    /// let rate = async |loaded: f64| {
    ///     rates.get_or_load("EUR", move |_| async move { Ok::<_, Infallible>(loaded) }).await
    /// };
    /// assert_eq!(*rate(1.08).await?, 1.08);
    ///
    /// tokio::time::advance(minute / 60 * 50).await; // a sixth of the lifetime is left
    /// assert_eq!(*rate(1.09).await?, 1.08, "the stored value, at once");
    /// larder.close(minute).await; // waits for the refresh
    /// assert_eq!(*rate(1.10).await?, 1.09, "it was refreshed before it expired");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("early refresh", "prefetch", "refreshAfterWrite"))]
    pub fn refresh_ahead(mut self, share: f64) -> Self {
        self.refresh_ahead = Some(RefreshAhead::share(share));
        self
    }

    /// Refreshes a fresh value in the background at random, the likelier the sooner it expires and the longer its load
    /// took (XFetch). 1 is the factor of the paper; a larger one refreshes earlier. In place of
    /// [`refresh_ahead`](Self::refresh_ahead), for values whose loads differ in time.
    ///
    /// # Panics
    ///
    /// If the factor is not a positive number.
    ///
    /// # Source
    ///
    /// A. Vattani, F. Chierichetti, K. Lowenstein: Optimal Probabilistic Cache Stampede Prevention. VLDB 2015.
    #[doc(alias("xfetch", "probabilistic early expiration"))]
    pub fn refresh_early(mut self, factor: f64) -> Self {
        self.refresh_ahead = Some(RefreshAhead::early(factor));
        self
    }

    /// Ends the freshness of a value that was not read for this time. Each read restarts the time; `contains` and
    /// `remaining_ttl` are no reads. The freshness lifetime of the policy is the maximum age, which reads do not extend. An idle value has no stale windows.
    ///
    /// A read in one process is known to the others through the second level, which larder writes at most once a minute
    /// for a value, so they may serve it up to a minute longer than `idle`. The memory of an idle value is free at its
    /// maximum age, or earlier by eviction.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::{Larder, Policy};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let minute = Duration::from_secs(60);
    /// let carts = larder.values::<u32>(Policy::ttl(60 * minute).sliding(10 * minute));
    /// carts.set(&larder.read_point(), "cart", 3).await;
    /// for _ in 0..5 {
    ///     tokio::time::advance(9 * minute).await;
    ///     assert!(carts.get("cart").await.is_some(), "each read lets the ten minutes begin anew");
    /// }
    /// tokio::time::advance(10 * minute).await;
    /// assert!(carts.get("cart").await.is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("sliding expiration", "time to idle", "expire after access"))]
    pub fn sliding(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Declares that the value does not depend on the user, so that authenticated requests share it too.
    ///
    /// Without this, a value that is built inside a partition belongs to that partition, and a value that is built for
    /// an authenticated request without a partition is not stored.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Prevents the lifetime of the value from shortening the lifetime of a page that includes it. Use it for values
    /// that are invalidated by tag whenever they change.
    pub fn until_invalidated(mut self) -> Self {
        self.until_invalidated = true;
        self
    }

    /// Sets how long a call waits for the fill of another call before one waiter starts a second fill in parallel; 10 s
    /// by default. All waiters then wait for both fills. At most four fills run at a time for one name.
    pub fn coalesce_timeout(mut self, limit: Duration) -> Self {
        self.coalesce_timeout = limit;
        self
    }

    /// Sets how long the loader may run before it is cancelled; 30 s by default.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, future, time::Duration};
    /// # use larder_core::{Larder, LoadError, Policy};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let policy = || Policy::ttl(Duration::from_secs(60)).fill_timeout(Duration::from_secs(2));
    /// let endless = |_| future::pending::<Result<u32, Infallible>>();
    /// let late = larder.get_or_load("report", policy(), endless).await;
    /// assert!(matches!(late, Err(LoadError::TimedOut { .. })));
    ///
    /// // The error is not stored: the next call loads.
    /// let load = |_| async { Ok::<_, Infallible>(7) };
    /// assert_eq!(*larder.get_or_load("report", policy(), load).await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("hard timeout"))]
    pub fn fill_timeout(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets how current this call must be with respect to invalidations by other processes.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Loads a value again for this call if it was loaded longer than `longest` ago. Other calls may still get the
    /// stored value.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::{Larder, Policy};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let stock = async |policy: Policy, loaded: u32| {
    ///     larder.get_or_load("stock", policy, move |_| async move { Ok::<_, Infallible>(loaded) }).await
    /// };
    /// let hour = || Policy::ttl(Duration::from_secs(3600));
    /// assert_eq!(*stock(hour(), 8).await?, 8);
    ///
    /// tokio::time::advance(Duration::from_secs(60)).await;
    /// assert_eq!(*stock(hour(), 7).await?, 8, "a page that lists the product");
    /// assert_eq!(*stock(hour().max_age(Duration::from_secs(10)), 7).await?, 7, "the order of the product");
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_age(mut self, longest: Duration) -> Self {
        self.max_age = Some(longest);
        self
    }

    /// Sets the levels that store the value, and for how long each does; [`Tiers::BOTH`] by default. An earlier
    /// [`require_sealing`](Self::require_sealing) stays in force.
    pub fn tiers(mut self, tiers: Tiers) -> Self {
        self.tiers = tiers.in_place_of(self.tiers);
        self
    }

    /// Allows the second level to store the value only sealed; see [`Tiers::require_sealing`].
    pub fn require_sealing(mut self) -> Self {
        self.tiers = self.tiers.require_sealing();
        self
    }

    /// Takes a fill lock, so that only one process loads; the other processes take its value from the second level, or
    /// serve a stale value if they may. A process that dies delays the other processes by `expiry`, and then one of
    /// them takes over, so choose a little more than the loader takes. Off by default, since each miss costs two more
    /// round trips.
    ///
    /// Without a second level and [`LarderBuilder::fill_locks`](crate::LarderBuilder::fill_locks) each process loads
    /// for itself.
    #[doc(alias("distributed lock", "cluster lock", "single flight across processes"))]
    pub fn fill_once_per_cluster(mut self, expiry: Duration) -> Self {
        self.fill_lock = Some(expiry);
        self
    }
}

impl From<Lifetime> for Policy {
    fn from(lifetime: Lifetime) -> Self {
        Self {
            lifetime,
            name: None,
            tags: Vec::new(),
            shared: false,
            until_invalidated: false,
            coalesce_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            consistency: Consistency::Eventual,
            max_age: None,
            tiers: Tiers::BOTH,
            fill_lock: None,
            negative: None,
            error_backoff: None,
            refresh_ahead: None,
            idle: None,
        }
    }
}

impl From<Duration> for Policy {
    fn from(fresh: Duration) -> Self {
        Self::from(Lifetime::fresh_for(fresh))
    }
}

/// The longest default lifetime of a negative result.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(60);
