//! What a response cache decides before it asks anybody: whether a request may be answered from what is
//! kept, and under which key.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, Method, Request, header};
use http_body::Body;
use larder_core::{
    Consistency, Key, Kind, Tag,
    kernel::{
        AnyEntry, Audience, EntryState, Kernel, KeyBuf, MAX_KEY_BYTES, Meter, Moment, Scope,
        StoreLookup,
    },
};
use larder_semantics::{
    reuse::{RequestDirectives, StoredAge},
    storing::{Profile, Role},
    vary,
};

use super::{
    header_template::HeaderInterner,
    layer::{Options, UnknownPartition, WriteCheck},
    no_vary_search::SearchKey,
    overrides::ResponseOverrides,
    record::CacheRecord,
    request_fields::{ALL_SELECTING, SELECTING, is_credentials},
    stored::{self, Extras, StoredResponse, aged},
};
use crate::{
    address::{Address, Head, Host},
    body::CacheBody,
    invalidation::PendingInvalidations,
    query_method::PostContent,
};

/// One response cache: its options, made ready.
#[derive(Debug)]
pub(super) struct CacheContext {
    pub(super) kernel: Kernel,
    pub(super) meter: Arc<Meter>,
    pub(super) options: Options,
    pub(super) alike: HeaderInterner,
    pub(super) extras: Extras,
    /// Whether a response cache inside another one may keep entries itself, since it tells requests apart
    /// in ways that the one outside does not know.
    pub(super) tells_more_apart: bool,
    /// Whether it was said that a response is not stored because nobody opted it in.
    warned: AtomicBool,
    key_start: KeyBuf,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Options {
    fn tells_more_apart(&self) -> bool {
        self.partition.is_some()
            || !self.vary_by.is_empty()
            || self.shared
            || !self.credential_headers.is_empty()
            || !self.credential_extensions.is_empty()
    }
}

/// What is to be done with a request.
#[derive(Debug)]
pub(super) enum Admission {
    /// Look it up.
    RequestKey(RequestKey),
    /// Pass it on, for this reason.
    Bypass(Bypass),
    /// It names two hosts: refuse it.
    Ambiguous,
    /// It wants a stored response or none, and says besides what lets no stored response answer.
    OnlyIfCached,
}

/// Why a request is not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bypass {
    /// Its method is not one that is kept.
    Method,
    /// It wants another protocol.
    Upgrade,
    /// It has content, which no key tells apart.
    RequestBody,
    /// It says by an extension who asks.
    Identity,
    /// It says `no-store`.
    NoStore,
    /// It is guarded by `If-Match` or `If-Unmodified-Since`, which only its origin can judge.
    Guarded,
    /// It is in the hands of another response cache already.
    Nested,
    /// This cache is switched off.
    Off,
    /// The layer was told to let it pass by.
    OverrideValues,
    /// Its address is longer than a key may be.
    KeyTooLongError,
}

impl Bypass {
    /// Whether it is the request itself that no stored response may answer, not the cache that is out of its way.
    fn is_of_the_request(self) -> bool {
        !matches!(self, Self::Method | Self::Nested | Self::Off | Self::OverrideValues)
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Upgrade => "upgrade",
            Self::RequestBody => "request-body",
            Self::Identity => "identity",
            Self::NoStore => "request-no-store",
            Self::Guarded => "guarded",
            Self::Nested => "nested",
            Self::Off => "off",
            Self::OverrideValues => "by-choice",
            Self::KeyTooLongError => "key-too-long",
        }
    }
}

/// A request that is looked up.
#[derive(Debug)]
pub(super) struct RequestKey {
    pub(super) key: KeyBuf,
    pub(super) hash: u64,
    pub(super) head_only: bool,
    pub(super) facts: RequestFacts,
    pub(super) partitioned: bool,
    /// Whether it has a field that may have selected a response that was not opted in. Found out on a miss.
    pub(super) has_unknown_field: bool,
}

/// What the fields of a request say, found in one pass over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RequestFacts {
    pub(super) identified: bool,
    pub(super) authorized: bool,
    pub(super) demands: bool,
    /// It wants less than all: a part, or nothing where it has it already.
    pub(super) narrowed: bool,
    guarded: bool,
    upgrade: bool,
}

impl CacheContext {
    pub(super) fn new(kernel: &Kernel, options: &Options) -> Arc<Self> {
        Arc::new(Self {
            key_start: kernel.key(Kind::Response, &fingerprint(options)),
            kernel: kernel.clone(),
            meter: kernel.meter(&options.name),
            extras: Extras { cache_status: options.cache_status, x_cache: options.x_cache },
            alike: HeaderInterner::new(options.vary_line()),
            tells_more_apart: options.tells_more_apart(),
            warned: AtomicBool::new(false),
            options: options.clone(),
        })
    }

