//! Decides, before the inner service is called, whether a request may be answered from the cache, and under
//! which key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body::Body;
use larder_core::{
    Consistency, Key, Lifetime, Reason, Tag, Tiers,
    kernel::{
        AnyEntry, Audience, EntryDraft, EntryState, Event, Kernel, KeyBuf, LifetimeSource,
        MAX_KEY_BYTES, Meter, Moment, Scope, SourcedTags, StoreLookup,
    },
};
use larder_semantics::{
    cache_status::{CacheStatus, Handling},
    reuse::{RequestDirectives, StoredAge},
    storing::{Profile, Role},
    vary,
};

use super::{
    answer::cache_status::{Extras, add_status, own_status},
    differing_responses::DifferingResponses,
    learnt_routes::LearntRoutes,
    options::{Options, UnknownPartition, WriteCheck},
    overrides::ResponseOverrides,
    request::{
        credentials::is_credentials,
        key::KeyBuilder,
        request_fields::{ALL_SELECTING, SELECTING},
    },
    route_note::RouteNote,
    stored::{
        self, StoredResponse, aged, header_template::HeaderInterner, no_vary_search::SearchKey,
        record::CacheRecord,
    },
    warm_request::WARMING,
};
use crate::{
    address::{Address, Head, Host, matched_route, original_uri},
    body::CacheBody,
    body_key::BodyKey,
    invalidation::PendingInvalidations,
    own_pages::OwnPages,
    own_response::own_response,
};

/// The state of one response cache: its options, and the values derived from them.
#[derive(Debug)]
pub(super) struct CacheContext {
    pub(super) kernel: Kernel,
    pub(super) meter: Arc<Meter>,
    pub(super) options: Options,
    pub(super) header_interner: HeaderInterner,
    pub(super) extras: Extras,
    /// Whether this response cache may store entries itself if it is nested in another response cache, because it
    /// separates requests by inputs that the outer cache does not know.
    pub(super) has_more_key_inputs: bool,
    /// Whether the warning about a response that is not stored has already been logged.
    warned: AtomicBool,
    pub(super) keys: KeyBuilder,
    pub(super) own_pages: Arc<OwnPages>,
    /// The routes of the layer.
    pub(super) routes: Arc<LearntRoutes>,
    /// The responses that differed from stored ones, in a cache that compares them.
    pub(super) differing: DifferingResponses,
}

/// The decision on a request.
#[derive(Debug)]
pub(super) enum Admission {
    /// Look up the request.
    Lookup(RequestKey),
    /// Forward the request, for this reason.
    Bypass(Reason),
    /// Reject the request with 400, because it names two hosts or an invalid host.
    Ambiguous,
    /// Answer with 504, because the request has `only-if-cached` and no stored response may be served to such a
    /// request.
    OnlyIfCached,
}

/// The key of a request that is looked up, with the facts that decide which stored responses it may get.
#[derive(Debug)]
pub(super) struct RequestKey {
    pub(super) key: KeyBuf,
    pub(super) hash: u64,
    pub(super) head_only: bool,
    pub(super) facts: RequestFacts,
    pub(super) partitioned: bool,
    /// Whether the request has a field that may have selected a response that was not opted in. This is determined on a
    /// miss.
    pub(super) has_unknown_field: bool,
    /// Whether the content of the request is part of the key.
    pub(super) is_by_content: bool,
}

/// The facts about the fields of a request, collected in one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestFacts {
    pub(super) identified: bool,
    pub(super) authorized: bool,
    pub(super) directives: bool,
    /// Whether the request has a condition or a range, so that it may get 304 or 206 instead of the full response.
    pub(super) narrowed: bool,
    guarded: bool,
    upgrade: bool,
}

impl CacheContext {
    pub(super) fn new(kernel: &Kernel, options: Options) -> Arc<Self> {
        let meter = kernel.meter(&options.name);
        meter.count_routes();
        Self::counted_by(meter, kernel, options)
    }

    /// Uses the routes that other services of the same layer have learnt.
    pub(super) fn sharing(self: Arc<Self>, routes: Arc<LearntRoutes>) -> Arc<Self> {
        let mut context = self;
        if let Some(context) = Arc::get_mut(&mut context) {
            context.routes = routes;
        }
        context
    }

    /// Notes the route of a request, for explanations.
    pub(super) fn learn_route(&self, note: &RouteNote) {
        if !self.routes.has(note.id())
            && let Some(route) = note.route()
        {
            self.routes.add(route);
        }
    }

