//! Keys: the parts that identify an entry, joined so that two different lists of parts never collide.
//!
//! Each part is preceded by its length, because an attacker could put a separator into a URL, but not a length. A hit
//! compares the whole key, never only its hash.

use std::{cell::Cell, fmt};

use smallvec::SmallVec;

use crate::audience::Audience;

/// The kind of an entry. Its letter is the first byte of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A whole HTTP response.
    Response,
    /// A rendered part of a page.
    Fragment,
    /// The rows of a query.
    Query,
    /// A value of the application, by [`get_or_load`](crate::Larder::get_or_load).
    Object,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Response, Self::Fragment, Self::Query, Self::Object];

    /// Returns the name of the kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Response => "response",
            Self::Fragment => "fragment",
            Self::Query => "query",
            Self::Object => "object",
        }
    }

    /// Returns the letter that stands for this kind in keys.
    pub const fn letter(self) -> char {
        match self {
            Self::Response => 'r',
            Self::Fragment => 'f',
            Self::Query => 'q',
            Self::Object => 'o',
        }
    }

    fn from_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.letter() as u8 == letter)
    }
}

/// The maximum length of a stored key in bytes, including parts and lengths.
pub const MAX_KEY_BYTES: usize = 16 * 1024;

/// The beginning of a key part that stands for several URLs instead of one URL (`No-Vary-Search`).
pub const FOR_MANY: &[u8] = b" search ";

const LENGTH_BYTES: usize = 2;
/// The number of parts that precede the name of the entry: namespace, version and policy.
const PLACE_PARTS: usize = 3;
/// The number of parts that identify a response: origin, path and query.
const ADDRESS_PARTS: usize = 3;

/// A key under construction, for lookups.
///
/// It takes the spare buffer of the thread and gives it back when dropped, so that a lookup does not allocate and does
/// not move more than a pointer.
#[derive(Debug)]
pub struct KeyBuf {
    bytes: Vec<u8>,
    /// The bytes of parts that were too long to append.
    missing: usize,
}

impl KeyBuf {
    /// Starts a key of `kind` with a namespace, a version of the application and a policy.
    pub fn new(kind: Kind, namespace: &str, version: &str, policy: &str) -> Self {
        let mut key = Self::continued(&[]);
        key.bytes.push(kind.letter() as u8);
        for part in [namespace, version, policy] {
            key.push(part.as_bytes());
        }
        key
    }

    /// Starts a key with bytes that are already encoded.
    pub fn continued(start: &[u8]) -> Self {
        let mut bytes = SPARE.take();
        bytes.clear();
        bytes.extend_from_slice(start);
        Self { bytes, missing: 0 }
    }

    /// Appends one part.
    #[inline]
    pub fn push(&mut self, part: &[u8]) {
        self.push_pieces([part]);
    }

    /// Appends one part, given in several pieces.
    #[inline]
    pub fn push_pieces<const N: usize>(&mut self, pieces: [&[u8]; N]) {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let Ok(prefix) = u16::try_from(length) else {
            self.missing += LENGTH_BYTES + length;
            return;
        };
        self.bytes.reserve(LENGTH_BYTES + length);
        self.bytes.extend_from_slice(&prefix.to_le_bytes());
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
    }

    /// Appends the part that separates the entries of one variant or partition from other entries; nothing for
    /// `Everyone` and `Unknown`.
    pub fn push_audience(&mut self, audience: &Audience) {
        match audience {
            Audience::Variant(of) => self.push_pieces([b" in ", of]),
            Audience::Partition(of) => self.push_pieces([b" for ", of]),
            Audience::Everyone | Audience::Unknown => {}
        }
    }

    /// Returns the encoded parts, for a lookup.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns whether this is longer than [`MAX_KEY_BYTES`], so that no entry is stored under it.
    pub fn is_too_long(&self) -> bool {
        self.bytes.len() + self.missing > MAX_KEY_BYTES
    }

    /// Returns the name, as [`Key::name`] does for the finished key.
    pub(crate) fn name(&self) -> String {
        Key { bytes: SmallVec::from_slice(&self.bytes) }.name()
    }

    /// Returns the key under which an entry is stored.
    ///
    /// # Errors
    ///
    /// [`KeyTooLongError`] if the parts together are longer than [`MAX_KEY_BYTES`].
    pub fn finish(&self) -> Result<Key, KeyTooLongError> {
        if self.is_too_long() {
            return Err(KeyTooLongError { bytes: self.bytes.len() + self.missing });
        }
        Ok(Key { bytes: SmallVec::from_slice(&self.bytes) })
    }
}