    /// Decides what is to be done with a request.
    #[inline]
    pub(super) fn admit<B: Body>(&self, request: &Request<B>) -> Admission {
        let head = Head::from(request);
        let head_only = *head.method == Method::HEAD;
        let content = query_content(&head);
        if *head.method != Method::GET && !head_only && content.is_none() {
            return Admission::Bypass(Bypass::Method);
        }
        let (facts, host) = self.read(head.headers);
        let Ok(partition) = self.partition(&head) else {
            return Admission::Bypass(Bypass::Identity);
        };
        let around = self.audience_around(&head);
        let mut partitioned = partition.is_some();
        let has_content = content.is_none() && !request.body().is_end_stream();
        if let Some(bypass) = self.bypass(&head, facts, partitioned, has_content) {
            let wants_stored =
                || facts.demands && RequestDirectives::of(head.headers).only_if_cached;
            if bypass.is_of_the_request() && wants_stored() {
                return Admission::OnlyIfCached;
            }
            return Admission::Bypass(bypass);
        }
        let Ok(address) = Address::at(host, &head, self.options.scheme) else {
            return Admission::Ambiguous;
        };
        if around == Audience::Unknown && !partitioned && !self.options.shared {
            // Whoever is around us could not tell who asks, and neither can we.
            return Admission::Bypass(Bypass::Identity);
        }
        let key = self.whole_key(&head, &address, partition.as_deref(), &around);
        partitioned |= matches!(around, Audience::Partition(_));
        // Queues and variants append to it.
        if key.is_too_long() || key.as_bytes().len() > MAX_KEY_BYTES - ROOM_FOR_SUFFIXES {
            return Admission::Bypass(Bypass::KeyTooLongError);
        }
        let hash = self.kernel.hash(key.as_bytes());
        let has_unknown_field = false;
        Admission::RequestKey(RequestKey {
            key,
            hash,
            head_only,
            facts,
            partitioned,
            has_unknown_field,
        })
    }

    /// The address without its query, where queries may mean the same. Only a miss asks for it.
    pub(super) fn search(&self, head: &Head<'_>) -> Option<Box<SearchKey>> {
        if !self.options.no_vary_search {
            return None;
        }
        let address = Address::of(head, self.options.scheme).ok()?;
        let bare = Address { query: None, ..address.clone() };
        let partition = self.partition(head).ok()?;
        let around = self.audience_around(head);
        let base = self.whole_key(head, &bare, partition.as_deref(), &around);
        SearchKey::new(&base, address.query).map(Box::new)
    }

    /// Whether a part is given only to a client that cannot have the bytes of a content coding. By the letter of
    /// the specifications that is the business of the layer that codes.
    pub(super) fn avoids_coded(&self) -> bool {
        self.options.profile == Profile::Careful
    }

    /// What the shared store has under a key.
    pub(super) async fn fetch(&self, scope: &Scope, key: &Key) -> Option<AnyEntry> {
        let wanted = StoreLookup { key, schema: CacheRecord::schema(), tiers: self.options.tiers };
        let decode = |bytes: Bytes| CacheRecord::decode(&bytes, self.extras, &self.alike);
        self.kernel.fetch(scope, wanted, decode).await
    }

    /// The answer, if it is a fresh entry that needs no second look.
    #[inline]
    pub(super) fn plain_hit<R>(
        &self,
        lookup: &RequestKey,
        headers: &HeaderMap,
        now: Moment,
    ) -> Option<http::Response<CacheBody<R>>> {
        if lookup.facts.demands || lookup.facts.narrowed || !self.is_plain() {
            return None;
        }
        let read = |entry: &AnyEntry| match CacheRecord::of(entry)? {
            CacheRecord::Response(stored) => {
                stored.ask_for_all_lines();
                let may_have = self.may_have(lookup, stored)
                    && (stored.traits.opted_in || self.unknown_field(headers).is_none());
                let is_fresh = may_have && self.kernel.entry_state(entry, now) == EntryState::Fresh;
                is_fresh.then(|| entry.clone())
            }
            // Fields that the layer hides select no variant: that is for a closer look.
            CacheRecord::Variants(_) if !self.options.shared => Some(entry.clone()),
            _ => None,
        };
        let key = lookup.key.as_bytes();
        let mut entry = self.kernel.read(lookup.hash, key, read)?;
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
        stored::of(&entry)?;
        let answer = stored::hit(entry, now, self.extras, lookup.head_only);
        self.count_hit(now);
        Some(answer)
    }

