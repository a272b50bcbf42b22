//! The options of a response cache, which its layer sets and everything else reads.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Extensions, HeaderName, HeaderValue, StatusCode};
use larder_core::{
    Consistency, Lifetime, Tiers,
    kernel::{AnyEntry, Moment, RefreshAhead},
};
use larder_semantics::{
    freshness::Heuristics,
    storing::{Profile, Role},
    targeted,
};

use super::overrides::ResponseOverrides;
use crate::address::{Head, QueryRule, Scheme};

pub(super) type Partition =
    Arc<dyn Fn(&Head<'_>) -> Result<Option<Bytes>, UnknownPartition> + Send + Sync>;
pub(super) type BypassPredicate = Arc<dyn Fn(&Head<'_>) -> bool + Send + Sync>;
/// A check whether the handler has written to the state that a request extension refers to. It runs after the handler.
pub(super) type WriteCheck = Box<dyn Fn() -> bool + Send + Sync>;
/// Returns the check for the extension of a request, or `None` if the request does not have the extension.
pub(super) type RefusalRule = Arc<dyn Fn(&Extensions) -> Option<WriteCheck> + Send + Sync>;
pub(super) type VaryBy = Arc<dyn Fn(&Head<'_>) -> String + Send + Sync>;

/// The error for a request whose partition could not be determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPartition;

/// A return type for the closure of [`ResponseCacheLayer::partition_by`](super::ResponseCacheLayer::partition_by): an
/// `Option` of a [`PartitionName`], or a `Result` of such an `Option`.
#[diagnostic::on_unimplemented(
    message = "`partition_by` needs an `Option` or a `Result<Option<_>, _>` of a partition name, not `{Self}`",
    note = "a partition name is an integer, a string or bytes, such as the id of a user: `Some(user.id)`"
)]
pub trait IntoPartition {
    /// Returns the partition, or `None` for a visitor.
    ///
    /// # Errors
    ///
    /// Returns an error if the partition could not be determined.
    fn into_partition(self) -> Result<Option<Bytes>, UnknownPartition>;
}

impl<P: PartitionName> IntoPartition for Option<P> {
    fn into_partition(self) -> Result<Option<Bytes>, UnknownPartition> {
        Ok(self.map(PartitionName::into_bytes))
    }
}

impl<P: PartitionName, E> IntoPartition for Result<Option<P>, E> {
    fn into_partition(self) -> Result<Option<Bytes>, UnknownPartition> {
        self.map(|partition| partition.map(PartitionName::into_bytes)).map_err(|_| UnknownPartition)
    }
}

/// The name of a partition: an integer, a string or bytes, such as the id of a user or tenant.
///
/// An integer names the same partition as its decimal string.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the name of a partition",
    note = "a partition name is an integer, a string or bytes; for another type return a string: `id.to_string()`"
)]
pub trait PartitionName {
    /// Returns the bytes that identify the partition in the key of the cache.
    fn into_bytes(self) -> Bytes;
}

macro_rules! partition_names {
    ($($name:ty: $bytes:expr;)*) => {$(
        impl PartitionName for $name {
            fn into_bytes(self) -> Bytes {
                $bytes(self)
            }
        }
    )*};
}

partition_names! {
    Bytes: std::convert::identity;
    String: Bytes::from;
    Vec<u8>: Bytes::from;
    &'static str: Bytes::from;
    &'static [u8]: Bytes::from;
    Box<[u8]>: Bytes::from;
    [u8; 16]: Bytes::from_owner;
    u32: |id: u32| id.to_string().into();
    u64: |id: u64| id.to_string().into();
    u128: |id: u128| id.to_string().into();
    i32: |id: i32| id.to_string().into();
    i64: |id: i64| id.to_string().into();
}

/// An input of the key in addition to the address and the partition.
#[derive(Clone)]
pub(super) struct KeyInput {
    pub(super) name: Arc<str>,
    /// The request fields that the value is derived from. Empty if downstream caches cannot see the input.
    pub(super) fields: Vec<HeaderName>,
    pub(super) value: VaryBy,
}

