//! How an object, fragment or query is kept.

use std::{borrow::Cow, time::Duration};

use crate::{consistency::Consistency, lifetime::Lifetime, tag::Tag};

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
    pub(crate) name: Cow<'static, str>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) shared: bool,
    pub(crate) until_invalidated: bool,
    pub(crate) wait_limit: Duration,
    pub(crate) deadline: Duration,
    pub(crate) consistency: Consistency,
    pub(crate) max_age: Option<Duration>,
}

impl Policy {
    /// Fresh for `fresh`, in the cache named `objects`.
    pub fn ttl(fresh: Duration) -> Self {
        Self::from(fresh)
    }

    /// Adds a tag. The loader may add more.
    pub fn tag(mut self, tag: impl Into<Tag>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// The name under which this is counted in [`Stats`](crate::Stats).
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
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

    /// How long to wait for another's fill before loading alone; 10 s by default.
    pub fn wait_limit(mut self, limit: Duration) -> Self {
        self.wait_limit = limit;
        self
    }

    /// How long the loader may take before it is given up; 30 s by default.
    #[doc(alias("hard timeout"))]
    pub fn deadline(mut self, deadline: Duration) -> Self {
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
}

impl From<Lifetime> for Policy {
    fn from(lifetime: Lifetime) -> Self {
        Self {
            lifetime,
            name: Cow::Borrowed("objects"),
            tags: Vec::new(),
            shared: false,
            until_invalidated: false,
            wait_limit: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            consistency: Consistency::Eventual,
            max_age: None,
        }
    }
}

impl From<Duration> for Policy {
    fn from(fresh: Duration) -> Self {
        Self::from(Lifetime::fresh_for(fresh))
    }
}
