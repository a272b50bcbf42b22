//! Schemas: fingerprints of types, so that two programs never read each other's values by mistake.

use std::{
    any::TypeId, array, cell::RefCell, collections::HashMap, fmt, panic::catch_unwind,
    sync::LazyLock,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use self::recorder::Recorder;

mod recorder;
#[cfg(feature = "second-level")]
pub(crate) mod shape;

/// The fingerprint of a type in its serialised form.
///
/// The second level stores entries of different schemas under different keys. So each of two versions of a program that
/// run side by side reads its own entries, and an invalidation reaches the entries of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Schema(u64);

impl Schema {
    /// Returns the fingerprint of a type, which covers its name, its fields and variants with their types, and
    /// recursively the types in it.
    ///
    /// Larder computes it once per type and process, by letting the type deserialise samples. If a type refuses all
    /// samples, or accepts anything (`serde_json::Value`, `#[serde(flatten)]`, untagged and internally tagged enums),
    /// the fingerprint does not cover the whole type. In that case larder serialises each value again that it reads
    /// from a store, and the read is a miss unless both serialisations have the same names and kinds of values.
    pub fn of<T: DeserializeOwned + 'static>() -> Self {
        Self::seen::<T>().0
    }

    /// Returns the fingerprint, and whether it covers the whole type.
    pub(crate) fn seen<T: DeserializeOwned + 'static>() -> (Self, bool) {
        static KNOWN: LazyLock<Mutex<HashMap<TypeId, (Schema, bool)>>> =
            LazyLock::new(Mutex::default);
        thread_local! {
            // Each thread has a copy, so that no hit takes a lock for a constant.
            static COPY: RefCell<HashMap<TypeId, (Schema, bool)>> = RefCell::default();
        }
        let id = TypeId::of::<T>();
        if let Some(schema) = COPY.with_borrow(|copy| copy.get(&id).copied()) {
            return schema;
        }
        let known = KNOWN.lock().get(&id).copied();
        let schema = known.unwrap_or_else(|| {
            // This does not hold the lock, because reading runs code of the type.
            let (shape, is_whole) = described::<T>();
            let schema = (Self::named(&shape), is_whole);
            KNOWN.lock().insert(id, schema);
            schema
        });
        COPY.with_borrow_mut(|copy| copy.insert(id, schema));
        schema
    }

    /// Returns the fingerprint of a format that has a name of its own.
    pub fn named(name: &str) -> Self {
        Self(xxh3_64(name.as_bytes()))
    }

    /// Returns the fingerprint of the same type in another format.
    pub(crate) fn of_format(self, name: &str) -> Self {
        Self(xxh3_64_with_seed(name.as_bytes(), self.0))
    }

    /// Appends the fingerprint to a store key, as sixteen hexadecimal digits. It does not use a formatter, because each
    /// read of a store builds a key.
    pub(crate) fn add_digits(self, name: &mut String) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits: [u8; 16] = array::from_fn(|at| DIGITS[(self.0 >> (60 - 4 * at)) as usize & 15]);
        name.push_str(str::from_utf8(&digits).expect("digits are text"));
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Describes a type as far as it can be read, and returns whether that covers the whole type. In each reading, every
/// enum gets its next variant.
fn described<T: DeserializeOwned>() -> (String, bool) {
    let mut seen = std::any::type_name::<T>().to_owned();
    let mut is_whole = true;
    let mut most = 1;
    let mut turn = 0;
    while turn < most {
        // A type that panics at a sample ends the description.
        let Ok(read) = catch_unwind(|| Recorder::read::<T>(turn)) else { return (seen, false) };
        seen.push('\n');
        seen.push_str(&read.shape);
        is_whole &= read.is_whole;
        most = most.max(read.variants.min(MOST_VARIANTS));
        turn += 1;
    }
    (seen, is_whole)
}

