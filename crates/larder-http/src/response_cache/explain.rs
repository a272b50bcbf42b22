//! Explains what a response cache would do with a request now, and why.
//!
//! It decides by the functions that decide for a request, with the same enums that `Cache-Status` is made of. It sends
//! nothing to the inner service, counts nothing, stores nothing, and never shows a body.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::Empty;
use larder_core::{
    Consistency, Larder, Reason,
    kernel::{
        AnyEntry, EntryExplanation, EntryState, Explained, Kernel, KeyExplanation, Partitions,
        RefusedResponse, Route, StoreLookup,
    },
};
use larder_semantics::{cache_status::Forward, reuse::RequestDirectives};
use parking_lot::Mutex;
use serde::Serialize;

use super::{
    context::{Admission, CacheContext, RequestKey, aged_for},
    hit_for_miss::refused_until,
    learnt_routes::LearntRoutes,
    lookup::narrowed,
    miss::single_flight_key,
    options::{Options, PartitionName},
    request::{credentials::is_credentials, key::KeyBuilder},
    selection::Selection,
    stored::{self, record::CacheRecord},
};
use crate::{address::Head, identity::Identity};

/// A request to explain: a method, an absolute URL, fields, and the user who would send it.
///
/// # Examples
///
/// ```
/// # use std::{convert::Infallible, error::Error, time::Duration};
/// # use bytes::Bytes;
/// # use http::{Request, Response};
/// # use larder_core::Larder;
/// # use larder_http::*;
/// # use tower::{Layer as _, ServiceExt as _, service_fn};
/// # type Body = http_body_util::Full<Bytes>;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn Error>> {
/// # let larder = Larder::builder().build()?;
/// let page = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::from("a page"))) });
/// let service = ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)).layer(page);
/// let request = Request::get("/").header("host", "shop.example").body(Body::default())?;
/// service.clone().oneshot(request).await?;
/// tokio::time::advance(Duration::from_secs(20)).await;
///
/// let explanations = ExplainRequest::get("http://shop.example/")?.explain(&larder).await;
/// let explanation = &explanations[0];
/// assert_eq!(explanation.decision.outcome.word, "hit");
/// let entry = explanation.entry.as_ref().ok_or("it is stored")?;
/// assert_eq!((entry.age_seconds, entry.lifetime.word), (20, "layer-ttl"));
/// assert_eq!((entry.forecast[1].in_seconds, entry.forecast[1].state.word), (40, "expired"));
///
/// let post = ExplainRequest::new("POST", "http://shop.example/")?.explain(&larder).await;
/// assert_eq!(post[0].decision.outcome.word, "bypass");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is explained"]
pub struct ExplainRequest {
    request: Request<Empty<Bytes>>,
    principal: Principal,
    partitions: Partitions,
}

/// The user for whom a request is explained.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Principal {
    /// The user that the closures of the layer find in the fields of the request.
    OfRequest,
    /// A visitor without a partition.
    Anonymous,
    /// The user with this partition.
    Named(Bytes),
}

impl ExplainRequest {
    /// Creates a GET of an absolute URL, such as `https://shop.example/products/42`.
    ///
    /// # Errors
    ///
    /// If the URL is not absolute, or not a URL.
    pub fn get(url: &str) -> Result<Self, ExplainRequestError> {
        Self::new("GET", url)
    }

