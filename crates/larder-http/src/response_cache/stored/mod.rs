//! A stored response, and the responses that are built from it.

use std::{hint::black_box, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use larder_core::kernel::{AnyEntry, Entry, Kernel, Moment, Route, RouteId, ServedEntry, Value};
use larder_semantics::{fields, ranges::ByteRange};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    body::CacheBody,
    response_cache::{
        answer::cache_status::{self, Extras, X_CACHE},
        stored::{
            header_template::{HeaderInterner, OwnValues, Template},
            record::CacheRecord,
        },
    },
};

pub(super) mod header_template;
pub(super) mod no_vary_search;
pub(super) mod record;
pub(super) mod variants;

/// A stored response.
///
/// The fields that thousands of responses have in common (type, caching, security) are in a map that all these
/// responses share. This struct has only the values of its own response.
///
/// A read of memory that is not in a CPU cache costs a hit a quarter of the time of a whole handler. So everything that
/// a hit reads is in the entry itself: the values are bytes, and not handles with a reference count elsewhere. A body
/// that is sent keeps the entry alive and does not have a reference count of its own.
#[derive(Debug)]
pub(in crate::response_cache) struct StoredResponse {
    /// All fields, with slots for the values that are filled in on a hit.
    template: Arc<Template>,
    body: Bytes,
    own: OwnValues,
    status: StatusCode,
    pub(in crate::response_cache) traits: Traits,
    /// Whether `Cache-Status` lines of upstream caches come before ours.
    upstream_status: bool,
    /// Whether the last line of `Vary` names the fields of our key, and does not come from the origin.
    has_own_vary: bool,
    /// The range, if this is a partial response.
    pub(in crate::response_cache) part: Option<Box<Part>>,
    /// The route of the requests that it answers, if a router has told it.
    pub(in crate::response_cache) route: Option<Route>,
    /// Bytes of fields that are not shared with other responses.
    own_fields: usize,
}

/// The properties of a stored response besides its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::response_cache) struct Traits {
    /// Whether authenticated requests may get it too.
    pub(in crate::response_cache) open: bool,
    /// Whether its fields for downstream caches come from larder and not from its origin.
    pub(in crate::response_cache) has_own_fields: bool,
    /// Whether it has a validator, so that its origin can confirm it.
    pub(in crate::response_cache) validated: bool,
    /// Whether clients that accept stale responses (`max-stale`) may get it stale.
    pub(in crate::response_cache) may_go_stale: bool,
    /// Whether the handler opted the response in, so that its lifetime does not come from the layer alone.
    pub(in crate::response_cache) opted_in: bool,
    /// Whether the request that filled it had credentials that the cache does not distinguish. Only a cache that observes reads
    /// it, whose responses stay in memory, so it is not encoded.
    pub(in crate::response_cache) is_for_user: bool,
}

impl Traits {
    fn to_byte(self) -> u8 {
        [self.opted_in, self.open, self.has_own_fields, self.validated, self.may_go_stale]
            .into_iter()
            .fold(0, |byte, is| byte << 1 | u8::from(is))
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let is = |bit: u8| byte >> bit & 1 == 1;
        (byte < 32).then(|| Self {
            opted_in: is(4),
            open: is(3),
            has_own_fields: is(2),
            validated: is(1),
            may_go_stale: is(0),
            is_for_user: false,
        })
    }
}

/// The range of a partial response, and the length of the full one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::response_cache) struct Part {
    pub(in crate::response_cache) range: ByteRange,
    pub(in crate::response_cache) total: u64,
}

