//! The shape of a serialised value (its names and kinds of values), to compare two serialised values.
//!
//! MessagePack is self-describing, and serde accepts an integer if a float is requested, so 1999 cents become 1999.0 in
//! another program. If the schema does not cover a type as a whole, each value that is read from a store is serialised
//! once more, and both serialisations must have the same shape.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// Names and kinds, regardless of order, because a hash set serialises in another order each time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shape {
    Nil,
    Bool,
    Whole,
    Floating,
    Text,
    Bytes,
    List(BTreeSet<Shape>),
    /// Keys that are strings are part of the shape; all other keys are `None`.
    Map(BTreeSet<(Option<String>, Shape)>),
}

/// Returns the shape of these bytes, or `None` if they are not MessagePack.
pub(crate) fn of(bytes: &[u8]) -> Option<Shape> {
    rmp_serde::from_slice(bytes).ok()
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyShape)
    }
}

/// A key of a map: its string, or `None` if it has another type.
struct MapKey(Option<String>);

impl<'de> Deserialize<'de> for MapKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct AnyKey;
        impl<'de> Visitor<'de> for AnyKey {
            type Value = MapKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MapKey, E> {
                Ok(MapKey(Some(text.to_owned())))
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<MapKey, E> {
                Ok(MapKey(None))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<MapKey, E> {
                Ok(MapKey(None))
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<MapKey, E> {
                Ok(MapKey(None))
            }
            fn visit_bytes<E: de::Error>(self, _: &[u8]) -> Result<MapKey, E> {
                Ok(MapKey(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<MapKey, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(MapKey(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MapKey, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(MapKey(None))
            }
        }
        from.deserialize_any(AnyKey)
    }
}

struct AnyShape;

macro_rules! kinds {
    ($($method:ident $kind:ty => $shape:ident)*) => {$(
        fn $method<E: de::Error>(self, _: $kind) -> Result<Shape, E> {
            Ok(Shape::$shape)
        }
    )*};
}

impl<'de> Visitor<'de> for AnyShape {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    kinds! {
        visit_bool bool => Bool
        visit_i64 i64 => Whole
        visit_u64 u64 => Whole
        visit_i128 i128 => Whole
        visit_u128 u128 => Whole
        visit_f32 f32 => Floating
        visit_f64 f64 => Floating
        visit_str &str => Text
        visit_bytes &[u8] => Bytes
    }

    fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape::Nil)
    }

    fn visit_none<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape::Nil)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Shape, D::Error> {
        from.deserialize_any(self)
    }

    /// Reads a MessagePack extension.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Shape, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Shape::Bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut elements = BTreeSet::new();
        while let Some(element) = seq.next_element()? {
            elements.insert(element);
        }
        Ok(Shape::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut entries = BTreeSet::new();
        while let Some((MapKey(key), value)) = map.next_entry()? {
            entries.insert((key, value));
        }
        Ok(Shape::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use serde::Serialize;

    use super::*;

    fn shape<T: Serialize>(value: T) -> Shape {
        of(&rmp_serde::to_vec_named(&value).unwrap()).unwrap()
    }

    #[test]
    fn shapes_depend_on_names_and_kinds_but_not_on_values_or_order() {
        #[derive(Serialize)]
        struct Row<T> {
            id: u8,
            price: T,
        }
        #[derive(Serialize)]
        struct Renamed {
            id: u8,
            cost: u32,
        }
        assert_eq!(shape(Row { id: 1, price: 5_u32 }), shape(Row { id: 2, price: u64::MAX }));
        assert_ne!(shape(Row { id: 1, price: 5_u32 }), shape(Row { id: 1, price: 5.0 }));
        assert_ne!(shape(Row { id: 1, price: 5 }), shape(Renamed { id: 1, cost: 5 }));
        assert_ne!(shape(Row { id: 1, price: "5" }), shape(Row { id: 1, price: 5 }));
        let many: HashSet<u32> = (0..100).collect();
        assert_eq!(shape(&many), shape(many.iter().take(1).collect::<Vec<_>>()));
        let map: HashMap<u32, f32> = (0..100).map(|key| (key, 1.0)).collect();
        assert_eq!(shape(&map), shape(map.clone()));
        assert_ne!(shape(vec![Some(1), None]), shape(vec![Some(1)]));
        assert!(of(b"").is_none());
    }
}
