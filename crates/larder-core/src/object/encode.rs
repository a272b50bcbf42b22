//! Values in the second level, as MessagePack with field names.

use std::{any::TypeId, collections::HashMap, sync::LazyLock};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use crate::schema::{Schema, shape};

/// Returns the function that gives the schema of a type.
#[expect(clippy::unnecessary_wraps, reason = "builds without a second level have no schemas")]
pub(super) const fn schema<T: DeserializeOwned + 'static>() -> Option<fn() -> Schema> {
    Some(Schema::of::<T>)
}

/// Deserialises a value. `None` for bytes of another type, even if `T` could misread them.
pub(super) fn from_bytes<T: Serialize + DeserializeOwned + 'static>(bytes: &Bytes) -> Option<T> {
    let value: T = rmp_serde::from_slice(bytes).ok()?;
    let (_, is_whole) = Schema::seen::<T>();
    (is_whole || is_written_alike(&value, bytes)).then_some(value)
}

pub(super) fn to_bytes<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    rmp_serde::to_vec_named(value).ok()
}

/// Whether values of the type survive a MessagePack round trip, tested with the first value in each process.
pub(super) fn survives<T: Serialize + DeserializeOwned + 'static>(value: &T) -> bool {
    static KNOWN: LazyLock<Mutex<HashMap<TypeId, bool>>> = LazyLock::new(Mutex::default);
    let id = TypeId::of::<T>();
    if let Some(known) = KNOWN.lock().get(&id) {
        return *known;
    }
    let survives = rmp_serde::to_vec_named(value).is_ok_and(|bytes| {
        rmp_serde::from_slice::<T>(&bytes).is_ok_and(|back| is_written_alike(&back, &bytes))
    });
    if !survives {
        tracing::warn!(
            target: "larder",
            r#type = std::any::type_name::<T>(),
            "values of this type do not survive a MessagePack round trip, so they are stored in the first level only"
        );
    }
    KNOWN.lock().insert(id, survives);
    survives
}

/// Whether a value that was read from these bytes serialises to the same field names and kinds of values.
fn is_written_alike<T: Serialize>(value: &T, bytes: &[u8]) -> bool {
    let Ok(written) = rmp_serde::to_vec_named(value) else { return false };
    written == bytes || shape::of(&written).is_some_and(|own| shape::of(bytes) == Some(own))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Declares a version of a type. The schema distinguishes two versions only as far as it covers them.
    macro_rules! version {
        ($name:ident $price:ident: $kind:ty) => {
            mod $name {
                use super::*;

                #[derive(Debug, PartialEq, Serialize, Deserialize)]
                pub(super) struct Rest {
                    pub(super) $price: $kind,
                }

                #[derive(Debug, PartialEq, Serialize, Deserialize)]
                pub(super) struct Product {
                    pub(super) id: u32,
                    #[serde(flatten)]
                    pub(super) rest: Rest,
                }

                #[allow(dead_code, reason = "not each version is written")]
                pub(super) fn product($price: $kind) -> Product {
                    Product { id: 7, rest: Rest { $price } }
                }
            }
        };
    }
    version!(cents price: u32);
    version!(euros price: f64);
    version!(renamed cost: u32);
    version!(wider price: u64);
    version!(optional price: Option<u32>);

    fn bytes<T: Serialize>(value: &T) -> Bytes {
        rmp_serde::to_vec_named(value).unwrap().into()
    }

    #[test]
    fn bytes_of_another_version_never_decode_to_another_value() {
        let written = bytes(&cents::product(1999));
        assert!(from_bytes::<cents::Product>(&written).is_some());
        assert!(from_bytes::<euros::Product>(&written).is_none(), "1999.0 in place of 19.99");
        assert!(from_bytes::<renamed::Product>(&written).is_none());
        let wider = from_bytes::<wider::Product>(&written).unwrap();
        assert_eq!(wider, wider::product(1999));
        let optional = from_bytes::<optional::Product>(&written).unwrap();
        assert_eq!(optional, optional::product(Some(1999)));
    }
}
