//! Application values as entries. The first level stores them as they are, and they are encoded for the second level
//! only.

use std::{any::Any, sync::Arc};

use bytes::Bytes;

use super::{adaptive::AdaptiveLifetime, format::ValueFormat};
use crate::{
    entry::{AnyEntry, EncodedValue, Value},
    schema::Schema,
    weight::ValueWeight,
};

/// An application value, stored without encoding, or the record that its source has none (a negative result).
pub(super) struct Object<T: 'static> {
    content: Option<Arc<T>>,
    format: &'static ValueFormat<T>,
    weighed: ValueWeight,
}

/// How a call handles its values: the format in a store, a weight function if the application gives one, and the bounds of
/// an adaptive lifetime.
pub(super) struct ValueSpec<T: 'static> {
    pub(super) format: &'static ValueFormat<T>,
    pub(super) weigh: Option<fn(&T) -> usize>,
    pub(super) adaptive: Option<AdaptiveLifetime<T>>,
}

impl<T> Clone for ValueSpec<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for ValueSpec<T> {}

impl<T: CacheValue> ValueSpec<T> {
    pub(super) fn new(format: &'static ValueFormat<T>) -> Self {
        Self { format, weigh: None, adaptive: None }
    }

    /// Makes the object of a value, or of its absence.
    pub(super) fn object(&self, content: Option<T>) -> Object<T> {
        let weighed = content.as_ref().map_or(ValueWeight::NOTHING, |value| match self.weigh {
            // The format still tells whether the value is lossy.
            Some(weigh) => ValueWeight { bytes: weigh(value), ..(self.format.weigh)(value) },
            None => (self.format.weigh)(value),
        });
        Object { content: content.map(Arc::new), format: self.format, weighed }
    }

    /// Decodes the object of these bytes. `None` for bytes of another type or format.
    pub(super) fn decode(&self, bytes: &Bytes) -> Option<Object<T>> {
        if bytes == ABSENCE {
            return Some(self.object(None));
        }
        (self.format.decode)(bytes).map(|value| self.object(Some(value)))
    }
}

impl<T> Clone for Object<T> {
    fn clone(&self) -> Self {
        Self { content: self.content.clone(), format: self.format, weighed: self.weighed }
    }
}

impl<T> Object<T> {
    pub(super) fn content(&self) -> Option<&Arc<T>> {
        self.content.as_ref()
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
        let schema = self.format.schema?();
        let bytes = match &self.content {
            Some(value) => (self.format.encode)(value)?,
            None => ABSENCE.to_vec(),
        };
        Some(EncodedValue { schema, bytes })
    }

    fn schema(&self) -> Option<Schema> {
        self.format.schema.map(|schema| schema())
    }

    fn is_lossy(&self) -> bool {
        let survives = |value: &Arc<T>| (self.format.survives)(value);
        self.weighed.is_lossy || !self.content.as_ref().is_none_or(survives)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The form in which a call answers: `Arc<T>` if it needs a value, `Option<Arc<T>>` if the source may have none.
pub(super) trait Answer: Sized + Send + 'static {
    /// The type of the value.
    type Value: CacheValue;
    /// The result of a loader.
    type Loaded: Send;

    /// Returns the value that was loaded. `None` if the source has none.
    fn loaded(loaded: Self::Loaded) -> Option<Self::Value>;

    /// Returns the answer that an object gives. `None` if it gives none: the caller needs a value, and the object
    /// records an absence.
    fn of(object: &Object<Self::Value>) -> Option<Self>;

    /// Returns the answer that an entry gives, if its value is of this type.
    fn of_entry(entry: &AnyEntry) -> Option<Self> {
        entry.value::<Object<Self::Value>>().and_then(Self::of)
    }
}

impl<T: CacheValue> Answer for Arc<T> {
    type Value = T;
    type Loaded = T;

    fn loaded(loaded: T) -> Option<T> {
        Some(loaded)
    }

    fn of(object: &Object<T>) -> Option<Self> {
        object.content.clone()
    }
}

impl<T: CacheValue> Answer for Option<Arc<T>> {
    type Value = T;
    type Loaded = Option<T>;

    fn loaded(loaded: Option<T>) -> Option<T> {
        loaded
    }

    fn of(object: &Object<T>) -> Option<Self> {
        Some(object.content.clone())
    }
}

/// The encoding of a negative result. No MessagePack and no JSON begins with its first byte.
const ABSENCE: &[u8] = b"\xC1larder: no value\xC1";

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

/// The failure of a load, which callers get without loading while the policy's error backoff lasts.
pub(super) struct FailureNote<F>(pub(super) F);

impl<F: Send + Sync + 'static> Value for FailureNote<F> {
    fn weight(&self) -> usize {
        size_of::<F>()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The bounds of all types that can be stored in memory.
pub(crate) trait CacheValue: Send + Sync + 'static {}
impl<T: Send + Sync + 'static> CacheValue for T {}