    /// Creates a request of this method for an absolute URL.
    ///
    /// # Errors
    ///
    /// If the URL is not absolute, or the method or the URL is not valid.
    pub fn new(method: &str, url: &str) -> Result<Self, ExplainRequestError> {
        let refused = |allowed| ExplainRequestError { given: url.to_owned(), allowed };
        let uri: Uri = url.parse().map_err(|_| refused(ABSOLUTE))?;
        if uri.scheme().is_none() {
            return Err(refused(ABSOLUTE));
        }
        let authority = uri.authority().ok_or_else(|| refused(ABSOLUTE))?.as_str();
        let host = HeaderValue::from_str(authority).map_err(|_| refused(ABSOLUTE))?;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| ExplainRequestError {
            given: method.to_owned(),
            allowed: "a method, such as GET",
        })?;
        // Clients send the path and the host apart.
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri = path.parse().map_err(|_| refused(ABSOLUTE))?;
        let mut request = Request::new(Empty::new());
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        request.headers_mut().insert(header::HOST, host);
        Ok(Self { request, principal: Principal::OfRequest, partitions: Partitions::Hashed })
    }

    /// Adds a field, such as `Accept-Language` or `Cookie`.
    ///
    /// # Errors
    ///
    /// If the name or the value is not valid.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, ExplainRequestError> {
        let refused =
            |given: &str, allowed| ExplainRequestError { given: given.to_owned(), allowed };
        let field = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| refused(name, "the name of a field"))?;
        let line = HeaderValue::from_str(value)
            .map_err(|_| refused(value, "the value of a field: visible ASCII, spaces and tabs"))?;
        self.request.headers_mut().append(field, line);
        Ok(self)
    }

    /// Explains the request of the user with this partition, whatever the closures of the layer find in the request.
    pub fn principal(mut self, partition: impl PartitionName) -> Self {
        self.principal = Principal::Named(partition.into_bytes());
        if self.partitions == Partitions::Hashed {
            self.partitions = Partitions::AsGiven;
        }
        self
    }

    /// Explains the request of a visitor without a partition.
    pub fn anonymous(mut self) -> Self {
        self.principal = Principal::Anonymous;
        self
    }

    /// Shows partitions as they are, and not as hashes.
    pub fn show_partitions(mut self) -> Self {
        self.partitions = Partitions::Shown;
        self
    }

    /// Explains what the response caches of this larder would do with the request now: those whose routes match its
    /// path, as far as they have learnt their routes, or else all.
    ///
    /// Closures of the layer, such as `partition_by`, see the fields and the URL of this request, and no extensions of
    /// other layers. It waits for the second level, if there is one and the first level has the entry.
    pub async fn explain(&self, larder: &Larder) -> Vec<Explanation> {
        let caches = larder.kernel().state::<Explainers>().of_path(self.request.uri().path());
        let mut explanations = Vec::with_capacity(caches.len());
        for (context, route) in caches {
            explanations.push(self.explain_by(&context, route).await);
        }
        explanations
    }

    async fn explain_by(&self, context: &CacheContext, route: Option<Route>) -> Explanation {
        let request = self.request_for(context);
        let head = Head::from(&request);
        let partition = match &self.principal {
            Principal::OfRequest => context.partition(&head),
            Principal::Anonymous => Ok(None),
            Principal::Named(name) => Ok(context.has_partitions().then(|| name.clone())),
        };
        // Invalidations that are due act first, as for a request.
        context.kernel.tick();
        let admission = context.admit_as(&request, |_| partition.clone());
        let last_refusal = route.as_ref().and_then(|route| context.meter.last_refusal(route.id()));
        let mut explanation = Explanation {
            cache: context.options.name.to_string(),
            route: route.as_ref().map(|route| route.template().to_owned()),
            decision: Decision::new(DryOutcome::Bypass),
            key: None,
            entry: None,
            response: None,
            last_refusal: last_refusal.map(|refused| LastRefusal::new(refused, &context.kernel)),
        };
        match admission {
            Admission::Bypass(why) => {
                explanation.decision.forward(if why == Reason::Method {
                    Forward::Method
                } else {
                    Forward::Bypass
                });
                explanation.decision.because(why, cause_of_bypass(context, &head, why));
            }
            Admission::Ambiguous => {
                explanation.decision = Decision::new(DryOutcome::Refused);
                explanation.decision.because(Reason::AmbiguousHost, None);
            }
            Admission::OnlyIfCached => {
                explanation.decision = Decision::new(DryOutcome::NoStoredResponse);
                explanation.decision.because(Reason::OnlyIfCached, None);
            }
            Admission::Lookup(request_key) => {
                let partition = partition.ok().flatten();
                self.explain_lookup(context, &request, request_key, partition, &mut explanation)
                    .await;
            }
        }
        explanation
    }

    /// Returns the request as this cache would receive it from an identity layer.
    fn request_for(&self, context: &CacheContext) -> Request<Empty<Bytes>> {
        let mut request = self.request.clone();
        let has_credentials = context.facts(request.headers()).identified;
        let identity = match &self.principal {
            Principal::Named(name) => Identity::User(name.clone()),
            Principal::OfRequest if has_credentials => Identity::Unknown,
            Principal::OfRequest | Principal::Anonymous => Identity::Anonymous,
        };
        request.extensions_mut().insert(identity);
        request
    }

    async fn explain_lookup(
        &self,
        context: &CacheContext,
        request: &Request<Empty<Bytes>>,
        mut request_key: RequestKey,
        partition: Option<Bytes>,
        explanation: &mut Explanation,
    ) {
        let kernel = &context.kernel;
        if context.options.consistency != Consistency::Eventual && !kernel.is_synchronised() {
            explanation.decision = Decision::new(DryOutcome::Alone);
            explanation.decision.forward(Forward::Bypass);
            return explanation.decision.because(Reason::Unsynchronised, None);
        }
        let Ok(key) = request_key.key.finish() else {
            explanation.decision = Decision::new(DryOutcome::Refused);
            return explanation.decision.because(Reason::KeyTooLong, None);
        };
        explanation.key = Some(kernel.explain_key(&key, self.partitions));
        let unknown_field = context.unknown_field(request.headers());
        request_key.has_unknown_field = unknown_field.is_some();
        let mut selecting = request.headers().clone();
        if context.options.shared {
            context.hide_identity(&mut selecting);
        }
        let head = Head::from(request);
        let search = context.search_in(&head, partition.as_deref());
        let selection = Selection {
            context,
            request_key: &request_key,
            selecting: &selecting,
            search: search.as_deref(),
            notes_use: false,
        };
        let withheld = Mutex::new(None);
        let selected = selection.select(|entry| {
            let stored = stored::of(&entry).ok_or(Forward::UriMiss)?;
            if context.may_have(&request_key, stored) {
                return Ok(entry);
            }
            *withheld.lock() = Some(entry);
            Err(Forward::UriMiss)
        });
        let directives = match request_key.facts.directives {
            true => RequestDirectives::of(request.headers()),
            false => RequestDirectives::default(),
        };
        let (outcome, forward) = match &selected {
            Ok(entry) => outcome_of(context, &directives, entry),
            Err(_) if directives.only_if_cached => (DryOutcome::NoStoredResponse, None),
            Err(why) => (DryOutcome::Fill, Some(*why)),
        };
        explanation.decision = Decision::new(outcome);
        if outcome == DryOutcome::NoStoredResponse {
            explanation.decision.because(Reason::OnlyIfCached, None);
        }
        explanation.decision.forward = forward.map(explained);
        let is_head = *head.method == Method::HEAD;
        if is_head && matches!(outcome, DryOutcome::Fill | DryOutcome::Revalidate) {
            explanation.decision.outcome = explained_outcome(DryOutcome::Alone);
            explanation.decision.because(Reason::Head, None);
        } else if outcome == DryOutcome::Fill {
            let mut flight = single_flight_key(context, &request_key, &key, unknown_field.as_ref());
            if forward == Some(Forward::VaryMiss) {
                let narrow = |key| narrowed(kernel, &request_key, &key, &selecting).or(Some(key));
                flight = flight.and_then(narrow);
            }
            let refused = flight.and_then(|key| refused_until(kernel, &key));
            if let Some((why, left)) = refused {
                explain_refusal(explanation, why, left);
            } else if selected.is_err() && kernel.shares(context.options.tiers) {
                let (schema, tiers) = (CacheRecord::schema(), context.options.tiers);
                let wanted = StoreLookup { key: &key, schema, tiers };
                if kernel.peek(wanted).await.is_some() {
                    explanation.decision.outcome = explained_outcome(DryOutcome::Fetch);
                }
            }
        }
        let withheld = withheld.into_inner();
        if outcome == DryOutcome::Fill
            && !is_head
            && let Some(entry) = &withheld
        {
            let (why, cause) = match unknown_field {
                Some(field) => (Reason::UnknownField, Some(field.to_string())),
                None => (Reason::Identified, credentials_of(&head)),
            };
            explanation.decision.because(why, cause);
            explanation.entry = Some(kernel.explain_entry(entry, self.partitions));
        }
        if let Ok(entry) = &selected {
            let mut explained = kernel.explain_entry(entry, self.partitions);
            let wanted = StoreLookup {
                key: entry.key(),
                schema: CacheRecord::schema(),
                tiers: context.options.tiers,
            };
            explained.levels.extend(kernel.peek(wanted).await);
            explanation.entry = Some(explained);
        }
        let shown = selected.ok().or(withheld);
        explanation.response = shown.as_ref().and_then(stored::of).map(|stored| StoredHead {
            status: stored.status().as_u16(),
            body_bytes: stored.body().len(),
            has_validator: stored.traits.validated,
            is_for_all: stored.traits.open || context.options.shared,
        });
    }
}

