//! The envelope: the encoding of an entry in the second level.
//!
//! The format is `magic, version, checksum, form, header length, header, payload`. The byte `form` contains flags. With
//! a sealing key, all bytes after the form are one sealed content. The header carries the whole key, so that larder
//! refuses the entry of another key if a store returns it. Tags are stored as text, not as hashes, since each process
//! hashes them with a secret of its own. The checksum detects accidents, not attackers.

use std::{
    io::Read as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Buf as _, Bytes};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    budget::{ByteBudget, ReservedBytes},
    bus::Position,
    key::Key,
    provenance::{LifetimeCut, LifetimeSource, Provenance, TagSource},
    schema::Schema,
    sealing::SealingKeys,
    tag::Tag,
};

/// The header of an envelope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) schema: Schema,
    /// The log position before anything was read for the fill.
    pub(crate) filled: Position,
    pub(crate) filled_at: SystemTime,
    pub(crate) fresh: Duration,
    pub(crate) revalidate: Duration,
    pub(crate) on_error: Duration,
    /// The idle time, if the lifetime slides, and the last read that was written here, counted from the fill.
    pub(crate) idle: Option<(Duration, Duration)>,
    pub(crate) cost: Duration,
    pub(crate) tags: Vec<Tag>,
    /// The source of each tag, of the lifetime, and of its end, each as a byte, because a reader has to open the bytes
    /// that a newer version has written.
    pub(crate) sources: EntrySources,
    pub(crate) queries: u32,
}

/// The provenance of an entry, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EntrySources {
    tags: Vec<u8>,
    lifetime: u8,
    cut: u8,
}

impl Header {
    /// Returns the provenance of the entry.
    pub(crate) fn provenance(&self) -> Provenance {
        let EntrySources { tags, lifetime, cut } = &self.sources;
        Provenance {
            tags: tags.iter().map(|byte| TagSource::from_byte(*byte)).collect(),
            lifetime: LifetimeSource::from_byte(*lifetime),
            cut: LifetimeCut::from_byte(*cut),
            queries: self.queries,
        }
    }
}

impl From<&Provenance> for EntrySources {
    fn from(provenance: &Provenance) -> Self {
        Self {
            tags: provenance.tags.iter().map(|source| source.to_byte()).collect(),
            lifetime: provenance.lifetime.to_byte(),
            cut: provenance.cut.to_byte(),
        }
    }
}

/// The reason why bytes cannot be used as an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnvelopeError {
    /// The bytes are damaged, forged, or not written by larder. Larder removes them from the store.
    Corrupt,
    /// The entry has another version, form or schema, or it is sealed and this process has no key, or the reverse.
    /// Larder leaves it in the store for the processes that can read it.
    OtherVersion,
    /// The entry belongs to another key. Larder removes it from the store.
    OtherKey,
    /// The fill budget has no room for the decompressed payload.
    NoRoom,
}

/// The content of an envelope.
#[derive(Debug)]
pub(crate) struct EnvelopeContents {
    pub(crate) header: Header,
    pub(crate) payload: Bytes,
    /// The bytes of the fill budget that a decompressed payload takes until it is decoded into a value.
    pub(crate) room: Option<ReservedBytes>,
}

/// Writes and opens envelopes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Codec {
    sealing: Option<SealingKeys>,
}

impl Codec {
    pub(crate) fn new(sealing: Option<SealingKeys>) -> Self {
        Self { sealing }
    }

    /// Encodes an entry. `None` if it cannot be encoded.
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
        let checksum = xxh3_64(&bytes[CHECKED_FROM..]);
        bytes[CHECKED_FROM - 8..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        Some(bytes.into())
    }

    /// Estimates the work of opening these bytes, as the larger of their number and the decompressed size.
    pub(crate) fn weight_of(&self, bytes: &[u8]) -> usize {
        match bytes.get(PREFIX_BYTES - 1).map(|form| form & !SEALED) {
            // The exact size may be sealed, so it is estimated. Only payloads of at least 32 KiB use zstd.
            Some(LZ4) => bytes.len().saturating_mul(TYPICAL_LZ4_RATIO),
            Some(ZSTD) => bytes.len().max(LARGE),
            _ => bytes.len(),
        }
    }

    /// Opens an envelope. The payload is copied only if it was compressed or sealed, and the decompressed size counts
    /// against the budget.
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
        if rest[1..9] != xxh3_64(&bytes[CHECKED_FROM..]).to_le_bytes() {
            return Err(EnvelopeError::Corrupt);
        }
        let form = rest[9];
        let compression = Compression::named_by(form).ok_or(EnvelopeError::OtherVersion)?;
        // This uses `advance` instead of `slice`, because the first slice of unshared bytes costs an allocation.
        bytes.advance(PREFIX_BYTES);
        let mut content = match (&self.sealing, form & SEALED != 0) {
            (Some(keys), true) => Bytes::from(
                keys.open(&bytes, &associated(form, key)).ok_or(EnvelopeError::Corrupt)?,
            ),
            (None, false) => bytes,
            // With a key, unsealed bytes are not trusted; without a key, sealed bytes cannot be opened.
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

    /// Whether envelopes are sealed, so that they can be neither read nor forged without a key.
    pub(crate) fn seals(&self) -> bool {
        self.sealing.is_some()
    }
}

/// Returns the associated data of a sealed content: version, form and key, which includes the namespace.
fn associated(form: u8, key: &Key) -> Vec<u8> {
    let mut associated = vec![VERSION, form];
    associated.extend_from_slice(key.as_bytes());
    associated
}

/// The compression of a payload. The length of the original precedes the compressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    /// For payloads from 1 KiB to less than 32 KiB, because it is fast to decompress.
    Lz4,
    /// For payloads from 32 KiB to 64 MiB, because its results are smaller.
    Zstd,
}

