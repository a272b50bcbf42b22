//! The fields of stored responses. The fields that many responses have in common are stored only once, and each
//! response stores its own values.

use std::{collections::HashMap, hash::Hasher as _, hint::black_box, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

/// The fields of a response, with slots for the values that are filled in on a hit.
///
/// The slots come first, in the order of [`FILLED_IN`], so that filling them in is a walk along the first
/// values of a copy, without a search.
#[derive(Debug)]
pub(in crate::response_cache) struct Template {
    fields: HeaderMap,
    has: [bool; 6],
}

impl Template {
    fn new(mut fields: HeaderMap) -> Self {
        // A line of an upstream cache is not empty, but our slot is.
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
            "a HeaderMap iterates in the order of insertion"
        );
        // A clone has exactly the capacity that it needs.
        Self { fields: ordered.clone(), has }
    }

    /// Returns a copy with the values of one response, and of one hit, in the slots.
    #[inline]
    pub(in crate::response_cache) fn filled_in(
        &self,
        own: &OwnValues,
        age: Option<HeaderValue>,
        status: Option<HeaderValue>,
    ) -> HeaderMap {
        let mut fields = self.fields.clone();
        let mut places = fields.values_mut();
        own.fill_in(&self.has, &mut places);
        for (value, has) in [(age, self.has[4]), (status, self.has[5])] {
            if has && let (Some(place), Some(value)) = (places.next(), value) {
                *place = value;
            }
        }
        fields
    }
}

/// The fields that differ between responses.
const OWN: [HeaderName; 4] =
    [header::ETAG, header::DATE, header::LAST_MODIFIED, header::CONTENT_LENGTH];

/// The fields of [`OWN`], and the fields that differ between hits.
const FILLED_IN: [HeaderName; 6] = [
    header::ETAG,
    header::DATE,
    header::LAST_MODIFIED,
    header::CONTENT_LENGTH,
    header::AGE,
    header::CACHE_STATUS,
];

/// The values of the fields that differ between responses, concatenated.
#[derive(Debug)]
pub(in crate::response_cache) struct OwnValues {
    text: SmallVec<[u8; USUAL_TEXT]>,
    ends: [u32; 4],
}

impl OwnValues {
    /// Moves the values out of `fields`, and leaves empty slots.
    pub(in crate::response_cache) fn take_from(fields: &mut HeaderMap) -> Self {
        let mut text = SmallVec::new();
        let ends = OWN.map(|name| {
            if let Some(value) = fields.get(&name) {
                text.extend_from_slice(value.as_bytes());
                fields.insert(name, HeaderValue::from_static(""));
            }
            u32::try_from(text.len()).expect("fields of gigabytes are never received")
        });
        Self { text, ends }
    }

    /// Fills the values into the slots that are present. One allocation holds all values; long values need a second
    /// allocation.
    #[inline]
    fn fill_in<'a>(&self, has: &[bool; 6], places: &mut impl Iterator<Item = &'a mut HeaderValue>) {
        let mut rest = Bytes::from_owner(SmallVec::<[u8; USUAL_TEXT]>::from_slice(&self.text));
        let mut at = 0;
        for (&end, _) in self.ends.iter().zip(has).filter(|(_, has)| **has) {
            // The last split takes the handle that is left, so it does not change the reference count.
            let value = rest.split_to(end as usize - at);
            at = end as usize;
            if let Some(place) = places.next() {
                *place = HeaderValue::from_maybe_shared(value).expect("they were values before");
            }
        }
    }

    /// See [`StoredResponse::ask_for_all_lines`](crate::response_cache::stored::StoredResponse::ask_for_all_lines).
    #[inline]
    pub(in crate::response_cache) fn ask_for_all_lines(&self) {
        black_box((self.text.first().copied(), self.text.last().copied(), self.ends[3]));
    }

    /// Returns the number of bytes that this value holds on the heap.
    pub(in crate::response_cache) fn heap_bytes(&self) -> usize {
        if self.text.spilled() { self.text.capacity() } else { 0 }
    }
}

/// Templates that many responses share.
#[derive(Debug, Default)]
pub(in crate::response_cache) struct HeaderInterner {
    known: Mutex<HashMap<u64, Arc<Template>>>,
    /// The request fields of the key, which each response names in its last line of `Vary`.
    vary: Option<HeaderValue>,
}

impl HeaderInterner {
    pub(in crate::response_cache) fn new(vary: Option<HeaderValue>) -> Self {
        Self { known: Mutex::default(), vary }
    }

    /// Adds the `Vary` line of the key to the fields of a response. Returns `true` if there is one.
    pub(in crate::response_cache) fn add_vary(&self, fields: &mut HeaderMap) -> bool {
        let Some(line) = self.vary.clone() else { return false };
        fields.append(header::VARY, line);
        true
    }

    /// Returns the shared template of these fields, and the number of its bytes that are not shared.
    pub(in crate::response_cache) fn share(&self, fields: HeaderMap) -> (Arc<Template>, usize) {
        let bytes = map_bytes(&fields);
        let hash = hash_of(&fields);
        let mut known = self.known.lock();
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

/// The maximum number of shared templates. Responses with other fields have templates of their own.
const MOST_ALIKE: usize = 256;

/// Our `ETag`, a date and a length take 67 bytes. Longer values go to the heap.
const USUAL_TEXT: usize = 72;

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries every set of own fields, with `ETag`s that fit and one that does not.
    #[test]
    fn filling_in_restores_the_values_that_were_taken_out() {
        let values = |long: bool| {
            let tag =
                if long { "\"".to_owned() + &"t".repeat(200) + "\"" } else { "\"t\"".to_owned() };
            let date = "Sun, 06 Nov 1994 08:49:37 GMT".to_owned();
            [tag, date.clone(), date, "1024".to_owned()]
        };
        for (set, long) in (0..16_u32).flat_map(|set| [(set, false), (set, true)]) {
            let mut fields = HeaderMap::new();
            fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
            fields.append(header::LINK, HeaderValue::from_static("</a>"));
            fields.append(header::LINK, HeaderValue::from_static("</b>"));
            for (at, (name, value)) in OWN.iter().zip(values(long)).enumerate() {
                if set >> at & 1 == 1 {
                    fields.insert(name, value.parse().unwrap());
                }
            }
            let whole = fields.clone();
            let own = OwnValues::take_from(&mut fields);
            fields.insert(header::AGE, HeaderValue::from_static(""));
            let has_status = set % 3 == 0;
            if has_status {
                fields.insert(header::CACHE_STATUS, HeaderValue::from_static(""));
            }
            let (template, _) = HeaderInterner::default().share(fields);
            let [age, status] =
                ["7", "larder; hit"].map(|text| Some(HeaderValue::from_static(text)));
            let mut filled = template.filled_in(&own, age, status);
            assert_eq!(filled.remove(header::AGE).unwrap(), "7");
            assert_eq!(filled.remove(header::CACHE_STATUS).is_some(), has_status);
            assert_eq!(filled, whole, "set {set:04b}, long {long}");
        }
    }
}
