//! What the bytes of a value look like, so that two programs never read each other's by mistake.

use std::{any::TypeId, collections::HashMap, fmt, panic::catch_unwind};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_reflection::{Error, Tracer, TracerConfig};
use xxhash_rust::xxh3::xxh3_64;

/// A fingerprint of a type as it is written to a shared store.
///
/// Entries of another schema lie under another name there: while two versions of a program run side by side
/// each reads its own, and an invalidation reaches both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Schema(u64);

impl Schema {
    /// The fingerprint of a type: its name, its fields and variants with their types, and those of all types
    /// in it.
    ///
    /// Found out once for each type and process, by letting the type read values that are made up. Where a
    /// type refuses those, what is behind it is not seen, and its name has to do.
    pub fn of<T: DeserializeOwned + 'static>() -> Self {
        static KNOWN: Mutex<Option<HashMap<TypeId, Schema>>> = Mutex::new(None);
        let id = TypeId::of::<T>();
        if let Some(schema) = KNOWN.lock().get_or_insert_default().get(&id) {
            return *schema;
        }
        // Not under the lock: reading runs code of the type.
        let schema = Self::named(&described::<T>());
        KNOWN.lock().get_or_insert_default().insert(id, schema);
        schema
    }

    /// The fingerprint of a format that has a name of its own.
    pub fn named(name: &str) -> Self {
        Self(xxh3_64(name.as_bytes()))
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

fn described<T: DeserializeOwned>() -> String {
    let name = std::any::type_name::<T>();
    let seen = catch_unwind(seen::<T>).unwrap_or_default();
    format!("{name} {seen}")
}

/// All that can be seen of a type by letting it read. An enum shows one more variant each time.
fn seen<T: DeserializeOwned>() -> String {
    let mut enums: Vec<String> = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let mut tracer = Tracer::new(TracerConfig::default());
        for _ in 0..MOST_ROUNDS {
            let refused = tracer.trace_simple_type::<T>().is_err();
            let mut shows_more = |name: &&String| tracer.check_incomplete_enum(name).is_some();
            // Each of them has to be asked, so that it goes on.
            if refused || enums.iter().filter(&mut shows_more).count() == 0 {
                break;
            }
        }
        match tracer.registry() {
            Ok(types) => return format!("{types:?}"),
            Err(Error::MissingVariants(names)) if names.iter().any(|new| !enums.contains(new)) => {
                enums.extend(names);
            }
            Err(_) => break,
        }
    }
    String::new()
}

/// More than any type that somebody writes has variants, or enums within enums.
const MOST_ROUNDS: usize = 1000;

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

    /// The name of the module is all that tells the two apart, besides a type deep inside.
    fn shape<T: DeserializeOwned>() -> String {
        described::<T>().replace("::before::", "::").replace("::after::", "::")
    }

    #[test]
    fn a_field_of_another_type_deep_inside_is_another_schema() {
        assert_eq!(Schema::of::<before::Row>(), Schema::of::<before::Row>());
        assert_ne!(shape::<before::Row>(), shape::<after::Row>());
        assert!(shape::<before::Row>().contains("Sold"), "{}", shape::<before::Row>());
        assert_ne!(Schema::of::<Vec<u32>>(), Schema::of::<Vec<u64>>());
    }

    #[test]
    fn a_type_that_reads_nothing_made_up_has_its_name() {
        #[derive(Debug)]
        struct Picky;
        impl<'de> Deserialize<'de> for Picky {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                assert!(text.starts_with("picky"), "it even panics");
                Ok(Self)
            }
        }
        assert_ne!(Schema::of::<Picky>(), Schema::of::<serde::de::IgnoredAny>());
    }
}