/// Explains a fill that a hit-for-miss record sends to the handler alone.
fn explain_refusal(explanation: &mut Explanation, why: Reason, left: Duration) {
    explanation.decision.outcome = explained_outcome(DryOutcome::Alone);
    explanation.decision.changes_in_seconds = Some(left.as_secs());
    let last = explanation.last_refusal.as_ref();
    let cause = last.filter(|last| last.reason.word == why.as_str());
    let cause = cause.and_then(|last| last.cause.clone());
    explanation.decision.because(why, cause);
}

/// Returns the outcome for a request that selects this entry.
fn outcome_of(
    context: &CacheContext,
    directives: &RequestDirectives,
    entry: &AnyEntry,
) -> (DryOutcome, Option<Forward>) {
    let now = context.kernel.now();
    let traits = stored::of(entry).map(|stored| stored.traits).unwrap_or_default();
    let state = context.kernel.entry_state(entry, now);
    let is_stale = matches!(
        state,
        EntryState::WhileRevalidating | EntryState::OnError | EntryState::ToRevalidate
    );
    let accepts_stale =
        is_stale && traits.may_go_stale && directives.accept_stale(aged_for(entry, now));
    match state {
        EntryState::Fresh if context.meets(directives, entry, now) => (DryOutcome::Hit, None),
        EntryState::WhileRevalidating if directives.allow_refreshing() => {
            (DryOutcome::StaleHit, None)
        }
        _ if accepts_stale => (DryOutcome::StaleHit, None),
        _ if directives.only_if_cached => (DryOutcome::NoStoredResponse, None),
        EntryState::Fresh => (DryOutcome::Fill, Some(Forward::Request)),
        _ if is_stale && traits.validated => (DryOutcome::Revalidate, Some(Forward::Stale)),
        _ => (DryOutcome::Fill, Some(Forward::Stale)),
    }
}

