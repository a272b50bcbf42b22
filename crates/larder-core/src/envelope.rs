//! The bytes of an entry in the shared store.
//!
//! `magic, version, checksum, form, header length, header, payload`; all behind the form is one sealed content
//! where there is a key to seal with. The header carries the whole key, so that a
//! store which answers with another entry's bytes cannot make us serve them; tags are texts, never cells,
//! since each process hashes them with a secret of its own. The checksum finds accidents, not attackers.

use std::{
    io::Read as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Buf as _, Bytes};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twox_hash::XxHash3_64;

use crate::{
    budget::{ByteBudget, ReservedBytes},
    bus::Position,
    key::Key,
    schema::Schema,
    sealing::SealingKeys,
    tag::Tag,
};

/// What the header says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) schema: Schema,
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
pub(crate) enum EnvelopeError {
    /// Not what we wrote.
    Corrupt,
    /// Written by a larder of another version, or for another type, who may still want it.
    OtherVersion,
    /// The entry of another key.
    OtherKey,
    /// It would become more than there is room for now.
    NoRoom,
}

/// What was in an envelope.
#[derive(Debug)]
pub(crate) struct EnvelopeContents {
    pub(crate) header: Header,
    pub(crate) payload: Bytes,
    /// What a payload that was compressed takes of the budget, until it has become a value.
    pub(crate) room: Option<ReservedBytes>,
}

/// How envelopes are written, and which are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Codec {
    sealing: Option<SealingKeys>,
}

impl Codec {
    pub(crate) fn new(sealing: Option<SealingKeys>) -> Self {
        Self { sealing }
    }

    /// The bytes of an entry. `None` for one that cannot be written.
    pub(crate) fn seal(&self, key: &Key, header: &Header, payload: &[u8]) -> Option<Bytes> {
        let written = postcard::to_allocvec(&(KeyBytes(key.as_bytes()), header)).ok()?;
        let length = u32::try_from(written.len()).ok()?;
        let compressed = Compression::of(payload);
        let (mut form, payload) = match &compressed {
            Some((by, bytes)) => (by.form(), &bytes[..]),
            None => (0, payload),
        };
        let mut content = Vec::with_capacity(LENGTH_BYTES + written.len() + payload.len());
        content.extend_from_slice(&length.to_le_bytes());
        content.extend_from_slice(&written);
        content.extend_from_slice(payload);
        if let Some(keys) = &self.sealing {
            form |= SEALED;
            content = keys.seal(&content, &associated(form, key))?;
        }
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + content.len());
        bytes.extend_from_slice(MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&[0; 8]);
        bytes.push(form);
        bytes.extend_from_slice(&content);
        let checksum = XxHash3_64::oneshot(&bytes[CHECKED_FROM..]);
        bytes[CHECKED_FROM - 8..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        Some(bytes.into())
    }

    /// How much work it is to open these bytes, in bytes: how many there are, and how many more they may become.
    pub(crate) fn weight_of(&self, bytes: &[u8]) -> usize {
        match bytes.get(PREFIX_BYTES - 1).map(|form| form & !SEALED) {
            // What is sealed does not tell before it is opened; zstd is for what is large.
            Some(LZ4) => bytes.len().saturating_mul(TYPICAL_LZ4_RATIO),
            Some(ZSTD) => bytes.len().max(LARGE),
            _ => bytes.len(),
        }
    }

