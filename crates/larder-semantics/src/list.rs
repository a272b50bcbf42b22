//! Comma-separated lists in fields. A comma inside a quoted string does not separate members.

use http::{HeaderMap, HeaderName};

/// Returns the members of a list over all lines of the field, trimmed and without empty members. A line with bytes
/// other than visible ASCII, spaces and tabs has no members.
///
/// ```
/// use http::{HeaderMap, HeaderValue, header::VARY};
///
/// let mut headers = HeaderMap::new();
/// headers.append(VARY, HeaderValue::from_static("Accept, Accept-Language"));
/// headers.append(VARY, HeaderValue::from_static("Origin"));
/// let members: Vec<_> = larder_semantics::list::members(&headers, &VARY).collect();
/// assert_eq!(members, ["Accept", "Accept-Language", "Origin"]);
/// ```
///
/// # Source
///
/// [RFC 9110, section 5.3](https://www.rfc-editor.org/rfc/rfc9110#section-5.3)
pub fn members<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> + 'a {
    headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).flat_map(split)
}

/// Returns the members of one line, trimmed and without empty members.
///
/// ```
/// let members: Vec<_> = larder_semantics::list::split("no-cache=\"a, b\",, max-age=9").collect();
/// assert_eq!(members, ["no-cache=\"a, b\"", "max-age=9"]);
/// ```
///
/// # Source
///
/// [RFC 9110, section 5.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.1)
pub fn split(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let end = end_of_member(line);
        rest = line.get(end + 1..);
        Some(line[..end].trim_matches([' ', '\t']))
    })
    .filter(|member| !member.is_empty())
}

fn end_of_member(line: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
    }
    line.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_inside_quotes_does_not_separate() {
        let found: Vec<_> = split(r#" a , ,b="x, \", y",c "#).collect();
        assert_eq!(found, ["a", r#"b="x, \", y""#, "c"]);
    }

    #[test]
    fn an_open_quote_runs_to_the_end() {
        assert_eq!(split(r#"a="b, max-age=9"#).count(), 1);
    }
}