/// Returns the field or the option that makes a request bypass the cache, as far as it has a name.
fn cause_of_bypass(context: &CacheContext, head: &Head<'_>, why: Reason) -> Option<String> {
    let named = |names: &[HeaderName]| {
        let present = names.iter().find(|name| head.headers.contains_key(*name));
        present.map(|name| name.as_str().to_owned())
    };
    match why {
        Reason::Method => Some(head.method.to_string()),
        Reason::Identity => credentials_of(head),
        Reason::Guarded => named(&[header::IF_MATCH, header::IF_UNMODIFIED_SINCE]),
        Reason::RequestNoStore => named(&[header::CACHE_CONTROL]),
        Reason::Upgrade => named(&[header::UPGRADE]),
        Reason::ByChoice => {
            let predicates = context.options.bypass_if.iter();
            let place = predicates.enumerate().find(|(_, passes)| passes(head))?.0;
            Some(format!("bypass_if number {}", place + 1))
        }
        _ => None,
    }
}

/// Returns the names of the fields with credentials.
fn credentials_of(head: &Head<'_>) -> Option<String> {
    let names = head.headers.keys().map(HeaderName::as_str);
    let names: Vec<_> = names.filter(|name| is_credentials(name)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// What a response cache would do with a request now.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The name of the cache.
    pub cache: String,
    /// The route that matches the path, if the cache has learnt it.
    pub route: Option<String>,
    /// What the cache would do.
    pub decision: Decision,
    /// The key of the request, unless it bypasses the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyExplanation>,
    /// The entry that the request selects, or that is withheld from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryExplanation>,
    /// The head of the stored response, without its fields and its body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<StoredHead>,
    /// The last response of this route that was not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<LastRefusal>,
}

/// The decision on a request.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Decision {
    /// What would happen.
    pub outcome: Explained,
    /// The parameter `fwd` of `Cache-Status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<Explained>,
    /// The parameter `detail` of `Cache-Status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Explained>,
    /// The field or the option that causes the reason, as far as it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Seconds until the decision changes by itself, unless the entry has a forecast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes_in_seconds: Option<u64>,
}

