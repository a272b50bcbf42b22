//! The options of a response cache.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Extensions, HeaderName, HeaderValue, StatusCode};
use larder_core::{ByteSize, Consistency, Larder, Lifetime, Tiers, kernel::Kernel};
use larder_semantics::{
    freshness::Heuristics,
    storing::{Profile, Role},
    targeted,
};
use tower_layer::Layer;

use super::{outgoing, overrides::ResponseOverrides, plan::CacheContext, service::ResponseCache};
use crate::address::{Head, QueryRule, Scheme};

/// Keeps whole responses and answers from them.
///
/// See the [module](super) for what it does by itself.
#[doc(alias(
    "page cache",
    "HTTP cache",
    "output cache",
    "reverse proxy cache",
    "full page caching",
    "single flight",
    "stampede",
    "request coalescing"
))]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct ResponseCacheLayer {
    pub(super) kernel: Kernel,
    pub(super) options: Options,
}

pub(super) type Partition =
    Arc<dyn Fn(&Head<'_>) -> Result<Option<Bytes>, UnknownPartition> + Send + Sync>;
pub(super) type BypassPredicate = Arc<dyn Fn(&Head<'_>) -> bool + Send + Sync>;
/// Whether what an extension of a request stands for was written by the handler, asked after it.
pub(super) type WriteCheck = Box<dyn Fn() -> bool + Send + Sync>;
/// Takes the extension of a request, if it has it.
pub(super) type RefusalRule = Arc<dyn Fn(&Extensions) -> Option<WriteCheck> + Send + Sync>;
pub(super) type VaryBy = Arc<dyn Fn(&Head<'_>) -> String + Send + Sync>;

/// It could not be told to which partition a request belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPartition;

/// What [`ResponseCacheLayer::partition_by`] takes from its closure: an `Option`, or a `Result` of one.
pub trait IntoPartition {
    /// The partition, none for visitors.
    ///
    /// # Errors
    ///
    /// Where it could not be told.
    fn into_partition(self) -> Result<Option<Bytes>, UnknownPartition>;
}

impl<P: Into<Bytes>> IntoPartition for Option<P> {
    fn into_partition(self) -> Result<Option<Bytes>, UnknownPartition> {
        Ok(self.map(Into::into))
    }
}

impl<P: Into<Bytes>, E> IntoPartition for Result<Option<P>, E> {
    fn into_partition(self) -> Result<Option<Bytes>, UnknownPartition> {
        self.map(|partition| partition.map(Into::into)).map_err(|_| UnknownPartition)
    }
}

/// An input of the key beside the address and the partition.
#[derive(Clone)]
pub(super) struct KeyInput {
    pub(super) name: Arc<str>,
    /// The request fields that it is derived from. Empty where downstream caches cannot see it.
    pub(super) fields: Vec<HeaderName>,
    pub(super) value: VaryBy,
}

#[derive(Clone)]
pub(super) struct Options {
    pub(super) name: Arc<str>,
    pub(super) lifetime: Option<Lifetime>,
    pub(super) overrides: bool,
    pub(super) off: bool,
    pub(super) while_revalidating: Option<Duration>,
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
    pub(super) demands: bool,
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
}

impl ResponseCacheLayer {
    /// A layer over this larder. By itself it keeps only what responses themselves allow to be kept.
    pub fn new(larder: &Larder) -> Self {
        Self { kernel: larder.kernel().clone(), options: Options::default() }
    }

    /// How long a response is kept that says nothing about it. Without this it is not kept.
    ///
    /// Prefer a lifetime that the handler chooses (`CachePolicy`, `Cache-Control`): it knows what its response
    /// depends on. One that lives by this alone may depend on any field of its request. So `Accept`,
    /// `Accept-Language` and the fields of partial pages are part of its key, unless it has a `Vary`, and a request
    /// with a field that is not known to be harmless passes by (`detail=unknown-field`).
    /// [`depends_on_url_alone`](Self::depends_on_url_alone) promises that no field matters;
    /// [`harmless_field`](Self::harmless_field) and [`vary_by_header`](Self::vary_by_header) say it of one.
    ///
    /// A response that lives only by this leaves with `Cache-Control: no-cache` and an `ETag`, since a
    /// browser cannot be invalidated.
    #[doc(alias("time to live", "default ttl"))]
    pub fn ttl(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.lifetime = Some(lifetime.into());
        self
    }

    /// How long every response is kept that may be kept at all, whatever it says of its lifetime.
    pub fn override_ttl(mut self, lifetime: impl Into<Lifetime>) -> Self {
        self.options.overrides = true;
        self.ttl(lifetime)
    }

    /// Nothing is kept. On a route inside another response cache: an exception.
    pub fn disabled(mut self) -> Self {
        self.options.off = true;
        self
    }

    /// Requests for which this says yes pass by: nothing of them is looked up or kept, and they keep all their
    /// fields. An exception from a layer that is [`shared`](Self::shared), where a route inside comes too late to
    /// ask for the fields that were hidden. It is asked for each request, so it should be cheap. Given several times,
    /// one that says yes is enough.
    ///
    /// ```
    /// use larder_core::Larder;
    /// use larder_http::ResponseCacheLayer;
    ///
    /// let larder = Larder::builder().build().expect("the defaults are valid");
    /// let layer: ResponseCacheLayer =
    ///     ResponseCacheLayer::new(&larder).shared().bypass_if(|head| head.uri.path().starts_with("/cart"));
    /// # let _ = layer;
    /// ```
    #[doc(alias("exclude", "skip", "condition"))]
    pub fn bypass_if<F>(mut self, passes: F) -> Self
    where
        F: Fn(&Head<'_>) -> bool + Send + Sync + 'static,
    {
        self.options.bypass_if.push(Arc::new(passes));
        self
    }

    /// For how long a stale response answers while one refresh runs, where a response says nothing itself.
    #[doc(alias("background refresh", "SWR", "refresh-ahead"))]
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.options.while_revalidating = Some(window);
        self
    }

    /// For how long a stale response answers in place of an error (500, 502, 503, 504 or a service that
    /// fails), where a response says nothing itself.
    #[doc(alias("fail-safe", "grace"))]
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.options.on_error = Some(window);
        self
    }

    /// Keeps responses of these statuses for `lifetime`, unless they say otherwise. None by default: an
    /// error that is kept hides a page from everybody.
    #[doc(alias("negative caching", "cache penetration"))]
    pub fn negative_ttl(
        mut self,
        statuses: impl IntoIterator<Item = StatusCode>,
        lifetime: impl Into<Lifetime>,
    ) -> Self {
        let lifetime = lifetime.into();
        self.options.negative.extend(statuses.into_iter().map(|status| (status, lifetime)));
        self
    }

    /// The responses of these routes do not depend on who asks: fields that say who asks are hidden from
    /// requests that may be answered from the cache, and everybody shares the answers.
    pub fn shared(mut self) -> Self {
        self.options.shared = true;
        self
    }

    /// Keeps an entry for each partition, such as each user. Only with a partition may a `private` response be
    /// kept.
    ///
    /// The closure gives an `Option` or a `Result<Option<_>, _>`: `Some` names the partition, `None` puts a request
    /// with the visitors who have none, and an `Err` lets it pass by (`detail=identity`). Where finding the user
    /// may fail, say so by the `Err`: `.ok()` would make a user whose session cannot be read a visitor, and if the
    /// handler reads it all the same, the page of that user a page for all visitors.
    ///
    /// The name of the partition has to be verified already: the id of a session, not the text of a cookie.
    ///
    /// ```
    /// use larder_core::Larder;
    /// use larder_http::ResponseCacheLayer;
    ///
    /// #[derive(Clone)]
    /// struct SessionUnreadable;
    /// #[derive(Clone)]
    /// struct User(u64);
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// // The authentication outside leaves what it found: a user, a visitor, or that it could not tell.
    /// let layer = ResponseCacheLayer::new(&larder).partition_by(|head| {
    ///     match head.extensions.get::<Result<Option<User>, SessionUnreadable>>() {
    ///         Some(Ok(user)) => Ok(user.as_ref().map(|user| user.0.to_string())),
    ///         Some(Err(_)) | None => Err(SessionUnreadable),
    ///     }
    /// });
    /// # drop(layer);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("vary by user", "private cache"))]
    pub fn partition_by<P: IntoPartition>(
        mut self,
        partition: impl Fn(&Head<'_>) -> P + Send + Sync + 'static,
    ) -> Self {
        self.options.partition = Some(Arc::new(move |head| partition(head).into_partition()));
        self
    }

    /// Keeps an entry for each value, such as a locale or a class of devices. The values should be few.
    ///
    /// `fields` are the request fields that `value` reads. Responses name them in `Vary`, so that caches further
    /// on tell the same requests apart. Without any, the value depends on something that those caches cannot see,
    /// such as an extension: then responses leave as `private`, and nothing is told to a CDN.
    ///
    /// ```
    /// use http::header;
    /// use larder_core::Larder;
    /// use larder_http::ResponseCacheLayer;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let layer = ResponseCacheLayer::new(&larder).vary_by("device", [header::USER_AGENT], |head| {
    ///     let agent = head.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    ///     if agent.is_some_and(|agent| agent.contains("Mobile")) { "phone" } else { "desktop" }
    /// });
    /// # drop(layer);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("vary by header", "vary by custom"))]
    pub fn vary_by<V: Into<String>>(
        mut self,
        name: &str,
        fields: impl IntoIterator<Item = HeaderName>,
        value: impl Fn(&Head<'_>) -> V + Send + Sync + 'static,
    ) -> Self {
        self.options.vary_by.push(KeyInput {
            name: name.into(),
            fields: fields.into_iter().collect(),
            value: Arc::new(move |head| value(head).into()),
        });
        self
    }

    /// Lets a field reach the handler that is taken out of what may be kept, such as `X-Forwarded-Host`, and
    /// keeps an entry for each of its values. For fields that a proxy in front always sets. Responses name it in
    /// `Vary`.
    #[doc(alias("unkeyed header", "cache poisoning"))]
    pub fn vary_by_header(mut self, field: HeaderName) -> Self {
        self.options.vary_by_header.push(field.clone());
        let name = field.as_str().to_owned();
        self.vary_by(&name, [field.clone()], move |head| {
            // Lengths, so that one line never reads like two.
            let lines = head.headers.get_all(&field).iter();
            lines
                .map(|line| format!("{}={};", line.len(), line.as_bytes().escape_ascii()))
                .collect::<String>()
        })
    }

    /// A field of requests that selects nothing, such as one of your own for tracing: it is no reason to pass by a
    /// response that lives by [`ttl`](Self::ttl) alone.
    pub fn harmless_field(mut self, field: HeaderName) -> Self {
        self.options.harmless.push(field);
        self
    }

    /// Promises that every response of these routes depends on its URL alone, and on fields that it names in
    /// `Vary`: also one that lives by [`ttl`](Self::ttl) alone, so that a browser, a script and a request with
    /// fields that larder does not know share it. Credentials still count.
    #[doc(alias("ignore headers"))]
    pub fn depends_on_url_alone(mut self) -> Self {
        self.options.depends_on_url_alone = true;
        self
    }

    /// Fields by which a request says who asks, in place of `Cookie`, `Authorization`, `Proxy-Authorization`,
    /// `X-Api-Key`, `X-Auth-Token`, `X-Remote-User`, and what proxies that sign in say: `X-Forwarded-User`, `-Email`,
    /// `-Groups`, `-Preferred-Username`, `-Access-Token` and `-Client-Cert`, and any whose name holds `auth`, `token`,
    /// `secret`, `password`, `session` or `api-key`.
    pub fn credential_headers(mut self, fields: impl IntoIterator<Item = HeaderName>) -> Self {
        self.options.credential_headers = fields.into_iter().collect();
        self
    }

    /// A type that a session or auth layer puts into the extensions of a request to say who asks. Such a
    /// request is not answered from the cache, unless there is a partition.
    pub fn credential_extension<T: Send + Sync + 'static>(mut self) -> Self {
        self.options.credential_extensions.push(|extensions| extensions.get::<T>().is_some());
        self
    }

    /// A response is not stored (`detail=session-written`) if this says yes of the `T` in the extensions of its
    /// request, asked after the handler and again at the end of the body: a session that the handler has written
    /// to. `T` is a handle whose clones share their state.
    /// Until then no waiter gets the response either: requests with a `T` wait for the end of a body.
    ///
    /// For session layers that stand outside of the cache, which adds their cookie where the cache does not see it.
    /// [`FinalHeadLayer`](crate::FinalHeadLayer) finds that cookie for every session layer there is; this finds the
    /// write where that layer is missing, and in a refresh in the background.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
    /// use larder_core::Larder;
    /// use larder_http::ResponseCacheLayer;
    ///
    /// #[derive(Clone)]
    /// struct Session { is_written: Arc<AtomicBool> }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let layer = ResponseCacheLayer::new(&larder)
    ///     .refuse_if(|session: &Session| session.is_written.load(Ordering::Acquire));
    /// # drop(layer);
    /// # Ok(())
    /// # }
    /// ```
    pub fn refuse_if<T: Clone + Send + Sync + 'static>(
        mut self,
        is_written: impl Fn(&T) -> bool + Send + Sync + 'static,
    ) -> Self {
        let is_written = Arc::new(is_written);
        self.options.refuse_if.push(Arc::new(move |extensions| {
            let (extension, is_written) = (extensions.get::<T>()?.clone(), Arc::clone(&is_written));
            Some(Box::new(move || is_written(&extension)) as WriteCheck)
        }));
        self
    }

    /// A response whose handler has written to its session of `tower-sessions` is not stored. See
    /// [`refuse_if`](Self::refuse_if).
    #[cfg(feature = "tower-sessions")]
    pub fn refuse_written_sessions(self) -> Self {
        self.refuse_if(tower_sessions_core::Session::is_modified)
    }

    /// What browsers are told of responses that live by this layer, in place of `no-cache`: the text of
    /// `Cache-Control`.
    ///
    /// # Panics
    ///
    /// If the text is no field value: it may hold visible ASCII, blanks and tabs.
    pub fn browser_cache_control(mut self, cache_control: impl AsRef<str>) -> Self {
        self.options.browser = Some(field_value("browser_cache_control", cache_control.as_ref()));
        self
    }

    /// What a content delivery network is told of responses that live by this layer: the text of
    /// `CDN-Cache-Control` ([RFC 9213](https://www.rfc-editor.org/rfc/rfc9213)).
    ///
    /// # Panics
    ///
    /// If the text is no field value: it may hold visible ASCII, blanks and tabs.
    pub fn cdn_cache_control(mut self, cache_control: impl AsRef<str>) -> Self {
        self.options.cdn = Some(field_value("cdn_cache_control", cache_control.as_ref()));
        self
    }

    /// A field that belongs to one response and not to the copy that is kept, beside `X-Request-Id` and
    /// `Server-Timing`.
    pub fn never_store_header(mut self, field: HeaderName) -> Self {
        self.options.never_store_header.push(field);
        self
    }

    /// The largest body that is kept; 1 MiB by default. A larger one goes to its client as it comes.
    pub fn body_limit(mut self, limit: ByteSize) -> Self {
        self.options.body_limit = limit.as_bytes();
        self
    }

    /// How long a request waits for another's fill before one more is started beside it; 10 s by default. One
    /// waiter starts it, and all wait for both; at most four run at a time for one address.
    pub fn coalesce_timeout(mut self, limit: Duration) -> Self {
        self.options.coalesce_timeout = limit;
        self
    }

    /// How long a fill may take, its body included, before it becomes its client's own; 30 s by default. Its
    /// waiters try again, one after the other, and after four such fills get 504.
    pub fn fill_timeout(mut self, deadline: Duration) -> Self {
        self.options.deadline = deadline;
        self
    }

    /// For how long it is remembered that the response of an address was not to be kept, so that requests
    /// for it do not queue; 10 s by default.
    #[doc(alias("hit-for-miss", "hit-for-pass"))]
    pub fn hit_for_miss_ttl(mut self, time: Duration) -> Self {
        self.options.refusal = time;
        self
    }

    /// The most variants of one URL that larder stores; 32 by default. One more replaces the least recently used.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_variants(mut self, variants: usize) -> Self {
        assert!(variants > 0, "max_variants is 0, allowed is 1 or more");
        self.options.variants = variants;
        self
    }

    /// Which parameters of a query tell addresses apart; all by default.
    #[doc(alias("vary by query"))]
    pub fn query_params(mut self, rule: QueryRule) -> Self {
        self.options.query = rule;
        self
    }

    /// The scheme of effective URIs; `http` by default.
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.options.scheme = scheme;
        self
    }

    /// Ignores what requests demand by `Cache-Control` and `Pragma`: nobody can make the origin work by
    /// asking for `no-cache`.
    pub fn ignore_request_cache_control(mut self) -> Self {
        self.options.demands = false;
        self
    }

    /// How sure these routes have to be that they have seen what other processes have invalidated. A request
    /// for which that cannot be is passed on, with `detail=unsynchronised`.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.options.consistency = consistency;
        self
    }

    /// Where responses are kept, and for how long in each tier; [`Tiers::BOTH`] by default.
    #[doc(alias("L1 only", "L2 only"))]
    pub fn tiers(mut self, tiers: Tiers) -> Self {
        self.options.tiers = tiers;
        self
    }

    /// Lets responses reach the second level only sealed.
    ///
    /// # Panics
    ///
    /// When the larder has a second level and no keys to seal with
    /// ([`LarderBuilder::seal_with`](larder_core::LarderBuilder::seal_with)).
    pub fn require_sealing(mut self) -> Self {
        assert!(
            !self.kernel.has_store() || self.kernel.seals(),
            "require_sealing needs LarderBuilder::seal_with: this larder has a second level and no keys"
        );
        self.options.tiers = self.options.tiers.require_sealing();
        self
    }

    /// Of all processes one fills; the others take what it has filled from the shared store, or serve what is
    /// stale where they may. One that dies delays the others by `expiry`, then one of them takes over: choose a
    /// little more than the handlers take. Off by default, since each miss costs two round trips more.
    ///
    /// Without a shared store that has leases each process fills for itself, as ever.
    #[doc(alias("distributed lock", "single flight across processes"))]
    pub fn fill_once_per_cluster(mut self, expiry: Duration) -> Self {
        self.options.lease = Some(expiry);
        self
    }

    /// Follows RFC 9111 where this layer is stricter by default: responses with `Set-Cookie` are kept, plain
    /// `max-age` is enough to answer requests that say who asks, lifetimes are guessed
    /// ([`Heuristics::TENTH`]), and what is stale stands in for a dead origin unless the response forbids it.
    pub fn conformance(mut self) -> Self {
        self.options.profile = Profile::Conformance;
        self
    }

    /// Works as the cache of one user, around a client: keeps what is `private`, and ignores what is said
    /// to shared caches (`s-maxage`, `proxy-revalidate`, targeted fields).
    pub fn private_cache(mut self) -> Self {
        self.options.role = Role::Private;
        self.options.scheme = Scheme::OfUri;
        self.options.targets.clear();
        self
    }

    /// How the lifetime of a response that says nothing about it is guessed, where the layer adds none.
    /// [`Heuristics::Off`] by default, [`Heuristics::TENTH`] under [`conformance`](Self::conformance).
    #[doc(alias("heuristic freshness"))]
    pub fn heuristics(mut self, heuristics: Heuristics) -> Self {
        self.options.heuristics = Some(heuristics);
        self
    }

    /// For how long after its freshness a response with a validator is held, to be revalidated with its
    /// origin instead of being fetched again; a day by default. Costs memory that nothing else asks for.
    #[doc(alias("revalidation", "conditional request", "304"))]
    pub fn keep_for_revalidation(mut self, window: Duration) -> Self {
        self.options.revalidatable = window;
        self
    }

    /// The targeted fields that speak to this cache, the most specific first, in place of
    /// `CDN-Cache-Control` alone ([RFC 9213](https://www.rfc-editor.org/rfc/rfc9213)).
    pub fn targeted_fields(mut self, fields: impl IntoIterator<Item = HeaderName>) -> Self {
        self.options.targets = fields.into_iter().collect();
        self
    }

    /// Follows `No-Vary-SearchKey`: addresses whose queries mean the same by what a response has said share it.
    ///
    /// The handler sees each query as it was sent, so whoever says so must mean it. Costs a second look on
    /// a miss.
    ///
    /// # Source
    ///
    /// [draft-ietf-httpbis-no-vary-search](https://datatracker.ietf.org/doc/draft-ietf-httpbis-no-vary-search/)
    pub fn no_vary_search(mut self) -> Self {
        self.options.no_vary_search = true;
        self
    }

    /// Takes the targeted fields out of what leaves. By default they pass, for caches further on.
    pub fn strip_targeted_fields(mut self) -> Self {
        self.options.strip_targeted_fields = true;
        self
    }

    /// The name under which this is counted in `Stats`; `responses` by default.
    pub fn name(mut self, name: &str) -> Self {
        self.options.name = name.into();
        self
    }

    /// Leaves `Cache-Status` out of responses, for clients who may not know what the cache does.
    pub fn hide_cache_status(mut self) -> Self {
        self.options.cache_status = false;
        self
    }

    /// Adds the key of the entry to `Cache-Status`. It names the address, and nothing of who asks.
    pub fn cache_status_with_key(mut self) -> Self {
        self.options.cache_status_with_key = true;
        self
    }

    /// Adds a plain `X-Cache: hit`, `stale`, `miss` or `bypass`.
    pub fn x_cache(mut self) -> Self {
        self.options.x_cache = true;
        self
    }
}

