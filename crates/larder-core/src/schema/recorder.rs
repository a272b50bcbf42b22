//! A deserializer that records which serde types a type requests, and gives it samples: first the simplest sample, and
//! if the type refuses it, other samples of the same kind.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess,
        SeqAccess, VariantAccess, Visitor, value::StrDeserializer,
    },
};

/// The state of one reading of a type.
pub(super) struct Recorder {
    seen: String,
    /// The index of the variant that each enum gets.
    turn: usize,
    /// The largest number of variants of any enum.
    variants: usize,
    depth: usize,
    /// The index of the sample that each scalar gets, in the order of reading. Scalars beyond the end of this list get
    /// their first sample.
    choices: Vec<usize>,
    /// The number of available samples for each scalar read so far.
    given: Vec<usize>,
    /// Whether a part accepts any type, so that its own type is unknown.
    is_opaque: bool,
}

/// The result of reading a type.
pub(super) struct SeenNames {
    pub(super) shape: String,
    /// The largest number of variants of any enum.
    pub(super) variants: usize,
    /// Whether the shape covers the whole type.
    pub(super) is_whole: bool,
}

/// The error that ends a reading.
#[derive(Debug)]
pub(super) struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the type cannot be read further")
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Recorder {
    fn new(turn: usize, choices: Vec<usize>) -> Self {
        let (seen, given) = (String::new(), Vec::new());
        Self { seen, turn, variants: 1, depth: 0, choices, given, is_opaque: false }
    }

    /// Reads a type repeatedly, each time with another sample for the last scalar that has a sample left, until the
    /// type accepts all samples or there is no sample left to try. It reads at most 512 times.
    pub(super) fn read<T: DeserializeOwned>(turn: usize) -> SeenNames {
        let mut choices = Vec::new();
        for _ in 0..MOST_READINGS {
            let mut recorder = Self::new(turn, choices);
            let is_read = T::deserialize(&mut recorder).is_ok();
            let Self { seen: shape, variants, choices: tried, given, is_opaque, .. } = recorder;
            let next = (!is_read).then(|| next_choices(tried, &given)).flatten();
            match next {
                Some(next) => choices = next,
                None => return SeenNames { shape, variants, is_whole: is_read && !is_opaque },
            }
        }
        SeenNames { shape: String::new(), variants: 1, is_whole: false }
    }

    /// Chooses one of `samples` samples for the next scalar, and returns its index.
    fn choose(&mut self, samples: usize) -> usize {
        let chosen = self.choices.get(self.given.len()).copied().unwrap_or_default();
        self.given.push(samples);
        chosen
    }

    fn note(&mut self, what: &str) {
        self.seen.push_str(what);
        self.seen.push(' ');
    }

    /// Reads the content of a type, up to a maximum depth and length, because a type can be endless.
    fn within<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Stop>) -> Result<T, Stop> {
        if self.depth >= DEEPEST || self.seen.len() >= LONGEST {
            self.note("...");
            return Err(Stop);
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }
}

/// Returns the choices to try after refused choices, with another sample for the last scalar that has a sample left.
fn next_choices(mut tried: Vec<usize>, given: &[usize]) -> Option<Vec<usize>> {
    tried.resize(given.len(), 0);
    loop {
        let last = tried.len().checked_sub(1)?;
        tried[last] += 1;
        if tried[last] < given[last] {
            return Some(tried);
        }
        tried.pop();
    }
}