impl fmt::Debug for KeyInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyInput")
            .field("name", &self.name)
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
pub(super) struct Options {
    pub(super) name: Arc<str>,
    pub(super) lifetime: Option<Lifetime>,
    /// The lifetime that takes precedence over the lifetimes from the response and from its handler.
    pub(super) override_lifetime: Option<Lifetime>,
    pub(super) off: bool,
    pub(super) while_revalidating: Option<Duration>,
    pub(super) refresh_ahead: Option<RefreshAhead>,
    pub(super) on_error: Option<Duration>,
    pub(super) negative: Vec<(StatusCode, Lifetime)>,
    pub(super) scheme: Scheme,
    pub(super) query: QueryRule,
    pub(super) shared: bool,
    pub(super) partition: Option<Partition>,
    pub(super) vary_by: Vec<KeyInput>,
    pub(super) vary_by_header: Vec<HeaderName>,
    pub(super) harmless: Vec<HeaderName>,
    pub(super) depends_on_url_alone: bool,
    pub(super) credential_headers: Vec<HeaderName>,
    pub(super) credential_extensions: Vec<fn(&Extensions) -> bool>,
    pub(super) bypass_if: Vec<BypassPredicate>,
    pub(super) refuse_if: Vec<RefusalRule>,
    pub(super) browser: Option<HeaderValue>,
    pub(super) cdn: Option<HeaderValue>,
    pub(super) never_store_header: Vec<HeaderName>,
    pub(super) body_limit: usize,
    pub(super) coalesce_timeout: Duration,
    pub(super) deadline: Duration,
    pub(super) refusal: Duration,
    pub(super) variants: usize,
    pub(super) directives: bool,
    pub(super) consistency: Consistency,
    pub(super) tiers: Tiers,
    pub(super) lease: Option<Duration>,
    pub(super) profile: Profile,
    pub(super) role: Role,
    pub(super) heuristics: Option<Heuristics>,
    pub(super) revalidatable: Duration,
    pub(super) targets: Vec<HeaderName>,
    pub(super) strip_targeted_fields: bool,
    pub(super) no_vary_search: bool,
    pub(super) cache_status: bool,
    pub(super) cache_status_with_key: bool,
    pub(super) x_cache: bool,
    pub(super) server_timing: bool,
    /// Whether the handler answers each request, and the cache only counts what it would have done.
    pub(super) observes: bool,
    /// The share of plain hits that are compared with a response of the handler.
    pub(super) shadow: f64,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Options {
    /// Whether this cache separates requests by inputs that an enclosing cache does not know.
    pub(super) fn has_more_key_inputs(&self) -> bool {
        self.partition.is_some()
            || !self.vary_by.is_empty()
            || self.shared
            || !self.credential_headers.is_empty()
            || !self.credential_extensions.is_empty()
    }

    /// Returns the addresses of the closures, which all clones of a layer share.
    pub(super) fn closures(&self) -> Vec<usize> {
        let address = |closure: *const ()| closure as usize;
        let partition = self.partition.iter().map(|it| address(Arc::as_ptr(it).cast()));
        let bypasses = self.bypass_if.iter().map(|it| address(Arc::as_ptr(it).cast()));
        let inputs = self.vary_by.iter().map(|it| address(Arc::as_ptr(&it.value).cast()));
        let refusals = self.refuse_if.iter().map(|it| address(Arc::as_ptr(it).cast()));
        partition.chain(bypasses).chain(inputs).chain(refusals).collect()
    }

    /// Returns a `Vary` line with the request fields that key inputs are derived from, or `None` if there are no such
    /// fields.
    pub(super) fn vary_line(&self) -> Option<HeaderValue> {
        let mut names: Vec<&str> =
            self.vary_by.iter().flat_map(|input| &input.fields).map(HeaderName::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let line = HeaderValue::from_str(&names.join(", "));
        line.ok().filter(|line| !line.is_empty())
    }

    /// Whether the key has an input that downstream caches cannot see.
    pub(super) fn has_hidden_input(&self) -> bool {
        self.vary_by.iter().any(|input| input.fields.is_empty())
    }

    /// Whether a fresh response is to be refreshed before it expires.
    #[inline]
    pub(super) fn is_due(&self, entry: &AnyEntry, now: Moment) -> bool {
        self.refresh_ahead.is_some_and(|rule| rule.is_due(entry, now))
    }

    pub(super) fn rules(&self) -> (Profile, Role) {
        (self.profile, self.role)
    }

    pub(super) fn guesses(&self) -> Heuristics {
        self.heuristics.unwrap_or(match self.profile {
            Profile::Careful => Heuristics::Off,
            Profile::Conformance => Heuristics::TENTH,
        })
    }

    /// Passes options of a layer inside of another response cache (the lifetime, and the fields for browsers and CDNs)
    /// on to that cache, which stores the response.
    pub(super) fn pass_on_to(&self, around: &ResponseOverrides) {
        if let Some(lifetime) = self.override_lifetime.or(self.lifetime) {
            let revalidate = lifetime.window_while_revalidating();
            let on_error = lifetime.window_on_error();
            let lifetime = lifetime
                .stale_while_revalidate(self.while_revalidating.unwrap_or(revalidate))
                .stale_if_error(self.on_error.unwrap_or(on_error));
            if self.override_lifetime.is_some() {
                around.ttl(lifetime);
            } else {
                around.add(lifetime);
            }
        }
        if let Some(browser) = &self.browser {
            around.set_browser(browser.clone());
        }
        if let Some(cdn) = &self.cdn {
            around.set_cdn(cdn.clone());
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "responses".into(),
            lifetime: None,
            override_lifetime: None,
            off: false,
            while_revalidating: None,
            refresh_ahead: None,
            on_error: None,
            negative: Vec::new(),
            scheme: Scheme::default(),
            query: QueryRule::default(),
            shared: false,
            partition: None,
            vary_by: Vec::new(),
            vary_by_header: Vec::new(),
            harmless: Vec::new(),
            depends_on_url_alone: false,
            credential_headers: Vec::new(),
            credential_extensions: Vec::new(),
            bypass_if: Vec::new(),
            refuse_if: Vec::new(),
            browser: None,
            cdn: None,
            never_store_header: Vec::new(),
            body_limit: 1 << 20,
            coalesce_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            refusal: Duration::from_secs(10),
            variants: 32,
            directives: true,
            consistency: Consistency::Eventual,
            tiers: Tiers::BOTH,
            lease: None,
            profile: Profile::Careful,
            role: Role::Shared,
            heuristics: None,
            revalidatable: Duration::from_secs(86_400),
            targets: vec![targeted::CDN_CACHE_CONTROL],
            strip_targeted_fields: false,
            no_vary_search: false,
            cache_status: true,
            cache_status_with_key: false,
            x_cache: false,
            server_timing: false,
            observes: false,
            shadow: 0.0,
        }
    }
}