    /// Returns the first field of a request that may have selected a response that was not opted in, if the cache guards
    /// such fields.
    pub(super) fn unknown_field(&self, headers: &HeaderMap) -> Option<HeaderName> {
        self.options.unknown_field(headers).filter(|_| self.guards_fields()).cloned()
    }

    /// Whether the layer has a partition for each user.
    pub(super) fn has_partitions(&self) -> bool {
        self.options.partition.is_some()
    }

    fn counted_by(meter: Arc<Meter>, kernel: &Kernel, options: Options) -> Arc<Self> {
        Arc::new(Self {
            keys: KeyBuilder::new(kernel, &options),
            own_pages: kernel.state(),
            differing: DifferingResponses::default(),
            kernel: kernel.clone(),
            meter,
            extras: Extras { cache_status: options.cache_status, x_cache: options.x_cache },
            header_interner: HeaderInterner::new(options.vary_line()),
            has_more_key_inputs: options.has_more_key_inputs(),
            warned: AtomicBool::new(false),
            routes: Arc::default(),
            options,
        })
    }

    /// The context for requests that warm the cache: their lookups are counted apart, and their fills run once in all
    /// processes.
    pub(super) fn for_warming(kernel: &Kernel, options: &Options) -> Arc<Self> {
        let lease = options.lease.or(Some(WARMING_LOCK));
        let options = Options { lease, ..options.clone() };
        Self::counted_by(kernel.meter(WARMING), kernel, options)
    }

    /// Decides whether a request is looked up, forwarded or rejected.
    #[inline]
    pub(super) fn admit<B: Body>(&self, request: &Request<B>) -> Admission {
        self.admit_as(request, |head| self.partition(head))
    }

