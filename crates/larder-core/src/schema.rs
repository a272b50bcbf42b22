//! What the bytes of a value look like, so that two programs never read each other's by mistake.

use std::{
    any::TypeId, array, cell::RefCell, collections::HashMap, fmt, panic::catch_unwind,
    sync::LazyLock,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use twox_hash::XxHash3_64;

use self::recorder::Recorder;

mod recorder;

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
    /// type refuses those, as one that checks what it reads, what lies behind is not seen: two versions that differ
    /// only there need another [`version`](crate::LarderBuilder::version).
    pub fn of<T: DeserializeOwned + 'static>() -> Self {
        static KNOWN: LazyLock<Mutex<HashMap<TypeId, Schema>>> = LazyLock::new(Mutex::default);
        thread_local! {
            // Each thread has a copy, so that no hit takes a lock for what never changes.
            static COPY: RefCell<HashMap<TypeId, Schema>> = RefCell::default();
        }
        let id = TypeId::of::<T>();
        if let Some(schema) = COPY.with_borrow(|copy| copy.get(&id).copied()) {
            return schema;
        }
        let known = KNOWN.lock().get(&id).copied();
        let schema = known.unwrap_or_else(|| {
            // Not under the lock: reading runs code of the type.
            let schema = Self::named(&described::<T>());
            KNOWN.lock().insert(id, schema);
            schema
        });
        COPY.with_borrow_mut(|copy| copy.insert(id, schema));
        schema
    }

    /// The fingerprint of a format that has a name of its own.
    pub fn named(name: &str) -> Self {
        Self(XxHash3_64::oneshot(name.as_bytes()))
    }

    /// What stands for it in the names of a store: sixteen digits. Not through a formatter, since each read of a
    /// store makes a name.
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

/// All that can be seen of a type. Each time it reads, every enum shows its next variant.
fn described<T: DeserializeOwned>() -> String {
    let mut seen = std::any::type_name::<T>().to_owned();
    let mut most = 1;
    let mut turn = 0;
    while turn < most {
        let read = catch_unwind(|| {
            let mut recorder = Recorder::new(turn);
            // It ends where the type refuses what is made up, or is one without an end.
            drop(T::deserialize(&mut recorder));
            recorder.finish()
        });
        let Ok((shape, variants)) = read else { break };
        seen.push('\n');
        seen.push_str(&shape);
        most = most.max(variants.min(MOST_VARIANTS));
        turn += 1;
    }
    seen
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

    /// The name of the module is all that tells the two apart, besides a type deep inside.
    fn shape<T: DeserializeOwned>() -> String {
        described::<T>().replace("::before::", "::").replace("::after::", "::")
    }

    #[test]
    fn the_digits_are_those_of_the_number() {
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
        assert!(described::<Sum>().contains("Number"));
        assert!(described::<Endless>().contains("last"));
        assert_ne!(Schema::of::<Sum>(), Schema::of::<Endless>());
    }

    #[test]
    fn a_type_that_refuses_what_is_made_up_has_its_name_and_its_fields() {
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
        assert!(described::<Price>().contains("cents"), "{}", described::<Price>());
    }
}
