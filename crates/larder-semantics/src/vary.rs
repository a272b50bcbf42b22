//! Which of several variants a request selects.
//!
//! # Source
//!
//! [RFC 9111, section 4.1](https://www.rfc-editor.org/rfc/rfc9111#section-4.1)

use http::{HeaderMap, HeaderName, header};

use crate::list;

/// The names of the fields that a response varies by, sorted, each once. Empty where it does not vary.
///
/// A member that is no name of a field selects nothing and is left out; `*` has to be refused before.
pub fn names(headers: &HeaderMap) -> Vec<HeaderName> {
    let members = list::members(headers, &header::VARY);
    let mut names: Vec<HeaderName> =
        members.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}

/// What a request has of a field, in the form in which two values that mean the same are the same.
/// `None` where the field is absent, which is not the same as empty.
///
/// Several lines are one list. In lists of codings and languages neither case nor blanks matter, nor the order
/// of members with the same weight, nor how a weight is written.
pub fn selecting_value(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    let readable = headers.get_all(name).iter().all(|line| line.to_str().is_ok());
    if readable && (name == header::ACCEPT_ENCODING || name == header::ACCEPT_LANGUAGE) {
        return Some(normalised_list(headers, name));
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
    members.sort_by(|(a, one), (b, other)| b.cmp(a).then_with(|| one.cmp(other)));
    members.dedup();
    let plain = |(weight, name): (u16, String)| match weight {
        MOST_WEIGHT => name,
        weight => format!("{name};{weight}"),
    };
    members.into_iter().map(plain).collect::<Vec<_>>().join(",").into_bytes()
}

/// A member and its weight in thousandths. What is no weight stays part of the name.
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
    fn names_are_sorted_and_each_is_there_once() {
        let found =
            names(&headers("vary", &["Accept-Language, accept-encoding", "ACCEPT-LANGUAGE"]));
        assert_eq!(found, [header::ACCEPT_ENCODING, header::ACCEPT_LANGUAGE]);
    }

    #[test]
    fn values_that_mean_the_same_select_the_same() {
        let rows: &[(&'static str, &[&'static str], &[&'static str], bool)] = &[
            ("accept-encoding", &["gzip, br"], &["GZIP ,br"], true),
            ("accept-encoding", &["gzip, br"], &["br, gzip"], true),
            ("accept-language", &["de;q=0.5, en"], &["en;q=1.0,de;q=0.500"], true),
            ("accept-language", &["de;q=0.5, en"], &["de, en;q=0.5"], false),
            ("accept-language", &["de;q=2"], &["de"], false),
            ("accept-language", &["de;q=0"], &[""], false),
            ("accept-language", &["d e"], &["de"], false),
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