    /// Whether a hit has nothing to add and nobody to ask.
    #[inline]
    fn is_plain(&self) -> bool {
        self.options.consistency == Consistency::Eventual
            && !self.options.cache_status_with_key
            && self.kernel.is_synchronised()
            && !self.kernel.is_distrusted()
    }

    pub(super) fn count_hit(&self, began: Moment) {
        self.meter.record_hit(began, || self.kernel.now());
    }

    /// Whether whoever asks may have this response: a request that says who asks gets only what is for
    /// everyone, or what lies in its own partition.
    pub(super) fn may_have(&self, lookup: &RequestKey, stored: &StoredResponse) -> bool {
        if lookup.has_unknown_field && !stored.traits.opted_in {
            return false;
        }
        !lookup.facts.identified || lookup.partitioned || self.options.shared || stored.traits.open
    }

    /// Whether an entry meets what the request demands.
    pub(super) fn meets(&self, demands: &RequestDirectives, entry: &AnyEntry, now: Moment) -> bool {
        demands.satisfied_by(aged_for(entry, now))
    }

    /// For whom is made what is made for this request.
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

    /// The partition of a request; none for those of visitors.
    fn partition(&self, head: &Head<'_>) -> Result<Option<Bytes>, UnknownPartition> {
        self.options.partition.as_ref().map_or(Ok(None), |partition| partition(head))
    }

    /// The origin of an address, and the tags that each of its responses carries.
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

    /// Tells the invalidation around a write in which partition it was made.
    pub(super) fn note_partition<B>(&self, request: &Request<B>) {
        let Some(requested) = request.extensions().get::<PendingInvalidations>() else { return };
        let head = Head::from(request);
        if let Ok(Some(partition)) = self.partition(&head) {
            requested.note_partition(partition);
        }
    }

    /// Whether a response that the handler did not opt in is stored under every field that may have selected it.
    pub(super) fn guards_fields(&self) -> bool {
        let options = &self.options;
        options.rules() == (Profile::Careful, Role::Shared) && !options.depends_on_url_alone
    }