    /// Decides as [`admit`](Self::admit) does, with the partition that `partition` returns.
    #[inline]
    pub(super) fn admit_as<B: Body>(
        &self,
        request: &Request<B>,
        partition: impl FnOnce(&Head<'_>) -> Result<Option<Bytes>, UnknownPartition>,
    ) -> Admission {
        let head = Head::from(request);
        let head_only = *head.method == Method::HEAD;
        let content = BodyKey::of_request(&head);
        if *head.method != Method::GET && !head_only && content.is_none() {
            return Admission::Bypass(Reason::Method);
        }
        let (mut facts, host) = self.read(head.headers);
        if *head.method == Method::POST {
            // Only the origin knows what a condition or a range of a POST refers to.
            facts.guarded |= facts.narrowed;
            // A layer between could have changed the method, so that the request would not be a read.
            if let Some(pending) = head.extensions.get::<PendingInvalidations>() {
                pending.declare_read();
            }
        }
        let Ok(partition) = partition(&head) else {
            return Admission::Bypass(Reason::Identity);
        };
        let around = self.audience_around(&head);
        let mut partitioned = partition.is_some();
        let has_content = match content {
            Some(content) => content.digest().is_none(),
            None => !request.body().is_end_stream(),
        };
        if let Some(bypass) = self.bypass(&head, facts, partitioned, has_content) {
            let wants_stored =
                || facts.directives && RequestDirectives::of(head.headers).only_if_cached;
            if lies_in_the_request(bypass) && wants_stored() {
                return Admission::OnlyIfCached;
            }
            return Admission::Bypass(bypass);
        }
        let Ok(address) = Address::at(host, &head, self.options.scheme) else {
            return Admission::Ambiguous;
        };
        if around == Audience::Unknown && !partitioned && !self.options.shared {
            // The enclosing cache could not identify the user, so the request bypasses this cache, too.
            return Admission::Bypass(Reason::Identity);
        }
        let key = self.keys.whole_key(&head, &address, partition.as_deref(), &around);
        partitioned |= matches!(around, Audience::Partition(_));
        // Single-flight keys and variant keys append to this key.
        if key.is_too_long() || key.as_bytes().len() > MAX_KEY_BYTES - ROOM_FOR_SUFFIXES {
            return Admission::Bypass(Reason::KeyTooLong);
        }
        let hash = self.kernel.hash(key.as_bytes());
        let has_unknown_field = false;
        Admission::Lookup(RequestKey {
            key,
            hash,
            head_only,
            facts,
            partitioned,
            has_unknown_field,
            is_by_content: content.is_some(),
        })
    }

    /// Returns the key of the address without its query, if the layer honours `No-Vary-Search`. Only misses
    /// need it.
    pub(super) fn search(&self, head: &Head<'_>) -> Option<Box<SearchKey>> {
        let partition = if self.options.no_vary_search { self.partition(head).ok()? } else { None };
        self.search_in(head, partition.as_deref())
    }

    /// Returns the key of the address without its query, in this partition.
    pub(super) fn search_in(
        &self,
        head: &Head<'_>,
        partition: Option<&[u8]>,
    ) -> Option<Box<SearchKey>> {
        if !self.options.no_vary_search {
            return None;
        }
        let address = Address::of(head, self.options.scheme).ok()?;
        let bare = Address { query: None, ..address.clone() };
        let around = self.audience_around(head);
        let base = self.keys.whole_key(head, &bare, partition, &around);
        SearchKey::new(&base, address.query).map(Box::new)
    }

    /// Whether larder sends a 206 only to clients that accept no content coding. Under `Profile::Conformance`, the
    /// layer that encodes is responsible for that.
    pub(super) fn avoids_coded(&self) -> bool {
        self.options.profile == Profile::Careful
    }

    /// Reads the entry of a key from the second level.
    pub(super) async fn fetch(&self, scope: &Scope, key: &Key) -> Option<AnyEntry> {
        let wanted = StoreLookup { key, schema: CacheRecord::schema(), tiers: self.options.tiers };
        let decode = |bytes: Bytes| {
            CacheRecord::decode(&bytes, self.extras, &self.header_interner, &self.kernel)
        };
        self.kernel.fetch(scope, wanted, decode).await
    }

    /// Returns the response of a fresh entry, if the request does not need a full lookup.
    #[inline]
    pub(super) fn plain_hit<R>(
        &self,
        request_key: &RequestKey,
        headers: &HeaderMap,
        now: Moment,
    ) -> Option<Response<CacheBody<R>>> {
        if request_key.facts.directives || request_key.facts.narrowed || !self.is_plain() {
            return None;
        }
        let read = |entry: &AnyEntry| match CacheRecord::of(entry)? {
            CacheRecord::Response(stored) => {
                stored.ask_for_all_lines();
                let may_have = self.may_have(request_key, stored)
                    && (stored.traits.opted_in || self.options.unknown_field(headers).is_none());
                let is_fresh = may_have && self.kernel.entry_state(entry, now) == EntryState::Fresh;
                is_fresh.then(|| entry.clone())
            }
            // Fields that the layer strips do not select a variant, and only the full lookup excludes them.
            CacheRecord::Variants(_) if !self.options.shared => Some(entry.clone()),
            _ => None,
        };
        let key = request_key.key.as_bytes();
        let mut entry = self.kernel.read(request_key.hash, key, read)?;
        if let Some(CacheRecord::Variants(variants)) = CacheRecord::of(&entry) {
            let candidates = variants.candidates(key, headers);
            let (variant, found) = candidates.into_iter().find_map(|candidate| {
                let bytes = candidate.as_bytes();
                let found = self.kernel.read(self.kernel.hash(bytes), bytes, read)?;
                Some((candidate, found))
            })?;
            variants.touch(variant.as_bytes());
            entry = found;
        }
        let route = stored::of(&entry)?.route_id();
        if self.options.is_due(&entry, now) {
            return None;
        }
        let sampled = self.meter.record_hit(Some(route), now).then(|| AnyEntry::clone(&entry));
        let answer = stored::hit(entry, now, self.extras, request_key.head_only);
        if let Some(entry) = sampled {
            self.sample_hit(&entry, now);
        }
        Some(answer)
    }

    /// Whether a hit needs neither further parameters in `Cache-Status` nor a round trip to the log.
    #[inline]
    fn is_plain(&self) -> bool {
        self.options.consistency == Consistency::Eventual
            && !self.options.cache_status_with_key
            && !self.options.server_timing
            && self.kernel.is_synchronised()
            && !self.kernel.is_distrusted()
    }

    /// Counts a hit of a request that began at this moment, and not for its route.
    pub(super) fn count_hit(&self, entry: &AnyEntry, began: Moment) {
        if self.meter.record_hit(None, began) {
            self.sample_hit(entry, began);
        }
    }

    #[cold]
    fn sample_hit(&self, entry: &AnyEntry, began: Moment) {
        self.meter.sample(stored::served(entry), self.kernel.now().since(began));
    }

    /// Whether the request may get this stored response. An authenticated request may get it only if the response is
    /// open to all or belongs to its partition. A request with an unknown field may get it only if the handler opted
    /// the response in.
    pub(super) fn may_have(&self, request_key: &RequestKey, stored: &StoredResponse) -> bool {
        if request_key.has_unknown_field && !stored.traits.opted_in {
            return false;
        }
        !request_key.facts.identified
            || request_key.partitioned
            || self.options.shared
            || stored.traits.open
    }

    /// Whether an entry satisfies the directives of the request.
    pub(super) fn meets(
        &self,
        directives: &RequestDirectives,
        entry: &AnyEntry,
        now: Moment,
    ) -> bool {
        directives.satisfied_by(aged_for(entry, now))
    }

    /// Returns the audience of a response to this request.
    pub(super) fn audience(&self, head: &Head<'_>, facts: RequestFacts, hidden: bool) -> Audience {
        let Ok(partition) = self.partition(head) else { return Audience::Unknown };
        let mut parts: Vec<u8> = Vec::new();
        if let Some(partition) = &partition {
            put(&mut parts, b"partition", partition);
        }
        for input in &self.options.vary_by {
            put(&mut parts, input.name.as_bytes(), (input.value)(head).as_bytes());
        }
        let identified = facts.identified
            || self.options.credential_extensions.iter().any(|is| is(head.extensions));
        if identified && partition.is_none() && !hidden {
            return Audience::Unknown;
        }
        if parts.is_empty() {
            Audience::Everyone
        } else if partition.is_some() {
            Audience::Partition(parts.into())
        } else {
            Audience::Variant(parts.into())
        }
    }

    /// Returns the partition of a request, or `None` for a visitor.
    pub(super) fn partition(&self, head: &Head<'_>) -> Result<Option<Bytes>, UnknownPartition> {
        self.options.partition.as_ref().map_or(Ok(None), |partition| partition(head))
    }

    /// Returns the origin of an address, and the tags that each of its responses carries.
    pub(super) fn address_tags(&self, head: &Head<'_>) -> (String, Vec<Tag>) {
        match Address::of(head, self.options.scheme) {
            Ok(address) => {
                let (origin, path) = (address.origin(), address.path);
                let mut tags = vec![Tag::of_path(path)];
                match self.partition(head).ok().flatten() {
                    Some(partition) => tags.extend([
                        Tag::of_partitioned_path(&origin, path),
                        Tag::of_path_in_partition(&origin, path, &partition),
                    ]),
                    None => tags.push(Tag::of_origin_path(&origin, path)),
                }
                (origin, tags)
            }
            Err(_) => (String::new(), Vec::new()),
        }
    }

    /// Passes the partition of a write to the enclosing invalidation layer.
    pub(super) fn note_partition<B>(&self, request: &Request<B>) {
        let Some(requested) = request.extensions().get::<PendingInvalidations>() else { return };
        let head = Head::from(request);
        if let Ok(Some(partition)) = self.partition(&head) {
            requested.note_partition(partition);
        }
    }

    /// Whether a response that the handler did not opt in is stored under every field that may have selected
    /// it.
    pub(super) fn guards_fields(&self) -> bool {
        let options = &self.options;
        options.rules() == (Profile::Careful, Role::Shared) && !options.depends_on_url_alone
    }

    /// Returns the request fields that select one of the responses of an address.
    pub(super) fn selecting_names(&self, headers: &HeaderMap, opted_in: bool) -> Vec<HeaderName> {
        let mut names = vary::names(headers);
        let is_coded = headers.contains_key(header::CONTENT_ENCODING);
        if self.avoids_coded() && is_coded && !names.contains(&header::ACCEPT_ENCODING) {
            // Not every client accepts this coding, even if the response does not name the field in `Vary`.
            if names.is_empty() && !opted_in && self.guards_fields() {
                names.push(ALL_SELECTING);
            }
            names.push(header::ACCEPT_ENCODING);
            return names;
        }
        let guarded = !opted_in && self.guards_fields();
        if guarded && (names.is_empty() || names == *SELECTING) {
            return vec![ALL_SELECTING];
        }
        names
    }

    /// Logs that a response is not stored, and the remedy. Does so once per layer.
    pub(super) fn warn_of_refusal(&self, key: &Key, why: Reason, field: Option<&HeaderName>) {
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        let field = field.map(HeaderName::as_str).unwrap_or_default();
        tracing::warn!(
            target: "larder",
            cache = &*self.options.name,
            route = %key,
            why = why.as_str(),
            field,
            "larder does not store a response, for the reason in `why`. unknown-field: only the layer's ttl gives it a lifetime, and its \
             request has a field (`field`) that is not part of the key; set a lifetime in its handler \
             (CachePolicy::ttl), or declare the field on the layer (vary_by_header, harmless_field, \
             depends_on_url_alone). session-written, final-*: the response is specific to one client; do not write to the \
             session or set cookies in its handler, or bypass the cache for its route. This is logged once per layer"
        );
    }

    /// Returns the checks to run after the handler of this request.
    pub(super) fn written(&self, extensions: &Extensions) -> Arc<[WriteCheck]> {
        self.options.refuse_if.iter().filter_map(|take| take(extensions)).collect()
    }

    /// Returns the facts about the fields of a request.
    pub(super) fn facts(&self, headers: &HeaderMap) -> RequestFacts {
        self.read(headers).0
    }

    /// Collects the facts about the fields of a request, and its host, in one pass.
    #[inline]
    fn read<'a>(&self, headers: &'a HeaderMap) -> (RequestFacts, Host<'a>) {
        let (mut facts, mut host) = (RequestFacts::default(), Host::default());
        for (name, line) in headers {
            facts.read(name);
            if name == header::HOST {
                host.note(line);
            }
        }
        let custom = &self.options.credential_headers;
        if !custom.is_empty() {
            facts.identified = custom.iter().any(|name| headers.contains_key(name));
        }
        facts.directives &= self.options.directives;
        if self.options.role == Role::Private {
            // All requests to a private cache come from its one user, so credentials do not matter.
            (facts.identified, facts.authorized) = (false, false);
        }
        (facts, host)
    }

