//! `No-Vary-Search`: query parameters that do not select a response.
//!
//! larder-http stores and looks up the rules of an address in `response_cache/stored/no_vary_search.rs`.
//!
//! # Source
//!
//! [draft-ietf-httpbis-no-vary-search](https://datatracker.ietf.org/doc/draft-ietf-httpbis-no-vary-search/)

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, InnerList, ListEntry, Parser};

/// `No-Vary-Search`
pub const NO_VARY_SEARCH: HeaderName = HeaderName::from_static("no-vary-search");

/// The parameters of a query that distinguish two URLs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SearchVariance {
    params: Params,
    by_order: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Params {
    /// All parameters except these.
    AllBut(Vec<String>),
    /// Only these parameters.
    Only(Vec<String>),
}

impl SearchVariance {
    /// Parses the field of a response. `None` if it is absent, invalid, or equal to the default.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(NO_VARY_SEARCH).iter().map(|line| line.to_str());
        Self::parse(&lines.collect::<Result<Vec<_>, _>>().ok()?.join(", "))
    }

    /// Parses the value of the field.
    pub fn parse(text: &str) -> Option<Self> {
        let told: Dictionary = Parser::new(text).parse().ok()?;
        let by_order = match told.get("key-order") {
            None => true,
            Some(ListEntry::Item(item)) => match item.bare_item {
                BareItem::Boolean(ignored) => !ignored,
                _ => return None,
            },
            Some(_) => return None,
        };
        let all_ignored = match told.get("params") {
            None => None,
            Some(ListEntry::Item(item)) => match item.bare_item {
                BareItem::Boolean(ignored) => Some(ignored),
                _ => return None,
            },
            Some(ListEntry::InnerList(_)) => None,
        };
        let params = match (told.get("params"), told.get("except"), all_ignored) {
            (_, Some(ListEntry::InnerList(kept)), Some(true)) => Params::Only(names(kept)?),
            // `except` has to be a list, and requires that `params` is true.
            (_, Some(_), _) => return None,
            (_, None, Some(true)) => Params::Only(Vec::new()),
            (Some(ListEntry::InnerList(ignored)), None, _) => Params::AllBut(names(ignored)?),
            _ => Params::AllBut(Vec::new()),
        };
        let plain = by_order && params == Params::AllBut(Vec::new());
        (!plain).then_some(Self { params, by_order })
    }

    /// Returns the normal form of a query, which is equal for two queries that select the same response. Each part is
    /// preceded by its length, so that separators cannot be forged.
    pub fn normalised(&self, query: Option<&str>) -> Vec<u8> {
        let mut pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> =
            parameters(query.unwrap_or_default()).collect();
        pairs.retain(|(name, _)| self.tells_apart(name));
        if !self.by_order {
            // Parameters of the same name keep their order.
            pairs.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
        }
        let mut normalised = Vec::new();
        for part in pairs.iter().flat_map(|(name, value)| [name, value]) {
            normalised.extend_from_slice(&(part.len() as u64).to_le_bytes());
            normalised.extend_from_slice(part.as_bytes());
        }
        normalised
    }

    fn tells_apart(&self, name: &str) -> bool {
        match &self.params {
            Params::AllBut(ignored) => !ignored.iter().any(|other| other == name),
            Params::Only(kept) => kept.iter().any(|other| other == name),
        }
    }
}

/// Returns the names in a list of strings, decoded as in a query.
fn names(list: &InnerList) -> Option<Vec<String>> {
    let name = |item: &sfv::Item| match &item.bare_item {
        BareItem::String(name) => Some(decoded(name.as_str()).into_owned()),
        _ => None,
    };
    list.items.iter().map(name).collect()
}

