//! A response as it is kept, and the answers that are made of it.

use std::{hint::black_box, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use larder_core::kernel::{AnyEntry, Entry, Moment};
use larder_semantics::{fields, ranges::ByteRange};

use super::{
    header_template::{HeaderInterner, OwnValues, Template},
    record::CacheRecord,
    status_header,
};
use crate::body::CacheBody;

/// A kept response.
///
/// Fields that thousands of responses have alike (type, caching, security) are one map that all of them
/// share; only what is this response's own lies here.
///
/// A line of memory that no cache holds costs a hit a quarter of what a whole handler does. So all that a
/// hit reads lies in the entry itself: the own values as text, not as handles with a counter elsewhere, and
/// the body that is sent keeps the entry alive, not a counter of its own.
#[derive(Debug)]
pub(super) struct StoredResponse {
    /// All fields, with places for those that are filled in on a hit.
    alike: Arc<Template>,
    body: Bytes,
    own: OwnValues,
    status: StatusCode,
    pub(super) traits: Traits,
    /// Whether `Cache-Status` lines of caches behind us come before ours.
    upstream_status: bool,
    /// Whether the last line of `Vary` names the fields behind our key, not what the origin said.
    has_own_vary: bool,
    /// What it is a part of, if it is one.
    pub(super) part: Option<Box<Part>>,
    /// Bytes of fields that are not shared with others.
    own_fields: usize,
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
    /// Whether the handler opted it in: its lifetime is not the layer's alone.
    pub(super) opted_in: bool,
}

impl Traits {
    fn to_byte(self) -> u8 {
        [self.opted_in, self.open, self.told_by_us, self.validated, self.may_go_stale]
            .into_iter()
            .fold(0, |byte, is| byte << 1 | u8::from(is))
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let is = |bit: u8| byte >> bit & 1 == 1;
        (byte < 32).then(|| Self {
            opted_in: is(4),
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
    /// Keeps a body as it is: it must hold no more than itself.
    pub(super) fn new(
        status: StatusCode,
        mut fields: HeaderMap,
        body: Bytes,
        traits: Traits,
        extras: Extras,
        alike: &HeaderInterner,
    ) -> Self {
        // Said here, so that nobody has to make room for it on every hit.
        fields.remove(header::CONTENT_LENGTH);
        if status != StatusCode::NO_CONTENT {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let own = OwnValues::take_from(&mut fields);
        let has_own_vary = alike.add_vary(&mut fields);
        let upstream_status =
            fields.get_all(header::CACHE_STATUS).iter().any(|line| !line.is_empty());
        if !upstream_status {
            // An empty line says nothing, and would be taken for the place of ours.
            fields.remove(header::CACHE_STATUS);
        }
        fields.insert(header::AGE, HeaderValue::from_static(""));
        if extras.cache_status && !upstream_status {
            fields.insert(header::CACHE_STATUS, HeaderValue::from_static(""));
        }
        if extras.x_cache {
            fields.insert(X_CACHE, HeaderValue::from_static("hit"));
        }
        let (alike, own_fields) = alike.share(fields);
        Self {
            alike,
            body,
            own,
            status,
            traits,
            upstream_status,
            has_own_vary,
            part: None,
            own_fields,
        }
    }

    /// Loads a word of each line of memory that an answer reads.
    ///
    /// Done while the first line of the entry is still on its way, so that all come at once: behind the next
    /// locked instruction they would be waited for one after another.
    #[inline]
    pub(super) fn ask_for_all_lines(&self) {
        black_box((self.body.len(), self.status));
        self.own.ask_for_all_lines();
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
        if self.has_own_vary {
            remove_last_line(&mut fields, &header::VARY);
        }
        fields
    }

    /// The fields of an answer of this age, with this line of `Cache-Status`.
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

    /// The shared fields with those that are this response's own, or this hit's.
    #[inline]
    fn filled_in(&self, age: Option<HeaderValue>, status: Option<HeaderValue>) -> HeaderMap {
        self.alike.filled_in(&self.own, age, status)
    }

    /// The kept response of a shared store.
    pub(super) fn decode(bytes: &Bytes, extras: Extras, alike: &HeaderInterner) -> Option<Self> {
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
        // Not a piece of what was read, which would be held as a whole.
        let body = Bytes::copy_from_slice(&bytes[at.at..]);
        Some(Self::new(status, fields, body, traits, extras, alike))
    }
}

impl StoredResponse {
    /// Bytes held beside the entry itself.
    pub(super) fn weight(&self) -> usize {
        self.body.len() + self.own.heap_bytes() + self.own_fields
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

/// Removes the last line of a field.
pub(crate) fn remove_last_line(fields: &mut HeaderMap, name: &HeaderName) {
    let mut lines: Vec<HeaderValue> = fields.get_all(name).iter().cloned().collect();
    lines.pop();
    fields.remove(name);
    for line in lines {
        fields.append(name, line);
    }
}

/// An age is never short of the time that has really passed.
fn rounded_up(age: Duration) -> u64 {
    age.as_secs() + u64::from(age.subsec_nanos() > 0)
}

/// `Age` of something this old.
pub(super) fn age_line(age: Duration) -> HeaderValue {
    status_header::age(rounded_up(age))
}

/// The response of an entry, if it is one.
#[inline]
pub(super) fn of(entry: &AnyEntry) -> Option<&StoredResponse> {
    match CacheRecord::of(entry)? {
        CacheRecord::Response(stored) => Some(stored),
        _ => None,
    }
}

/// The answer of a fresh hit, which the response of an entry gives.
#[inline]
pub(super) fn hit<R>(
    entry: AnyEntry,
    now: Moment,
    extras: Extras,
    head_only: bool,
) -> Response<CacheBody<R>> {
    let (age, fresh_for) = aged(&entry, now);
    let status = extras.cache_status.then(|| status_header::hit(fresh_for.as_secs()));
    answer(entry, age, status, head_only)
}

/// An answer of this age with this line of `Cache-Status`, which the response of an entry gives.
#[inline]
pub(super) fn answer<R>(
    entry: AnyEntry,
    age: Duration,
    cache_status: Option<HeaderValue>,
    head_only: bool,
) -> Response<CacheBody<R>> {
    let stored = of(&entry).expect("only entries that hold responses are answered from");
    // Where only the head is sent, its fields say how long the body would have been.
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

/// The body of an entry's response. It keeps the entry alive, whose counter a hit has touched anyway.
struct BodyOf(AnyEntry);

impl AsRef<[u8]> for BodyOf {
    fn as_ref(&self) -> &[u8] {
        &of(&self.0).expect("only entries that hold responses are answered from").body
    }
}

/// How old what an entry holds is, and for how much longer it is fresh.
#[inline]
pub(super) fn aged<V: ?Sized>(entry: &Entry<V>, now: Moment) -> (Duration, Duration) {
    let ends = entry.ends();
    (now.since(ends.filled()), ends.fresh_until().since(now))
}

pub(super) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

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

    fn stored(alike: &HeaderInterner) -> StoredResponse {
        let body = Bytes::from_static(b"hello");
        let traits = Traits { open: true, validated: true, ..Traits::default() };
        StoredResponse::new(StatusCode::OK, fields(), body, traits, EXTRAS, alike)
    }

    #[test]
    fn what_is_kept_comes_back_with_all_its_fields() {
        let stored = stored(&HeaderInterner::default());
        assert_eq!(stored.fields(), fields());
        let seconds = Duration::from_secs;
        let fields = stored.fields_of_answer(seconds(3), Some(status_header::hit(57)));
        assert_eq!(fields["age"], "3");
        assert_eq!(fields["cache-status"], "larder; hit; ttl=57");
        assert_eq!(fields.get_all("link").iter().count(), 2);
        assert_eq!(
            (&fields["etag"], &fields["content-length"]),
            (&"\"a\"".parse().unwrap(), &5.into())
        );
    }

    #[test]
    fn a_stored_response_survives_being_written_and_read() {
        let alike = HeaderInterner::default();
        let bytes = Bytes::from(stored(&alike).encode().unwrap());
        let read = StoredResponse::decode(&bytes, EXTRAS, &alike).unwrap();
        assert_eq!((read.fields(), read.traits), (fields(), stored(&alike).traits));
        assert_eq!(&read.body[..], b"hello");
        let buffer = bytes.as_ptr_range();
        assert!(!buffer.contains(&read.body.as_ptr()), "what was read is not held");
        for end in 0..bytes.len() - 5 {
            assert!(StoredResponse::decode(&bytes.slice(..end), EXTRAS, &alike).is_none());
        }
    }

    #[test]
    fn responses_with_the_same_fields_share_one_map() {
        let alike = HeaderInterner::default();
        let (a, b) = (stored(&alike), stored(&alike));
        assert!(Arc::ptr_eq(&a.alike, &b.alike));
    }
}