    /// Whether the layer strips credentials, and `Authorization` is one of them.
    pub(super) fn hides_authorization(&self) -> bool {
        let fields = &self.options.credential_headers;
        self.options.shared && (fields.is_empty() || fields.contains(&header::AUTHORIZATION))
    }

    /// Strips the credentials from the fields of a request.
    pub(super) fn hide_identity(&self, headers: &mut HeaderMap) {
        if self.options.credential_headers.is_empty() {
            let names = headers.keys().filter(|name| is_credentials(name.as_str()));
            for name in names.cloned().collect::<Vec<_>>() {
                headers.remove(name);
            }
        }
        for name in &self.options.credential_headers {
            headers.remove(name);
        }
    }

    /// Returns the audience of the enclosing response cache.
    fn audience_around(&self, head: &Head<'_>) -> Audience {
        let around =
            self.has_more_key_inputs.then(|| head.extensions.get::<ResponseOverrides>()).flatten();
        around.map(|around| around.scope().audience()).unwrap_or_default()
    }

    /// Whether a predicate of `bypass_if` matches this request.
    pub(super) fn bypasses_by_choice(&self, head: &Head<'_>) -> bool {
        self.options.bypass_if.iter().any(|passes| passes(head))
    }

    fn bypass(
        &self,
        head: &Head<'_>,
        facts: RequestFacts,
        partitioned: bool,
        has_content: bool,
    ) -> Option<Reason> {
        if self.options.off {
            return Some(Reason::Off);
        }
        if self.own_pages.has(original_uri(head).path()) {
            return Some(Reason::OwnPage);
        }
        if self.bypasses_by_choice(head) {
            return Some(Reason::ByChoice);
        }
        // The enclosing cache handles the request, and this cache only passes its options on to that cache.
        if !self.has_more_key_inputs && head.extensions.get::<ResponseOverrides>().is_some() {
            return Some(Reason::Nested);
        }
        if facts.upgrade {
            return Some(Reason::Upgrade);
        }
        if facts.guarded {
            return Some(Reason::Guarded);
        }
        if has_content {
            return Some(Reason::RequestBody);
        }
        let options = &self.options;
        if !partitioned && options.credential_extensions.iter().any(|is| is(head.extensions)) {
            return Some(Reason::Identity);
        }
        if facts.directives && RequestDirectives::of(head.headers).no_store {
            return Some(Reason::RequestNoStore);
        }
        None
    }

