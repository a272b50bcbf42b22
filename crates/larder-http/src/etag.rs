//! Entity tags of our own: a hash of the bytes and of the build that made them.

use bytes::Bytes;
use http::{HeaderMap, header};
use larder_semantics::validation::EntityTag;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Adds a strong tag of these bytes, unless there is one already.
///
/// The version of the build is part of it: a page that is the same but refers to other assets after a
/// deploy must not be taken for the old one.
pub(crate) fn add(headers: &mut HeaderMap, body: &Bytes, version: &str) {
    if headers.contains_key(header::ETAG) {
        return;
    }
    headers.insert(header::ETAG, of(body, version).to_value());
}

/// The tag of these bytes.
pub(crate) fn of(body: &[u8], version: &str) -> EntityTag {
    let hash = xxh3_128_with_seed(body, xxh3_64(version.as_bytes()));
    EntityTag::strong(format!("{hash:032x}")).expect("hexadecimal digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_body_or_another_build_has_another_tag() {
        assert_eq!(of(b"a", "1"), of(b"a", "1"));
        assert_ne!(of(b"a", "1"), of(b"b", "1"));
        assert_ne!(of(b"a", "1"), of(b"a", "2"));
    }

    #[test]
    fn a_tag_that_is_there_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, "\"mine\"".parse().unwrap());
        add(&mut headers, &Bytes::new(), "");
        assert_eq!(headers[header::ETAG], "\"mine\"");
    }
}
