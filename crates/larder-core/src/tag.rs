//! Tags (surrogate keys): the names by which entries are invalidated.

use std::{borrow::Cow, fmt};

use smol_str::{SmolStr, format_smolstr};
use xxhash_rust::xxh3::xxh3_64;

use crate::key::Kind;

/// Maximum length of an application's tag, in bytes; larder's own tags may be longer.
pub const MAX_TAG_BYTES: usize = 512;

/// A tag: a short string that names data on which an entry depends, such as `product:42`. Colons make it hierarchical.
///
/// Invalidating a tag reaches each entry that carries it; invalidating the prefix `product` reaches each entry that
/// carries `product` or any tag below it.
///
/// # Examples
///
/// ```
/// use larder_core::{Tag, tag};
///
/// let id = 42;
/// assert_eq!(Tag::from(("product", id)), tag!("product:{id}"));
/// assert_eq!(tag!("product:{id}").as_str(), "product:42");
/// ```
#[doc(alias("surrogate key", "cache tag", "dependency", "xkey"))]
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(SmolStr);

/// Makes a [`Tag`] with the syntax of `format!`.
#[macro_export]
macro_rules! tag {
    ($($text:tt)*) => { $crate::Tag::new(::std::format!($($text)*)) };
}

impl Tag {
    /// Creates a tag from a string.
    ///
    /// A string that is longer than [`MAX_TAG_BYTES`] is truncated at a character boundary. Two tags that differ only
    /// beyond this limit become the same tag, so an invalidation may reach too many entries, but it never misses an
    /// entry. Control characters become `?`, since larder uses them in its own tags.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let cut = &text[..floor_char_boundary(text, MAX_TAG_BYTES)];
        if cut.contains(char::is_control) {
            return Self(cut.replace(char::is_control, "?").into());
        }
        Self(cut.into())
    }

    /// Returns the string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether this is a tag of the application, and not one of larder's own tags.
    pub fn is_from_application(&self) -> bool {
        !self.0.contains(OWN)
    }

    /// Returns the tag that every entry of the namespace carries.
    pub(crate) fn of_namespace(namespace: &str) -> Self {
        Self::own('n', namespace)
    }

    /// Returns the tag that every entry of the kind carries.
    pub(crate) fn of_kind(kind: Kind) -> Self {
        Self::own('k', kind.letter().encode_utf8(&mut [0; 4]))
    }

    /// Returns the tag of all entries of this name. The name of an object or fragment is itself a tag. Applications do
    /// not write the name of a query, so that name becomes one of larder's own tags.
    pub(crate) fn of_name(kind: Kind, name: &str) -> Self {
        match kind {
            Kind::Object | Kind::Fragment => Self::new(name),
            Kind::Query | Kind::Response => Self::own(kind.letter(), name),
        }
    }

    /// Returns the tag of every response of this path, on all hosts. Two spellings of one path have the same tag, since
    /// a router sends both to the same handler.
    pub fn of_path(path: &str) -> Self {
        Self::own('p', &decoded(path))
    }

    /// Returns the tag of the responses of this path on one scheme and authority, such as `https://shop.example`, that
    /// do not belong to a partition.
    pub fn of_origin_path(origin: &str, path: &str) -> Self {
        Self::own('h', &format!("{origin}{}", decoded(path)))
    }

    /// Returns the tag of the responses of this path on one scheme and authority that belong to any partition.
    pub fn of_partitioned_path(origin: &str, path: &str) -> Self {
        Self::own('H', &format!("{origin}{}", decoded(path)))
    }

    /// Returns the tag of the responses of this path on one scheme and authority in this partition.
    pub fn of_path_in_partition(origin: &str, path: &str, partition: &[u8]) -> Self {
        let partition = xxh3_64(partition);
        Self::own('i', &format!("{partition:016x} {origin}{}", decoded(path)))
    }

    /// Returns the tag of a cache group of RFC 9875 on one scheme and authority.
    pub fn of_group(origin: &str, group: &str) -> Self {
        Self::own('g', &format!("{origin} {group}"))
    }

    /// Returns the string of this tag that a pattern over names is matched against: an application's tag, or the name
    /// of a value, in this namespace.
    pub(crate) fn name_in(&self, namespace: &str) -> Option<&str> {
        let own = match namespace {
            "" => &self.0[..],
            namespace => {
                let rest = self.0.strip_prefix(NAMESPACED)?.strip_prefix(namespace)?;
                rest.strip_prefix(NAMESPACED)?
            }
        };
        match own.strip_prefix(OWN) {
            Some(named) => named.strip_prefix(Kind::Query.letter()),
            None => (!own.starts_with(NAMESPACED)).then_some(own),
        }
    }

    /// Returns the parts of this tag, for people: what it stands for, its namespace and its text.
    pub(crate) fn readable(&self) -> ReadableTag<'_> {
        let (mut namespace, mut text) = ("", &self.0[..]);
        if let Some((within, rest)) =
            text.strip_prefix(NAMESPACED).and_then(|rest| rest.split_once(NAMESPACED))
        {
            (namespace, text) = (within, rest);
        }
        let mut class = "tag";
        if let Some(own) = text.strip_prefix(OWN) {
            let letter = own.chars().next().unwrap_or_default();
            text = &own[letter.len_utf8()..];
            class = match letter {
                'p' => "path",
                'h' => "url",
                'H' => "url-in-partitions",
                'i' => "url-in-partition",
                'g' => "cache-group",
                'n' => "namespace",
                'k' => "kind",
                'q' => "query",
                'r' => "response",
                _ => "other",
            };
        }
        ReadableTag { class, namespace, text }
    }

    /// Returns this tag inside the namespace. Two namespaces never share a tag.
    pub(crate) fn within(&self, namespace: &str) -> Self {
        if namespace.is_empty() {
            return self.clone();
        }
        Self(format_smolstr!("{NAMESPACED}{namespace}{NAMESPACED}{}", self.0))
    }

    /// Returns the tag that stands for everything below this tag.
    pub(crate) fn below(&self) -> Self {
        Self(format_smolstr!("{}:*", self.0))
    }

    /// Returns this tag without its trailing colons, which have no meaning.
    pub(crate) fn without_last_colons(self) -> Self {
        match self.0.strip_suffix(':') {
            Some(_) => Self(self.0.trim_end_matches(':').into()),
            None => self,
        }
    }

    /// Returns the tags that stand for everything below each ancestor of this tag: `shop:*` and `shop:product:*` for
    /// `shop:product:42`.
    ///
    /// Larder's own tags have no ancestors, because the `:` of an address is not a hierarchy.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        let text = if self.is_from_application() { &self.0[..] } else { "" };
        text.match_indices(':').map(|(at, _)| Self(format_smolstr!("{}:*", &text[..at])))
    }

    /// Returns the bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        if self.0.is_heap_allocated() { self.0.len() + 2 * size_of::<usize>() } else { 0 }
    }

    fn own(class: char, text: &str) -> Self {
        // Larder's own tags are not truncated, because a path may be longer than a tag of the application, and two
        // truncated paths could share a tag.
        Self(format_smolstr!("{OWN}{class}{text}"))
    }
}