    /// Builds an entry without tags for a value that is not a response: a list of variants, `No-Vary-Search` rules, or
    /// a hit-for-miss record.
    pub(super) fn bookkeeping(
        &self,
        key: Key,
        lives: Duration,
        filled: Moment,
        record: CacheRecord,
    ) -> Option<AnyEntry> {
        let kernel = &self.kernel;
        let draft = EntryDraft {
            key,
            tags: SourcedTags::default(),
            lifetime: Lifetime::fresh_for(lives),
            lifetime_source: LifetimeSource::Larder,
            age: Duration::ZERO,
            filled,
            cost: Duration::ZERO,
            tiers: if kernel.shares(self.options.tiers) { Tiers::BOTH } else { Tiers::MEMORY },
            idle: None,
        };
        kernel.entry(draft, &kernel.open_scope(), record).ok()
    }

    /// Whether several responses are stored under this address.
    pub(super) fn has_variants(&self, address: &Key) -> bool {
        let list = self.kernel.find(address.as_bytes());
        let is_list =
            |list: &AnyEntry| matches!(CacheRecord::of(list), Some(CacheRecord::Variants(_)));
        list.is_some_and(|list| {
            is_list(&list) && self.kernel.entry_state(&list, self.kernel.now()) == EntryState::Fresh
        })
    }