impl StoredResponse {
    /// Creates a stored response. The body is not copied, so its buffer must not hold anything else.
    pub(in crate::response_cache) fn new(
        status: StatusCode,
        mut fields: HeaderMap,
        body: Bytes,
        traits: Traits,
        extras: Extras,
        interner: &HeaderInterner,
    ) -> Self {
        // The field is set here, so that a hit does not have to grow the map.
        fields.remove(header::CONTENT_LENGTH);
        if status != StatusCode::NO_CONTENT {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let own = OwnValues::take_from(&mut fields);
        let has_own_vary = interner.add_vary(&mut fields);
        let upstream_status =
            fields.get_all(header::CACHE_STATUS).iter().any(|line| !line.is_empty());
        if !upstream_status {
            // An empty line has no information, and would be mistaken for our slot.
            fields.remove(header::CACHE_STATUS);
        }
        fields.insert(header::AGE, HeaderValue::from_static(""));
        if extras.cache_status && !upstream_status {
            fields.insert(header::CACHE_STATUS, HeaderValue::from_static(""));
        }
        if extras.x_cache {
            fields.insert(X_CACHE, HeaderValue::from_static("hit"));
        }
        let (template, own_fields) = interner.share(fields);
        Self {
            template,
            body,
            own,
            status,
            traits,
            upstream_status,
            has_own_vary,
            part: None,
            route: None,
            own_fields,
        }
    }

    /// Loads a word of each cache line that a response reads.
    ///
    /// This is called while the first line of the entry is still being loaded, so that all lines load in parallel.
    /// After the next locked instruction, they would load one after another.
    #[inline]
    pub(in crate::response_cache) fn ask_for_all_lines(&self) {
        black_box((self.body.len(), self.status));
        self.own.ask_for_all_lines();
    }

    /// Returns the route for the counters.
    #[inline]
    pub(in crate::response_cache) fn route_id(&self) -> RouteId {
        self.route.as_ref().map_or(RouteId::UNMATCHED, Route::id)
    }

    pub(in crate::response_cache) fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns a digest of the status and the content.
    pub(in crate::response_cache) fn digest(&self) -> u64 {
        xxh3_64_with_seed(&self.body, u64::from(self.status.as_u16()))
    }

    pub(in crate::response_cache) fn body(&self) -> &Bytes {
        &self.body
    }

    /// Whether upstream caches have sent a `Cache-Status`.
    pub(in crate::response_cache) fn has_upstream_status(&self) -> bool {
        self.upstream_status
    }

    /// Returns the fields as they were stored, without the fields that a hit adds.
    pub(in crate::response_cache) fn fields(&self) -> HeaderMap {
        let mut fields = self.filled_in(None, None);
        fields.remove(header::AGE);
        fields.remove(header::CONTENT_LENGTH);
        if !self.upstream_status {
            fields.remove(header::CACHE_STATUS);
        }
        if self.has_own_vary {
            fields::remove_last_line(&mut fields, &header::VARY);
        }
        fields
    }

    /// Returns the fields of a response of this age, with this line of `Cache-Status`.
    #[inline]
    fn fields_of_answer(&self, age: Duration, cache_status: Option<HeaderValue>) -> HeaderMap {
        let age = Some(age_line(age));
        if !self.upstream_status {
            return self.filled_in(age, cache_status);
        }
        let mut fields = self.filled_in(age, None);
        if let Some(cache_status) = cache_status {
            fields.append(header::CACHE_STATUS, cache_status);
        }
        fields
    }

    /// Returns the shared fields, with the values of this response and of this hit filled in.
    #[inline]
    fn filled_in(&self, age: Option<HeaderValue>, status: Option<HeaderValue>) -> HeaderMap {
        self.template.filled_in(&self.own, age, status)
    }

    /// Decodes a stored response from the second level.
    pub(in crate::response_cache) fn decode(
        bytes: &Bytes,
        extras: Extras,
        interner: &HeaderInterner,
        kernel: &Kernel,
    ) -> Option<Self> {
        let mut at = Cursor { bytes, at: 0 };
        let status = StatusCode::from_u16(u16::from_le_bytes(at.take(2)?.try_into().ok()?)).ok()?;
        let traits = Traits::from_byte(at.take(1)?[0])?;
        let template = std::str::from_utf8(at.sized()?).ok()?;
        let route = (!template.is_empty()).then(|| kernel.route(template));
        let count = u16::from_le_bytes(at.take(2)?.try_into().ok()?);
        let mut fields = HeaderMap::new();
        for _ in 0..count {
            let name = HeaderName::from_bytes(at.sized()?).ok()?;
            // This constructor checks the bytes, so that the second level cannot smuggle a line break into a field.
            let value = HeaderValue::from_bytes(at.sized()?).ok()?;
            fields.try_append(name, value).ok()?;
        }
        // The body is copied, because a slice would keep the whole buffer of the second level alive.
        let body = Bytes::copy_from_slice(&bytes[at.at..]);
        Some(Self { route, ..Self::new(status, fields, body, traits, extras, interner) })
    }
}

impl StoredResponse {
    /// Returns the number of bytes that are held in addition to the entry itself.
    pub(in crate::response_cache) fn weight(&self) -> usize {
        self.body.len() + self.own.heap_bytes() + self.own_fields
    }

    /// Encodes the response for the second level.
    pub(in crate::response_cache) fn encode(&self) -> Option<Vec<u8>> {
        if self.part.is_some() {
            // Partial responses stay in this process.
            return None;
        }
        let fields = self.fields();
        let mut bytes = Vec::with_capacity(64 * fields.len() + self.body.len());
        bytes.put_u16_le(self.status.as_u16());
        bytes.put_u8(self.traits.to_byte());
        put_sized(&mut bytes, self.route.as_ref().map_or("", Route::template).as_bytes())?;
        bytes.put_u16_le(u16::try_from(fields.len()).ok()?);
        for (name, value) in &fields {
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                put_sized(&mut bytes, part)?;
            }
        }
        bytes.put_slice(&self.body);
        Some(bytes)
    }
}

/// Writes bytes after their number. `None` if there are too many.
fn put_sized(into: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    into.put_u32_le(u32::try_from(bytes.len()).ok()?);
    into.put_slice(bytes);
    Some(())
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        self.take(length as usize)
    }
}

/// Rounds an age up to whole seconds, so that it is never less than the time that has passed.
fn rounded_up(age: Duration) -> u64 {
    age.as_secs() + u64::from(age.subsec_nanos() > 0)
}

/// Returns the `Age` value of an age.
pub(in crate::response_cache) fn age_line(age: Duration) -> HeaderValue {
    cache_status::age(rounded_up(age))
}

