//! A sink that calls a function for each operation, for services that cannot store a position.

use std::{collections::HashMap, fmt, future::Future, marker::PhantomData};

use larder_core::store::BoxFuture;
use parking_lot::Mutex;

use crate::{
    journal::JournalId,
    operation::Operation,
    sink::{Batch, Sink, SinkError, SinkKey, SinkPosition},
};

/// A sink that calls a function for each operation, one at a time in each partition and in order.
///
/// Operations are not folded, and an operation is delivered at least once: after a crash it may be delivered again. So the
/// receiver has to remember the [`OperationId`]s that it has seen.
///
/// # Examples
///
/// ```
/// use larder_core::Larder;
/// use larder_write_behind::{Add, Delivery, Memory, SinkError, WriteBehind};
/// # use std::{sync::{Arc, Mutex}, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let larder = Larder::builder().build()?;
/// # let received = Arc::new(Mutex::new(Vec::new()));
/// # let service = received.clone();
/// let sink = Delivery::new(move |id, key: String, add: Add| {
///     let service = service.clone();
///     async move {
///         // PUT /counters/{key}, with the header Idempotency-Key: {id}
///         service.lock().unwrap().push((id.to_string(), key, add));
///         Ok::<_, SinkError>(())
///     }
/// });
/// let counters = WriteBehind::builder("counters", &larder, sink, Memory::lost_on_crash()).open().await?;
/// counters.write("ada".to_owned(), Add(1)).await?;
/// counters.write("ada".to_owned(), Add(2)).await?;
/// assert_eq!(counters.close(Duration::from_secs(5)).await, 0, "operations are left");
/// assert_eq!(received.lock().unwrap().len(), 2);
/// # Ok(())
/// # }
/// ```
#[doc(alias("HTTP sink", "webhook", "at least once"))]
pub struct Delivery<K, O, F> {
    deliver: F,
    /// For each partition the number of the last operation that was delivered by this process.
    delivered: Mutex<HashMap<u32, u64>>,
    of: PhantomData<fn(K, O)>,
}

impl<K, O, F, Fut> Delivery<K, O, F>
where
    F: Fn(OperationId, K, O) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), SinkError>> + Send,
{
    /// Creates the sink. `deliver` returns [`SinkError::unavailable`] for an operation that has to be tried again, and
    /// [`SinkError::rejected`] for one that the receiver will never accept.
    pub fn new(deliver: F) -> Self {
        Self { deliver, delivered: Mutex::default(), of: PhantomData }
    }
}

impl<K, O, F, Fut> Sink for Delivery<K, O, F>
where
    K: SinkKey,
    O: Operation,
    F: Fn(OperationId, K, O) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), SinkError>> + Send,
{
    type Key = K;
    type Operation = O;

    fn position(&self, _: &str, _: u32) -> BoxFuture<'_, Result<Option<SinkPosition>, SinkError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn set_position(
        &self,
        _: &str,
        _: u32,
        _: SinkPosition,
    ) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn write<'a>(&'a self, batch: &'a Batch<K, O>) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let delivered =
                self.delivered.lock().get(&batch.partition).copied().unwrap_or_default();
            for operation in
                batch.operations.iter().filter(|operation| operation.number > delivered)
            {
                let id = OperationId { journal: batch.journal, number: operation.number };
                (self.deliver)(id, operation.key.clone(), operation.operation.clone()).await?;
                self.delivered.lock().insert(batch.partition, operation.number);
            }
            Ok(())
        })
    }

    fn stores_positions(&self) -> bool {
        false
    }
}

/// The identity of an operation, which stays the same when it is delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias("idempotency key"))]
pub struct OperationId {
    journal: JournalId,
    number: u64,
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.journal, self.number)
    }
}

impl<K, O, F> fmt::Debug for Delivery<K, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").finish_non_exhaustive()
    }
}
