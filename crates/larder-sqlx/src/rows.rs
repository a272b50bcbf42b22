//! Rows that the callers of the same query share.

use std::{fmt, ops::Deref, sync::Arc};

use larder_sql::WeighedValue;
use serde::{Serialize, Serializer};

/// The rows of a query, shared by all callers of the same query. Dereferences to a slice.
pub struct SharedQueryRows<T>(Arc<WeighedValue<Vec<T>>>);

impl<T> SharedQueryRows<T> {
    pub(crate) fn new(rows: Arc<WeighedValue<Vec<T>>>) -> Self {
        Self(rows)
    }
}

impl<T> Deref for SharedQueryRows<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0.value
    }
}

impl<'a, T> IntoIterator for &'a SharedQueryRows<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> Clone for SharedQueryRows<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedQueryRows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

impl<T: Serialize> Serialize for SharedQueryRows<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.value.serialize(serializer)
    }
}

/// One row, shared by all callers of the same query. Dereferences to the row.
pub struct SharedQueryRow<T>(Arc<WeighedValue<Vec<T>>>);

impl<T> SharedQueryRow<T> {
    pub(crate) fn of(rows: Arc<WeighedValue<Vec<T>>>) -> Option<Self> {
        (!rows.value.is_empty()).then_some(Self(rows))
    }
}

impl<T> Deref for SharedQueryRow<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value[0]
    }
}

impl<T> Clone for SharedQueryRow<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedQueryRow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Serialize> Serialize for SharedQueryRow<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}
