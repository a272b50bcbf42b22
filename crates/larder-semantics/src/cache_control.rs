//! `Cache-Control` of requests and responses.
//!
//! An invalid member is read in the stricter way: an invalid lifetime makes a response stale, and if a lifetime is
//! repeated, the smallest one applies. `no-store`, `no-cache` and `private` apply wherever they can be recognised in a
//! malformed list (`no-cache; private`), and any other malformed member makes the response stale, since it may have
//! limited its freshness.
//!
//! # Source
//!
//! [RFC 9111, section 5.2](https://www.rfc-editor.org/rfc/rfc9111#section-5.2)

use http::{HeaderMap, HeaderName, header};

use crate::{list, storing::Role};

/// A number of seconds, as the directive specifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seconds {
    /// A number. A number that overflows is treated as 2^31 ([RFC 9111, section 1.2.2]).
    ///
    /// [RFC 9111, section 1.2.2]: https://www.rfc-editor.org/rfc/rfc9111#section-1.2.2
    Valid(u64),
    /// Anything else.
    Invalid,
}

impl Seconds {
    /// Returns the number, or 0 if it is invalid, because a response with invalid freshness is stale.
    pub fn or_stale(self) -> u64 {
        match self {
            Self::Valid(seconds) => seconds,
            Self::Invalid => 0,
        }
    }

    fn parse(value: Option<&str>) -> Self {
        let Some(value) = value else { return Self::Invalid };
        let value = unquoted(value);
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::Invalid;
        }
        Self::Valid(value.parse().unwrap_or(MOST_SECONDS).min(MOST_SECONDS))
    }

    /// Returns the stricter of two values of one directive.
    fn stricter(self, other: Option<Self>) -> Self {
        match (self, other) {
            (found, None) => found,
            (Self::Valid(a), Some(Self::Valid(b))) => Self::Valid(a.min(b)),
            _ => Self::Invalid,
        }
    }
}

/// The directives that concern a cache. An unknown directive changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheControl {
    /// Whether the field was present.
    pub is_present: bool,
    /// Whether the directives come from a targeted field, in place of `Cache-Control`.
    pub is_targeted: bool,
    /// Whether a member does not follow the grammar. It may have been any limit, so the response is not fresh.
    pub is_malformed: bool,
    /// `no-store`
    pub no_store: bool,
    /// `no-cache` without field names.
    pub no_cache: bool,
    /// The fields of `no-cache="..."`, which may not be sent without revalidation.
    pub no_cache_fields: Vec<HeaderName>,
    /// `private` without field names.
    pub private: bool,
    /// The fields of `private="..."`, which a shared cache may not store.
    pub private_fields: Vec<HeaderName>,
    /// `public`
    pub public: bool,
    /// `must-revalidate`
    pub must_revalidate: bool,
    /// `proxy-revalidate`
    pub proxy_revalidate: bool,
    /// `must-understand`
    pub must_understand: bool,
    /// `no-transform`
    pub no_transform: bool,
    /// `only-if-cached`
    pub only_if_cached: bool,
    /// `immutable` ([RFC 8246](https://www.rfc-editor.org/rfc/rfc8246))
    pub immutable: bool,
    /// `max-age`
    pub max_age: Option<Seconds>,
    /// `s-maxage`
    pub s_maxage: Option<Seconds>,
    /// `min-fresh`
    pub min_fresh: Option<Seconds>,
    /// `max-stale`; without a number any staleness is acceptable.
    pub max_stale: Option<Seconds>,
    /// `stale-while-revalidate` ([RFC 5861](https://www.rfc-editor.org/rfc/rfc5861))
    pub stale_while_revalidate: Option<Seconds>,
    /// `stale-if-error` ([RFC 5861](https://www.rfc-editor.org/rfc/rfc5861))
    pub stale_if_error: Option<Seconds>,
}