macro_rules! scalars {
    ($($method:ident $visit:ident $samples:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            self.note(stringify!($method));
            let samples = $samples;
            let chosen = self.choose(samples.len());
            visitor.$visit(samples[chosen])
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Recorder {
    type Error = Stop;

    scalars! {
        deserialize_bool visit_bool [false, true];
        deserialize_i8 visit_i8 [0, 1, 2, 7, -1];
        deserialize_i16 visit_i16 [0, 1, 2, 7, 2000, -1];
        deserialize_i32 visit_i32 [0, 1, 2, 7, 2000, -1];
        deserialize_i64 visit_i64 [0, 1, 2, 7, 2000, -1];
        deserialize_i128 visit_i128 [0, 1, 2, 7, 2000, -1];
        deserialize_u8 visit_u8 [0, 1, 2, 7];
        deserialize_u16 visit_u16 [0, 1, 2, 7, 2000];
        deserialize_u32 visit_u32 [0, 1, 2, 7, 2000];
        deserialize_u64 visit_u64 [0, 1, 2, 7, 2000];
        deserialize_u128 visit_u128 [0, 1, 2, 7, 2000];
        deserialize_f32 visit_f32 [0.0, 1.0, 0.5];
        deserialize_f64 visit_f64 [0.0, 1.0, 0.5];
        deserialize_char visit_char ['a', '0', 'A'];
        deserialize_str visit_borrowed_str TEXTS;
        deserialize_string visit_borrowed_str TEXTS;
        deserialize_bytes visit_borrowed_bytes BYTES;
        deserialize_byte_buf visit_borrowed_bytes BYTES;
        deserialize_identifier visit_borrowed_str [""];
    }

    /// Returns `false`, as in the second level, because MessagePack is not human-readable.
    fn is_human_readable(&self) -> bool {
        false
    }

    /// A type that accepts anything does not request a type that could be recorded.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.note("any");
        self.is_opaque = true;
        match self.choose(4) {
            0 => visitor.visit_unit(),
            1 => visitor.visit_borrowed_str(""),
            2 => visitor.visit_u64(1),
            _ => self.within(|inside| visitor.visit_map(Elements { inside, left: 0 })),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.note("unit");
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note(name);
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.note("option");
        self.within(|inside| visitor.visit_some(inside))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note(name);
        self.within(|inside| visitor.visit_newtype_struct(inside))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.note("seq");
        self.within(|inside| visitor.visit_seq(Elements { inside, left: 1 }))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note(&format!("tuple {length}"));
        self.within(|inside| visitor.visit_seq(Elements { inside, left: length }))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note(name);
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.note("map");
        self.within(|inside| visitor.visit_map(Elements { inside, left: 1 }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        // All field names are noted at once, in case one of the fields ends the reading.
        self.note(&format!("{name} {fields:?}"));
        self.within(|inside| visitor.visit_map(Fields { inside, fields: fields.iter() }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.note(&format!("{name} {variants:?}"));
        self.variants = self.variants.max(variants.len());
        let Some(variant) = variants.get(self.turn % variants.len().max(1)) else {
            return Err(Stop);
        };
        self.note(variant);
        self.within(|inside| visitor.visit_enum(OneVariant { inside, variant }))
    }
}

/// The next `left` elements of a sequence, or entries of a map.
struct Elements<'a> {
    inside: &'a mut Recorder,
    left: usize,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Stop;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Stop> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.inside).map(Some)
    }
}

impl<'de> MapAccess<'de> for Elements<'_> {
    type Error = Stop;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Stop> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Stop> {
        seed.deserialize(&mut *self.inside)
    }
}

struct Fields<'a> {
    inside: &'a mut Recorder,
    fields: std::slice::Iter<'static, &'static str>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Stop;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Stop> {
        let Some(field) = self.fields.next() else { return Ok(None) };
        let name: StrDeserializer<'_, Stop> = (*field).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Stop> {
        seed.deserialize(&mut *self.inside)
    }
}

struct OneVariant<'a> {
    inside: &'a mut Recorder,
    variant: &'static str,
}

impl<'de, 'a> EnumAccess<'de> for OneVariant<'a> {
    type Error = Stop;
    type Variant = Content<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Content<'a>), Stop> {
        let name: StrDeserializer<'_, Stop> = self.variant.into_deserializer();
        Ok((seed.deserialize(name)?, Content(self.inside)))
    }
}

struct Content<'a>(&'a mut Recorder);

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        self.0.note("unit");
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Stop> {
        self.0.note("newtype");
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.0.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.0.deserialize_struct("", fields, visitor)
    }
}

/// Sample strings that validating types may accept: identifiers, addresses, dates, times, numbers, names.
const TEXTS: [&str; 26] = [
    "",
    "00000000-0000-0000-0000-000000000000",
    "2000-01-01",
    "2000-01-01T00:00:00Z",
    "2000-01-01T00:00:00",
    "2000-01-01 00:00:00",
    "2000-01-01T00:00:00+00:00[UTC]",
    "00:00:00",
    "P1D",
    "PT1S",
    "UTC",
    "+00:00",
    "127.0.0.1",
    "::1",
    "127.0.0.1:80",
    "127.0.0.0/8",
    "0",
    "1",
    "1.5",
    "1.0.0",
    "a",
    "A",
    "en",
    "/",
    "http://a.example/",
    "a@b.example",
];

/// Bytes of the lengths that identifiers, addresses and hashes have.
const BYTES: [&[u8]; 8] = [b"", &[0; 16], &[0; 4], &[0; 8], &[0; 12], &[0; 20], &[0; 32], &[0; 64]];

/// Maximum number of readings. A type that refuses more samples is not covered as a whole.
const MOST_READINGS: usize = 512;
const DEEPEST: usize = 48;
const LONGEST: usize = 64 << 10;
