//! Cache groups: names that responses of one origin share, and by which they are invalidated together.
//!
//! # Source
//!
//! [RFC 9875](https://www.rfc-editor.org/rfc/rfc9875)

use http::{HeaderMap, HeaderName};

use crate::list;

/// `Cache-Groups`: the groups to which a response belongs.
pub const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
/// `Cache-Group-Invalidation`: the groups that an unsafe request has invalidated.
pub const CACHE_GROUP_INVALIDATION: HeaderName =
    HeaderName::from_static("cache-group-invalidation");

/// The maximum number of groups that are read from one field.
const MOST_GROUPS: usize = 128;

/// Returns the names in a field of groups, which is a list of strings. If one member is not a string, the whole field
/// is invalid and the result is empty, as structured fields demand. At most 128 names are read.
pub fn names(headers: &HeaderMap, field: &HeaderName) -> Vec<String> {
    if !headers.contains_key(field) {
        return Vec::new();
    }
    let names: Option<Vec<String>> = list::members(headers, field).map(string).collect();
    let mut names = names.unwrap_or_default();
    names.truncate(MOST_GROUPS);
    names
}

/// Parses a string of structured fields. Parameters after it are ignored.
fn string(member: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = member.strip_prefix('"')?.chars();
    while let Some(next) = rest.next() {
        match next {
            '"' => {
                let after = rest.as_str();
                return (after.is_empty() || after.starts_with(';')).then_some(text);
            }
            '\\' => text.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            ' '..='~' => text.push(next),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_field_with_a_member_that_is_not_a_string_has_no_groups() {
        let rows: &[(&'static str, &[&str])] = &[
            (r#""a", "b c""#, &["a", "b c"]),
            (r#""a";x=1"#, &["a"]),
            (r#""a\"b""#, &["a\"b"]),
            ("a", &[]),
            (r#""a", b"#, &[]),
            (r#""a"#, &[]),
        ];
        for (line, expected) in rows {
            let headers: HeaderMap =
                [(CACHE_GROUPS, HeaderValue::from_static(line))].into_iter().collect();
            assert_eq!(names(&headers, &CACHE_GROUPS), *expected, "{line}");
        }
    }
}