const MOST_VARIANTS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    mod before {
        #[derive(serde::Serialize, serde::Deserialize)]
        pub(super) struct Row {
            _price: u32,
            _state: State,
        }
        #[derive(serde::Serialize, serde::Deserialize)]
        enum State {
            New,
            Sold { _at: u64 },
        }
    }
    mod after {
        #[derive(serde::Serialize, serde::Deserialize)]
        pub(super) struct Row {
            _price: u32,
            _state: State,
        }
        #[derive(serde::Serialize, serde::Deserialize)]
        enum State {
            New,
            Sold { _at: i64 },
        }
    }

    /// Returns the shape of a type without the module names, which would otherwise distinguish the two versions.
    fn shape<T: DeserializeOwned>() -> String {
        described::<T>().0.replace("::before::", "::").replace("::after::", "::")
    }

    #[test]
    fn the_digits_equal_the_formatted_fingerprint() {
        let schema = Schema(0x0123_4567_89ab_cdef);
        let mut name = String::from("a:");
        schema.add_digits(&mut name);
        assert_eq!(name, format!("a:{schema}"));
    }

    #[test]
    fn a_field_of_another_type_deep_inside_is_another_schema() {
        assert_eq!(Schema::of::<before::Row>(), Schema::of::<before::Row>());
        assert_ne!(shape::<before::Row>(), shape::<after::Row>());
        assert_ne!(Schema::of::<Vec<u32>>(), Schema::of::<Vec<u64>>());
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "only its shape is looked at")]
    enum Sum {
        Of(Box<Self>, Box<Self>),
        All(Vec<Self>),
        One { of: Option<Box<Self>>, more: HashMap<String, Self> },
        Number(i64),
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "only its shape is looked at")]
    struct Endless {
        next: Box<Self>,
        last: u8,
    }

    #[test]
    fn a_type_that_contains_itself_has_a_schema() {
        assert!(described::<Sum>().0.contains("Number"));
        assert!(described::<Endless>().0.contains("last"));
        assert_ne!(Schema::of::<Sum>(), Schema::of::<Endless>());
    }

    #[test]
    fn a_type_that_refuses_samples_still_contributes_its_name_and_fields() {
        struct Picky;
        impl<'de> Deserialize<'de> for Picky {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                assert!(text.starts_with("picky"), "it even panics");
                Ok(Self)
            }
        }
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "only its shape is looked at")]
        struct Price {
            at: std::num::NonZeroU8,
            cents: u32,
        }
        assert_ne!(Schema::of::<Picky>(), Schema::of::<serde::de::IgnoredAny>());
        assert!(described::<Price>().0.contains("cents"), "{:?}", described::<Price>());
        assert!(described::<Price>().1, "a number that is not zero is found");
        assert!(!described::<Picky>().1);
    }

    #[test]
    fn fields_after_a_validating_type_are_part_of_the_schema() {
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "only its shape is looked at")]
        struct Behind<A, B>(A, B);
        fn is_told_apart<A: DeserializeOwned>() {
            let [cents, euros] = [described::<Behind<A, u32>>(), described::<Behind<A, f64>>()];
            let shape = |seen: &str| seen.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
            assert!(cents.1, "{}: not seen to the end", std::any::type_name::<A>());
            assert_ne!(shape(&cents.0), shape(&euros.0), "{}", std::any::type_name::<A>());
        }
        is_told_apart::<std::num::NonZeroU64>();
        is_told_apart::<std::num::NonZeroI8>();
        is_told_apart::<std::net::IpAddr>();
        is_told_apart::<std::net::SocketAddr>();
        is_told_apart::<std::time::Duration>();
        is_told_apart::<std::time::SystemTime>();
        is_told_apart::<Option<std::num::NonZeroU16>>();
        is_told_apart::<Vec<(String, std::num::NonZeroU16)>>();
        is_told_apart::<checked::Identifier>();
        is_told_apart::<checked::Date>();
        is_told_apart::<checked::Weekday>();
    }

    /// Types that deserialise like the types of crates for identifiers and dates.
    mod checked {
        use serde::{Deserialize, Deserializer, de::Error};

        pub(super) struct Identifier;
        impl<'de> Deserialize<'de> for Identifier {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Sixteen;
                impl serde::de::Visitor<'_> for Sixteen {
                    type Value = Identifier;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("sixteen bytes")
                    }
                    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Identifier, E> {
                        let is_whole = bytes.len() == 16;
                        is_whole.then_some(Identifier).ok_or_else(|| E::custom("length"))
                    }
                }
                from.deserialize_bytes(Sixteen)
            }
        }

        pub(super) struct Date;
        impl<'de> Deserialize<'de> for Date {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                let parts: Vec<&str> = text.split('-').collect();
                let is_date = parts.len() == 3 && parts[0].len() == 4 && text.len() == 10;
                is_date.then_some(Self).ok_or_else(|| D::Error::custom("no date"))
            }
        }

        pub(super) struct Weekday;
        impl<'de> Deserialize<'de> for Weekday {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let (year, day) = <(i32, u16)>::deserialize(from)?;
                (year > 0 && (1..=7).contains(&day))
                    .then_some(Self)
                    .ok_or_else(|| D::Error::custom(""))
            }
        }
    }

    #[test]
    fn a_type_that_accepts_anything_is_not_covered_as_a_whole() {
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "only its shape is looked at")]
        struct Rest {
            more: u8,
        }
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "only its shape is looked at")]
        struct Flat {
            id: u8,
            #[serde(flatten)]
            rest: Rest,
        }
        #[derive(Deserialize)]
        #[serde(tag = "kind")]
        #[allow(dead_code, reason = "only its shape is looked at")]
        enum Tagged {
            A { a: u8 },
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        #[allow(dead_code, reason = "only its shape is looked at")]
        enum Untagged {
            A(u8),
            B(String),
        }
        assert!(!described::<Flat>().1);
        assert!(!described::<Tagged>().1);
        assert!(!described::<Untagged>().1);
        assert!(!described::<Vec<Tagged>>().1);
        assert!(described::<Rest>().1);
    }
}