    /// Strips the fields that belong to one response and not to its stored copies.
    pub(super) fn remove_own_fields(&self, headers: &mut HeaderMap) {
        let ours = PER_RESPONSE.iter().filter(|_| self.options.profile == Profile::Careful);
        for name in ours.chain(&self.options.never_store_header) {
            headers.remove(name);
        }
    }

    /// Returns a 504 for a request with `only-if-cached` to which no stored response may be served.
    ///
    /// Source: [RFC 9111, section 5.2.1.7](https://www.rfc-editor.org/rfc/rfc9111#section-5.2.1.7)
    pub(super) fn nothing_stored<R>(&self) -> Response<CacheBody<R>> {
        let text = "only-if-cached: the cache has no response to this request\n";
        self.refused(StatusCode::GATEWAY_TIMEOUT, text, Reason::OnlyIfCached)
    }

    /// Counts a request that larder answers itself, for this reason.
    pub(super) fn record_own<B>(&self, request: &Request<B>, why: Reason, now: Moment) {
        self.meter.record(Event::Bypass(why), now);
        let template = matched_route(request.extensions());
        let route = template.map(|template| self.kernel.route(template).id());
        self.meter.record_route(route.unwrap_or_default(), Event::Bypass(why));
    }

    /// Returns a response generated by larder, with the reason in `Cache-Status`.
    pub(super) fn refused<R>(
        &self,
        status: StatusCode,
        text: &'static str,
        why: Reason,
    ) -> Response<CacheBody<R>> {
        let mut response = own_response(status, text);
        let own_status =
            CacheStatus { detail: Some(why.as_str()), ..own_status(Handling::Refused) };
        add_status(self.extras, response.headers_mut(), own_status, "refused");
        response
    }
}

impl RequestFacts {
    fn read(&mut self, name: &HeaderName) {
        match name.as_str() {
            // The fields of most requests come first.
            "host" | "user-agent" | "accept" | "accept-encoding" | "accept-language"
            | "connection" | "referer" => {}
            "cookie" => self.identified = true,
            "authorization" => (self.identified, self.authorized) = (true, true),
            "cache-control" | "pragma" => self.directives = true,
            "if-none-match" | "if-modified-since" | "range" => self.narrowed = true,
            "if-match" | "if-unmodified-since" => self.guarded = true,
            "upgrade" => self.upgrade = true,
            name => self.identified |= is_credentials(name),
        }
    }
}

/// Whether the reason for a bypass lies in the request, so that no stored response may be served to it, and not in the
/// configuration of the cache.
fn lies_in_the_request(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Method | Reason::Nested | Reason::Off | Reason::OwnPage | Reason::ByChoice
    )
}

const ROOM_FOR_SUFFIXES: usize = 64;
/// How long a process that warms a response keeps the others from filling it, unless the layer says otherwise.
const WARMING_LOCK: Duration = Duration::from_secs(10);

/// Returns the age of an entry, its remaining freshness lifetime, and the time since it became stale.
pub(super) fn aged_for(entry: &AnyEntry, now: Moment) -> StoredAge {
    let (age, fresh_for) = aged(entry, now);
    StoredAge { age, fresh_for, stale_for: now.since(entry.ends().fresh_until()) }
}

fn put(parts: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, value] {
        parts.extend_from_slice(&(part.len() as u64).to_le_bytes());
        parts.extend_from_slice(part);
    }
}

/// Fields that belong to one response and not to its stored copy.
static PER_RESPONSE: [HeaderName; 2] =
    [HeaderName::from_static("x-request-id"), HeaderName::from_static("server-timing")];