/// The parts of a tag, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadableTag<'a> {
    /// What it stands for: `tag` for a tag of the application.
    pub(crate) class: &'static str,
    pub(crate) namespace: &'a str,
    pub(crate) text: &'a str,
}

/// Returns the last character boundary at or before `most` bytes. The standard library has this function from Rust 1.91
/// on.
fn floor_char_boundary(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Decodes each `%XX` of a path that a router would take for the character itself: printable ASCII, except `/`, `%`,
/// `?` and `#`.
///
/// Source: RFC 3986, section 6.2.2.2, which demands this for unreserved characters and leaves the others to the scheme.
/// Larder decodes more, because two paths that share a tag only cost a needless miss, but if one page had two tags, an
/// invalidation could miss it.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let code = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            // An encoded `/` does not separate segments, and a decoded `%` would begin another escape.
            Some(byte @ 0x21..=0x7E) if !b"/%?#".contains(&byte) => {
                out.push(char::from(byte));
                rest = &after[2..];
            }
            // Any other escape stays escaped, with its digits in upper case.
            Some(byte) => {
                out.push_str(&format!("%{byte:02X}"));
                rest = &after[2..];
            }
            None => {
                out.push('%');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

const OWN: char = '\u{1}';
const NAMESPACED: char = '\u{2}';

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tag({:?})", &self.0[..])
    }
}

