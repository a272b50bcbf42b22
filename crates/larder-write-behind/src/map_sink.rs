//! A sink in memory, for tests.

use std::{collections::HashMap, fmt, sync::Arc};

use larder_core::store::BoxFuture;
use parking_lot::Mutex;

use crate::{
    operation::Operation,
    sink::{
        Batch, ReadableSink, Sink, SinkError, SinkErrorKind, SinkKey, SinkPosition, SinkSnapshot,
    },
};

/// A map that is a sink, for tests. Clones share it. It behaves as a database does: a batch is written whole or not at all.
pub struct MapSink<K, O: Operation> {
    table: Arc<Mutex<Table<K, O::Value>>>,
    failing: Failing<K, O>,
}

type Failing<K, O> = Arc<Mutex<Option<Box<dyn FnMut(&Batch<K, O>) -> Option<SinkError> + Send>>>>;

#[derive(Clone)]
struct Table<K, V> {
    values: HashMap<K, V>,
    positions: HashMap<(String, u32), SinkPosition>,
    writes: usize,
}

impl<K: SinkKey, O: Operation> MapSink<K, O> {
    /// Returns the value of a key.
    pub fn value(&self, key: &K) -> Option<O::Value> {
        self.table.lock().values.get(key).cloned()
    }

    /// Sets the value of a key, as another program would.
    pub fn set(&self, key: K, value: O::Value) {
        self.table.lock().values.insert(key, value);
    }

    /// Returns the number of rows that were written.
    pub fn rows_written(&self) -> usize {
        self.table.lock().writes
    }

    /// Fails each write for which `failing` returns an error.
    pub fn fail(&self, failing: impl FnMut(&Batch<K, O>) -> Option<SinkError> + Send + 'static) {
        *self.failing.lock() = Some(Box::new(failing));
    }

    /// Returns a copy of the map as it is now, to which clones of the other do not write.
    pub fn copy(&self) -> Self {
        Self { table: Arc::new(Mutex::new(self.table.lock().clone())), failing: Arc::default() }
    }
}

impl<K: SinkKey, O: Operation> Sink for MapSink<K, O> {
    type Key = K;
    type Operation = O;

    fn position(
        &self,
        queue: &str,
        partition: u32,
    ) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>> {
        let position = self.table.lock().positions.get(&(queue.to_owned(), partition)).copied();
        Box::pin(std::future::ready(Ok(position)))
    }

    fn set_position(
        &self,
        queue: &str,
        partition: u32,
        position: SinkPosition,
    ) -> BoxFuture<'_, Result<(), SinkError>> {
        self.table.lock().positions.insert((queue.to_owned(), partition), position);
        Box::pin(std::future::ready(Ok(())))
    }

    fn write<'a>(&'a self, batch: &'a Batch<K, O>) -> BoxFuture<'a, Result<(), SinkError>> {
        let failing = self.failing.lock().as_mut().and_then(|failing| failing(batch));
        let written = match failing {
            Some(error) => Err(error),
            None => self.table.lock().write(batch),
        };
        Box::pin(std::future::ready(written))
    }
}

impl<K: SinkKey, V: Clone> Table<K, V> {
    fn write<O: Operation<Value = V>>(&mut self, batch: &Batch<K, O>) -> Result<(), SinkError> {
        let expected = SinkPosition { journal: batch.journal, number: batch.after };
        let place = (batch.queue.clone(), batch.partition);
        let found = self.positions.get(&place);
        if found != Some(&expected) {
            return Err(SinkError::new(
                SinkErrorKind::Displaced,
                format!("it is {found:?}, not {expected:?}"),
            ));
        }
        self.positions.insert(place, SinkPosition { number: batch.last, ..expected });
        for operation in &batch.operations {
            let mut value = self.values.remove(&operation.key);
            operation.operation.apply(&mut value);
            self.writes += 1;
            if let Some(value) = value {
                self.values.insert(operation.key.clone(), value);
            }
        }
        Ok(())
    }
}

impl<K: SinkKey, O: Operation> ReadableSink for MapSink<K, O> {
    type Snapshot = MapSnapshot<K, O::Value>;

    fn snapshot(&self) -> BoxFuture<'_, Result<Self::Snapshot, SinkError>> {
        let snapshot = MapSnapshot(self.table.lock().clone());
        Box::pin(std::future::ready(Ok(snapshot)))
    }
}

/// A snapshot of a [`MapSink`].
pub struct MapSnapshot<K, V>(Table<K, V>);

impl<K: SinkKey, V: Clone + Send + Sync + 'static> SinkSnapshot<K, V> for MapSnapshot<K, V> {
    fn position(
        &mut self,
        queue: &str,
        partition: u32,
    ) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>> {
        Box::pin(std::future::ready(Ok(self
            .0
            .positions
            .get(&(queue.to_owned(), partition))
            .copied())))
    }

    fn values<'a>(&'a mut self, keys: &'a [K]) -> BoxFuture<'a, Result<Vec<Option<V>>, SinkError>> {
        let values = keys.iter().map(|key| self.0.values.get(key).cloned()).collect();
        Box::pin(std::future::ready(Ok(values)))
    }
}

impl<K, O: Operation> Default for MapSink<K, O> {
    fn default() -> Self {
        let table = Table { values: HashMap::new(), positions: HashMap::new(), writes: 0 };
        Self { table: Arc::new(Mutex::new(table)), failing: Arc::default() }
    }
}

impl<K, O: Operation> Clone for MapSink<K, O> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table), failing: Arc::clone(&self.failing) }
    }
}

impl<K, O: Operation> fmt::Debug for MapSink<K, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapSink").finish_non_exhaustive()
    }
}

impl<K, V> fmt::Debug for MapSnapshot<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapSnapshot").finish_non_exhaustive()
    }
}