/// Source: [URL, application/x-www-form-urlencoded parsing](https://url.spec.whatwg.org/#urlencoded-parsing)
fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => match after.split_first_chunk::<2>().and_then(|(hex, after)| {
                Some((u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?, after))
            }) {
                Some((byte, after)) if !after_sign(rest) => {
                    bytes.push(byte);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            byte => bytes.push(*byte),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the digits begin with a sign, which `from_str_radix` would accept as part of a number.
fn after_sign(digits: &[u8]) -> bool {
    digits.first().is_some_and(|digit| *digit == b'+')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equivalent_queries_have_the_same_normal_form() {
        // The columns are the field, two queries, and whether they are equivalent.
        let rows = [
            ("key-order", "a=1&b=2", "b=2&a=1", true),
            ("key-order", "a=1&a=2", "a=2&a=1", false),
            ("key-order=?0", "a=1&b=2", "b=2&a=1", false),
            ("params", "a=1", "", true),
            ("params", "a=1", "b=2&c", true),
            ("params=(\"a\")", "a=1&b=2", "b=2&a=9", true),
            ("params=(\"a\")", "a=1&b=2", "a=1&b=3", false),
            ("params=(\"a\")", "b=2&c=3", "c=3&b=2", false),
            ("params=(\"a\"), key-order", "b=2&c=3&a", "c=3&b=2", true),
            ("params, except=(\"q\")", "q=1&x=2", "y&q=1", true),
            ("params, except=(\"q\")", "q=1", "q=2", false),
            ("params=(\"a+b\")", "a%20b=1", "a+b=2", true),
            ("params=(\"%E9\")", "%e9=1", "", true),
            ("params=(\"a\")", "&&b=%2B&&", "b=%2b", true),
            ("params=(\"a\")", "b=+", "b=%20", true),
            ("params=(\"a\")", "b=%2", "b=%252", true),
            ("params=(\"a\")", "b", "b=", true),
        ];
        for (field, one, other, same) in rows {
            let variance = SearchVariance::parse(field).filter(|_| field != "key-order=?0");
            let Some(variance) = variance else {
                assert!(!same, "{field} is ignored");
                continue;
            };
            let [one, other] = [one, other].map(|query| variance.normalised(Some(query)));
            assert_eq!(one == other, same, "{field}");
        }
    }

    #[test]
    fn an_invalid_or_default_field_is_ignored() {
        for field in [
            "",
            "key-order=?0",
            "params=?0",
            "params=()",
            "params=1",
            "params=(a b)",
            "params=(1)",
            "except=(\"a\")",
            "params=(\"a\"), except=(\"b\")",
            "params, except",
            "key-order=1",
            "unknown",
            "KEY-ORDER",
            "params=\"a\"",
        ] {
            assert_eq!(SearchVariance::parse(field), None, "{field}");
        }
    }

    proptest! {
        #[test]
        fn parsing_any_field_and_query_does_not_panic(field in "[ -~]{0,40}", query in "\\PC{0,40}") {
            if let Some(variance) = SearchVariance::parse(&field) {
                variance.normalised(Some(&query));
            }
            SearchVariance::parse("key-order").unwrap().normalised(Some(&query));
        }
    }

    #[test]
    fn the_field_is_read_from_all_its_lines() {
        let mut headers = HeaderMap::new();
        assert_eq!(SearchVariance::of(&headers), None);
        headers.append(NO_VARY_SEARCH, http::HeaderValue::from_static("key-order"));
        assert_eq!(SearchVariance::of(&headers), SearchVariance::parse("key-order"));
        headers.append(NO_VARY_SEARCH, http::HeaderValue::from_static("params=(\"a\")"));
        let both = SearchVariance::of(&headers).unwrap();
        assert_eq!(both, SearchVariance::parse("key-order, params=(\"a\")").unwrap());
        headers.append(NO_VARY_SEARCH, http::HeaderValue::from_static("params=("));
        assert_eq!(SearchVariance::of(&headers), None);
    }

    #[test]
    fn except_needs_a_list_and_params() {
        for text in [
            "except=(\"a\")",
            "params=?0, except=(\"a\")",
            "params, except",
            "params=(\"b\"), except=(\"a\")",
        ] {
            assert_eq!(SearchVariance::parse(text), None, "{text}");
        }
        assert!(SearchVariance::parse("params, except=(\"a\")").is_some());
    }

    #[test]
    fn an_escape_with_a_sign_is_not_decoded() {
        assert_eq!(decoded("%+5"), "% 5");
        assert_eq!(decoded("%-5"), "%-5");
        assert_eq!(decoded("%4a+%4A%"), "J J%");
    }
}
