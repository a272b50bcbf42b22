//! Values of the application as entries: kept as they are, written only for a shared store.

use std::{any::Any, sync::Arc};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    entry::{Encoded, Value},
    schema::Schema,
    weight,
};

/// A value of the application, kept as it is.
pub(super) struct Object<T> {
    pub(super) value: Arc<T>,
    weight: usize,
}

impl<T: Serialize> Object<T> {
    pub(super) fn new(value: T) -> Self {
        let weight = weight::of(&value);
        Self { value: Arc::new(value), weight }
    }
}

impl<T: Serialize + DeserializeOwned> Object<T> {
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok().map(Self::new)
    }
}

impl<T: Kept> Value for Object<T> {
    fn weight(&self) -> usize {
        self.weight
    }

    fn type_name(&self) -> &'static str {
        std::any::type_name::<T>()
    }

    fn encode(&self) -> Option<Encoded> {
        let bytes = rmp_serde::to_vec_named(&*self.value).ok()?;
        Some(Encoded { schema: Schema::of::<T>(), bytes })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Stands under a name whose value is not kept, so that nobody waits there in vain.
pub(super) struct NotKept;

impl Value for NotKept {
    fn weight(&self) -> usize {
        0
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What all types that can be kept have in common.
pub(crate) trait Kept: Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Kept for T {}