    /// The request fields that select a response among those of its address.
    pub(super) fn selecting_names(&self, headers: &HeaderMap, opted_in: bool) -> Vec<HeaderName> {
        let mut names = vary::names(headers);
        let is_coded = headers.contains_key(header::CONTENT_ENCODING);
        if self.avoids_coded() && is_coded && !names.contains(&header::ACCEPT_ENCODING) {
            // Not every client takes this coding, whatever the response says.
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

    /// Says once that a response which lives by the layer alone is not stored, and what to do.
    pub(super) fn warn_of_refusal(&self, key: &Key, why: &str, field: Option<&HeaderName>) {
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        let field = field.map(HeaderName::as_str).unwrap_or_default();
        tracing::warn!(
            target: "larder",
            cache = &*self.options.name,
            route = %key,
            why,
            field,
            "a response that lives by the layer's ttl alone is not stored: give it a lifetime in its handler \
             (CachePolicy::ttl), or say of the layer what its responses depend on (vary_by_header, harmless_field, \
             depends_on_url_alone). This is said once for each layer"
        );
    }

    /// What to ask after the handler of this request.
    pub(super) fn written(&self, extensions: &Extensions) -> Arc<[WriteCheck]> {
        self.options.refuse_if.iter().filter_map(|take| take(extensions)).collect()
    }

    /// The facts of a request's fields.
    pub(super) fn facts(&self, headers: &HeaderMap) -> RequestFacts {
        self.read(headers).0
    }

    /// The facts of a request's fields, and its host, found in one pass over them.
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
        facts.demands &= self.options.demands;
        if self.options.role == Role::Private {
            // All that is asked here is asked by the one user whose cache it is.
            (facts.identified, facts.authorized) = (false, false);
        }
        (facts, host)
    }

    /// Whether a layer that hides who asks hides `Authorization` too.
    pub(super) fn hides_authorization(&self) -> bool {
        let fields = &self.options.credential_headers;
        self.options.shared && (fields.is_empty() || fields.contains(&header::AUTHORIZATION))
    }

    /// The fields by which a request says who asks.
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

    /// For whom the response cache around this one makes its response.
    fn audience_around(&self, head: &Head<'_>) -> Audience {
        let around =
            self.tells_more_apart.then(|| head.extensions.get::<ResponseOverrides>()).flatten();
        around.map(|around| around.scope().audience()).unwrap_or_default()
    }

    /// Whether the layer was told to let this request pass by.
    pub(super) fn passes_by_choice(&self, head: &Head<'_>) -> bool {
        self.options.bypass_if.iter().any(|passes| passes(head))
    }

    fn bypass(
        &self,
        head: &Head<'_>,
        facts: RequestFacts,
        partitioned: bool,
        has_content: bool,
    ) -> Option<Bypass> {
        if self.options.off {
            return Some(Bypass::Off);
        }
        if self.passes_by_choice(head) {
            return Some(Bypass::OverrideValues);
        }
        // The cache around this one has decided on the request; it only has to hear our wishes.
        if !self.tells_more_apart && head.extensions.get::<ResponseOverrides>().is_some() {
            return Some(Bypass::Nested);
        }
        if facts.upgrade {
            return Some(Bypass::Upgrade);
        }
        if facts.guarded {
            return Some(Bypass::Guarded);
        }
        if has_content {
            return Some(Bypass::RequestBody);
        }
        let options = &self.options;
        if !partitioned && options.credential_extensions.iter().any(|is| is(head.extensions)) {
            return Some(Bypass::Identity);
        }
        if facts.demands && RequestDirectives::of(head.headers).no_store {
            return Some(Bypass::NoStore);
        }
        None
    }

    /// The key of a request: its address, what it asks for there, and for whom.
    fn whole_key(
        &self,
        head: &Head<'_>,
        address: &Address<'_>,
        partition: Option<&[u8]>,
        around: &Audience,
    ) -> KeyBuf {
        let mut key = self.key(head, address, partition);
        if let Some(content) = query_content(head) {
            key.push_pieces([b" of ", content.as_bytes()]);
        }
        key.push_audience(around);
        key
    }

    /// The key of an address, for those who have no partition.
    pub(super) fn key_of_address(&self, head: &Head<'_>, address: &Address<'_>) -> KeyBuf {
        self.key(head, address, None)
    }

    fn key(&self, head: &Head<'_>, address: &Address<'_>, partition: Option<&[u8]>) -> KeyBuf {
        let mut key = self.key_start.clone();
        key.push_pieces([address.scheme.as_bytes(), b"://", address.authority.as_bytes()]);
        key.push(address.path.as_bytes());
        match (self.options.query.filtered(address.query), address.query) {
            (Some(filtered), _) if filtered.is_empty() => key.push(b""),
            (Some(filtered), _) => key.push_pieces([b"?", filtered.as_bytes()]),
            (None, Some(query)) => key.push_pieces([b"?", query.as_bytes()]),
            (None, None) => key.push(b""),
        }
        if let Some(partition) = partition {
            key.push_pieces([b" by ", partition]);
        }
        for input in &self.options.vary_by {
            key.push_pieces([b" as ", (input.value)(head).as_bytes()]);
        }
        key
    }
}

impl RequestFacts {
    fn read(&mut self, name: &HeaderName) {
        match name.as_str() {
            // First those that most requests have.
            "host" | "user-agent" | "accept" | "accept-encoding" | "accept-language"
            | "connection" | "referer" => {}
            "cookie" => self.identified = true,
            "authorization" => (self.identified, self.authorized) = (true, true),
            "cache-control" | "pragma" => self.demands = true,
            "if-none-match" | "if-modified-since" | "range" => self.narrowed = true,
            "if-match" | "if-unmodified-since" => self.guarded = true,
            "upgrade" => self.upgrade = true,
            name => self.identified |= is_credentials(name),
        }
    }
}

/// Fields by which requests say who asks, where nothing else is said.
pub(super) const IDENTITY: [HeaderName; 12] = [
    header::COOKIE,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-forwarded-user"),
    HeaderName::from_static("x-forwarded-email"),
    HeaderName::from_static("x-forwarded-groups"),
    HeaderName::from_static("x-forwarded-preferred-username"),
    HeaderName::from_static("x-forwarded-access-token"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-remote-user"),
];

const ROOM_FOR_SUFFIXES: usize = 64;

/// What tells two layers over one larder apart, so that one is never answered with what was made under
/// the rules of the other.
fn fingerprint(options: &Options) -> String {
    let mut text = options.name.to_string();
    for input in &options.vary_by {
        text.push('+');
        text.push_str(&input.name);
    }
    if options.partition.is_some() {
        text.push('@');
    }
    if options.shared {
        text.push('!');
    }
    text
}

/// What a QUERY asks for, where the layer for it has read it.
fn query_content<'a>(head: &Head<'a>) -> Option<&'a PostContent> {
    if *head.method != Method::QUERY {
        return None;
    }
    head.extensions.get()
}

/// How old an entry is, and how far from the end of its freshness.
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
