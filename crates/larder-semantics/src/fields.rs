//! Fields that belong to a connection, a hop or one message, and not to the stored response.
//!
//! # Source
//!
//! [RFC 9110, section 7.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1) and
//! [RFC 9111, section 3.1](https://www.rfc-editor.org/rfc/rfc9111#section-3.1)

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{cache_control::CacheControl, list, storing::Role};

/// Removes the fields of the connection: `Connection`, the fields that it names, and the fields that are always
/// hop-by-hop.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = list::members(headers, &header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .filter(|name| !FOR_ALL.contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// Removes the fields that are never stored: hop-by-hop fields, and fields between a proxy and its client.
pub fn remove_not_stored(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    for name in [header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
    headers.remove("proxy-authentication-info");
}

/// Removes the fields that `Cache-Control` names in `no-cache="..."` and, if the cache is shared, in `private="..."`.
///
/// # Source
///
/// [RFC 9111, section 5.2.2.4](https://www.rfc-editor.org/rfc/rfc9111#section-5.2.2.4) and
/// [section 5.2.2.7](https://www.rfc-editor.org/rfc/rfc9111#section-5.2.2.7)
pub fn remove_named(headers: &mut HeaderMap, control: &CacheControl, role: Role) {
    let private = control.private_fields.iter().filter(|_| role == Role::Shared);
    for name in control.no_cache_fields.iter().chain(private) {
        headers.remove(name);
    }
}

/// Returns whether a field describes the content of one message (`Content-Digest` and `Content-MD5`), so that it is
/// wrong for a part of that content, for several parts together, or for a message without content.
///
/// `Repr-Digest` describes the representation, so it is right for all of these.
///
/// # Source
///
/// [RFC 9530, section 2](https://www.rfc-editor.org/rfc/rfc9530#section-2)
pub fn is_of_content(name: &HeaderName) -> bool {
    OF_CONTENT.contains(name)
}

/// Removes the fields that [describe the content of one message](is_of_content).
pub fn remove_of_content(headers: &mut HeaderMap) {
    for name in &OF_CONTENT {
        headers.remove(name);
    }
}

/// Returns whether an error that replaces a response carries this field of the response. It carries CORS fields,
/// `Vary`, security policies, and every other field that describes neither the representation nor its storage.
pub fn belongs_in_error(name: &HeaderName) -> bool {
    let text = name.as_str();
    let of_storing = ["cache-control", "expires", "age", "pragma", "etag", "last-modified"];
    !text.starts_with("content-")
        && !text.ends_with("-cache-control")
        && !text.ends_with("-digest")
        && !of_storing.contains(&text)
        || OF_SECURITY.contains(&text)
}

const OF_CONTENT: [HeaderName; 2] =
    [HeaderName::from_static("content-digest"), HeaderName::from_static("content-md5")];

/// Security fields whose names begin like the names of content fields.
const OF_SECURITY: [&str; 2] = ["content-security-policy", "content-security-policy-report-only"];

/// Fields for every recipient on the path, which `Connection` therefore must not name. A client that names them wants
/// other recipients to see a different request than this cache sees.
///
/// Source: [RFC 9110, section 7.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1)
const FOR_ALL: [HeaderName; 5] = [
    header::HOST,
    header::CACHE_CONTROL,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::AUTHORIZATION,
];

const HOP_BY_HOP: [HeaderName; 4] =
    [header::CONNECTION, header::TE, header::TRANSFER_ENCODING, header::UPGRADE];

/// Removes the last line of a field.
pub fn remove_last_line(fields: &mut HeaderMap, name: &HeaderName) {
    let mut lines: Vec<HeaderValue> = fields.get_all(name).iter().cloned().collect();
    lines.pop();
    fields.remove(name);
    for line in lines {
        fields.append(name, line);
    }
}

/// Returns a string as a field value, if it consists of visible ASCII, spaces and tabs. Recipients read other
/// characters differently.
///
/// Source: [RFC 9110, section 5.5](https://www.rfc-editor.org/rfc/rfc9110#section-5.5)
pub fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok().filter(|_| text.is_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn fields_named_by_connection_are_removed_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop, host"),
            ("host", "a"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("etag", "\"a\""),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_not_stored(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["etag", "host"]);
    }

    fn of(names: &[&'static str]) -> HeaderMap {
        let value = HeaderValue::from_static("a");
        names.iter().map(|name| (HeaderName::from_static(name), value.clone())).collect()
    }

    #[test]
    fn fields_named_by_cache_control_are_removed_by_role() {
        let control = CacheControl {
            private_fields: vec![header::SET_COOKIE],
            no_cache_fields: vec![header::WARNING],
            ..CacheControl::default()
        };
        // A private cache may store the fields of one user (RFC 9111 5.2.2.7).
        for (role, left) in
            [(Role::Shared, &["etag"][..]), (Role::Private, &["set-cookie", "etag"])]
        {
            let mut headers = of(&["set-cookie", "warning", "etag"]);
            remove_named(&mut headers, &control, role);
            assert_eq!(headers, of(left), "{role:?}");
        }
    }

    #[test]
    fn digests_of_one_message_do_not_hold_for_its_parts() {
        let mut headers = of(&["content-digest", "content-md5", "repr-digest", "content-type"]);
        let of_content: Vec<_> = headers.keys().filter(|name| is_of_content(name)).collect();
        assert_eq!(of_content, ["content-digest", "content-md5"]);
        remove_of_content(&mut headers);
        assert_eq!(headers, of(&["repr-digest", "content-type"]));
    }

    #[test]
    fn an_error_keeps_fields_that_describe_neither_content_nor_storing() {
        // The columns are the field, and whether an error carries it.
        for (name, belongs) in [
            ("access-control-allow-origin", true),
            ("vary", true),
            ("x-frame-options", true),
            ("content-security-policy", true),
            ("content-security-policy-report-only", true),
            ("content-type", false),
            ("content-encoding", false),
            ("cache-control", false),
            ("cdn-cache-control", false),
            ("repr-digest", false),
            ("expires", false),
            ("age", false),
            ("pragma", false),
            ("etag", false),
            ("last-modified", false),
        ] {
            assert_eq!(belongs_in_error(&HeaderName::from_static(name)), belongs, "{name}");
        }
    }
}