    /// The header and the payload, which is not copied unless it was compressed or sealed. What it grows to is taken
    /// from the budget.
    pub(crate) fn open(
        &self,
        mut bytes: Bytes,
        key: &Key,
        schema: Schema,
        budget: &Arc<ByteBudget>,
    ) -> Result<EnvelopeContents, EnvelopeError> {
        let prefix = bytes.get(..PREFIX_BYTES).ok_or(EnvelopeError::Corrupt)?;
        let (magic, rest) = prefix.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(EnvelopeError::Corrupt);
        }
        if rest[0] != VERSION {
            return Err(EnvelopeError::OtherVersion);
        }
        if rest[1..9] != XxHash3_64::oneshot(&bytes[CHECKED_FROM..]).to_le_bytes() {
            return Err(EnvelopeError::Corrupt);
        }
        let form = rest[9];
        let compression = Compression::named_by(form).ok_or(EnvelopeError::OtherVersion)?;
        // Moved along, not sliced: the first slice of bytes that nobody shares costs an allocation.
        bytes.advance(PREFIX_BYTES);
        let mut content = match (&self.sealing, form & SEALED != 0) {
            (Some(keys), true) => Bytes::from(
                keys.open(&bytes, &associated(form, key)).ok_or(EnvelopeError::Corrupt)?,
            ),
            (None, false) => bytes,
            // Whoever has a key trusts nothing without one, and whoever has none cannot read it.
            _ => return Err(EnvelopeError::OtherVersion),
        };
        let length = content.get(..LENGTH_BYTES).ok_or(EnvelopeError::Corrupt)?;
        let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
        let end = LENGTH_BYTES.checked_add(length as usize).ok_or(EnvelopeError::Corrupt)?;
        let header = content.get(LENGTH_BYTES..end).ok_or(EnvelopeError::Corrupt)?;
        let read = postcard::from_bytes::<(KeyBytes<'_>, Header)>(header);
        let (written_for, header) = read.map_err(|_| EnvelopeError::Corrupt)?;
        if written_for.0 != key.as_bytes() {
            return Err(EnvelopeError::OtherKey);
        }
        if header.schema != schema {
            return Err(EnvelopeError::OtherVersion);
        }
        content.advance(end);
        let Some(compression) = compression else {
            return Ok(EnvelopeContents { header, payload: content, room: None });
        };
        let length = Compression::claimed(&content).ok_or(EnvelopeError::Corrupt)?;
        let mut room = ReservedBytes::none(budget);
        if !room.take(length) {
            return Err(EnvelopeError::NoRoom);
        }
        let payload = compression.undone(&content).ok_or(EnvelopeError::Corrupt)?;
        Ok(EnvelopeContents { header, payload, room: Some(room) })
    }

    /// Whether what is written can be neither read nor forged without a key.
    pub(crate) fn seals(&self) -> bool {
        self.sealing.is_some()
    }
}

/// What is bound to a sealed content without being part of it: its form and its key, namespace included.
fn associated(form: u8, key: &Key) -> Vec<u8> {
    let mut associated = vec![VERSION, form];
    associated.extend_from_slice(key.as_bytes());
    associated
}

/// How a payload is made smaller. It lies behind its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    /// Little work for whoever reads.
    Lz4,
    /// Smaller, for what is large.
    Zstd,
}

impl Compression {
    /// A payload that is worth it, compressed.
    fn of(payload: &[u8]) -> Option<(Self, Vec<u8>)> {
        let (by, compressed) = match payload.len() {
            WORTH_COMPRESSING..LARGE => (Self::Lz4, lz4_flex::compress(payload)),
            LARGE..=MOST_PAYLOAD => (Self::Zstd, zstd::bulk::compress(payload, ZSTD_LEVEL).ok()?),
            _ => return None,
        };
        // Less than a tenth is not worth the time of every reader.
        if compressed.len() >= payload.len() / 10 * 9 {
            return None;
        }
        let length = u32::try_from(payload.len()).ok()?;
        Some((by, [&length.to_le_bytes()[..], &compressed].concat()))
    }

    fn form(self) -> u8 {
        match self {
            Self::Lz4 => LZ4,
            Self::Zstd => ZSTD,
        }
    }

    /// The one that a form names, if it names one. `None` for a form that is not known.
    fn named_by(form: u8) -> Option<Option<Self>> {
        match form & !SEALED {
            0 => Some(None),
            LZ4 => Some(Some(Self::Lz4)),
            ZSTD => Some(Some(Self::Zstd)),
            _ => None,
        }
    }

    /// How long a payload says that it is. One that claims to be longer than any of ours is none.
    fn claimed(bytes: &[u8]) -> Option<usize> {
        let (length, _) = bytes.split_first_chunk::<4>()?;
        Some(u32::from_le_bytes(*length) as usize).filter(|length| *length <= MOST_PAYLOAD)
    }

    /// The payload.
    fn undone(self, bytes: &[u8]) -> Option<Bytes> {
        let length = Self::claimed(bytes)?;
        let block = &bytes[4..];
        let raw = match self {
            // Nothing is allocated before the length is known to be one that these bytes can come to.
            Self::Lz4 if length > block.len().saturating_mul(MOST_LZ4_RATIO) => return None,
            Self::Lz4 => lz4_flex::decompress(block, length).ok()?,
            Self::Zstd => {
                // Grows with what comes, since no ratio is too high.
                let mut raw = Vec::new();
                let decoder = zstd::stream::read::Decoder::with_buffer(block).ok()?;
                decoder.take(length as u64 + 1).read_to_end(&mut raw).ok()?;
                raw
            }
        };
        (raw.len() == length).then(|| raw.into())
    }
}

