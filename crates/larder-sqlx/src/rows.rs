//! Rows that the callers of the same query share.

use std::{fmt, ops::Deref, sync::Arc};

use larder_sql::Weighed;
use serde::{Serialize, Serializer};

/// The rows of a query, shared by all callers of the same query. Dereferences to a slice.
pub struct SharedRows<T>(Arc<Weighed<Vec<T>>>);

impl<T> SharedRows<T> {
    pub(crate) fn new(rows: Arc<Weighed<Vec<T>>>) -> Self {
        Self(rows)
    }
}

impl<T> Deref for SharedRows<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0.value
    }
}

impl<'a, T> IntoIterator for &'a SharedRows<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> Clone for SharedRows<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedRows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

impl<T: Serialize> Serialize for SharedRows<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.value.serialize(serializer)
    }
}

/// One row, shared by all callers of the same query. Dereferences to the row.
pub struct SharedRow<T>(Arc<Weighed<Vec<T>>>);

impl<T> SharedRow<T> {
    pub(crate) fn of(rows: Arc<Weighed<Vec<T>>>) -> Option<Self> {
        (!rows.value.is_empty()).then_some(Self(rows))
    }
}

impl<T> Deref for SharedRow<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value[0]
    }
}

impl<T> Clone for SharedRow<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedRow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Serialize> Serialize for SharedRow<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}