/// Returns the response of an entry, if it holds one.
#[inline]
pub(in crate::response_cache) fn of(entry: &AnyEntry) -> Option<&StoredResponse> {
    match CacheRecord::of(entry)? {
        CacheRecord::Response(stored) => Some(stored),
        _ => None,
    }
}

/// Returns an entry that holds a response as one that was served.
pub(in crate::response_cache) fn served(entry: &AnyEntry) -> ServedEntry<'_, dyn Value> {
    ServedEntry { entry, bytes: of(entry).map_or(0, |stored| stored.body.len()) }
}

/// Returns the response to a fresh hit, from an entry that holds one.
#[inline]
pub(in crate::response_cache) fn hit<R>(
    entry: AnyEntry,
    now: Moment,
    extras: Extras,
    head_only: bool,
) -> Response<CacheBody<R>> {
    let (age, fresh_for) = aged(&entry, now);
    let status = extras.cache_status.then(|| cache_status::hit(fresh_for.as_secs()));
    answer(entry, age, status, head_only)
}

/// Returns a response of this age with this line of `Cache-Status`, from an entry that holds one.
#[inline]
pub(in crate::response_cache) fn answer<R>(
    entry: AnyEntry,
    age: Duration,
    cache_status: Option<HeaderValue>,
    head_only: bool,
) -> Response<CacheBody<R>> {
    let stored = of(&entry).expect("only entries that hold responses are served");
    // Even without a body, the fields give the length that the body would have had.
    let is_empty = head_only || stored.body.is_empty();
    let (status, mut fields) = (stored.status, stored.fields_of_answer(age, cache_status));
    if head_only {
        fields::remove_of_content(&mut fields);
    }
    let body = if is_empty {
        CacheBody::empty()
    } else {
        CacheBody::held(Bytes::from_owner(BodyOf(entry)))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

/// The body of the response in an entry. It keeps the entry alive. This is cheap, because a hit has already touched the
/// reference count of the entry.
struct BodyOf(AnyEntry);

impl AsRef<[u8]> for BodyOf {
    fn as_ref(&self) -> &[u8] {
        &of(&self.0).expect("only entries that hold responses are served").body
    }
}

/// Returns the age of an entry and its remaining freshness lifetime.
#[inline]
pub(in crate::response_cache) fn aged<V: ?Sized>(
    entry: &Entry<V>,
    now: Moment,
) -> (Duration, Duration) {
    let ends = entry.ends();
    (now.since(ends.filled()), ends.fresh_until().since(now))
}

#[cfg(test)]
mod tests {
    use larder_core::Larder;

    use super::*;

    const EXTRAS: Extras = Extras { cache_status: true, x_cache: false };

    fn fields() -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/html"),
            ("etag", "\"a\""),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("link", "</a>; rel=preload"),
            ("link", "</b>; rel=preload"),
        ] {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        fields
    }

    fn stored(interner: &HeaderInterner) -> StoredResponse {
        let body = Bytes::from_static(b"hello");
        let traits = Traits { open: true, validated: true, ..Traits::default() };
        StoredResponse::new(StatusCode::OK, fields(), body, traits, EXTRAS, interner)
    }

    #[test]
    fn a_stored_response_returns_all_its_fields() {
        let stored = stored(&HeaderInterner::default());
        assert_eq!(stored.fields(), fields());
        let seconds = Duration::from_secs;
        let fields = stored.fields_of_answer(seconds(3), Some(cache_status::hit(57)));
        assert_eq!(fields["age"], "3");
        assert_eq!(fields["cache-status"], "larder; hit; ttl=57");
        assert_eq!(fields.get_all("link").iter().count(), 2);
        assert_eq!(
            (&fields["etag"], &fields["content-length"]),
            (&"\"a\"".parse().unwrap(), &5.into())
        );
    }

    #[test]
    fn a_stored_response_survives_encoding_and_decoding() {
        let interner = HeaderInterner::default();
        let larder = Larder::builder().build().unwrap();
        let kernel = larder.kernel();
        let mut response = stored(&interner);
        response.route = Some(kernel.route("/products/{id}"));
        let bytes = Bytes::from(response.encode().unwrap());
        let read = StoredResponse::decode(&bytes, EXTRAS, &interner, kernel).unwrap();
        assert_eq!(read.route, response.route);
        assert_eq!((read.fields(), read.traits), (fields(), stored(&interner).traits));
        assert_eq!(&read.body[..], b"hello");
        let buffer = bytes.as_ptr_range();
        assert!(
            !buffer.contains(&read.body.as_ptr()),
            "the buffer that was decoded is not kept alive"
        );
        for end in 0..bytes.len() - 5 {
            assert!(
                StoredResponse::decode(&bytes.slice(..end), EXTRAS, &interner, kernel).is_none()
            );
        }
    }

    #[test]
    fn responses_with_the_same_fields_share_one_map() {
        let interner = HeaderInterner::default();
        let (a, b) = (stored(&interner), stored(&interner));
        assert!(Arc::ptr_eq(&a.template, &b.template));
    }
}
