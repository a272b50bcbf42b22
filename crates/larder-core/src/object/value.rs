//! Application values as entries: stored as they are in the first level, serialised for the second level only.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    entry::{Encoded, Value},
    schema::{Schema, shape},
    weight::{self, ValueWeight},
};

/// An application value, stored without serialisation.
pub(super) struct Object<T> {
    pub(super) value: Arc<T>,
    weighed: ValueWeight,
}

impl<T: Serialize> Object<T> {
    pub(super) fn new(value: T) -> Self {
        let weighed = weight::of(&value);
        Self { value: Arc::new(value), weighed }
    }
}

impl<T: CacheValue> Object<T> {
    /// Deserialises a value. `None` for bytes of another type, which `T` would misread.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let value: T = rmp_serde::from_slice(bytes).ok()?;
        let (_, is_whole) = Schema::seen::<T>();
        (is_whole || is_written_alike(&value, bytes)).then(|| Self::new(value))
    }

    /// Whether values of the type survive a MessagePack round trip, tested with the first value in each process.
    fn comes_back(&self) -> bool {
        static KNOWN: LazyLock<Mutex<HashMap<TypeId, bool>>> = LazyLock::new(Mutex::default);
        let id = TypeId::of::<T>();
        if let Some(known) = KNOWN.lock().get(&id) {
            return *known;
        }
        let comes_back = rmp_serde::to_vec_named(&*self.value).is_ok_and(|bytes| {
            rmp_serde::from_slice::<T>(&bytes).is_ok_and(|back| is_written_alike(&back, &bytes))
        });
        if !comes_back {
            tracing::warn!(
                target: "larder",
                r#type = std::any::type_name::<T>(),
                "values of this type do not survive a MessagePack round trip: they are stored in the first level only"
            );
        }
        KNOWN.lock().insert(id, comes_back);
        comes_back
    }
}

/// Whether a value that was read from these bytes serialises to the same names and kinds.
fn is_written_alike<T: Serialize>(value: &T, bytes: &[u8]) -> bool {
    let Ok(written) = rmp_serde::to_vec_named(value) else { return false };
    written == bytes || shape::of(&written).is_some_and(|own| shape::of(bytes) == Some(own))
}

impl<T: CacheValue> Value for Object<T> {
    fn weight(&self) -> usize {
        self.weighed.bytes
    }

    fn type_name(&self) -> &'static str {
        std::any::type_name::<T>()
    }

    fn encode(&self) -> Option<Encoded> {
        let bytes = rmp_serde::to_vec_named(&*self.value).ok()?;
        Some(Encoded { schema: Schema::of::<T>(), bytes })
    }

    fn is_lossy(&self) -> bool {
        self.weighed.is_lossy || !self.comes_back()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A hit-for-miss note: stored for a key whose value is not storable, so that calls do not wait in vain.
pub(super) struct RefusalNote;

impl Value for RefusalNote {
    fn weight(&self) -> usize {
        0
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The bounds of all types that can be stored.
pub(crate) trait CacheValue: Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> CacheValue for T {}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Two versions of one type, which the schema distinguishes only as far as it covers them.
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
        assert!(Object::<cents::Product>::decode(&written).is_some());
        assert!(Object::<euros::Product>::decode(&written).is_none(), "1999.0 in place of 19.99");
        assert!(Object::<renamed::Product>::decode(&written).is_none());
        let wider = Object::<wider::Product>::decode(&written).unwrap();
        assert_eq!(*wider.value, wider::product(1999));
        let optional = Object::<optional::Product>::decode(&written).unwrap();
        assert_eq!(*optional.value, optional::product(Some(1999)));
    }
}
