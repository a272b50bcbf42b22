//! Stores partial responses that have a validator, and combines adjacent partial responses that have the same strong
//! `ETag`.
//!
//! # Source
//!
//! [RFC 9111, section 3.3](https://www.rfc-editor.org/rfc/rfc9111#section-3.3) and
//! [section 3.4](https://www.rfc-editor.org/rfc/rfc9111#section-3.4)

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use larder_core::{
    Key,
    kernel::{EntryState, KeyTooLongError},
};
use larder_semantics::{
    fields, ranges,
    storing::Profile,
    validation::{self, Validators},
};

use crate::response_cache::{
    fill::Fill,
    stored::{self, Part},
};

/// Returns the key of the partial response that belongs to a key.
pub(in crate::response_cache) fn part_key(key: &Key) -> Result<Key, KeyTooLongError> {
    key.with_part(b" part")
}

/// Returns the range of a partial response, if it may be stored: it must announce the length of the full representation
/// and, except under `Profile::Conformance`, have a validator. Only partial responses with the same strong `ETag` are
/// combined.
pub(in crate::response_cache) fn storable_part(
    headers: &HeaderMap,
    profile: Profile,
) -> Option<Part> {
    let (range, total) = ranges::content_range(headers)?;
    let is_enough = profile == Profile::Conformance || !Validators::of(headers).is_empty();
    is_enough.then_some(Part { range, total: total? })
}

impl Fill {
    /// Combines a partial response with the stored partial response of the same representation, if their ranges touch
    /// or overlap. The stored entry then becomes a piece of the new entry.
    ///
    /// The fields are merged, too, because a 206 may omit fields that its client has from the previous response.
    ///
    /// Source: RFC 9110, section 15.3.7; RFC 9111, section 3.4.
    pub(in crate::response_cache) fn joined(
        &self,
        headers: &mut HeaderMap,
        part: Part,
        bytes: &Bytes,
    ) -> (Part, Bytes) {
        let alone = (part, bytes.clone());
        let kernel = &self.context.kernel;
        let Ok(key) = part_key(&self.key) else { return alone };
        let Some(entry) = kernel.find(key.as_bytes()) else {
            return alone;
        };
        let entry_state = kernel.entry_state(&entry, kernel.now());
        if matches!(entry_state, EntryState::Invalid | EntryState::Expired) {
            return alone;
        }
        let Some(stored) = stored::of(&entry) else { return alone };
        let Some(stored_part) =
            stored.part.as_deref().filter(|stored_part| stored_part.total == part.total)
        else {
            return alone;
        };
        let kept_fields = stored.fields();
        let [now, then] = [&*headers, &kept_fields].map(|fields| Validators::of(fields).etag);
        let same = now.zip(then).is_some_and(|(now, then)| now.is_strongly(&then));
        match stored_part.range.joined(&part.range).filter(|_| same) {
            Some(range) if range.len() <= self.context.options.body_limit as u64 => {
                self.scope.add_piece(&entry);
                *headers = validation::freshened(&kept_fields, headers);
                fields::remove_of_content(headers);
                let bytes = put_together((stored_part, stored.body()), (&part, bytes));
                (Part { range, total: part.total }, bytes)
            }
            _ => alone,
        }
    }
}

/// Combines two ranges that touch or overlap. If they overlap, the newer bytes are used.
fn put_together(old: (&Part, &Bytes), new: (&Part, &Bytes)) -> Bytes {
    let (old, old_bytes) = (old.0.range, old.1);
    let (new, new_bytes) = (new.0.range, new.1);
    let length = |bytes: u64| usize::try_from(bytes).expect("both are held in memory");
    let whole = new.last.max(old.last) - new.first.min(old.first) + 1;
    let mut all = BytesMut::with_capacity(length(whole));
    if old.first < new.first {
        all.extend_from_slice(&old_bytes[..length(new.first - old.first).min(old_bytes.len())]);
    }
    all.extend_from_slice(new_bytes);
    if old.last > new.last {
        let left = length(old.last - new.last).min(old_bytes.len());
        all.extend_from_slice(&old_bytes[old_bytes.len() - left..]);
    }
    all.freeze()
}

#[cfg(test)]
mod tests {
    use larder_semantics::ranges::ByteRange;

    use super::*;

    #[test]
    fn ranges_that_touch_or_overlap_are_combined() {
        let whole = "0123456789";
        let part = |first: usize, last: usize| {
            let range = ByteRange { first: first as u64, last: last as u64 };
            (Part { range, total: 10 }, Bytes::from(&whole[first..=last]))
        };
        for (old, new) in [((0, 4), (5, 9)), ((5, 9), (0, 4)), ((2, 6), (0, 9)), ((0, 9), (3, 4))] {
            let (old, new) = (part(old.0, old.1), part(new.0, new.1));
            assert_eq!(put_together((&old.0, &old.1), (&new.0, &new.1)), whole, "{old:?} {new:?}");
        }
    }

    #[test]
    fn a_partial_response_without_a_validator_or_a_length_is_not_stored() {
        let headers = |range: &'static str, tag: &'static str| -> HeaderMap {
            [("content-range", range), ("etag", tag)]
                .map(|(name, value)| {
                    let value = http::HeaderValue::from_static(value);
                    (http::HeaderName::from_static(name), value)
                })
                .into_iter()
                .collect()
        };
        assert!(storable_part(&headers("bytes 0-4/10", "\"a\""), Profile::Careful).is_some());
        assert!(storable_part(&headers("bytes 0-4/*", "\"a\""), Profile::Careful).is_none());
        assert!(storable_part(&headers("bytes 0-4/10", "W/\"a\""), Profile::Careful).is_some());
        assert!(storable_part(&headers("bytes 0-4/10", "unquoted"), Profile::Careful).is_none());
        assert!(storable_part(&headers("bytes 9-4/10", "\"a\""), Profile::Careful).is_none());
    }
}
