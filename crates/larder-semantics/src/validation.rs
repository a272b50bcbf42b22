//! Entity tags and conditional requests.
//!
//! # Source
//!
//! [RFC 9110, section 8.8](https://www.rfc-editor.org/rfc/rfc9110#section-8.8) and
//! [section 13](https://www.rfc-editor.org/rfc/rfc9110#section-13)

use std::{fmt, time::SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::{fields, list};

/// An entity tag: an opaque string, strong or weak.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntityTag {
    weak: bool,
    opaque: String,
}

impl EntityTag {
    /// Creates a strong tag. Equal strong tags mean equal bytes. `None` if the string has characters that a tag cannot
    /// have (quotes, blanks, control characters, anything outside ASCII).
    pub fn strong(opaque: impl Into<String>) -> Option<Self> {
        let opaque = opaque.into();
        is_opaque(&opaque).then_some(Self { weak: false, opaque })
    }

    /// Creates a weak tag. Equal weak tags mean equivalent representations.
    pub fn weak(opaque: impl Into<String>) -> Option<Self> {
        Some(Self { weak: true, ..Self::strong(opaque)? })
    }

    /// Parses `"abc"` or `W/"abc"`.
    pub fn parse(text: &str) -> Option<Self> {
        let (weak, quoted) = match text.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, text),
        };
        let opaque = quoted.strip_prefix('"')?.strip_suffix('"')?;
        is_opaque(opaque).then(|| Self { weak, opaque: opaque.to_owned() })
    }

    /// Returns the `ETag` of a message, if it has exactly one `ETag` and that is valid.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::ETAG).iter();
        let tag = Self::parse(lines.next()?.to_str().ok()?)?;
        lines.next().is_none().then_some(tag)
    }

    /// Returns whether both tags are strong and the same ([RFC 9110, section
    /// 8.8.3.2](https://www.rfc-editor.org/rfc/rfc9110#section-8.8.3.2)).
    pub fn is_strongly(&self, other: &Self) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    /// Returns whether both tags are the same, whether weak or strong.
    pub fn is_weakly(&self, other: &Self) -> bool {
        self.opaque == other.opaque
    }

    /// Returns the tag as a field value.
    pub fn to_value(&self) -> HeaderValue {
        HeaderValue::from_str(&self.to_string()).expect("an opaque text is visible ASCII")
    }
}

impl fmt::Display for EntityTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\"{}\"", if self.weak { "W/" } else { "" }, self.opaque)
    }
}

fn is_opaque(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x7e))
}

/// The validators of the current representation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// Its entity tag.
    pub etag: Option<EntityTag>,
    /// When it was last changed; HTTP dates have a resolution of one second.
    pub last_modified: Option<SystemTime>,
    /// Whether there is no current representation. In that case `If-Match` fails, and a write with `If-None-Match: *`
    /// proceeds.
    pub absent: bool,
}

impl Validators {
    /// Returns the validators for the case that there is no current representation.
    pub const fn absent() -> Self {
        Self { etag: None, last_modified: None, absent: true }
    }

    /// Returns the validators of a response.
    pub fn of(headers: &HeaderMap) -> Self {
        let last_modified = headers.get(header::LAST_MODIFIED);
        Self {
            etag: EntityTag::of(headers),
            last_modified: last_modified.and_then(|date| crate::date::parse(date.to_str().ok()?)),
            absent: false,
        }
    }

    /// Returns whether there is neither a tag nor a date.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}

impl From<EntityTag> for Validators {
    fn from(etag: EntityTag) -> Self {
        Self { etag: Some(etag), ..Self::default() }
    }
}

impl From<SystemTime> for Validators {
    fn from(last_modified: SystemTime) -> Self {
        Self { last_modified: Some(last_modified), ..Self::default() }
    }
}

impl From<(EntityTag, SystemTime)> for Validators {
    fn from((etag, last_modified): (EntityTag, SystemTime)) -> Self {
        Self { etag: Some(etag), last_modified: Some(last_modified), ..Self::default() }
    }
}

/// The result of evaluating the preconditions of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The preconditions hold, or there are none, so the request is processed.
    Proceed,
    /// The client has the current representation, so the response is a 304.
    NotModified,
    /// The representation that the client refers to has changed, so the response is a 412.
    Failed,
}