impl Decision {
    fn new(outcome: DryOutcome) -> Self {
        let outcome = explained_outcome(outcome);
        Self { outcome, forward: None, reason: None, cause: None, changes_in_seconds: None }
    }

    fn forward(&mut self, why: Forward) {
        self.forward = Some(explained(why));
    }

    fn because(&mut self, why: Reason, cause: Option<String>) {
        self.reason = Some(why.into());
        self.cause = cause;
    }
}

/// The head of a stored response.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct StoredHead {
    /// Its status.
    pub status: u16,
    /// The length of its body.
    pub body_bytes: usize,
    /// Whether its origin can confirm it.
    pub has_validator: bool,
    /// Whether requests with credentials may get it too.
    pub is_for_all: bool,
}

/// A response of a route that was not stored.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LastRefusal {
    /// The reason.
    pub reason: Explained,
    /// The field that causes it, as far as it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Seconds since then.
    pub seconds_ago: u64,
}

impl LastRefusal {
    fn new(refused: RefusedResponse, kernel: &Kernel) -> Self {
        let RefusedResponse { reason, cause, at, .. } = refused;
        Self { reason: reason.into(), cause, seconds_ago: kernel.now().since(at).as_secs() }
    }
}

/// What would happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DryOutcome {
    Hit,
    StaleHit,
    Revalidate,
    Fetch,
    Fill,
    Alone,
    Bypass,
    NoStoredResponse,
    Refused,
}

impl DryOutcome {
    #[cfg(test)]
    const ALL: [Self; 9] = [
        Self::Hit,
        Self::StaleHit,
        Self::Revalidate,
        Self::Fetch,
        Self::Fill,
        Self::Alone,
        Self::Bypass,
        Self::NoStoredResponse,
        Self::Refused,
    ];
}

fn explained_outcome(outcome: DryOutcome) -> Explained {
    let (word, sentence) = match outcome {
        DryOutcome::Hit => ("hit", "The stored response is served."),
        DryOutcome::StaleHit => (
            "stale-hit",
            "The stale response is served, and refreshed unless the request accepts a stale one.",
        ),
        DryOutcome::Revalidate => {
            ("revalidate", "The origin is asked to confirm the stored response.")
        }
        DryOutcome::Fetch => (
            "fetch",
            "The second level has an entry for this address, and is read before the handler runs.",
        ),
        DryOutcome::Fill => {
            ("fill", "The handler runs, and its response is stored if it is storable.")
        }
        DryOutcome::Alone => (
            "alone",
            "The handler runs for this request alone: no other request waits for its response.",
        ),
        DryOutcome::Bypass => ("bypass", "The handler runs, and its response is not stored."),
        DryOutcome::NoStoredResponse => {
            ("no-stored-response", "The cache answers with 504, because of `only-if-cached`.")
        }
        DryOutcome::Refused => ("refused", "The cache answers with an error of its own."),
    };
    Explained::new(word, sentence)
}

fn explained(why: Forward) -> Explained {
    Explained::new(why.as_str(), why.sentence())
}

/// The response caches of a larder, by their layers.
#[derive(Debug, Default)]
pub(super) struct Explainers(Mutex<HashMap<LayerId, LayerCaches>>);

/// What tells layers apart: namespace and fingerprint of their keys, and the closures that their clones share.
type LayerId = (Vec<u8>, Vec<usize>);

/// The services of a layer. axum makes new ones for each connection.
#[derive(Debug, Default)]
struct LayerCaches {
    services: Vec<Weak<CacheContext>>,
    /// The number of services at which those that are gone are removed.
    crowded: usize,
    routes: Arc<LearntRoutes>,
}

impl LayerCaches {
    fn service(&self) -> Option<Arc<CacheContext>> {
        self.services.iter().rev().find_map(Weak::upgrade)
    }
}

