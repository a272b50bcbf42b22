//! A response as it is kept, and the answers that are made of it.

use std::{collections::HashMap, hash::Hasher as _, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use larder_core::{AnyEntry, Entry, Moment};
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
    alike: Arc<HeaderMap>,
    etag: Option<HeaderValue>,
    date: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
    body: Bytes,
    status: StatusCode,
    /// Whether a request that says who asks may have it too.
    pub(super) open: bool,
    /// Whether `Cache-Status` lines of caches behind us come before ours.
    upstream_status: bool,
    bytes: usize,
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
        open: bool,
        extras: Extras,
        alike: &Alike,
    ) -> Self {
        let own = [header::ETAG, header::DATE, header::LAST_MODIFIED].map(|name| {
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
        fields.remove(header::CONTENT_LENGTH);
        let (buffer, [etag, date, last_modified]) = one_buffer(&own, body);
        let (alike, own_fields) = alike.share(fields);
        Self {
            bytes: buffer.len() + own_fields,
            body: buffer.slice(buffer.len() - body.len()..),
            alike,
            etag,
            date,
            last_modified,
            status,
            open,
            upstream_status,
        }
    }

    /// Whether caches behind us have said what they did.
    pub(super) fn has_upstream_status(&self) -> bool {
        self.upstream_status
    }

    /// The fields as they were kept, without what a hit adds.
    pub(super) fn fields(&self) -> HeaderMap {
        let mut fields = HeaderMap::clone(&self.alike);
        self.put_own(&mut fields);
        fields.remove(header::AGE);
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
        let mut fields = HeaderMap::clone(&self.alike);
        self.put_own(&mut fields);
        fields.insert(header::AGE, lines::age(rounded_up(age)));
        if let Some(cache_status) = cache_status {
            if self.upstream_status {
                fields.append(header::CACHE_STATUS, cache_status);
            } else {
                fields.insert(header::CACHE_STATUS, cache_status);
            }
        }
        let body = if head_only {
            // What the body would have been long; an empty one would say 0.
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
            CacheBody::empty()
        } else {
            CacheBody::held(self.body.clone())
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = fields;
        response
    }

    #[inline]
    fn put_own(&self, fields: &mut HeaderMap) {
        for (name, value) in [
            (header::ETAG, &self.etag),
            (header::DATE, &self.date),
            (header::LAST_MODIFIED, &self.last_modified),
        ] {
            if let Some(value) = value {
                fields.insert(name, value.clone());
            }
        }
    }

    /// The kept response of a shared store.
    pub(super) fn decode(bytes: &Bytes, extras: Extras, alike: &Alike) -> Option<Self> {
        let mut at = Cursor { bytes, at: 0 };
        let status = StatusCode::from_u16(u16::from_le_bytes(at.take(2)?.try_into().ok()?)).ok()?;
        let open = at.take(1)? == [1];
        let count = u16::from_le_bytes(at.take(2)?.try_into().ok()?);
        let mut fields = HeaderMap::new();
        for _ in 0..count {
            let name = HeaderName::from_bytes(at.sized()?).ok()?;
            // Checked: bytes of a store cannot smuggle a line break into a field.
            let value = HeaderValue::from_bytes(at.sized()?).ok()?;
            fields.append(name, value);
        }
        let body = bytes.slice(at.at..);
        Some(Self::new(status, fields, &body, open, extras, alike))
    }
}

impl StoredResponse {
    /// Bytes held beside the entry itself.
    pub(super) fn weight(&self) -> usize {
        self.bytes
    }

    /// The bytes for a shared store.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let fields = self.fields();
        let mut bytes = Vec::with_capacity(64 * fields.len() + self.body.len());
        bytes.put_u16_le(self.status.as_u16());
        bytes.put_u8(u8::from(self.open));
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
    values: &[Option<HeaderValue>; 3],
    body: &Bytes,
) -> (Bytes, [Option<HeaderValue>; 3]) {
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

/// Maps of fields that many responses share.
#[derive(Debug, Default)]
pub(super) struct Alike(Mutex<HashMap<u64, Arc<HeaderMap>>>);

impl Alike {
    /// The shared map that equals this one, and how many bytes of it are not shared.
    fn share(&self, fields: HeaderMap) -> (Arc<HeaderMap>, usize) {
        let bytes = map_bytes(&fields);
        let hash = hash_of(&fields);
        let mut known = self.0.lock();
        if let Some(found) = known.get(&hash).filter(|found| ***found == fields) {
            return (Arc::clone(found), 0);
        }
        // A clone has exactly the room it needs.
        let fields = Arc::new(fields.clone());
        if known.len() < MOST_ALIKE {
            known.insert(hash, Arc::clone(&fields));
            return (fields, 0);
        }
        (fields, bytes)
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
    age.as_secs() + u64::from(age.subsec_nanos() > 999_000_000)
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
        StoredResponse::new(StatusCode::OK, fields(), &body, true, EXTRAS, alike)
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
        assert_eq!((read.fields(), read.open), (fields(), true));
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