/// The bytes of a key, not copied to be compared.
struct KeyBytes<'a>(&'a [u8]);

impl Serialize for KeyBytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de> Deserialize<'de> for KeyBytes<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Self)
    }
}

const MAGIC: &[u8] = b"lrdr";
const VERSION: u8 = 5;
/// Magic, version and checksum come before what is checked.
const CHECKED_FROM: usize = MAGIC.len() + 1 + 8;
/// And the form.
const PREFIX_BYTES: usize = CHECKED_FROM + 1;
const LENGTH_BYTES: usize = 4;
const LZ4: u8 = 1;
const SEALED: u8 = 2;
const ZSTD: u8 = 4;
const WORTH_COMPRESSING: usize = 1024;
const LARGE: usize = 32 << 10;
const ZSTD_LEVEL: i32 = 3;
/// A larger payload is kept as it is, and one that claims to become larger is not ours.
const MOST_PAYLOAD: usize = 64 << 20;
/// What LZ4 makes of one byte of a page.
const TYPICAL_LZ4_RATIO: usize = 8;
/// LZ4 makes at most 255 bytes of one.
const MOST_LZ4_RATIO: usize = 255;

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
            schema: schema(),
            filled: Position { epoch: Epoch::random(), number: 7 },
            filled_at: SystemTime::now(),
            fresh: Duration::from_secs(60),
            revalidate: Duration::from_secs(70),
            on_error: Duration::from_secs(60),
            cost: Duration::from_millis(3),
            tags: vec![Tag::new("product:1"), Tag::of_path("/a")],
        }
    }

    fn seal(header: &Header, payload: &[u8]) -> Option<Bytes> {
        Codec::default().seal(&key("a"), header, payload)
    }

    fn opened(
        codec: &Codec,
        bytes: &Bytes,
        key: &Key,
        schema: Schema,
    ) -> Result<(Header, Bytes), EnvelopeError> {
        let budget = ByteBudget::new(1 << 20);
        let opened = codec.open(bytes.clone(), key, schema, &budget)?;
        Ok((opened.header, opened.payload))
    }

    fn open(bytes: &Bytes, key: &Key) -> Result<(Header, Bytes), EnvelopeError> {
        opened(&Codec::default(), bytes, key, schema())
    }

    fn schema() -> Schema {
        Schema::named("test")
    }

    fn sealing(secrets: &[u8]) -> Codec {
        let mut secrets = secrets.iter().map(|secret| [*secret; 32]);
        let first = SealingKeys::new(secrets.next().unwrap());
        Codec::new(Some(secrets.fold(first, SealingKeys::also_opens)))
    }

    #[test]
    fn what_is_worth_it_is_compressed_and_comes_back() {
        for (times, form) in [(200, LZ4), (2000, ZSTD)] {
            let payload = b"the same words again and again. ".repeat(times);
            let bytes = seal(&header(), &payload).unwrap();
            assert!(bytes.len() < payload.len() / 4, "{}", bytes.len());
            assert_eq!(bytes[PREFIX_BYTES - 1], form);
            assert_eq!(open(&bytes, &key("a")).unwrap().1, payload);
        }
        let noise: Vec<u8> = (0..8000_u32)
            .flat_map(|n| XxHash3_64::oneshot(&n.to_le_bytes()).to_le_bytes())
            .collect();
        for noise in [&noise[..4000], &noise] {
            let bytes = seal(&header(), noise).unwrap();
            assert_eq!(open(&bytes, &key("a")).unwrap().1, noise);
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_not_made() {
        let bytes = seal(&header(), &b"the same again. ".repeat(80_000)).unwrap();
        assert!(bytes.len() < 10_000);
        assert_eq!(open(&bytes, &key("a")), Err(EnvelopeError::NoRoom), "more than a mebibyte");
    }

    #[test]
    fn a_bomb_is_not_lit() {
        let most = u32::try_from(MOST_PAYLOAD).unwrap();
        let claims = |length: u32, block: &[u8]| [&length.to_le_bytes()[..], block].concat();
        assert!(Compression::Lz4.undone(&claims(most, &[0; 1000])).is_none());
        assert!(Compression::Lz4.undone(&claims(u32::MAX, &[0; 1000])).is_none());
        // Eighty megabytes in a few kilobytes.
        let bomb = zstd::bulk::compress(&vec![0; 80 << 20], ZSTD_LEVEL).unwrap();
        assert!(bomb.len() < 10_000);
        for length in [u32::MAX, most, 1000] {
            assert!(Compression::Zstd.undone(&claims(length, &bomb)).is_none(), "{length}");
        }
    }

    /// Written by the code of their time. A change that makes larder read the newest differently, or an old one
    /// as anything but another version, is a change of format: it needs a version and a file of its own.
    #[test]
    fn what_was_written_by_other_versions_is_told() {
        let written = |bytes: &'static [u8]| open(&Bytes::from_static(bytes), &key("a"));
        let old: [&[u8]; 3] = [
            include_bytes!("golden/version-2"),
            include_bytes!("golden/version-3"),
            include_bytes!("golden/version-4"),
        ];
        for old in old {
            assert_eq!(written(old), Err(EnvelopeError::OtherVersion));
        }
        let filled = Position { epoch: Epoch::from_bits(7), number: 7 };
        let filled_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let expected = Header { filled, filled_at, ..header() };
        let new = written(include_bytes!("golden/version-5"));
        assert_eq!(new, Ok((expected.clone(), Bytes::from_static(b"payload"))));
        assert_eq!(seal(&expected, b"payload").unwrap(), &include_bytes!("golden/version-5")[..]);
    }

    #[test]
    fn an_entry_of_another_type_or_form_stays_for_those_who_can_read_it() {
        let bytes = seal(&header(), b"payload").unwrap();
        let other = opened(&Codec::default(), &bytes, &key("a"), Schema::named("other"));
        assert_eq!(other, Err(EnvelopeError::OtherVersion));
        let mut bytes = bytes.to_vec();
        bytes[PREFIX_BYTES - 1] = 128;
        let checksum = XxHash3_64::oneshot(&bytes[CHECKED_FROM..]);
        bytes[CHECKED_FROM - 8..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(open(&bytes.into(), &key("a")), Err(EnvelopeError::OtherVersion));
    }

    #[test]
    fn what_is_sealed_is_opened_with_its_key_for_its_name_alone() {
        let codec = sealing(&[1]);
        let bytes = codec.seal(&key("a"), &header(), b"secret words").unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"secret" || window == b"produc"));
        assert_eq!(opened(&codec, &bytes, &key("a"), schema()).unwrap().1, &b"secret words"[..]);
        assert_eq!(opened(&codec, &bytes, &key("b"), schema()), Err(EnvelopeError::Corrupt));
        assert_eq!(
            opened(&sealing(&[2]), &bytes, &key("a"), schema()),
            Err(EnvelopeError::Corrupt)
        );
        assert_eq!(open(&bytes, &key("a")), Err(EnvelopeError::OtherVersion), "without a key");
        let plain = seal(&header(), b"plain").unwrap();
        assert_eq!(
            opened(&codec, &plain, &key("a"), schema()),
            Err(EnvelopeError::OtherVersion),
            "with a key"
        );
        // While keys are being changed, both are read.
        assert!(opened(&sealing(&[2, 1]), &bytes, &key("a"), schema()).is_ok());
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
        assert_eq!(open(&bytes, &key("b")), Err(EnvelopeError::OtherKey));
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let mut bytes = seal(&header(), b"payload").unwrap().to_vec();
        bytes[4] = 9;
        assert_eq!(open(&bytes.into(), &key("a")), Err(EnvelopeError::OtherVersion));
        assert_eq!(open(&Bytes::from_static(b"hello"), &key("a")), Err(EnvelopeError::Corrupt));
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
            bytes.extend(&noise);
            drop(open(&bytes.into(), &key("a")));
            // Whoever can write to a store can make a checksum too: then the header is what has to stand it.
            let start = postcard::to_allocvec(&(KeyBytes(key("a").as_bytes()), schema())).unwrap();
            let header = [&start[..], &noise].concat();
            let length = u32::try_from(header.len()).unwrap().to_le_bytes();
            let checked = [&[0][..], &length, &header].concat();
            let checksum = XxHash3_64::oneshot(&checked).to_le_bytes();
            drop(open(&[MAGIC, &[VERSION], &checksum, &checked].concat().into(), &key("a")));
        }
    }
}