impl CacheControl {
    /// Parses all lines of the field.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        if headers.get_all(header::CACHE_CONTROL).iter().any(|line| line.to_str().is_err()) {
            // A line that is not ASCII may contain any directive.
            (found.is_present, found.no_store) = (true, true);
        }
        for member in list::members(headers, &header::CACHE_CONTROL) {
            found.is_present = true;
            found.read(member);
        }
        found
    }

    /// Parses all lines of the field of a request. If the field is absent, `Pragma: no-cache` is read as `no-cache`
    /// ([RFC 9111, section 5.4](https://www.rfc-editor.org/rfc/rfc9111#section-5.4)).
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut found = Self::of(headers);
        if !found.is_present && headers.contains_key(header::PRAGMA) {
            let mut pragma = list::members(headers, &header::PRAGMA);
            found.no_cache = pragma.any(|member| member.eq_ignore_ascii_case("no-cache"));
        }
        found
    }

    /// Returns whether this cache must not serve the response stale, even while the origin fails.
    ///
    /// # Source
    ///
    /// [RFC 9111, section 4.2.4](https://www.rfc-editor.org/rfc/rfc9111#section-4.2.4)
    pub fn forbids_stale(&self, role: Role) -> bool {
        let shared = self.proxy_revalidate || self.s_maxage.is_some();
        let demanded = self.must_revalidate || self.no_cache || self.is_malformed;
        demanded || (role == Role::Shared && shared)
    }

    fn read(&mut self, member: &str) {
        if !is_directive(member) {
            return self.read_malformed(member);
        }
        let (name, value) = match member.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (member, None),
        };
        let name = &*name.to_ascii_lowercase();
        match (name, value) {
            ("no-cache", Some(value)) if is_quoted(value) => match field_names(value) {
                Some(names) => self.no_cache_fields.extend(names),
                None => self.no_cache = true,
            },
            ("private", Some(value)) if is_quoted(value) => match field_names(value) {
                Some(names) => self.private_fields.extend(names),
                None => self.private = true,
            },
            ("max-stale", None) => self.max_stale = Some(Seconds::Valid(u64::MAX)),
            _ if self.seconds_of(name).is_some() => self.set_seconds(name, Seconds::parse(value)),
            _ => self.set_flag(name),
        }
    }

    /// Reads a member that is not a directive, and that may have been any limit.
    fn read_malformed(&mut self, text: &str) {
        self.is_malformed = true;
        let name = text.split('=').next().unwrap_or_default();
        self.set_seconds(&name.trim_ascii().to_ascii_lowercase(), Seconds::Invalid);
        self.hold_strict_words(text);
    }

    /// Applies `no-store`, `no-cache` and `private` wherever they occur in a string.
    pub(crate) fn hold_strict_words(&mut self, text: &str) {
        for word in text.split(|letter: char| !is_token_letter(letter)) {
            let word = word.to_ascii_lowercase();
            if ["no-store", "no-cache", "private"].contains(&&*word) {
                self.set_flag(&word);
            }
        }
    }

    /// Sets a directive without a value. An unknown directive changes nothing.
    pub(crate) fn set_flag(&mut self, name: &str) {
        match name {
            "no-store" => self.no_store = true,
            "no-cache" => self.no_cache = true,
            "private" => self.private = true,
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "no-transform" => self.no_transform = true,
            "only-if-cached" => self.only_if_cached = true,
            "immutable" => self.immutable = true,
            _ => {}
        }
    }

    /// Sets a directive of seconds. If there are two values, the stricter value applies.
    pub(crate) fn set_seconds(&mut self, name: &str, seconds: Seconds) {
        if let Some(place) = self.seconds_of(name) {
            *place = Some(seconds.stricter(*place));
        }
    }

    fn seconds_of(&mut self, name: &str) -> Option<&mut Option<Seconds>> {
        Some(match name {
            "max-age" => &mut self.max_age,
            "s-maxage" => &mut self.s_maxage,
            "min-fresh" => &mut self.min_fresh,
            "max-stale" => &mut self.max_stale,
            "stale-while-revalidate" => &mut self.stale_while_revalidate,
            "stale-if-error" => &mut self.stale_if_error,
            _ => return None,
        })
    }
}

/// Whether a member is `token [ "=" ( token / quoted-string ) ]`.
fn is_directive(member: &str) -> bool {
    let is_token = |text: &str| !text.is_empty() && text.chars().all(is_token_letter);
    match member.split_once('=') {
        None => is_token(member),
        Some((name, value)) => is_token(name) && (is_token(value) || is_quoted_string(value)),
    }
}

/// Source: [RFC 9110, section 5.6.2](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2)
fn is_token_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter)
}

