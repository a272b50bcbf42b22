//! Entity tags that larder computes: a hash of the body and of the build version.

use bytes::Bytes;
use http::{HeaderMap, header};
use larder_semantics::validation::EntityTag;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Adds a strong entity tag of `body`, unless there is an `ETag` already.
///
/// The tag includes the build version, because after a deployment a page with the same bytes may refer to other assets,
/// and must not match the old page.
pub(crate) fn add(headers: &mut HeaderMap, body: &Bytes, version: &str) {
    if headers.contains_key(header::ETAG) {
        return;
    }
    headers.insert(header::ETAG, of(body, version).to_value());
}

/// Returns the strong entity tag of `body` in this build version.
pub(crate) fn of(body: &[u8], version: &str) -> EntityTag {
    let hash = xxh3_128_with_seed(body, xxh3_64(version.as_bytes()));
    EntityTag::strong(format!("{hash:032x}")).expect("hexadecimal digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_depends_on_the_body_and_the_build_version() {
        assert_eq!(of(b"a", "1"), of(b"a", "1"));
        assert_ne!(of(b"a", "1"), of(b"b", "1"));
        assert_ne!(of(b"a", "1"), of(b"a", "2"));
    }

    #[test]
    fn an_existing_etag_is_not_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, "\"mine\"".parse().unwrap());
        add(&mut headers, &Bytes::new(), "");
        assert_eq!(headers[header::ETAG], "\"mine\"");
    }
}
