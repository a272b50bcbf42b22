//! A response as it is kept, and the answers that are made of it.

use std::{collections::HashMap, hash::Hasher as _, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use larder_core::{AnyEntry, Entry, Moment};
use larder_semantics::ranges::ByteRange;
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use super::{kept::Kept, lines};
use crate::body::CacheBody;

/// A kept response.
///
/// Fields that thousands of responses have alike (type, caching, security) are one map that all of them
/// share; only what is this response's own lies here, as slices of the buffer that holds its body.
#[derive(Debug)]
pub(super) struct StoredResponse {
    /// All fields, with places for those that are filled in on a hit.
    alike: Arc<Template>,
    body: Bytes,
    status: StatusCode,
    pub(super) traits: Traits,
    /// What it is a part of, if it is one.
    pub(super) part: Option<Box<Part>>,
    /// Whether `Cache-Status` lines of caches behind us come before ours.
    upstream_status: bool,
    bytes: usize,
    /// The values of the fields in [`OWN`].
    own: [Option<HeaderValue>; 4],
}

/// What is known of a kept response besides what it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// Whether a request that says who asks may have it too.
    pub(super) open: bool,
    /// Whether what its fields tell caches is our word and not that of its origin.
    pub(super) told_by_us: bool,
    /// Whether its origin can be asked whether it is still current.
    pub(super) validated: bool,
    /// Whether it may be served stale to those who say that they take it so.
    pub(super) may_go_stale: bool,
}

impl Traits {
    fn to_byte(self) -> u8 {
        [self.open, self.told_by_us, self.validated, self.may_go_stale]
            .into_iter()
            .fold(0, |byte, is| byte << 1 | u8::from(is))
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let is = |bit: u8| byte >> bit & 1 == 1;
        (byte < 16).then(|| Self {
            open: is(3),
            told_by_us: is(2),
            validated: is(1),
            may_go_stale: is(0),
        })
    }
}

/// A part of a representation: which one, and how long the whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: ByteRange,
    pub(super) total: u64,
}

/// Which fields a hit adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extras {
    pub(super) cache_status: bool,
    pub(super) x_cache: bool,
}