/// Source: [RFC 9110, section 5.6.4](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.4)
fn is_quoted_string(value: &str) -> bool {
    if !is_quoted(value) {
        return false;
    }
    let mut escaped = false;
    for letter in value[1..value.len() - 1].chars() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return false,
            _ => {}
        }
    }
    !escaped
}

fn is_quoted(value: &str) -> bool {
    value.len() >= 2 && value.starts_with('"') && value.ends_with('"')
}

/// Returns the field names in the quotes. `None` if one of them is not a field name, or if there are none. The
/// directive then applies to the whole response.
fn field_names(value: &str) -> Option<Vec<HeaderName>> {
    let names = unquoted(value).split(',').map(str::trim).filter(|name| !name.is_empty());
    let names: Option<Vec<HeaderName>> =
        names.map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    names.filter(|names| !names.is_empty())
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

const MOST_SECONDS: u64 = 1 << 31;

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        CacheControl::of(&headers)
    }

    #[test]
    fn lifetimes_are_read_as_the_specification_says() {
        use Seconds::{Invalid, Valid};
        // The columns are the lines, the resulting max-age, and the section.
        let rows: &[(&[&str], Option<Seconds>, &str)] = &[
            (&["max-age=60"], Some(Valid(60)), "RFC 9111 5.2.2.1"),
            (&["MAX-AGE=60"], Some(Valid(60)), "RFC 9111 5.2: names are case-insensitive"),
            (&["max-age=\"60\""], Some(Valid(60)), "RFC 9111 5.2: token and quoted form"),
            (&["max-age=0060"], Some(Valid(60)), "RFC 9111 1.2.2: digits"),
            (&["max-age=99999999999999999999"], Some(Valid(1 << 31)), "RFC 9111 1.2.2: overflow"),
            (&["max-age=-1"], Some(Invalid), "RFC 9111 4.2.1: invalid is stale"),
            (&["max-age=1.5"], Some(Invalid), "RFC 9111 4.2.1"),
            (&["max-age= 60"], Some(Invalid), "RFC 9111 5.2: no blank after ="),
            (&["max-age='60'"], Some(Invalid), "RFC 9111 5.2: not a quoted string"),
            (&["max-age=60s"], Some(Invalid), "RFC 9111 4.2.1"),
            (&["max-age"], Some(Invalid), "RFC 9111 4.2.1"),
            (&["max-age=60, max-age=30"], Some(Valid(30)), "RFC 9111 4.2.1: the stricter"),
            (&["max-age=60", "max-age=x"], Some(Invalid), "RFC 9111 4.2.1"),
            (&["a=\"max-age=60\""], None, "RFC 9111 5.2: text in quotes is no directive"),
            (&["a=\"b, max-age=60\""], None, "RFC 9111 5.2"),
            (&["", " , ,max-age=60,"], Some(Valid(60)), "RFC 9110 5.6.1: empty members"),
        ];
        for (lines, expected, section) in rows {
            assert_eq!(read(lines).max_age, *expected, "{lines:?} ({section})");
        }
    }

    #[test]
    fn flags_are_read_with_and_without_values() {
        assert!(read(&["No-Store"]).no_store);
        assert!(read(&["no-cache=x"]).no_cache, "RFC 9111 5.2.2.4: names are quoted");
        assert!(read(&["private=x"]).private, "RFC 9111 5.2.2.7: names are quoted");
        assert!(read(&["private=\"\""]).private, "RFC 9111 5.2.2.7: no name is all");
        assert!(read(&["private=\"a b\""]).private, "RFC 9111 5.2.2.7: not a name");
        let named = read(&["private=\"Set-Cookie, x\", no-cache=\"y\""]);
        assert!(!named.private && !named.no_cache);
        assert_eq!(named.private_fields, ["set-cookie", "x"]);
        assert_eq!(named.no_cache_fields, ["y"]);
        assert!(!read(&["not-no-store"]).no_store);
        assert_eq!(read(&["max-stale"]).max_stale, Some(Seconds::Valid(u64::MAX)));
    }

    #[test]
    fn each_directive_sets_its_own_field() {
        use Seconds::Valid;
        type Sets = fn(&mut CacheControl);
        let rows: [(&str, Sets); 15] = [
            ("no-store", |it| it.no_store = true),
            ("no-cache", |it| it.no_cache = true),
            ("private", |it| it.private = true),
            ("public", |it| it.public = true),
            ("must-revalidate", |it| it.must_revalidate = true),
            ("proxy-revalidate", |it| it.proxy_revalidate = true),
            ("must-understand", |it| it.must_understand = true),
            ("no-transform", |it| it.no_transform = true),
            ("only-if-cached", |it| it.only_if_cached = true),
            ("immutable", |it| it.immutable = true),
            ("max-age=1", |it| it.max_age = Some(Valid(1))),
            ("s-maxage=1", |it| it.s_maxage = Some(Valid(1))),
            ("min-fresh=1", |it| it.min_fresh = Some(Valid(1))),
            ("stale-while-revalidate=1", |it| it.stale_while_revalidate = Some(Valid(1))),
            ("stale-if-error=1", |it| it.stale_if_error = Some(Valid(1))),
        ];
        for (line, set) in rows {
            let mut expected = CacheControl { is_present: true, ..CacheControl::default() };
            set(&mut expected);
            assert_eq!(read(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn directives_that_demand_validation_forbid_serving_stale() {
        // The columns are the line, and whether it forbids a private and a shared cache to serve stale responses.
        let rows = [
            ("max-age=60, stale-if-error=60", [false, false], "RFC 5861 4"),
            ("must-revalidate", [true, true], "RFC 9111 5.2.2.2"),
            ("no-cache", [true, true], "RFC 9111 5.2.2.4"),
            ("proxy-revalidate", [false, true], "RFC 9111 5.2.2.8"),
            ("s-maxage=60", [false, true], "RFC 9111 5.2.2.10"),
            ("max-age=60; x", [true, true], "a malformed member may have been any of these"),
        ];
        for (line, expected, section) in rows {
            let found = [Role::Private, Role::Shared].map(|role| read(&[line]).forbids_stale(role));
            assert_eq!(found, expected, "{line} ({section})");
        }
    }

    #[test]
    fn a_malformed_member_is_read_in_the_stricter_way() {
        // The columns are the line, no-store, private, no-cache and malformed.
        let rows: &[(&str, [bool; 4])] = &[
            ("no-cache; private; no-store", [true, true, true, true]),
            ("private max-age=60", [false, true, false, true]),
            ("max-age=60 private", [false, true, false, true]),
            ("max-age=60; no-store", [true, false, false, true]),
            ("NO-STORE;", [true, false, false, true]),
            ("\"no-store\"", [true, false, false, true]),
            ("x=\"no-store", [true, false, false, true]),
            ("x=\"a\"b\", no-store", [true, false, false, true]),
            (r#"x="a"b""#, [false, false, false, true]),
            (r#"x="a\"b""#, [false; 4]),
            (r#"x="a\\""#, [false; 4]),
            (r#"x="a\""#, [false, false, false, true]),
            ("no-store =1", [true, false, false, true]),
            ("=no-store", [true, false, false, true]),
            ("max age=60", [false, false, false, true]),
            ("max-age = 60", [false, false, false, true]),
            ("must-revalidate; x", [false, false, false, true]),
            ("x=\"no-store; private\"", [false; 4]),
            ("x=no-store", [false; 4]),
            ("x='no-store'", [false; 4]),
            ("not-no-store, no-storex", [false; 4]),
            ("max-age=60", [false; 4]),
        ];
        for (line, expected) in rows {
            let found = read(&[line]);
            let found = [found.no_store, found.private, found.no_cache, found.is_malformed];
            assert_eq!(found, *expected, "{line}");
        }
        assert!(read(&["max-age=60; x, stale-if-error=60"]).forbids_stale(Role::Shared));
    }

    #[test]
    fn a_line_that_is_not_ascii_is_read_as_no_store() {
        let line = HeaderValue::from_bytes(b"private, x=\"\xe9\"").unwrap();
        let headers = [(header::CACHE_CONTROL, line)].into_iter().collect();
        assert!(CacheControl::of(&headers).no_store);
    }

    #[test]
    fn pragma_applies_only_without_cache_control() {
        let mut headers = HeaderMap::new();
        headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
        assert!(CacheControl::of_request(&headers).no_cache);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=5"));
        assert!(!CacheControl::of_request(&headers).no_cache);
    }

    proptest! {
        #[test]
        fn parsing_any_line_does_not_panic(line in "[ -~]{0,60}") {
            read(&[&line]);
        }
    }
}
