//! Range requests: the byte ranges that a request selects, and the fields of partial responses.
//!
//! # Source
//!
//! [RFC 9110, section 14](https://www.rfc-editor.org/rfc/rfc9110#section-14) and
//! [RFC 9111, section 3.4](https://www.rfc-editor.org/rfc/rfc9111#section-3.4)

use http::{HeaderMap, header};

use crate::{
    freshness,
    validation::{EntityTag, Validators},
};

/// A byte range of a representation; both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// The first byte.
    pub first: u64,
    /// The last byte.
    pub last: u64,
}

impl ByteRange {
    /// Returns the number of bytes, which is never zero.
    #[allow(clippy::len_without_is_empty, reason = "a range has at least one byte")]
    pub const fn len(&self) -> u64 {
        self.last - self.first + 1
    }

    /// Returns whether it includes all of `other`.
    pub const fn covers(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Returns both ranges as one range, if they overlap or touch.
    pub fn joined(&self, other: &Self) -> Option<Self> {
        let meet = self.first <= other.last.saturating_add(1)
            && other.first <= self.last.saturating_add(1);
        meet.then(|| Self { first: self.first.min(other.first), last: self.last.max(other.last) })
    }
}

/// The parts of a representation of known length that a `Range` selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The whole representation, because there is no `Range` or it is ignored.
    Whole,
    /// These parts.
    Parts(Vec<ByteRange>),
    /// None of the ranges overlaps the representation, so the response is a 416.
    Unsatisfiable,
}

/// Returns the parts of a representation of `length` bytes that the `Range` of a request selects.
///
/// A field that is invalid, repeated, in other units, or with more than [`MOST_RANGES`] ranges is ignored, because the
/// whole representation is always a correct response. Any range of an empty representation is ignored too, as are
/// several ranges that together exceed the representation.
///
/// # Source
///
/// [RFC 9110, section 14.2](https://www.rfc-editor.org/rfc/rfc9110#section-14.2)
pub fn select(request: &HeaderMap, length: u64) -> Selection {
    let Some(specs) = specs(request).filter(|_| length > 0) else { return Selection::Whole };
    let parts: Vec<ByteRange> = specs.iter().filter_map(|spec| spec.within(length)).collect();
    if parts.is_empty() {
        return Selection::Unsatisfiable;
    }
    let asked: u64 = parts.iter().map(ByteRange::len).sum();
    if parts.len() > 1 && asked > length {
        // It would be useless to send overlapping ranges that add up to more than the whole representation.
        return Selection::Whole;
    }
    Selection::Parts(parts)
}

/// Returns the range that a request asks for, if it is the only range and has both ends.
pub fn single(request: &HeaderMap) -> Option<ByteRange> {
    match specs(request)?[..] {
        [RangeSpec::From(first, Some(last))] => Some(ByteRange { first, last }),
        _ => None,
    }
}

/// Returns whether a request has a valid `Range` in bytes.
pub fn is_asked(request: &HeaderMap) -> bool {
    specs(request).is_some()
}

/// Returns whether `If-Range` allows the `Range`. It does if it has the same strong entity tag, or exactly the
/// `Last-Modified` of a representation that changed at least a second before its response was generated. The result is
/// also `true` if the field is absent.
///
/// # Source
///
/// [RFC 9110, section 13.1.5](https://www.rfc-editor.org/rfc/rfc9110#section-13.1.5)
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let mut lines = request.get_all(header::IF_RANGE).iter();
    let Some(line) = lines.next() else { return true };
    let Ok(text) = line.to_str() else { return false };
    if lines.next().is_some() {
        return false;
    }
    let current = Validators::of(stored);
    if let Some(given) = EntityTag::parse(text) {
        return current.etag.is_some_and(|current| given.is_strongly(&current));
    }
    match (crate::date::parse(text), current.last_modified, freshness::date(stored)) {
        (Some(given), Some(changed), Some(date)) => {
            let settled = date.duration_since(changed).is_ok_and(|since| since.as_secs() >= 1);
            given == changed && settled
        }
        _ => false,
    }
}

/// Parses `Content-Range` to the range and, if it is known, the length of the whole representation.
///
/// # Source
///
/// [RFC 9110, section 14.4](https://www.rfc-editor.org/rfc/rfc9110#section-14.4)
pub fn content_range(response: &HeaderMap) -> Option<(ByteRange, Option<u64>)> {
    let mut lines = response.get_all(header::CONTENT_RANGE).iter();
    let text = lines.next()?.to_str().ok()?;
    if lines.next().is_some() {
        return None;
    }
    let (unit, rest) = text.split_once(' ')?;
    let (range, length) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let range = ByteRange { first: number(first)?, last: number(last)? };
    let length = if length == "*" { None } else { Some(number(length)?) };
    let valid = unit.eq_ignore_ascii_case("bytes")
        && range.first <= range.last
        && length.is_none_or(|length| range.last < length);
    valid.then_some((range, length))
}