impl<S> Layer<S> for ResponseCacheLayer {
    type Service = ResponseCache<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let options = &self.options;
        self.kernel.note_setting("scheme", &options.scheme, "ResponseCacheLayer");
        // Caches of different names serve different routes.
        let query_params = format!("query_params of cache {}", options.name);
        self.kernel.note_setting(query_params, &options.query, "ResponseCacheLayer");
        ResponseCache::new(inner, CacheContext::new(&self.kernel, options))
    }
}

impl Clone for ResponseCacheLayer {
    fn clone(&self) -> Self {
        Self { kernel: self.kernel.clone(), options: self.options.clone() }
    }
}

impl fmt::Debug for ResponseCacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCacheLayer")
            .field("name", &self.options.name)
            .finish_non_exhaustive()
    }
}

/// # Panics
///
/// For a text that no field may hold.
fn field_value(setter: &str, text: &str) -> HeaderValue {
    outgoing::field_value(text).unwrap_or_else(|| {
        panic!("{setter}({text:?}): a field holds visible ASCII, blanks and tabs, nothing else")
    })
}

impl Options {
    /// The request fields that inputs of the key are derived from, as a `Vary` line.
    pub(super) fn vary_line(&self) -> Option<HeaderValue> {
        let mut names: Vec<&str> =
            self.vary_by.iter().flat_map(|input| &input.fields).map(HeaderName::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let line = HeaderValue::from_str(&names.join(", "));
        line.ok().filter(|line| !line.is_empty())
    }

    /// Whether the key has an input that no cache further on can see.
    pub(super) fn has_hidden_input(&self) -> bool {
        self.vary_by.iter().any(|input| input.fields.is_empty())
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

    /// What a layer inside another one wants: its lifetime and what browsers are told, for the response
    /// that the one outside keeps.
    pub(super) fn pass_on_to(&self, around: &ResponseOverrides) {
        if let Some(lifetime) = self.lifetime {
            let revalidate = lifetime.window_while_revalidating();
            let on_error = lifetime.window_on_error();
            let lifetime = lifetime
                .stale_while_revalidate(self.while_revalidating.unwrap_or(revalidate))
                .stale_if_error(self.on_error.unwrap_or(on_error));
            if self.overrides {
                around.ttl(lifetime);
            } else {
                around.add(lifetime);
            }
        }
        if let Some(browser) = &self.browser {
            around.tell_browsers(browser.clone());
        }
        if let Some(cdn) = &self.cdn {
            around.tell_cdn(cdn.clone());
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "responses".into(),
            lifetime: None,
            overrides: false,
            off: false,
            while_revalidating: None,
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
            demands: true,
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
        }
    }
}
