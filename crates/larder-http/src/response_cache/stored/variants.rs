//! The variants of an address under `Vary`.
//!
//! The entry of the address lists the sets of fields by which its responses vary, and the stored variants. Each variant
//! is an entry of its own, under the address and the values of those fields. A response without `Vary` at such an
//! address is a variant, too. larder serves it to requests that no other variant matches.

use http::{HeaderMap, HeaderName};
use larder_core::{Key, kernel::KeyBuf};
use larder_semantics::vary::selecting_value;
use parking_lot::Mutex;

use crate::response_cache::request::request_fields::{ALL_SELECTING, SELECTING};

/// The sets of fields by which the responses of an address vary, and the keys of its stored variants.
#[derive(Debug)]
pub(in crate::response_cache) struct Variants(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    /// The sets of names, the most recently stored first.
    names: Vec<Vec<HeaderName>>,
    /// The variants, the most recently used last.
    keys: Vec<Key>,
}

impl Variants {
    pub(in crate::response_cache) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Returns the keys under which a request may find its variant: the most recent set of names first, the
    /// response without `Vary` last.
    ///
    /// Source: [RFC 9111, section 4.1](https://www.rfc-editor.org/rfc/rfc9111#section-4.1), last paragraph
    pub(in crate::response_cache) fn candidates(
        &self,
        address: &[u8],
        headers: &HeaderMap,
    ) -> Vec<KeyBuf> {
        let list = self.0.lock();
        let named = list.names.iter().filter(|names| !names.is_empty());
        let mut keys: Vec<_> = named.map(|names| variant_key(address, names, headers)).collect();
        if list.names.iter().any(Vec::is_empty) {
            keys.push(default_key(address));
        }
        keys
    }

    /// Returns the keys of the stored variants, the most recently used first.
    pub(in crate::response_cache) fn stored(&self) -> Vec<Key> {
        self.0.lock().keys.iter().rev().cloned().collect()
    }

    /// Notes that a variant was used.
    pub(in crate::response_cache) fn touch(&self, key: &[u8]) {
        let keys = &mut self.0.lock().keys;
        if let Some(at) = keys.iter().position(|other| other.as_bytes() == key) {
            keys[at..].rotate_left(1);
        }
    }

    /// Notes that a variant was stored. Returns the variants to evict for it.
    pub(in crate::response_cache) fn add(
        &self,
        names: &[HeaderName],
        key: &Key,
        most: usize,
    ) -> Vec<Key> {
        let mut list = self.0.lock();
        list.names.retain(|other| other != names);
        list.names.insert(0, names.to_vec());
        list.names.truncate(MAX_NAME_SETS);
        list.keys.retain(|other| other != key);
        list.keys.push(key.clone());
        let surplus = list.keys.len().saturating_sub(most);
        list.keys.drain(..surplus).collect()
    }

    /// Decodes a list from the second level: the sets of names, without the variants in the first level.
    pub(in crate::response_cache) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let names = |line: &str| {
            if line == NO_NAMES {
                return Some(Vec::new());
            }
            line.split(',').map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect()
        };
        let names = text.lines().map(names).collect::<Option<Vec<Vec<_>>>>()?;
        Some(Self(Mutex::new(List { names, keys: Vec::new() })))
    }
}

impl Variants {
    /// Returns the number of bytes that are held in addition to the entry itself.
    pub(in crate::response_cache) fn weight(&self) -> usize {
        // The weight is that of a full list, because the list grows after it is weighed.
        2 * 1024
    }

    /// Encodes the list for the second level.
    pub(in crate::response_cache) fn encode(&self) -> Option<Vec<u8>> {
        let line = |names: &Vec<HeaderName>| {
            if names.is_empty() {
                return NO_NAMES.to_owned();
            }
            names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(",")
        };
        let lines: Vec<String> = self.0.lock().names.iter().map(line).collect();
        Some(lines.join("\n").into_bytes())
    }
}

/// Returns the key of the response without `Vary` at an address that has variants.
pub(in crate::response_cache) fn default_key(address: &[u8]) -> KeyBuf {
    let mut key = KeyBuf::continued(address);
    key.push(b" default");
    key
}

/// Returns the key of the variant that these request fields select.
pub(in crate::response_cache) fn variant_key(
    address: &[u8],
    names: &[HeaderName],
    headers: &HeaderMap,
) -> KeyBuf {
    let mut key = KeyBuf::continued(address);
    for name in names {
        key.push(name.as_str().as_bytes());
        if *name == ALL_SELECTING {
            for name in SELECTING.iter() {
                if let Some(value) = selecting_value(headers, name) {
                    key.push_pieces([name.as_str().as_bytes(), b"=", &value]);
                }
            }
            continue;
        }
        // An absent field differs from an empty field.
        match selecting_value(headers, name) {
            Some(value) => key.push_pieces([b"=", &value]),
            None => key.push(b""),
        }
    }
    key
}

/// The line for a response without `Vary`. No field name contains a space.
const NO_NAMES: &str = " ";
const MAX_NAME_SETS: usize = 5;

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};
    use larder_core::Kind;

    use super::*;

    fn address() -> KeyBuf {
        KeyBuf::new(Kind::Response, "", "", "")
    }

    fn language(value: &'static str) -> HeaderMap {
        [(header::ACCEPT_LANGUAGE, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn the_least_recently_used_variant_is_evicted() {
        let variants = Variants::new();
        let names = [header::ACCEPT_LANGUAGE];
        let key =
            |value| variant_key(address().as_bytes(), &names, &language(value)).finish().unwrap();
        assert!(variants.add(&names, &key("de"), 2).is_empty());
        assert!(variants.add(&names, &key("en"), 2).is_empty());
        variants.touch(key("de").as_bytes());
        assert_eq!(variants.add(&names, &key("fr"), 2), [key("en")]);
    }

    #[test]
    fn absent_and_empty_are_two_variants() {
        let names = [header::ACCEPT_LANGUAGE];
        let of = |headers: &HeaderMap| variant_key(address().as_bytes(), &names, headers);
        assert_ne!(of(&language("")).as_bytes(), of(&HeaderMap::new()).as_bytes());
    }

    #[test]
    fn the_variant_list_survives_encoding_and_decoding() {
        let variants = Variants::new();
        let names = [header::ACCEPT_LANGUAGE];
        variants.add(&names, &address().finish().unwrap(), 4);
        let read = Variants::decode(&variants.encode().unwrap()).unwrap();
        assert_eq!(read.candidates(address().as_bytes(), &language("de")).len(), 1);
    }
}