impl Clone for KeyBuf {
    fn clone(&self) -> Self {
        let mut clone = Self::continued(&self.bytes);
        clone.missing = self.missing;
        clone
    }
}

impl Drop for KeyBuf {
    fn drop(&mut self) {
        if self.bytes.capacity() <= LARGEST_SPARE {
            // A thread that is ending no longer has the spare.
            let _dropped = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.bytes)));
        }
    }
}

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

const LARGEST_SPARE: usize = 4 * 1024;

/// The key of an entry, owned. Cheap to compare.
///
/// `Display` writes it readably, as `o:user:42` or `r:https://shop.example/products/42?page=2`.
#[derive(PartialEq, Eq, Hash)]
pub struct Key {
    bytes: SmallVec<[u8; 88]>,
}

impl Clone for Key {
    fn clone(&self) -> Self {
        // `SmallVec::clone` copies byte by byte, and this copies all bytes at once.
        Self { bytes: SmallVec::from_slice(&self.bytes) }
    }
}

impl Key {
    /// Returns the encoded parts.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Decodes a key from the bytes that [`Key::as_bytes`] returns.
    ///
    /// `None` for any other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let key = Self { bytes: SmallVec::from_slice(bytes) };
        Kind::from_letter(*bytes.first()?)?;
        let whole = key.parts().fold(1, |at, part| at + LENGTH_BYTES + part.len()) == bytes.len();
        (whole && bytes.len() <= MAX_KEY_BYTES).then_some(key)
    }

    /// Returns the kind of the entry.
    pub fn kind(&self) -> Kind {
        Kind::from_letter(self.bytes[0]).expect("every constructor writes the letter of a kind")
    }

    /// Returns the namespace of the key, empty for the larder itself.
    pub fn namespace(&self) -> &[u8] {
        self.parts().next().unwrap_or_default()
    }

    /// Returns the name of the cache that the key belongs to, empty for the cache of queries and of values without a policy
    /// name.
    pub(crate) fn cache(&self) -> String {
        let policy = self.parts().nth(PLACE_PARTS - 1).unwrap_or_default();
        let end = policy.iter().position(|byte| b"+@!~?".contains(byte)).unwrap_or(policy.len());
        String::from_utf8_lossy(&policy[..end]).into_owned()
    }

    /// Returns this key with one more part.
    ///
    /// # Errors
    ///
    /// [`KeyTooLongError`] if the new key would be longer than [`MAX_KEY_BYTES`].
    pub fn with_part(&self, part: &[u8]) -> Result<Self, KeyTooLongError> {
        let mut key = KeyBuf::continued(self.as_bytes());
        key.push(part);
        key.finish()
    }

    /// Returns the name that patterns are matched against: the name of the object, fragment or query, or the URL of a
    /// response, without namespace, version, policy, partition and variant.
    pub fn name(&self) -> String {
        let naming = if self.kind() == Kind::Response { ADDRESS_PARTS } else { 1 };
        self.parts().skip(PLACE_PARTS).take(naming).map(String::from_utf8_lossy).collect()
    }

    /// Returns the URL of a response that is stored for all clients, and by its address alone or its variant. `None` for an
    /// entry of a partition or another key input, of the content of a read (QUERY, POST), or of larder's own, and for a response that
    /// the application has fetched from another server (a private cache, whose policy ends with `~`).
    pub(crate) fn public_url(&self) -> Option<String> {
        // Variants begin with the name of a field, and every other part with a space.
        let is_public = |part: &[u8]| !part.starts_with(b" ") || part == b" default";
        let is_fetched =
            self.parts().nth(PLACE_PARTS - 1).is_none_or(|policy| policy.contains(&b'~'));
        let is_response = self.kind() == Kind::Response && !is_fetched;
        let is_public =
            is_response && self.parts().skip(PLACE_PARTS + ADDRESS_PARTS).all(is_public);
        is_public.then(|| self.name())
    }

    /// Whether the entry serves several URLs, which the key does not contain.
    pub(crate) fn is_for_many(&self) -> bool {
        self.parts().any(|part| part.starts_with(FOR_MANY))
    }

    /// Returns the key under which a [`Store`](crate::store::Store) holds the entry: printable ASCII, with `:` between
    /// parts.
    ///
    /// Bytes that a store could interpret (braces choose a slot in Redis Cluster) or that look like a separator are
    /// written as `%XX`, so that a client cannot decide where an entry is stored.
    pub fn store_key(&self) -> String {
        let mut text = String::with_capacity(self.bytes.len() * 2 + 32);
        text.push_str("larder:");
        text.push(self.kind().letter());
        for part in self.parts() {
            text.push(':');
            escape(part, &mut text);
        }
        text
    }

    /// Returns the bytes on the heap, without the key itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        if self.bytes.spilled() { self.bytes.capacity() } else { 0 }
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.get(1..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>()?;
            let (part, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            rest = after;
            Some(part)
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind().letter(), self.name())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

fn escape(part: &[u8], out: &mut String) {
    use fmt::Write as _;
    for &byte in part {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'/'
            | b'.'
            | b'-'
            | b'_'
            | b'='
            | b'&'
            | b'?' => {
                out.push(char::from(byte));
            }
            _ => write!(out, "%{byte:02X}").expect("a String takes all that is written"),
        }
    }
}

