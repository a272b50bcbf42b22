//! URI references in `Location` and `Content-Location`: the path that a reference names on its own origin.
//!
//! # Source
//!
//! [RFC 3986, section 5](https://www.rfc-editor.org/rfc/rfc3986#section-5)

use crate::authority::{normalised, without_user};

/// Returns the path that a reference of a response names, if it is a path of the same origin. `base` is the path of the
/// request. Returns `None` for another origin.
///
/// ```
/// use larder_semantics::uri_reference::same_origin_path;
///
/// let path = |reference| same_origin_path(reference, "https://shop.example", "/products/42");
/// assert_eq!(path("../cart?step=1").as_deref(), Some("/cart"));
/// assert_eq!(path("https://other.example/cart"), None);
/// ```
pub fn same_origin_path(reference: &str, origin: &str, base: &str) -> Option<String> {
    let reference = reference.split(['?', '#']).next().unwrap_or_default();
    if reference.is_empty() {
        return Some(base.to_owned());
    }
    let (scheme, own_authority) = origin.split_once("://")?;
    let absolute = match reference.strip_prefix("//") {
        Some(rest) => Some(format!("{scheme}://{rest}")),
        None if reference.starts_with('/') => None,
        None => reference.contains("://").then(|| reference.to_owned()),
    };
    if let Some(absolute) = absolute {
        let uri: http::Uri = absolute.parse().ok()?;
        let authority = normalised(without_user(uri.authority()?.as_str()), scheme)?;
        let same = uri.scheme_str() == Some(scheme) && authority == own_authority;
        return same.then(|| uri.path().to_owned());
    }
    if reference.starts_with('/') {
        return Some(without_dots(reference));
    }
    let directory = base.rfind('/').map_or("/", |at| &base[..=at]);
    Some(without_dots(&format!("{directory}{reference}")))
}

/// Removes the dot segments of a path.
///
/// Source: RFC 3986, section 5.2.4.
fn without_dots(path: &str) -> String {
    let mut segments_left: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    segments_left.pop();
                }
                if last {
                    segments_left.push("");
                }
            }
            segment => segments_left.push(segment),
        }
    }
    format!("/{}", segments_left.join("/"))
}

#[cfg(test)]
mod tests {
    use super::same_origin_path;

    #[test]
    fn references_reach_only_their_own_origin() {
        let rows = [
            ("/b?x#y", Some("/b")),
            ("http://a.example/b", Some("/b")),
            ("http://a.example", Some("/")),
            ("http://a.example.evil/b", None),
            ("https://a.example/b", None),
            ("//b.example/c", None),
            ("//a.example/c", Some("/c")),
            ("HTTP://A.example:80/c", Some("/c")),
            ("?x", Some("/items/b")),
            ("c", Some("/items/c")),
            ("../c/./d", Some("/c/d")),
            ("/../x", Some("/x")),
            ("/go/http://b.example/y", Some("/go/http://b.example/y")),
        ];
        for (reference, expected) in rows {
            let found = same_origin_path(reference, "http://a.example", "/items/b");
            assert_eq!(found.as_deref(), expected, "{reference}");
        }
    }
}
