//! `Vary`: the fields of a request that select one of several variants.
//!
//! larder-http stores and selects the variants of an address in `response_cache/stored/variants.rs`.
//!
//! # Source
//!
//! [RFC 9111, section 4.1](https://www.rfc-editor.org/rfc/rfc9111#section-4.1)

use std::cmp::Reverse;

use http::{HeaderMap, HeaderName, header};

use crate::list;

/// Returns whether no request is known to select this response, because its `Vary` has `*`, or a member that is not a
/// field name and may have named any field.
///
/// # Source
///
/// [RFC 9111, section 4.1](https://www.rfc-editor.org/rfc/rfc9111#section-4.1) for `*`. A malformed member is treated
/// like `*`, which is the stricter of two readings.
pub fn is_unmatchable(headers: &HeaderMap) -> bool {
    headers.get_all(header::VARY).iter().any(|line| {
        let is_name = |name: &str| name != "*" && HeaderName::from_bytes(name.as_bytes()).is_ok();
        line.to_str().map_or(true, |line| !list::split(line).all(is_name))
    })
}

/// Returns the names of the fields in `Vary`, sorted and without duplicates. The list is empty if the response does not
/// vary.
///
/// The list is complete only if the response is not [unmatchable](is_unmatchable).
pub fn names(headers: &HeaderMap) -> Vec<HeaderName> {
    let members = list::members(headers, &header::VARY);
    let mut names: Vec<HeaderName> =
        members.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}

/// Returns the value of a request field in normal form, which is equal for values that are known to be equivalent.
/// `None` if the field is absent, which differs from an empty field.
///
/// Several lines are read as one list. The normal form removes only known differences: blanks around the commas and
/// semicolons of `Accept`, `Accept-Encoding` and `Accept-Language`; in the last two also case, the notation of a
/// weight, and the order of members of different weights; in `Accept-Encoding` also the order of members of the same
/// weight. In `Accept-Language` that order is a preference, and stays.
///
/// # Source
///
/// [RFC 9111, section 4.1](https://www.rfc-editor.org/rfc/rfc9111#section-4.1),
/// [RFC 9110, section 12.5.4](https://www.rfc-editor.org/rfc/rfc9110#section-12.5.4)
pub fn selecting_value(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    let readable = headers.get_all(name).iter().all(|line| line.to_str().is_ok());
    if readable && (name == header::ACCEPT_ENCODING || name == header::ACCEPT_LANGUAGE) {
        return Some(normalised_list(headers, name));
    }
    if readable && name == header::ACCEPT {
        let members: Vec<String> = list::members(headers, name).map(without_blanks).collect();
        return Some(members.join(",").into_bytes());
    }
    let mut value = first.as_bytes().trim_ascii().to_vec();
    for line in lines {
        value.extend_from_slice(b", ");
        value.extend_from_slice(line.as_bytes().trim_ascii());
    }
    Some(value)
}

fn normalised_list(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let mut members: Vec<(u16, String)> = list::members(headers, name).map(weighted).collect();
    // If a name has two weights, a server may use either of them, so the order stays.
    if !has_repeated_name(&members) {
        members.sort_by_key(|(weight, _)| Reverse(*weight));
        if name == header::ACCEPT_ENCODING {
            members.sort_by(|(a, one), (b, other)| b.cmp(a).then_with(|| one.cmp(other)));
        }
    }
    let plain = |(weight, name): (u16, String)| match weight {
        MOST_WEIGHT => name,
        weight => format!("{name};{weight}"),
    };
    members.into_iter().map(plain).collect::<Vec<_>>().join(",").into_bytes()
}

