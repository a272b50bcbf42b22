//! The bytes of an entry in the shared store.
//!
//! `magic, version, checksum, header length, header, payload`. The header carries the whole key, so that a
//! store which answers with another entry's bytes cannot make us serve them; tags are texts, never cells,
//! since each process hashes them with a secret of its own. The checksum finds accidents, not attackers.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{bus::Position, key::Key, tag::Tag};

/// What the header says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    #[serde(with = "key_bytes")]
    pub(crate) key: Key,
    /// The place of the log before anything was read for it.
    pub(crate) filled: Position,
    pub(crate) filled_at: SystemTime,
    pub(crate) fresh: Duration,
    pub(crate) revalidate: Duration,
    pub(crate) on_error: Duration,
    pub(crate) cost: Duration,
    pub(crate) tags: Vec<Tag>,
}

/// Why bytes are not an entry that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Not what we wrote.
    Corrupt,
    /// Written by a larder of another version, which may still want it.
    OtherVersion,
    /// The entry of another key.
    OtherKey,
}

pub(crate) fn seal(header: &Header, payload: &[u8]) -> Option<Bytes> {
    let header = rmp_serde::to_vec(header).ok()?;
    let length = u32::try_from(header.len()).ok()?;
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + header.len() + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(payload);
    let checksum = xxh3_64(&bytes[CHECKED_FROM..]);
    bytes[CHECKED_FROM - 8..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
    Some(bytes.into())
}

/// The header and the payload, which is not copied.
pub(crate) fn open(bytes: &Bytes, key: &Key) -> Result<(Header, Bytes), Unreadable> {
    let prefix = bytes.get(..PREFIX_BYTES).ok_or(Unreadable::Corrupt)?;
    let (magic, rest) = prefix.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Unreadable::Corrupt);
    }
    if rest[0] != VERSION {
        return Err(Unreadable::OtherVersion);
    }
    if rest[1..9] != xxh3_64(&bytes[CHECKED_FROM..]).to_le_bytes() {
        return Err(Unreadable::Corrupt);
    }
    let length = u32::from_le_bytes(rest[9..13].try_into().expect("four bytes of the prefix"));
    let end = PREFIX_BYTES.checked_add(length as usize).ok_or(Unreadable::Corrupt)?;
    let header = bytes.get(PREFIX_BYTES..end).ok_or(Unreadable::Corrupt)?;
    let header: Header = rmp_serde::from_slice(header).map_err(|_| Unreadable::Corrupt)?;
    if header.key != *key {
        return Err(Unreadable::OtherKey);
    }
    Ok((header, bytes.slice(end..)))
}

mod key_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::key::Key;

    pub(super) fn serialize<S: Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(key.as_bytes())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(bytes: D) -> Result<Key, D::Error> {
        let bytes = <&[u8]>::deserialize(bytes)?;
        Key::from_bytes(bytes).ok_or_else(|| D::Error::custom("not the bytes of a key"))
    }
}

const MAGIC: &[u8] = b"lrdr";
const VERSION: u8 = 1;
/// Magic, version and checksum come before what is checked.
const CHECKED_FROM: usize = MAGIC.len() + 1 + 8;
const PREFIX_BYTES: usize = CHECKED_FROM + 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        bus::Epoch,
        key::{KeyBuf, Kind},
    };

    fn key(name: &str) -> Key {
        let mut key = KeyBuf::new(Kind::Object, "", "", "");
        key.push(name.as_bytes());
        key.finish().unwrap()
    }

    fn header() -> Header {
        Header {
            key: key("a"),
            filled: Position { epoch: Epoch::random(), number: 7 },
            filled_at: SystemTime::now(),
            fresh: Duration::from_secs(60),
            revalidate: Duration::from_secs(70),
            on_error: Duration::from_secs(60),
            cost: Duration::from_millis(3),
            tags: vec![Tag::new("product:1"), Tag::of_path("/a")],
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        let header = header();
        let bytes = seal(&header, b"payload").unwrap();
        assert_eq!(open(&bytes, &key("a")), Ok((header, Bytes::from_static(b"payload"))));
    }

    #[test]
    fn the_entry_of_another_key_is_not_served() {
        let bytes = seal(&header(), b"payload").unwrap();
        assert_eq!(open(&bytes, &key("b")), Err(Unreadable::OtherKey));
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let mut bytes = seal(&header(), b"payload").unwrap().to_vec();
        bytes[4] = 9;
        assert_eq!(open(&bytes.into(), &key("a")), Err(Unreadable::OtherVersion));
        assert_eq!(open(&Bytes::from_static(b"hello"), &key("a")), Err(Unreadable::Corrupt));
    }

    proptest! {
        #[test]
        fn a_changed_or_cut_byte_is_found(at in 0_usize..300, flip in 1_u8..) {
            let bytes = seal(&header(), b"payload").unwrap().to_vec();
            let at = at % bytes.len();
            prop_assert!(open(&bytes[..at].to_vec().into(), &key("a")).is_err());
            let mut changed = bytes;
            changed[at] ^= flip;
            prop_assert!(open(&changed.into(), &key("a")).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(noise: Vec<u8>) {
            let mut bytes = MAGIC.to_vec();
            bytes.push(VERSION);
            bytes.extend(noise);
            drop(open(&bytes.into(), &key("a")));
        }
    }
}