impl StoredResponse {
    pub(super) fn new(
        status: StatusCode,
        mut fields: HeaderMap,
        body: &Bytes,
        traits: Traits,
        extras: Extras,
        alike: &Alike,
    ) -> Self {
        // Said here, so that nobody has to make room for it on every hit.
        fields.remove(header::CONTENT_LENGTH);
        if status != StatusCode::NO_CONTENT {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let own = OWN.map(|name| {
            let value = fields.get(&name).cloned();
            if value.is_some() {
                // Not removed: the place in the map stays.
                fields.insert(name, HeaderValue::from_static(""));
            }
            value
        });
        let upstream_status = fields.contains_key(header::CACHE_STATUS);
        fields.insert(header::AGE, HeaderValue::from_static(""));
        if extras.cache_status && !upstream_status {
            fields.insert(header::CACHE_STATUS, HeaderValue::from_static(""));
        }
        if extras.x_cache {
            fields.insert(X_CACHE, HeaderValue::from_static("hit"));
        }
        let (buffer, own) = one_buffer(&own, body);
        let (alike, own_fields) = alike.share(fields);
        Self {
            bytes: buffer.len() + own_fields,
            body: buffer.slice(buffer.len() - body.len()..),
            alike,
            own,
            status,
            traits,
            part: None,
            upstream_status,
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn body(&self) -> &Bytes {
        &self.body
    }

    /// Whether caches behind us have said what they did.
    pub(super) fn has_upstream_status(&self) -> bool {
        self.upstream_status
    }

    /// The fields as they were kept, without what a hit adds.
    pub(super) fn fields(&self) -> HeaderMap {
        let mut fields = self.filled_in(None, None);
        fields.remove(header::AGE);
        fields.remove(header::CONTENT_LENGTH);
        if !self.upstream_status {
            fields.remove(header::CACHE_STATUS);
        }
        fields
    }

    /// The answer of a fresh hit.
    #[inline]
    pub(super) fn hit<R>(
        &self,
        age: Duration,
        fresh_for: Duration,
        extras: Extras,
        head_only: bool,
    ) -> Response<CacheBody<R>> {
        let status = extras.cache_status.then(|| lines::hit(fresh_for.as_secs()));
        self.answer(age, status, head_only)
    }

    /// An answer with this line of `Cache-Status`.
    #[inline]
    pub(super) fn answer<R>(
        &self,
        age: Duration,
        cache_status: Option<HeaderValue>,
        head_only: bool,
    ) -> Response<CacheBody<R>> {
        let age = age_line(age);
        let fields = if self.upstream_status {
            let mut fields = self.filled_in(Some(age), None);
            if let Some(cache_status) = cache_status {
                fields.append(header::CACHE_STATUS, cache_status);
            }
            fields
        } else {
            self.filled_in(Some(age), cache_status)
        };
        let body = if head_only {
            // Its fields say how long the body would have been.
            CacheBody::empty()
        } else {
            CacheBody::held(self.body.clone())
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = fields;
        response
    }

    /// The shared fields with those that are this response's own, or this hit's.
    #[inline]
    fn filled_in(&self, age: Option<HeaderValue>, status: Option<HeaderValue>) -> HeaderMap {
        let mut fields = self.alike.fields.clone();
        let own = self.own.iter().cloned().chain([age, status]);
        let present = own.zip(self.alike.has).filter(|(_, has)| *has);
        for (place, (value, _)) in fields.values_mut().zip(present) {
            if let Some(value) = value {
                *place = value;
            }
        }
        fields
    }

    /// The kept response of a shared store.
    pub(super) fn decode(bytes: &Bytes, extras: Extras, alike: &Alike) -> Option<Self> {
        let mut at = Cursor { bytes, at: 0 };
        let status = StatusCode::from_u16(u16::from_le_bytes(at.take(2)?.try_into().ok()?)).ok()?;
        let traits = Traits::from_byte(at.take(1)?[0])?;
        let count = u16::from_le_bytes(at.take(2)?.try_into().ok()?);
        let mut fields = HeaderMap::new();
        for _ in 0..count {
            let name = HeaderName::from_bytes(at.sized()?).ok()?;
            // Checked: bytes of a store cannot smuggle a line break into a field.
            let value = HeaderValue::from_bytes(at.sized()?).ok()?;
            fields.try_append(name, value).ok()?;
        }
        let body = bytes.slice(at.at..);
        Some(Self::new(status, fields, &body, traits, extras, alike))
    }
}

impl StoredResponse {
    /// Bytes held beside the entry itself.
    pub(super) fn weight(&self) -> usize {
        self.bytes
    }

    /// The bytes for a shared store.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        if self.part.is_some() {
            // Parts stay in this process.
            return None;
        }
        let fields = self.fields();
        let mut bytes = Vec::with_capacity(64 * fields.len() + self.body.len());
        bytes.put_u16_le(self.status.as_u16());
        bytes.put_u8(self.traits.to_byte());
        bytes.put_u16_le(u16::try_from(fields.len()).ok()?);
        for (name, value) in &fields {
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                bytes.put_u32_le(u32::try_from(part.len()).ok()?);
                bytes.put_slice(part);
            }
        }
        bytes.put_slice(&self.body);
        Some(bytes)
    }
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

/// Values and body in one allocation: a hit that copies handles of them touches one counter.
fn one_buffer(
    values: &[Option<HeaderValue>; 4],
    body: &Bytes,
) -> (Bytes, [Option<HeaderValue>; 4]) {
    let lengths = values.each_ref().map(|value| value.as_ref().map_or(0, HeaderValue::len));
    let mut buffer = BytesMut::with_capacity(lengths.iter().sum::<usize>() + body.len());
    for value in values.iter().flatten() {
        buffer.put_slice(value.as_bytes());
    }
    buffer.put_slice(body);
    let buffer = buffer.freeze();
    let mut at = 0;
    let mut slices = lengths.map(|length| {
        at += length;
        HeaderValue::from_maybe_shared(buffer.slice(at - length..at)).ok()
    });
    for (slice, value) in slices.iter_mut().zip(values) {
        if value.is_none() {
            *slice = None;
        }
    }
    (buffer, slices)
}

/// The fields of a response, with places for those that are filled in on a hit.
///
/// The places come first, in the order of [`FILLED_IN`], so that filling them in is a walk along the first
/// values of a copy and no search.
#[derive(Debug)]
struct Template {
    fields: HeaderMap,
    has: [bool; 6],
}

impl Template {
    fn new(mut fields: HeaderMap) -> Self {
        // A line of a cache behind us has text; a place for ours is empty.
        let has = FILLED_IN.map(|name| fields.get(name).is_some_and(HeaderValue::is_empty));
        let mut ordered = HeaderMap::with_capacity(fields.keys_len());
        for name in FILLED_IN {
            if fields.get(&name).is_some_and(HeaderValue::is_empty)
                && let Some(value) = fields.remove(&name)
            {
                ordered.insert(name, value);
            }
        }
        let mut last = None;
        for (name, value) in fields {
            last = name.or(last);
            if let Some(name) = &last {
                ordered.append(name, value);
            }
        }
        debug_assert!(
            ordered
                .keys()
                .zip(FILLED_IN.iter().zip(has).filter(|(_, has)| *has))
                .all(|(name, (expected, _))| name == expected),
            "a map gives its fields in the order in which they were put in"
        );
        // A clone has exactly the room it needs.
        Self { fields: ordered.clone(), has }
    }
}

/// What differs from response to response.
const OWN: [HeaderName; 4] =
    [header::ETAG, header::DATE, header::LAST_MODIFIED, header::CONTENT_LENGTH];

/// The same, and what differs from hit to hit.
const FILLED_IN: [HeaderName; 6] = [
    header::ETAG,
    header::DATE,
    header::LAST_MODIFIED,
    header::CONTENT_LENGTH,
    header::AGE,
    header::CACHE_STATUS,
];

/// Templates that many responses share.
#[derive(Debug, Default)]
pub(super) struct Alike(Mutex<HashMap<u64, Arc<Template>>>);

impl Alike {
    /// The shared template of these fields, and how many bytes of it are not shared.
    fn share(&self, fields: HeaderMap) -> (Arc<Template>, usize) {
        let bytes = map_bytes(&fields);
        let hash = hash_of(&fields);
        let mut known = self.0.lock();
        if let Some(found) = known.get(&hash).filter(|found| found.fields == fields) {
            return (Arc::clone(found), 0);
        }
        let template = Arc::new(Template::new(fields));
        if known.len() < MOST_ALIKE {
            known.insert(hash, Arc::clone(&template));
            return (template, 0);
        }
        (template, bytes)
    }
}

fn hash_of(fields: &HeaderMap) -> u64 {
    let mut hasher = Xxh3::new();
    for (name, value) in fields {
        hasher.write(name.as_str().as_bytes());
        hasher.write(value.as_bytes());
    }
    hasher.finish()
}

fn map_bytes(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| 104 + name.as_str().len() + value.len()).sum()
}

/// An age is never short of the time that has really passed.
fn rounded_up(age: Duration) -> u64 {
    age.as_secs() + u64::from(age.subsec_nanos() > 0)
}

/// `Age` of something this old.
pub(super) fn age_line(age: Duration) -> HeaderValue {
    lines::age(rounded_up(age))
}

/// The response of an entry, if it is one.
#[inline]
pub(super) fn of(entry: &AnyEntry) -> Option<&StoredResponse> {
    match Kept::of(entry)? {
        Kept::Response(stored) => Some(stored),
        _ => None,
    }
}

/// How old what an entry holds is, and for how much longer it is fresh.
#[inline]
pub(super) fn aged<V: ?Sized>(entry: &Entry<V>, now: Moment) -> (Duration, Duration) {
    let ends = entry.ends();
    (now.since(ends.filled()), ends.fresh_until().since(now))
}

pub(super) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// How many maps of fields are shared; responses that have others keep their own.
const MOST_ALIKE: usize = 256;

#[cfg(test)]
mod tests {
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