impl From<&str> for Tag {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Tag {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&Tag> for Tag {
    fn from(tag: &Tag) -> Self {
        tag.clone()
    }
}

impl<A: fmt::Display, B: fmt::Display> From<(A, B)> for Tag {
    fn from((group, member): (A, B)) -> Self {
        Self::new(format!("{group}:{member}"))
    }
}

impl serde::Serialize for Tag {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Tag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AnyText)
    }
}

/// A visitor that takes a string as it is, not through [`Tag::new`], since stored entries carry larder's own tags too.
/// It avoids the intermediate `String` that serde would allocate for each tag.
struct AnyText;

impl serde::de::Visitor<'_> for AnyText {
    type Value = Tag;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the string of a tag")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Tag, E> {
        Ok(Tag(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_cannot_forge_a_tag_of_larders_own() {
        assert!(Tag::of_path("/a").as_str().starts_with('\u{1}'));
        assert_eq!(Tag::new("\u{1}p/a").as_str(), "?p/a");
        assert!(Tag::new("p/a").is_from_application());
    }

    #[test]
    fn a_long_tag_is_cut_between_characters() {
        let tag = Tag::new("ä".repeat(400));
        assert_eq!(tag.as_str().len(), MAX_TAG_BYTES);
    }

    #[test]
    fn ancestors_end_before_each_colon() {
        let below: Vec<_> = Tag::new("shop:product:42").ancestors().collect();
        assert_eq!(below, [Tag("shop:*".into()), Tag("shop:product:*".into())]);
        assert_eq!(Tag::of_origin_path("http://a:1", "/x:y").ancestors().count(), 0);
    }

    #[test]
    fn a_tag_is_readable() {
        let read = |tag: &Tag| {
            let ReadableTag { class, namespace, text } = tag.readable();
            (class, namespace.to_owned(), text.to_owned())
        };
        let product = Tag::from(("product", 42));
        assert_eq!(read(&product), ("tag", String::new(), "product:42".into()));
        assert_eq!(read(&product.within("a/b")), ("tag", "a/b".into(), "product:42".into()));
        assert_eq!(read(&Tag::of_path("/a")), ("path", String::new(), "/a".into()));
        let kind = Tag::of_kind(Kind::Query).within("a");
        assert_eq!(read(&kind), ("kind", "a".into(), "q".into()));
    }

    #[test]
    fn two_spellings_of_one_path_are_one_tag() {
        assert_eq!(Tag::of_path("/products/%34%32"), Tag::of_path("/products/42"));
        assert_eq!(Tag::of_path("/users/%40ada"), Tag::of_path("/users/@ada"));
        assert_eq!(Tag::of_path("/a%2fb"), Tag::of_path("/a%2Fb"));
        assert_ne!(Tag::of_path("/a%2541"), Tag::of_path("/a%41"));
        assert_ne!(Tag::of_path("/a%2Fb"), Tag::of_path("/a/b"));
        assert_eq!(
            Tag::of_origin_path("http://a", "/%7Eb"),
            Tag::of_origin_path("http://a", "/~b")
        );
        for odd in ["/%", "/%4", "/%+1", "/%é", "/%%34"] {
            drop(Tag::of_path(odd));
        }
    }

    #[test]
    fn the_same_tag_in_two_namespaces_is_two_tags() {
        let tag = Tag::new("product:1");
        assert_ne!(tag.within("a"), tag.within("b"));
        assert_eq!(tag.within(""), tag);
    }
}