/// The preconditions that guard a write: `If-Match` and `If-Unmodified-Since`.
pub const WRITE_PRECONDITIONS: [HeaderName; 2] = [header::IF_MATCH, header::IF_UNMODIFIED_SINCE];

/// The preconditions that save a transfer: `If-None-Match` and `If-Modified-Since`.
pub const CACHE_VALIDATION: [HeaderName; 2] = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];

/// Evaluates all preconditions of a request against the current representation, in their order of precedence.
///
/// # Source
///
/// [RFC 9110, section 13.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-13.2.2)
pub fn evaluate(method: &Method, request: &HeaderMap, current: &Validators) -> Condition {
    match evaluate_guards(request, current) {
        Condition::Proceed => evaluate_not_modified(method, request, current),
        failed => failed,
    }
}

/// Evaluates steps 1 and 2 of the order: `If-Match`, or else `If-Unmodified-Since`.
pub fn evaluate_guards(request: &HeaderMap, current: &Validators) -> Condition {
    let holds = if request.contains_key(header::IF_MATCH) {
        matches(request, &header::IF_MATCH, current, EntityTag::is_strongly)
    } else {
        match (single_date(request, &header::IF_UNMODIFIED_SINCE), current.last_modified) {
            (Some(since), Some(changed)) => seconds(changed) <= seconds(since),
            _ => true,
        }
    };
    if holds { Condition::Proceed } else { Condition::Failed }
}

/// Evaluates steps 3 and 4 of the order: `If-None-Match`, or else `If-Modified-Since` on GET and HEAD.
pub fn evaluate_not_modified(
    method: &Method,
    request: &HeaderMap,
    current: &Validators,
) -> Condition {
    let reads = method == Method::GET || method == Method::HEAD;
    if request.contains_key(header::IF_NONE_MATCH) {
        return match matches(request, &header::IF_NONE_MATCH, current, EntityTag::is_weakly) {
            false => Condition::Proceed,
            true if reads => Condition::NotModified,
            true => Condition::Failed,
        };
    }
    match (single_date(request, &header::IF_MODIFIED_SINCE), current.last_modified) {
        (Some(since), Some(changed)) if reads && seconds(changed) <= seconds(since) => {
            Condition::NotModified
        }
        _ => Condition::Proceed,
    }
}

/// Returns whether a precondition may turn a response of this status into a 304, which is the case for a 200 only.
pub fn may_become_not_modified(status: StatusCode) -> bool {
    status == StatusCode::OK
}

/// Returns whether a 304 carries this field of the 200 that it replaces.
///
/// # Source
///
/// [RFC 9110, section 15.4.5](https://www.rfc-editor.org/rfc/rfc9110#section-15.4.5); fields about the representation
/// that the client already has are left out, and all other fields stay. `Last-Modified` stays if it is the only
/// validator (`has_etag` is false), because otherwise a recipient could not identify the response to freshen.
pub fn belongs_in_not_modified(name: &HeaderName, has_etag: bool) -> bool {
    if *name == header::LAST_MODIFIED {
        return !has_etag;
    }
    !fields::is_of_content(name)
        && !matches!(
            *name,
            header::CONTENT_LENGTH
                | header::CONTENT_TYPE
                | header::CONTENT_ENCODING
                | header::CONTENT_LANGUAGE
                | header::CONTENT_RANGE
                | header::ACCEPT_RANGES
                | header::TRANSFER_ENCODING
                | header::TRAILER
        )
}

