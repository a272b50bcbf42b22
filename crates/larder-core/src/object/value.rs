//! Application values as entries. The first level stores them as they are, and they are serialised for the second level
//! only.

use std::{any::Any, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    entry::{EncodedValue, Value},
    schema::Schema,
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

impl<T: CacheValue> Value for Object<T> {
    fn weight(&self) -> usize {
        self.weighed.bytes
    }

    fn type_name(&self) -> &'static str {
        std::any::type_name::<T>()
    }

    fn encode(&self) -> Option<EncodedValue> {
        self.to_bytes().map(|bytes| EncodedValue { schema: Schema::of::<T>(), bytes })
    }

    fn is_lossy(&self) -> bool {
        self.weighed.is_lossy || !self.comes_back()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A hit-for-miss note, which is stored for a key whose value is not storable, so that calls do not wait in vain.
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
