//! Where the tags and the lifetime of an entry came from. Nothing is decided by it: it explains an entry.

use serde::Serialize;

use crate::{key::Kind, tag::Tag};

macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$of:meta])* $name:ident = $byte:literal, $word:literal, $sentence:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $type {
            $($(#[$of])* #[doc = $sentence] $name = $byte,)*
        }

        impl $type {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns its word.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// Returns the sentence that explains it.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }

            #[cfg_attr(not(feature = "second-level"), allow(dead_code, reason = "only envelopes carry bytes"))]
            pub(crate) fn to_byte(self) -> u8 {
                self as u8
            }

            /// Returns the value that a byte stands for. A byte that a newer version has written is the default.
            #[cfg_attr(not(feature = "second-level"), allow(dead_code, reason = "only envelopes carry bytes"))]
            pub(crate) fn from_byte(byte: u8) -> Self {
                Self::ALL.iter().copied().find(|value| *value as u8 == byte).unwrap_or_default()
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// Where a tag of an entry came from.
    TagSource {
        #[default]
        Unknown = 0, "unknown", "The process that wrote the entry did not say.";
        Larder = 1, "larder", "larder adds it to every entry: its kind, its name, its namespace.";
        Route = 2, "route", "The address of the request.";
        Handler = 3, "handler", "The handler, the loader or the policy added it.";
        Response = 4, "response", "A field of the response, such as `Cache-Groups`.";
        Statement = 5, "statement", "larder read it from the text and the values of an SQL statement.";
        Query = 6, "query", "A query that the entry was made of.";
        Fragment = 7, "fragment", "A fragment that the entry was made of.";
        Object = 8, "object", "A value that the entry was made of.";
        ResponsePart = 9, "response-part", "A stored response that the entry was made of.";
    }
}

words! {
    /// Which option, directive or field gave an entry its freshness lifetime.
    LifetimeSource {
        #[default]
        Unknown = 0, "unknown", "The process that wrote the entry did not say.";
        OverrideTtl = 1, "override-ttl", "`override_ttl` of the layer.";
        Handler = 2, "handler", "The handler, by `CachePolicy::ttl`.";
        NegativeTtl = 3, "negative-ttl", "`negative_ttl` of the layer, for this status.";
        LayerTtl = 4, "layer-ttl", "`ttl` of the layer.";
        NestedLayer = 5, "nested-layer", "`ttl` of a response cache inside of this one.";
        MaxAge = 6, "max-age", "`max-age` of the response.";
        SMaxage = 7, "s-maxage", "`s-maxage` of the response.";
        Expires = 8, "expires", "`Expires` of the response.";
        Targeted = 9, "targeted", "A targeted field of the response, such as `CDN-Cache-Control` (RFC 9213).";
        Heuristic = 10, "heuristic", "A share of the time since `Last-Modified` (RFC 9111, section 4.2.2).";
        NoCache = 11, "no-cache", "`no-cache` of the response: larder asks the origin before each use.";
        Policy = 12, "policy", "The policy of the value.";
        Loader = 13, "loader", "The loader, by `LoadHandle::ttl`.";
        Absent = 14, "negative-policy", "The policy for a value that does not exist.";
        Adaptive = 15, "adaptive", "The intervals at which the value has changed.";
        Larder = 16, "larder", "larder itself, for its own records.";
    }
}

words! {
    /// What ended the freshness of an entry before the end of its lifetime.
    LifetimeCut {
        #[default]
        None = 0, "none", "Nothing ended its freshness earlier.";
        Part = 1, "part", "A part of it ends earlier.";
        StalePart = 2, "stale-part", "A part of it was stale when it was added.";
        MaxLifetime = 3, "max-lifetime", "`LarderBuilder::max_lifetime` is shorter.";
        Expiry = 4, "expiry", "Its lifetime has an absolute end.";
    }
}

impl TagSource {
    /// Returns the source of the tags that a part of this kind brings into the entry that is made of it.
    pub(crate) fn of_part(kind: Kind) -> Self {
        match kind {
            Kind::Query => Self::Query,
            Kind::Fragment => Self::Fragment,
            Kind::Object => Self::Object,
            Kind::Response => Self::ResponsePart,
        }
    }
}

/// Tags with their sources, each tag once. The source that added a tag first stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcedTags {
    tags: Vec<Tag>,
    sources: Vec<TagSource>,
}

impl SourcedTags {
    /// Creates a list of tags of one source.
    pub fn of(source: TagSource, tags: impl IntoIterator<Item = Tag>) -> Self {
        let mut all = Self::default();
        tags.into_iter().for_each(|tag| all.add(tag, source));
        all
    }

    /// Adds a tag, unless it is already there.
    pub fn add(&mut self, tag: Tag, source: TagSource) {
        if !self.tags.contains(&tag) {
            self.tags.push(tag);
            self.sources.push(source);
        }
    }

    /// Returns the tags.
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }

    /// Returns the tags with their sources.
    pub fn iter(&self) -> impl Iterator<Item = (&Tag, TagSource)> {
        self.tags.iter().zip(self.sources.iter().copied())
    }

    /// Returns the number of tags.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether there are no tags.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    pub(crate) fn into_parts(self) -> (Vec<Tag>, Vec<TagSource>) {
        (self.tags, self.sources)
    }
}

impl Extend<(Tag, TagSource)> for SourcedTags {
    fn extend<I: IntoIterator<Item = (Tag, TagSource)>>(&mut self, tags: I) {
        tags.into_iter().for_each(|(tag, source)| self.add(tag, source));
    }
}

impl IntoIterator for SourcedTags {
    type Item = (Tag, TagSource);
    type IntoIter = std::iter::Zip<std::vec::IntoIter<Tag>, std::vec::IntoIter<TagSource>>;

    fn into_iter(self) -> Self::IntoIter {
        self.tags.into_iter().zip(self.sources)
    }
}

/// Where an entry came from: the sources of its tags, each one byte, and of its lifetime, and the queries of its fill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Provenance {
    pub(crate) tags: Box<[TagSource]>,
    pub(crate) lifetime: LifetimeSource,
    pub(crate) cut: LifetimeCut,
    /// The queries that ran in the fill, those in the fills of its parts included.
    pub(crate) queries: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_a_byte_a_word_and_a_sentence_of_its_own() {
        macro_rules! check {
            ($type:ident) => {
                for (place, source) in $type::ALL.iter().enumerate() {
                    assert_eq!($type::from_byte(source.to_byte()), *source);
                    assert!(source.sentence().ends_with('.'), "{source:?}");
                    for other in &$type::ALL[place + 1..] {
                        assert_ne!(source.as_str(), other.as_str());
                    }
                }
                assert_eq!($type::from_byte(250), $type::default(), "of a newer version");
            };
        }
        check!(TagSource);
        check!(LifetimeSource);
        check!(LifetimeCut);
    }

    #[test]
    fn the_first_source_of_a_tag_stays() {
        let mut tags = SourcedTags::of(TagSource::Handler, [Tag::new("a")]);
        tags.extend([(Tag::new("a"), TagSource::Query), (Tag::new("b"), TagSource::Query)]);
        let all: Vec<_> = tags.iter().map(|(tag, source)| (tag.as_str(), source)).collect();
        assert_eq!(all, [("a", TagSource::Handler), ("b", TagSource::Query)]);
    }
}