    fn stored(alike: &Alike) -> StoredResponse {
        let body = Bytes::from_static(b"hello");
        let traits = Traits { open: true, validated: true, ..Traits::default() };
        StoredResponse::new(StatusCode::OK, fields(), &body, traits, EXTRAS, alike)
    }

    #[test]
    fn what_is_kept_comes_back_with_all_its_fields() {
        let stored = stored(&Alike::default());
        assert_eq!(stored.fields(), fields());
        let seconds = Duration::from_secs;
        let answer: Response<CacheBody<String>> =
            stored.hit(seconds(3), seconds(57), EXTRAS, false);
        assert_eq!(answer.headers()["age"], "3");
        assert_eq!(answer.headers()["cache-status"], "larder; hit; ttl=57");
        assert_eq!(answer.headers().get_all("link").iter().count(), 2);
        assert_eq!(answer.headers()["etag"], "\"a\"");
    }

    #[test]
    fn an_answer_to_head_has_the_length_and_no_content() {
        let answer: Response<CacheBody<String>> =
            stored(&Alike::default()).answer(Duration::ZERO, None, true);
        assert_eq!(answer.headers()["content-length"], "5");
        assert_eq!(answer.body().as_held().unwrap().len(), 0);
    }

    #[test]
    fn a_stored_response_survives_being_written_and_read() {
        let alike = Alike::default();
        let bytes = Bytes::from(stored(&alike).encode().unwrap());
        let read = StoredResponse::decode(&bytes, EXTRAS, &alike).unwrap();
        assert_eq!((read.fields(), read.traits), (fields(), stored(&alike).traits));
        assert_eq!(&read.body[..], b"hello");
        for end in 0..bytes.len() - 5 {
            assert!(StoredResponse::decode(&bytes.slice(..end), EXTRAS, &alike).is_none());
        }
    }

    #[test]
    fn responses_with_the_same_fields_share_one_map() {
        let alike = Alike::default();
        let (a, b) = (stored(&alike), stored(&alike));
        assert!(Arc::ptr_eq(&a.alike, &b.alike));
    }
}