fn has_repeated_name(members: &[(u16, String)]) -> bool {
    let mut names: Vec<&str> = members.iter().map(|(_, name)| &**name).collect();
    names.sort_unstable();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// Removes the blanks around the semicolons of a member; quoted strings stay as they are.
fn without_blanks(member: &str) -> String {
    let (mut text, mut quoted, mut escaped) = (String::new(), false, false);
    for letter in member.chars() {
        let separates = letter == ';' && !quoted;
        if separates {
            text.truncate(text.trim_ascii_end().len());
        }
        let follows = text.ends_with(';') && !quoted;
        match letter {
            ' ' | '\t' if follows => continue,
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        text.push(letter);
    }
    text
}

/// Returns the weight of a member in thousandths, and its name. A parameter that is not a weight stays part of the
/// name.
fn weighted(member: &str) -> (u16, String) {
    let lower = member.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split(';').map(str::trim).collect();
    if let [name, parameter] = parts[..]
        && let Some(("q", weight)) =
            parameter.split_once('=').map(|(q, weight)| (q.trim(), weight.trim()))
        && let Some(weight) = thousandths(weight)
    {
        return (weight, name.to_owned());
    }
    (MOST_WEIGHT, parts.join(";"))
}

/// Source: [RFC 9110, section 12.4.2](https://www.rfc-editor.org/rfc/rfc9110#section-12.4.2)
fn thousandths(weight: &str) -> Option<u16> {
    let (whole, rest) = weight.split_once('.').unwrap_or((weight, ""));
    if rest.len() > 3 || !rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest: u16 = format!("{rest:0<3}").parse().ok()?;
    match whole {
        "0" => Some(rest),
        "1" if rest == 0 => Some(MOST_WEIGHT),
        _ => None,
    }
}

const MOST_WEIGHT: u16 = 1000;

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, lines: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(line));
        }
        headers
    }

    #[test]
    fn names_are_sorted_without_duplicates() {
        let found =
            names(&headers("vary", &["Accept-Language, accept-encoding", "ACCEPT-LANGUAGE"]));
        assert_eq!(found, [header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE]);
    }

    #[test]
    fn a_response_with_a_malformed_vary_is_unmatchable() {
        let rows: &[(&[&'static str], bool)] = &[
            (&["*"], true),
            (&["accept, *"], true),
            (&["accept", "*"], true),
            (&["Accept-Language Accept-Encoding"], true),
            (&["accept; accept-language"], true),
            (&["\"accept\""], true),
            (&["accept, x y"], true),
            (&["accept:"], true),
            (&["accept, , accept-language,"], false),
            (&[""], false),
            (&[], false),
        ];
        for (lines, expected) in rows {
            assert_eq!(is_unmatchable(&headers("vary", lines)), *expected, "{lines:?}");
        }
        let line = http::HeaderValue::from_bytes(b"accept\xe9").unwrap();
        assert!(is_unmatchable(&[(header::VARY, line)].into_iter().collect()));
    }

    #[test]
    fn equivalent_values_select_the_same_variant() {
        let rows: &[(&'static str, &[&'static str], &[&'static str], bool)] = &[
            ("accept-encoding", &["gzip, br"], &["GZIP ,br"], true),
            ("accept-encoding", &["gzip, br"], &["br, gzip"], true),
            ("accept-language", &["de;q=0.5, en"], &["en;q=1.0,de;q=0.500"], true),
            ("accept-language", &["de;q=0.5, en"], &["de, en;q=0.5"], false),
            ("accept-language", &["de;q=2"], &["de"], false),
            ("accept-language", &["de;q=0"], &[""], false),
            ("accept-language", &["d e"], &["de"], false),
            ("accept-language", &["de;q=1.5"], &["de"], false),
            ("accept-language", &["de;q=1.000"], &["de"], true),
            ("accept-language", &["de;q=0.5000"], &["de;q=0.5"], false),
            ("accept-language", &["de;q=0.a"], &["de;q=0"], false),
            ("accept-language", &["de;q=0.+5"], &["de;q=0.5"], false),
            ("accept", &["a/b;x=\"\\\";  2\""], &["a/b;x=\"\\\"; 2\""], false),
            ("accept", &["a/b;x=\\\" ; y=\""], &["a/b;x=\\\";y=\""], false),
            ("accept", &["a/b; x=1"], &["a/b;x=1"], true),
            ("accept-language", &["de, fr"], &["fr, de"], false),
            ("accept-language", &["de;q=0.5, fr;q=0.5"], &["fr;q=0.5, de;q=0.5"], false),
            ("accept-language", &["en", "de, fr"], &["en, fr, de"], false),
            ("accept-language", &["de, fr;q=0.5"], &["fr;q=0.5, de"], true),
            ("accept-encoding", &["gzip;q=0, gzip"], &["gzip, gzip;q=0"], false),
            ("accept-encoding", &["gzip;q=0.5, br;q=0.5"], &["br;q=0.5,gzip;q=.5"], false),
            ("accept-encoding", &["gzip;q=0.5, br;q=0.5"], &["br;q=0.50,gzip;q=0.5"], true),
            ("accept", &["text/html , */*;q=0.8"], &["text/html,*/* ; q=0.8"], true),
            ("accept", &["a/b, c/d"], &["c/d, a/b"], false),
            ("accept", &["a/b;x=\"1; 2\""], &["a/b;x=\"1;2\""], false),
            ("accept", &["a/b;x=\"\\\"; 2\""], &["a/b;x=\"\\\";2\""], false),
            ("accept", &["A/b"], &["a/b"], false),
            ("accept", &["a/b", "c/d"], &["a/b,c/d"], true),
            ("x-list", &["a,b"], &["a, b"], false),
            ("accept-encoding", &["gzip", "br"], &["gzip, br"], true),
            ("accept-encoding", &["gzip;q=0.5, br"], &["gzip, br"], false),
            ("accept-language", &["de, en;q=0.5"], &["DE,en ; q=0.5"], true),
            ("x-theme", &["dark"], &[" dark "], true),
            ("x-theme", &["dark"], &["Dark"], false),
            ("x-theme", &["a, b"], &["a", "b"], true),
            ("x-theme", &[], &[""], false),
        ];
        for (name, one, other, same) in rows {
            let field = HeaderName::from_static(name);
            let [one, other] =
                [one, other].map(|lines| selecting_value(&headers(name, lines), &field));
            assert_eq!(one == other, *same, "{name} {one:?} {other:?}");
        }
    }
}