impl Explainers {
    /// Returns the routes that the services of a layer have learnt.
    pub(super) fn routes_of(&self, kernel: &Kernel, options: &Options) -> Arc<LearntRoutes> {
        let id = layer_id(kernel, options);
        Arc::clone(&self.0.lock().entry(id).or_default().routes)
    }

    pub(super) fn add(&self, context: &Arc<CacheContext>) {
        let id = layer_id(&context.kernel, &context.options);
        let mut layers = self.0.lock();
        let layer = layers.entry(id).or_default();
        layer.services.push(Arc::downgrade(context));
        if layer.services.len() > layer.crowded {
            layer.services.retain(|context| context.strong_count() > 0);
            layer.crowded = 2 * layer.services.len() + 16;
        }
    }

    /// Returns one service of each layer that has learnt the most specific route for a path. If no layer has, returns one
    /// service of each layer.
    fn of_path(&self, path: &str) -> Vec<(Arc<CacheContext>, Option<Route>)> {
        let layers = self.0.lock();
        let mut services: Vec<_> = layers.values().filter_map(LayerCaches::service).collect();
        drop(layers);
        services.sort_by_key(|context| (Arc::clone(&context.options.name), Arc::as_ptr(context)));
        let routed = services.iter().filter_map(|context| {
            let routes = context.routes.matching(|route| matches(route.template(), path));
            let route = routes.into_iter().max_by_key(|route| specificity(route.template()))?;
            Some((specificity(route.template()), Arc::clone(context), route))
        });
        let routed: Vec<_> = routed.collect();
        match routed.iter().map(|(rank, ..)| *rank).max() {
            Some(best) => {
                let best = routed.into_iter().filter(|(rank, ..)| *rank == best);
                best.map(|(_, context, route)| (context, Some(route))).collect()
            }
            None => services.into_iter().map(|context| (context, None)).collect(),
        }
    }
}

fn layer_id(kernel: &Kernel, options: &Options) -> LayerId {
    let start = KeyBuilder::new(kernel, options).start().to_vec();
    (start, options.closures())
}

/// Whether a template of a router, such as `/products/{id}` or `/static/{*path}`, matches a path.
fn matches(template: &str, path: &str) -> bool {
    let (mut segments, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (segments.next(), given.next()) {
            (None, None) => return true,
            (Some(segment), Some(_)) if segment.starts_with("{*") => return true,
            (Some(segment), Some(given)) => {
                let fits = match segment.split_once('{') {
                    Some((before, _)) => given.len() > before.len() && given.starts_with(before),
                    None => segment == given,
                };
                if !fits {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// Orders templates that match the same path: one with more fixed text is more specific.
fn specificity(template: &str) -> (bool, usize) {
    let fixed = template.split('/').filter(|segment| !segment.contains('{')).count();
    (!template.contains("{*"), fixed)
}

/// The error of [`ExplainRequest`] for a part that is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainRequestError {
    given: String,
    allowed: &'static str,
}

impl fmt::Display for ExplainRequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is given, allowed is {}", self.given, self.allowed)
    }
}

impl std::error::Error for ExplainRequestError {}

const ABSOLUTE: &str = "an absolute URL, such as https://shop.example/products/42";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_and_each_forward_has_a_sentence() {
        let outcomes = DryOutcome::ALL.map(explained_outcome);
        let forwards = Forward::ALL.iter().map(|why| explained(*why));
        for explained in outcomes.into_iter().chain(forwards) {
            assert!(!explained.word.is_empty() && explained.sentence.ends_with('.'));
        }
    }

    #[test]
    fn a_template_matches_the_paths_that_a_router_would_send_to_it() {
        for (template, path, is) in [
            ("/", "/", true),
            ("/products/{id}", "/products/42", true),
            ("/products/{id}", "/products/", false),
            ("/products/{id}", "/products/42/reviews", false),
            ("/products/{id}/reviews", "/products/42/reviews", true),
            ("/static/{*path}", "/static/a/b.css", true),
            ("/products", "/products/", false),
            ("/v{major}/x", "/v2/x", true),
            ("/v{major}/x", "/w2/x", false),
        ] {
            assert_eq!(matches(template, path), is, "{template} {path}");
        }
        assert!(specificity("/products/new") > specificity("/products/{id}"));
        assert!(specificity("/a/{b}") > specificity("/{*rest}"));
    }
}