/// The error for a key that is longer than [`MAX_KEY_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTooLongError {
    bytes: usize,
}

impl fmt::Display for KeyTooLongError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key has {} bytes, but at most {MAX_KEY_BYTES} are allowed", self.bytes)
    }
}

impl std::error::Error for KeyTooLongError {}

/// The name of an object: a string, a number, or a tuple of up to four strings and numbers.
///
/// The members of a tuple are joined by `:`, so `("user", 42)` and `"user:42"` are the same name. A `:` or `%` within a
/// member is written as `%3A` or `%25`, so that a member can never be mistaken for two members.
///
/// ```
/// use larder_core::IntoName;
///
/// assert_eq!(("user", 42).into_name(), "user:42");
/// assert_eq!(("profile", "acme:eu", 7).into_name(), "profile:acme%3Aeu:7");
/// ```
pub trait IntoName {
    /// Returns the name as one string.
    fn into_name(self) -> String;

    /// Passes the name to `read`. The names of this crate do so without an allocation.
    fn with_name<R>(self, read: impl FnOnce(&str) -> R) -> R
    where
        Self: Sized,
    {
        read(&self.into_name())
    }
}

impl IntoName for &str {
    fn into_name(self) -> String {
        self.to_owned()
    }

    fn with_name<R>(self, read: impl FnOnce(&str) -> R) -> R {
        read(self)
    }
}

impl IntoName for String {
    fn into_name(self) -> String {
        self
    }
}

impl IntoName for &String {
    fn into_name(self) -> String {
        self.clone()
    }

    fn with_name<R>(self, read: impl FnOnce(&str) -> R) -> R {
        read(self)
    }
}

/// Writes a name into the spare buffer of the thread, and passes it to `read`.
fn with_written_name<R>(
    write: impl FnOnce(&mut String) -> fmt::Result,
    read: impl FnOnce(&str) -> R,
) -> R {
    let mut name = SPARE_NAME.take();
    name.clear();
    write(&mut name).expect("a String takes all that is written");
    let read = read(&name);
    if name.capacity() <= LARGEST_SPARE {
        // A thread that is ending no longer has the spare.
        let _dropped = SPARE_NAME.try_with(|spare| spare.set(name));
    }
    read
}

thread_local! {
    static SPARE_NAME: Cell<String> = const { Cell::new(String::new()) };
}

macro_rules! name_of_number {
    ($($number:ty)*) => {$(
        impl IntoName for $number {
            fn into_name(self) -> String {
                self.to_string()
            }

            fn with_name<R>(self, read: impl FnOnce(&str) -> R) -> R {
                use fmt::Write as _;
                with_written_name(|name| write!(name, "{self}"), read)
            }
        }
    )*};
}
name_of_number!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

macro_rules! name_of_tuple {
    ($($part:ident)*) => {
        impl<$($part: fmt::Display),*> IntoName for ($($part,)*) {
            fn into_name(self) -> String {
                self.with_name(str::to_owned)
            }

            #[allow(non_snake_case, reason = "the type parameters name the fields")]
            fn with_name<R>(self, read: impl FnOnce(&str) -> R) -> R {
                let ($($part,)*) = self;
                let write = |name: &mut String| {
                    $(add_member(name, $part)?;)*
                    // The last member has no separator.
                    name.pop();
                    Ok(())
                };
                with_written_name(write, read)
            }
        }
    };
}