impl Compression {
    /// Compresses a payload. `None` if its size is outside these limits or if compression saves less than a tenth.
    fn of(payload: &[u8]) -> Option<(Self, Vec<u8>)> {
        let (by, compressed) = match payload.len() {
            WORTH_COMPRESSING..LARGE => (Self::Lz4, lz4_flex::compress(payload)),
            LARGE..=MOST_PAYLOAD => (Self::Zstd, zstd::bulk::compress(payload, ZSTD_LEVEL).ok()?),
            _ => return None,
        };
        // If compression saves less than a tenth, it is not worth the time that every reader spends on decompression.
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

    /// Returns the compression that a form names: `Some(None)` for no compression, `None` for an unknown form.
    fn named_by(form: u8) -> Option<Option<Self>> {
        match form & !SEALED {
            0 => Some(None),
            LZ4 => Some(Some(Self::Lz4)),
            ZSTD => Some(Some(Self::Zstd)),
            _ => None,
        }
    }

    /// Returns the length that a compressed payload claims for its original. `None` if that exceeds 64 MiB.
    fn claimed(bytes: &[u8]) -> Option<usize> {
        let (length, _) = bytes.split_first_chunk::<4>()?;
        Some(u32::from_le_bytes(*length) as usize).filter(|length| *length <= MOST_PAYLOAD)
    }

    /// Decompresses a payload. `None` if the result does not have the claimed length.
    fn undone(self, bytes: &[u8]) -> Option<Bytes> {
        let length = Self::claimed(bytes)?;
        let block = &bytes[4..];
        let raw = match self {
            // LZ4 cannot expand these bytes to the claimed length, so larder does not allocate it.
            Self::Lz4 if length > block.len().saturating_mul(MOST_LZ4_RATIO) => return None,
            Self::Lz4 => lz4_flex::decompress(block, length).ok()?,
            Self::Zstd => {
                // zstd has no maximum ratio, so the buffer grows as output arrives, up to the claimed length and one
                // byte.
                let mut raw = Vec::new();
                let decoder = zstd::stream::read::Decoder::with_buffer(block).ok()?;
                decoder.take(length as u64 + 1).read_to_end(&mut raw).ok()?;
                raw
            }
        };
        (raw.len() == length).then(|| raw.into())
    }
}

/// The bytes of a key, borrowed.
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
const VERSION: u8 = 7;
/// The offset of the checked bytes: magic, version and checksum precede them.
const CHECKED_FROM: usize = MAGIC.len() + 1 + 8;
/// The length of the prefix before the content: magic, version, checksum and the form byte.
const PREFIX_BYTES: usize = CHECKED_FROM + 1;
const LENGTH_BYTES: usize = 4;
const LZ4: u8 = 1;
const SEALED: u8 = 2;
const ZSTD: u8 = 4;
const WORTH_COMPRESSING: usize = 1024;
const LARGE: usize = 32 << 10;
const ZSTD_LEVEL: i32 = 3;
/// The maximum size of a payload that is compressed. An envelope that claims a larger size is refused as corrupt.
const MOST_PAYLOAD: usize = 64 << 20;
/// How many bytes of a page LZ4 typically compresses to one byte.
const TYPICAL_LZ4_RATIO: usize = 8;
/// How many bytes LZ4 can compress to one byte at most.
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
            idle: None,
            cost: Duration::from_millis(3),
            tags: vec![Tag::new("product:1"), Tag::of_path("/a")],
            sources: EntrySources { tags: vec![3, 2], lifetime: 4, cut: 1 },
            queries: 2,
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
    fn compressible_payloads_are_compressed_and_all_payloads_round_trip() {
        for (times, form) in [(200, LZ4), (2000, ZSTD)] {
            let payload = b"the same words again and again. ".repeat(times);
            let bytes = seal(&header(), &payload).unwrap();
            assert!(bytes.len() < payload.len() / 4, "{}", bytes.len());
            assert_eq!(bytes[PREFIX_BYTES - 1], form);
            assert_eq!(open(&bytes, &key("a")).unwrap().1, payload);
        }
        let noise: Vec<u8> =
            (0..8000_u32).flat_map(|n| xxh3_64(&n.to_le_bytes()).to_le_bytes()).collect();
        for noise in [&noise[..4000], &noise] {
            let bytes = seal(&header(), noise).unwrap();
            assert_eq!(open(&bytes, &key("a")).unwrap().1, noise);
        }
    }