/// Returns the indices of the stored responses that a 304 freshens. `stored` contains the validators that were sent to
/// get the 304, the most recent response first.
///
/// A strong tag selects all responses that have it, and a weaker validator selects the most recent response that has
/// it. A 304 without validators selects a response only if there is just one. If there is just one response, its tag
/// matches weakly.
///
/// # Source
///
/// [RFC 9111, section 4.3.4](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.4)
pub fn confirmed(not_modified: &HeaderMap, stored: &[Validators]) -> Vec<usize> {
    let update = Validators::of(not_modified);
    let all = |same: &dyn Fn(&Validators) -> bool| -> Vec<usize> {
        (0..stored.len()).filter(|at| same(&stored[*at])).collect()
    };
    match update.etag {
        Some(tag) if !tag.weak && !is_only(stored, &tag) => {
            all(&|stored| stored.etag.as_ref().is_some_and(|stored| stored.is_strongly(&tag)))
        }
        Some(tag) => {
            let mut weakly =
                all(&|stored| stored.etag.as_ref().is_some_and(|stored| stored.is_weakly(&tag)));
            weakly.truncate(1);
            weakly
        }
        None if stored.len() == 1 => vec![0],
        None => {
            let changed = update.last_modified;
            let mut dated = all(&|stored| changed.is_some() && stored.last_modified == changed);
            dated.truncate(1);
            dated
        }
    }
}

/// Whether there is only one stored response and it has this tag, weak or strong. Servers that compress weaken the tag
/// of a 200, but not the tag of a 304.
fn is_only(stored: &[Validators], tag: &EntityTag) -> bool {
    matches!(stored, [Validators { etag: Some(only), .. }] if only.is_weakly(tag))
}

/// Freshens the fields of a stored response from a 304, or from a HEAD that confirms it.
///
/// Each field of the update replaces all lines of that name, except fields that describe the stored bytes: their
/// length, coding, range and digests.
///
/// # Source
///
/// [RFC 9111, section 3.2](https://www.rfc-editor.org/rfc/rfc9111#section-3.2)
pub fn freshened(stored: &HeaderMap, update: &HeaderMap) -> HeaderMap {
    let mut update = update.clone();
    fields::remove_not_stored(&mut update);
    for name in OF_THE_BYTES {
        update.remove(name);
    }
    fields::remove_of_content(&mut update);
    let mut fields = stored.clone();
    // The `Age` of the stored response does not apply to the update.
    fields.remove(header::AGE);
    for name in update.keys() {
        fields.remove(name);
    }
    for (name, value) in &update {
        fields.append(name, value.clone());
    }
    fields
}

/// Returns whether the response to a HEAD confirms the stored response. It does if it has the same validators and
/// length, as far as the HEAD has them.
///
/// # Source
///
/// [RFC 9111, section 4.3.5](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.5)
pub fn head_confirms(head: &HeaderMap, stored: &HeaderMap, length: u64) -> bool {
    let (now, then) = (Validators::of(head), Validators::of(stored));
    let announced = head.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let same_tag = |now: &EntityTag| then.etag.as_ref().is_some_and(|then| now.is_weakly(then));
    now.etag.as_ref().is_none_or(same_tag)
        && now.last_modified.is_none_or(|now| then.last_modified == Some(now))
        && announced.is_none_or(|announced| announced.parse() == Ok(length))
}

const OF_THE_BYTES: [HeaderName; 3] =
    [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE];

fn matches(
    request: &HeaderMap,
    name: &HeaderName,
    current: &Validators,
    same: fn(&EntityTag, &EntityTag) -> bool,
) -> bool {
    if current.absent {
        return false;
    }
    list::members(request, name).any(|member| {
        member == "*"
            || match (&current.etag, EntityTag::parse(member)) {
                (Some(current), Some(given)) => same(&given, current),
                _ => false,
            }
    })
}