/// Formats `Content-Range` for a partial response.
pub fn format(range: &ByteRange, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.first, range.last)
}

/// Formats `Content-Range` for 416.
pub fn format_unsatisfied(length: u64) -> String {
    format!("bytes */{length}")
}

#[derive(Clone, Copy)]
enum RangeSpec {
    From(u64, Option<u64>),
    Last(u64),
}

impl RangeSpec {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('-')? {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    fn within(&self, length: u64) -> Option<ByteRange> {
        let end = length.checked_sub(1)?;
        match *self {
            Self::From(first, _) if first > end => None,
            Self::From(first, last) => {
                Some(ByteRange { first, last: last.unwrap_or(end).min(end) })
            }
            Self::Last(0) => None,
            Self::Last(count) => Some(ByteRange { first: length.saturating_sub(count), last: end }),
        }
    }
}

fn specs(request: &HeaderMap) -> Option<Vec<RangeSpec>> {
    let mut lines = request.get_all(header::RANGE).iter();
    let text = lines.next()?.to_str().ok()?;
    if lines.next().is_some() {
        return None;
    }
    let (unit, set) = text.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let members = crate::list::split(set);
    let specs = members.map(RangeSpec::parse).take(MOST_RANGES + 1).collect::<Option<Vec<_>>>()?;
    (1..=MOST_RANGES).contains(&specs.len()).then_some(specs)
}

/// Parses digits. A number that overflows is treated as the largest number.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The maximum number of ranges that one request may ask for. With more ranges, it gets the whole representation.
pub const MOST_RANGES: usize = 16;

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_static(name);
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn range(first: u64, last: u64) -> ByteRange {
        ByteRange { first, last }
    }