    #[test]
    fn a_payload_beyond_the_fill_budget_is_not_decompressed() {
        let bytes = seal(&header(), &b"the same again. ".repeat(80_000)).unwrap();
        assert!(bytes.len() < 10_000);
        assert_eq!(open(&bytes, &key("a")), Err(EnvelopeError::NoRoom), "more than a mebibyte");
    }

    #[test]
    fn a_decompression_bomb_is_refused() {
        let most = u32::try_from(MOST_PAYLOAD).unwrap();
        let claims = |length: u32, block: &[u8]| [&length.to_le_bytes()[..], block].concat();
        assert!(Compression::Lz4.undone(&claims(most, &[0; 1000])).is_none());
        assert!(Compression::Lz4.undone(&claims(u32::MAX, &[0; 1000])).is_none());
        // This compresses eighty megabytes to a few kilobytes.
        let bomb = zstd::bulk::compress(&vec![0; 80 << 20], ZSTD_LEVEL).unwrap();
        assert!(bomb.len() < 10_000);
        for length in [u32::MAX, most, 1000] {
            assert!(Compression::Zstd.undone(&claims(length, &bomb)).is_none(), "{length}");
        }
    }

    /// Each golden file was written by the larder of its version. A change after which larder reads the newest file
    /// differently, or does not recognise an older file as another version, changes the format. It needs a new version
    /// and its own golden file.
    #[test]
    fn golden_files_of_other_versions_are_recognised() {
        let written = |bytes: &'static [u8]| open(&Bytes::from_static(bytes), &key("a"));
        let old: [&[u8]; 5] = [
            include_bytes!("golden/version-2"),
            include_bytes!("golden/version-3"),
            include_bytes!("golden/version-4"),
            include_bytes!("golden/version-5"),
            include_bytes!("golden/version-6"),
        ];
        for old in old {
            assert_eq!(written(old), Err(EnvelopeError::OtherVersion));
        }
        let filled = Position { epoch: Epoch::from_bits(7), number: 7 };
        let filled_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let idle = Some((Duration::from_secs(30), Duration::from_secs(5)));
        let expected = Header { filled, filled_at, idle, ..header() };
        let new = written(include_bytes!("golden/version-7"));
        assert_eq!(new, Ok((expected.clone(), Bytes::from_static(b"payload"))));
        assert_eq!(seal(&expected, b"payload").unwrap(), &include_bytes!("golden/version-7")[..]);
    }

    #[test]
    fn an_entry_of_another_type_or_form_is_not_corrupt() {
        let bytes = seal(&header(), b"payload").unwrap();
        let other = opened(&Codec::default(), &bytes, &key("a"), Schema::named("other"));
        assert_eq!(other, Err(EnvelopeError::OtherVersion));
        let mut bytes = bytes.to_vec();
        bytes[PREFIX_BYTES - 1] = 128;
        let checksum = xxh3_64(&bytes[CHECKED_FROM..]);
        bytes[CHECKED_FROM - 8..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(open(&bytes.into(), &key("a")), Err(EnvelopeError::OtherVersion));
    }

    #[test]
    fn a_sealed_entry_opens_only_with_its_sealing_key_and_under_its_own_key() {
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
        // While keys are being changed, both keys open.
        assert!(opened(&sealing(&[2, 1]), &bytes, &key("a"), schema()).is_ok());
    }

    #[test]
    fn an_entry_round_trips() {
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
    fn another_version_is_distinguished_from_garbage() {
        let mut bytes = seal(&header(), b"payload").unwrap().to_vec();
        bytes[4] = 9;
        assert_eq!(open(&bytes.into(), &key("a")), Err(EnvelopeError::OtherVersion));
        assert_eq!(open(&Bytes::from_static(b"hello"), &key("a")), Err(EnvelopeError::Corrupt));
    }

    proptest! {
        #[test]
        fn a_changed_or_truncated_envelope_is_refused(at in 0_usize..300, flip in 1_u8..) {
            let bytes = seal(&header(), b"payload").unwrap().to_vec();
            let at = at % bytes.len();
            prop_assert!(open(&bytes[..at].to_vec().into(), &key("a")).is_err());
            let mut changed = bytes;
            changed[at] ^= flip;
            prop_assert!(open(&changed.into(), &key("a")).is_err());
        }

        #[test]
        fn opening_arbitrary_bytes_does_not_panic(noise: Vec<u8>) {
            let mut bytes = MAGIC.to_vec();
            bytes.push(VERSION);
            bytes.extend(&noise);
            drop(open(&bytes.into(), &key("a")));
            // A party that can write to the store can also forge a checksum, so the header parser must not panic
            // either.
            let start = postcard::to_allocvec(&(KeyBytes(key("a").as_bytes()), schema())).unwrap();
            let header = [&start[..], &noise].concat();
            let length = u32::try_from(header.len()).unwrap().to_le_bytes();
            let checked = [&[0][..], &length, &header].concat();
            let checksum = xxh3_64(&checked).to_le_bytes();
            drop(open(&[MAGIC, &[VERSION], &checksum, &checked].concat().into(), &key("a")));
        }
    }
}
