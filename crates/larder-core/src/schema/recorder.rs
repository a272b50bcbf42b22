//! Notes what a type asks for while it reads, and gives it the simplest that there is.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
        Visitor, value::StrDeserializer,
    },
};

/// A reading of one type.
pub(super) struct Recorder {
    seen: String,
    /// Which variant each enum shows.
    turn: usize,
    /// The most variants that any enum has.
    variants: usize,
    depth: usize,
}

/// The reading ends here.
#[derive(Debug)]
pub(super) struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing more can be seen")
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Recorder {
    pub(super) fn new(turn: usize) -> Self {
        Self { seen: String::new(), turn, variants: 1, depth: 0 }
    }

    pub(super) fn finish(self) -> (String, usize) {
        (self.seen, self.variants)
    }

    fn note(&mut self, what: &str) {
        self.seen.push_str(what);
        self.seen.push(' ');
    }

    /// Reads what lies within. A type without an end, or one too large, is cut off.
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

macro_rules! scalars {
    ($($method:ident $visit:ident $value:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            self.note(stringify!($method));
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Recorder {
    type Error = Stop;

    scalars! {
        deserialize_bool visit_bool false;
        deserialize_i8 visit_i8 0;
        deserialize_i16 visit_i16 0;
        deserialize_i32 visit_i32 0;
        deserialize_i64 visit_i64 0;
        deserialize_i128 visit_i128 0;
        deserialize_u8 visit_u8 0;
        deserialize_u16 visit_u16 0;
        deserialize_u32 visit_u32 0;
        deserialize_u64 visit_u64 0;
        deserialize_u128 visit_u128 0;
        deserialize_f32 visit_f32 0.0;
        deserialize_f64 visit_f64 0.0;
        deserialize_char visit_char 'a';
        deserialize_str visit_borrowed_str "";
        deserialize_string visit_borrowed_str "";
        deserialize_bytes visit_borrowed_bytes b"";
        deserialize_byte_buf visit_borrowed_bytes b"";
        deserialize_identifier visit_borrowed_str "";
    }

    /// What takes anything asks for nothing that could be noted.
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        self.note("any");
        Err(Stop)
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
        // All names at once, should one of the fields end the reading.
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

/// So many elements of a sequence, or entries of a map.
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

const DEEPEST: usize = 48;
const LONGEST: usize = 64 << 10;