    #[test]
    fn ranges_select_the_bytes_that_exist() {
        use Selection::{Parts, Unsatisfiable, Whole};
        let rows = [
            ("bytes=0-4", Parts(vec![range(0, 4)]), "14.1.2"),
            ("Bytes=0-4", Parts(vec![range(0, 4)]), "14.1: units in any case"),
            ("bytes=4-", Parts(vec![range(4, 9)]), "14.1.2: open"),
            ("bytes=-3", Parts(vec![range(7, 9)]), "14.1.2: suffix"),
            ("bytes=-30", Parts(vec![range(0, 9)]), "14.1.2: longer than it is"),
            ("bytes=8-99", Parts(vec![range(8, 9)]), "14.1.2: beyond the end"),
            ("bytes=0-1, 4-5", Parts(vec![range(0, 1), range(4, 5)]), "14.1.1"),
            ("bytes=0-1,99-", Parts(vec![range(0, 1)]), "14.2: one of them is there"),
            ("bytes=10-", Unsatisfiable, "14.1.2"),
            ("bytes=-0", Unsatisfiable, "14.1.2"),
            ("bytes=99999999999999999999-", Unsatisfiable, "14.1.2"),
            ("bytes=4-0", Whole, "14.1.1: invalid"),
            ("bytes=", Whole, "14.1.1"),
            ("bytes=a-b", Whole, "14.1.1"),
            ("bytes=-", Whole, "14.1.1"),
            ("bytes 0-4", Whole, "14.2"),
            ("lines=0-4", Whole, "14.2: other units"),
            ("bytes=0-9,0-9", Whole, "14.2: more than the whole"),
            (
                "bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8,9-9,0-0,1-1,2-2,3-3,4-4,5-5,6-6",
                Whole,
                "14.2: too many",
            ),
        ];
        for (text, expected, section) in rows {
            let found = select(&headers(&[("range", text)]), 10);
            assert_eq!(found, expected, "{text} (RFC 9110 {section})");
        }
        assert_eq!(select(&HeaderMap::new(), 10), Whole);
        let twice = headers(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]);
        assert_eq!(select(&twice, 10), Whole);
        assert_eq!(select(&headers(&[("range", "bytes=0-")]), 0), Whole);
    }

    #[test]
    fn if_range_demands_an_exact_match() {
        let (old, new) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT");
        let stored = [("etag", "\"a\""), ("last-modified", old), ("date", new)];
        let weak = [("etag", "W/\"a\"")];
        let unsettled = [("last-modified", old), ("date", old)];
        type Row<'a> = (&'a [(&'static str, &'a str)], &'a str, bool);
        let rows: [Row<'_>; 8] = [
            (&stored, "\"a\"", true),
            (&stored, "\"b\"", false),
            (&stored, "W/\"a\"", false),
            (&weak, "W/\"a\"", false),
            (&stored, old, true),
            (&stored, new, false),
            (&unsettled, old, false),
            (&stored, "soon", false),
        ];
        for (stored, given, holds) in rows {
            let found = if_range_holds(&headers(&[("if-range", given)]), &headers(stored));
            assert_eq!(found, holds, "{given} of {stored:?} (RFC 9110 13.1.5)");
        }
        assert!(if_range_holds(&HeaderMap::new(), &HeaderMap::new()));
    }

    #[test]
    fn content_ranges_are_read_or_refused() {
        let rows = [
            ("bytes 0-4/10", Some((range(0, 4), Some(10)))),
            ("bytes 0-4/*", Some((range(0, 4), None))),
            ("bytes 4-0/10", None),
            ("bytes 0-10/10", None),
            ("bytes */10", None),
            ("bytes=0-4/10", None),
        ];
        for (text, expected) in rows {
            let found = content_range(&headers(&[("content-range", text)]));
            assert_eq!(found, expected, "{text} (RFC 9110 14.4)");
        }
    }

    #[test]
    fn ranges_that_touch_are_joined() {
        assert_eq!(range(0, 4).joined(&range(5, 9)), Some(range(0, 9)));
        assert_eq!(range(3, 7).joined(&range(0, 4)), Some(range(0, 7)));
        assert_eq!(range(0, 4).joined(&range(6, 9)), None);
    }

    proptest! {
        #[test]
        fn every_part_lies_in_the_representation(text in "[ -~]{0,40}", length in 0_u64..100) {
            let request = headers(&[("range", &format!("bytes={text}"))]);
            if let Selection::Parts(parts) = select(&request, length) {
                for part in parts {
                    prop_assert!(part.first <= part.last && part.last < length);
                }
            }
        }
    }

    #[test]
    fn a_range_has_a_length_and_covers_ranges_within_it() {
        assert_eq!(range(0, 0).len(), 1);
        assert_eq!(range(5, 9).len(), 5);
        let rows = [
            (5, 9, true),
            (6, 8, true),
            (4, 9, false),
            (5, 10, false),
            (0, 4, false),
            (10, 11, false),
        ];
        for (first, last, is_covered) in rows {
            assert_eq!(range(5, 9).covers(&range(first, last)), is_covered, "{first}-{last}");
        }
    }

    #[test]
    fn one_range_with_both_ends_is_known_without_the_length() {
        let rows = [
            ("bytes=5-9", Some(range(5, 9)), true),
            ("bytes=5-", None, true),
            ("bytes=-5", None, true),
            ("bytes=0-1, 5-9", None, true),
            ("lines=0-1", None, false),
            ("bytes=9-5", None, false),
        ];
        for (text, expected, asks) in rows {
            let request = headers(&[("range", text)]);
            assert_eq!(single(&request), expected, "{text}");
            assert_eq!(is_asked(&request), asks, "{text}");
        }
        assert!(!is_asked(&HeaderMap::new()));
    }

    #[test]
    fn content_ranges_are_sent_as_the_specification_writes_them() {
        assert_eq!(format(&range(5, 9), 20), "bytes 5-9/20");
        assert_eq!(format_unsatisfied(20), "bytes */20");
    }

    #[test]
    fn sixteen_ranges_are_selected_and_seventeen_are_ignored() {
        let text = |count: u64| {
            let ranges: Vec<_> = (0..count).map(|at| format!("{at}-{at}")).collect();
            format!("bytes={}", ranges.join(","))
        };
        let selected = select(&headers(&[("range", &text(16))]), 100);
        assert_eq!(selected, Selection::Parts((0..16).map(|at| range(at, at)).collect()));
        assert_eq!(select(&headers(&[("range", &text(17))]), 100), Selection::Whole);
    }

    #[test]
    fn parts_that_add_up_to_the_whole_representation_are_selected() {
        let request = headers(&[("range", "bytes=0-4,5-9")]);
        assert_eq!(select(&request, 10), Selection::Parts(vec![range(0, 4), range(5, 9)]));
        assert_eq!(select(&request, 9), Selection::Parts(vec![range(0, 4), range(5, 8)]));
        let last = headers(&[("range", "bytes=9-")]);
        assert_eq!(select(&last, 10), Selection::Parts(vec![range(9, 9)]));
        assert_eq!(select(&last, 9), Selection::Unsatisfiable);
    }
}
