//! How an object, fragment or query is kept.

use std::{borrow::Cow, time::Duration};

use crate::{consistency::Consistency, key::Kind, lifetime::Lifetime, tag::Tag, tiers::Tiers};

/// How long a value is kept, under which tags, and for whom.
///
/// A `Duration` or a [`Lifetime`] becomes a policy of its own.
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
    pub(crate) lease: Option<Duration>,
}

impl Policy {
    /// Fresh for `fresh`.
    pub fn ttl(fresh: Duration) -> Self {
        Self::from(fresh)
    }

    /// Adds a tag. The loader may add more.
    pub fn tag(mut self, tag: impl Into<Tag>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Adds tags. The loader may add more.
    pub fn tags<G: Into<Tag>>(mut self, tags: impl IntoIterator<Item = G>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// The name under which this is counted in [`Stats`](crate::Stats); `objects`, `fragments` or `queries` by
    /// default.
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

    /// The value does not depend on who asks: requests that say who they are share it too.
    ///
    /// Without this, a value that is made inside a partition belongs to the partition, and one that is
    /// made for a request with an identity but without a partition is not kept.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// The lifetime does not cut that of a page which the value becomes part of: tags will tell when the
    /// value is no longer true.
    pub fn until_invalidated(mut self) -> Self {
        self.until_invalidated = true;
        self
    }

    /// How long to wait for another's fill before one more is started beside it; 10 s by default. One waiter
    /// starts it, and all wait for both; at most four run at a time for one name.
    pub fn coalesce_timeout(mut self, limit: Duration) -> Self {
        self.coalesce_timeout = limit;
        self
    }

    /// How long the loader may take before it is given up; 30 s by default.
    #[doc(alias("hard timeout"))]
    pub fn fill_timeout(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How sure this call has to be that it has seen what other processes have invalidated.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// A value that was loaded longer ago than this is loaded anew for this call, however long it may be kept
    /// for others.
    pub fn max_age(mut self, longest: Duration) -> Self {
        self.max_age = Some(longest);
        self
    }

    /// Where the value is kept, and for how long in each tier; [`Tiers::BOTH`] by default.
    pub fn tiers(mut self, tiers: Tiers) -> Self {
        self.tiers = tiers;
        self
    }

    /// Lets the value reach the second level only sealed: see [`Tiers::require_sealing`].
    pub fn require_sealing(mut self) -> Self {
        self.tiers = self.tiers.require_sealing();
        self
    }

    /// Of all processes one loads; the others take what it has loaded from the shared store, or serve what is
    /// stale where they may. One that dies delays the others by `expiry`, then one of them takes over: choose a
    /// little more than the loader takes. Off by default, since each miss costs two round trips more.
    ///
    /// Without a shared store that has leases each process loads for itself, as ever.
    #[doc(alias("distributed lock", "cluster lock", "single flight across processes"))]
    pub fn fill_once_per_cluster(mut self, expiry: Duration) -> Self {
        self.lease = Some(expiry);
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
            lease: None,
        }
    }
}

impl From<Duration> for Policy {
    fn from(fresh: Duration) -> Self {
        Self::from(Lifetime::fresh_for(fresh))
    }
}