/// Parses a date precondition, which applies only if it is one line with a valid date.
fn single_date(request: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut lines = request.get_all(name).iter();
    let date = crate::date::parse(lines.next()?.to_str().ok()?)?;
    lines.next().is_none().then_some(date)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::date::format as format_date;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn current() -> Validators {
        (EntityTag::strong("a").unwrap(), at(10)).into()
    }

    fn request(lines: &[(HeaderName, String)]) -> HeaderMap {
        let line = |(name, value): &(HeaderName, String)| {
            (name.clone(), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn conditions_are_evaluated_in_order() {
        use Condition::{Failed, NotModified, Proceed};
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
        let none = |value: &str| (IF_NONE_MATCH, value.to_owned());
        let some = |value: &str| (IF_MATCH, value.to_owned());
        let since = |seconds| (IF_MODIFIED_SINCE, format_date(at(seconds)));
        let unless = |seconds| (IF_UNMODIFIED_SINCE, format_date(at(seconds)));
        let rows = [
            (Method::GET, vec![], Proceed, "13.2"),
            (Method::GET, vec![none("\"a\"")], NotModified, "13.1.2"),
            (Method::GET, vec![none("W/\"a\"")], NotModified, "13.1.2: weak comparison"),
            (Method::GET, vec![none("\"b\", \"a\"")], NotModified, "13.1.2: a list"),
            (Method::HEAD, vec![none("*")], NotModified, "13.1.2"),
            (Method::GET, vec![none("\"b\"")], Proceed, "13.1.2"),
            (Method::GET, vec![none("a")], Proceed, "8.8.3: quotes are part of a tag"),
            (Method::PUT, vec![none("*")], Failed, "13.1.2"),
            (Method::GET, vec![none("\"b\""), since(99)], Proceed, "13.1.3: precedence"),
            (Method::GET, vec![since(10)], NotModified, "13.1.3"),
            (Method::GET, vec![since(9)], Proceed, "13.1.3"),
            (Method::PUT, vec![since(99)], Proceed, "13.1.3: GET and HEAD only"),
            (Method::GET, vec![(IF_MODIFIED_SINCE, "soon".into())], Proceed, "13.1.3"),
            (Method::PUT, vec![some("\"a\"")], Proceed, "13.1.1"),
            (Method::PUT, vec![some("W/\"a\"")], Failed, "13.1.1: strong comparison"),
            (Method::PUT, vec![some("*")], Proceed, "13.1.1"),
            (Method::PUT, vec![some("\"b\"")], Failed, "13.1.1"),
            (Method::PUT, vec![some("\"a\""), unless(0)], Proceed, "13.1.4: precedence"),
            (Method::PUT, vec![unless(9)], Failed, "13.1.4"),
            (Method::PUT, vec![unless(10)], Proceed, "13.1.4"),
        ];
        for (method, lines, expected, section) in rows {
            let found = evaluate(&method, &request(&lines), &current());
            assert_eq!(found, expected, "{method} {lines:?} (RFC 9110 {section})");
        }
    }

    fn validators(tag: &str, changed: Option<u64>) -> Validators {
        Validators { etag: EntityTag::parse(tag), last_modified: changed.map(at), absent: false }
    }

    #[test]
    fn a_304_selects_stored_responses_by_its_validators() {
        use header::{ETAG, LAST_MODIFIED};
        let stored = [
            validators("\"a\"", Some(10)),
            validators("W/\"b\"", Some(20)),
            validators("\"a\"", None),
        ];
        let tag = |tag: &str| (ETAG, tag.to_owned());
        let rows = [
            (vec![tag("\"a\"")], vec![0, 2], "a strong tag: all that have it"),
            (vec![tag("W/\"a\"")], vec![0], "a weak tag: the most recent"),
            (vec![tag("W/\"b\"")], vec![1], "a weak tag"),
            (vec![tag("\"b\"")], vec![], "a strong tag never matches a weak one"),
            (vec![tag("\"x\"")], vec![], "none has it"),
            (vec![(LAST_MODIFIED, format_date(at(20)))], vec![1], "a date: the most recent"),
            (vec![], vec![], "names none, and there are several"),
        ];
        for (lines, expected, section) in rows {
            assert_eq!(confirmed(&request(&lines), &stored), expected, "RFC 9111 4.3.4: {section}");
        }
        assert_eq!(confirmed(&HeaderMap::new(), &stored[..1]), [0]);
        let strong = request(&[tag("\"b\"")]);
        assert_eq!(confirmed(&strong, &stored[1..2]), [0], "the only one there is");
    }

    #[test]
    fn freshening_replaces_all_fields_except_fields_about_the_stored_bytes() {
        let line = |name: &'static str, value: &str| (HeaderName::from_static(name), value.into());
        let stored = request(&[
            line("x", "old"),
            line("content-length", "5"),
            line("content-encoding", "gzip"),
            line("age", "7"),
            line("kept", "1"),
        ]);
        let update = request(&[
            line("x", "new"),
            line("content-length", "9"),
            line("content-encoding", "br"),
            line("connection", "hop"),
            line("hop", "1"),
            line("added", "1"),
        ]);
        let found = freshened(&stored, &update);
        let expected = request(&[
            line("content-length", "5"),
            line("content-encoding", "gzip"),
            line("kept", "1"),
            line("x", "new"),
            line("added", "1"),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_head_confirms_a_stored_response_with_the_same_validators_and_length() {
        use header::{CONTENT_LENGTH, ETAG};
        let stored = request(&[(ETAG, "\"a\"".into())]);
        let rows = [
            (vec![(ETAG, "\"a\"")], true),
            (vec![(ETAG, "\"a\""), (CONTENT_LENGTH, "5")], true),
            (vec![(ETAG, "\"a\""), (CONTENT_LENGTH, "6")], false),
            (vec![(ETAG, "\"b\"")], false),
            (vec![], true),
        ];
        for (lines, expected) in rows {
            let lines: Vec<_> = lines.into_iter().map(|(n, v)| (n, v.to_owned())).collect();
            assert_eq!(head_confirms(&request(&lines), &stored, 5), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_invalid_entity_tag_is_rejected() {
        assert_eq!(EntityTag::strong("a\"b"), None);
        assert_eq!(EntityTag::strong("a b"), None);
        assert_eq!(EntityTag::parse("\"a"), None);
        assert_eq!(EntityTag::parse("w/\"a\""), None);
        assert_eq!(EntityTag::parse("W/\"\"").unwrap().to_string(), "W/\"\"");
    }

    #[test]
    fn if_match_with_a_tag_fails_without_a_current_tag() {
        let none = Validators::default();
        let given = request(&[(header::IF_MATCH, "\"a\"".into())]);
        assert_eq!(evaluate_guards(&given, &none), Condition::Failed);
    }

    #[test]
    fn validators_are_made_of_a_tag_a_date_or_both() {
        let tag = EntityTag::strong("a").unwrap();
        let by_tag = Validators::from(tag.clone());
        assert_eq!((by_tag.etag.as_ref(), by_tag.last_modified), (Some(&tag), None));
        let by_date = Validators::from(at(7));
        assert_eq!((by_date.etag.as_ref(), by_date.last_modified), (None, Some(at(7))));
        let both = Validators::from((tag.clone(), at(7)));
        assert_eq!((both.etag.as_ref(), both.last_modified), (Some(&tag), Some(at(7))));
        for validators in [by_tag, by_date, both] {
            assert!(!validators.is_empty() && !validators.absent);
        }
        assert!(Validators::default().is_empty() && Validators::absent().is_empty());
    }

    #[test]
    fn weak_tags_are_written_and_read_as_weak() {
        let weak = EntityTag::weak("a").unwrap();
        assert_eq!(weak.to_string(), "W/\"a\"");
        assert_eq!(EntityTag::parse("W/\"a\""), Some(weak.clone()));
        assert!(!weak.is_strongly(&weak) && weak.is_weakly(&EntityTag::strong("a").unwrap()));
        assert_eq!(EntityTag::weak("a b"), None);
    }

    #[test]
    fn a_304_carries_no_field_about_the_representation() {
        // The columns are the field, and whether a 304 carries it with and without an ETag (RFC 9110 15.4.5).
        for (name, with_etag, without) in [
            ("cache-control", true, true),
            ("etag", true, true),
            ("vary", true, true),
            ("content-location", true, true),
            ("last-modified", false, true),
            ("content-type", false, false),
            ("content-length", false, false),
            ("content-encoding", false, false),
            ("content-digest", false, false),
        ] {
            let name = HeaderName::from_static(name);
            assert_eq!(belongs_in_not_modified(&name, true), with_etag, "{name}");
            assert_eq!(belongs_in_not_modified(&name, false), without, "{name}");
        }
        let becoming = (100..600)
            .filter(|status| may_become_not_modified(StatusCode::from_u16(*status).unwrap()));
        assert_eq!(becoming.collect::<Vec<_>>(), [200]);
    }
}