/// Appends one member of a tuple and a separator.
fn add_member(name: &mut String, member: impl fmt::Display) -> fmt::Result {
    use fmt::Write as _;
    let from = name.len();
    write!(name, "{member}")?;
    // Few members have a letter that is escaped.
    if name[from..].contains([':', '%']) {
        let member = escaped(&name[from..], |letter| letter == ':');
        name.replace_range(from.., &member);
    }
    name.push(':');
    Ok(())
}

/// Percent-encodes each `special` character, and `%`.
pub(crate) fn escaped(text: &str, special: impl Fn(char) -> bool) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter == '%' || special(letter) {
            for byte in letter.encode_utf8(&mut [0; 4]).bytes() {
                write!(out, "%{byte:02X}").expect("a String takes all that is written");
            }
        } else {
            out.push(letter);
        }
    }
    out
}

name_of_tuple!(A B);
name_of_tuple!(A B C);
name_of_tuple!(A B C D);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(parts: &[&[u8]]) -> Key {
        let mut key = KeyBuf::new(Kind::Object, "", "", "");
        parts.iter().for_each(|part| key.push(part));
        key.finish().unwrap()
    }

    #[test]
    fn a_separator_in_a_part_does_not_join_two_keys() {
        assert_ne!(key(&[b"a:b", b"c"]), key(&[b"a", b"b:c"]));
        assert_ne!(key(&[b"a", b""]), key(&[b"a"]));
    }

    #[test]
    fn text_of_a_request_cannot_choose_a_cluster_slot() {
        let text = key(&[b"/p?{a}:b"]).store_key();
        assert_eq!(text, "larder:o::::/p?%7Ba%7D%3Ab");
    }

    /// Source: the cluster specification of Redis, which uses CRC-16/XMODEM of the text between the first braces.
    fn slot(name: &str) -> u16 {
        let hashed = name.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let hashed = hashed.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(name);
        let crc = hashed.bytes().fold(0_u16, |crc, byte| {
            let shift = |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
            (0..8).fold(crc ^ u16::from(byte) << 8, shift)
        });
        crc % 16_384
    }

    #[test]
    fn ten_thousand_addresses_that_contain_a_hash_tag_spread_as_others_do() {
        assert_eq!((slot("foo"), slot("x{foo}y")), (12_182, 12_182), "as in the specification");
        let spread = |address: &str| {
            let addresses = (0..10_000).map(|number| format!("{address}{number}"));
            let slots = addresses.map(|address| slot(&key(&[address.as_bytes()]).store_key()));
            slots.collect::<std::collections::HashSet<_>>().len()
        };
        let (tagged, others) = (spread("/p?{a}"), spread("/p?aaa"));
        assert!(others > 7_000 && tagged.abs_diff(others) < others / 10, "{tagged} and {others}");
    }

    #[test]
    fn a_key_beyond_the_limit_is_refused() {
        let mut long = KeyBuf::new(Kind::Response, "", "", "");
        long.push(&vec![b'x'; 70_000]);
        assert!(long.is_too_long());
        let error = long.finish().unwrap_err().to_string();
        assert!(error.contains("16384") && error.contains("has 700"), "{error}");
    }

    #[test]
    fn a_tuple_and_a_string_name_the_same_object() {
        assert_eq!(("user", 42).into_name(), "user:42");
        assert_eq!(7_u8.into_name(), "7");
    }

    /// Regression: members were joined by `:` unescaped, so two customers with suitable names shared one profile.
    #[test]
    fn a_separator_in_a_tuple_member_does_not_join_two_names() {
        assert_ne!(
            ("profile", "acme:eu", "7").into_name(),
            ("profile", "acme", "eu:7").into_name()
        );
        assert_ne!(("a%3Ab", "c").into_name(), ("a:b", "c").into_name());
        assert_ne!(("", "a").into_name(), ("a", "").into_name());
    }

    proptest! {
        #[test]
        fn different_parts_never_make_the_same_key(a: Vec<Vec<u8>>, b: Vec<Vec<u8>>) {
            let join = |parts: &[Vec<u8>]| key(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(a == b, join(&a) == join(&b));
            prop_assert_eq!(a == b, join(&a).store_key() == join(&b).store_key());
        }

        #[test]
        fn a_key_round_trips_through_its_bytes(parts: Vec<Vec<u8>>, noise: Vec<u8>) {
            let key = key(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(Key::from_bytes(key.as_bytes()), Some(key));
            if let Some(key) = Key::from_bytes(&noise) {
                prop_assert_eq!(key.as_bytes(), &noise[..]);
            }
        }
    }
}
