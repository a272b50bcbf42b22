//! Write-behind: callers write to a queue, and larder writes to the database in batches.
//!
//! A counter of page views or a score changes far more often than a database should be written. A [`WriteBehind`] queue
//! accepts an [operation](Operation) once it is in a [journal](journal::Journal), folds the operations of a key, and writes
//! them to a [`Sink`] in one transaction.
//!
//! # When it acts
//!
//! 1. [`write`](WriteBehind::write) returns once the operation is durable, and larder has invalidated what was made of the
//!    value before. With [`Disk`], that is after an `fsync`.
//! 2. [`get`](WriteBehind::get) and [`snapshot`](WriteBehind::snapshot) return values with all accepted operations, whether
//!    or not the sink has them.
//! 3. After 100 ms, or when 1,000 operations wait, a worker writes them in one transaction, which also moves the position
//!    of the queue in the sink. So a batch whose outcome is unknown is not applied twice. Then larder invalidates again,
//!    because pages may have been built from the database in the meantime.
//! 4. When a process starts, it compares its journal with the position, and writes the rest.
//!
//! # When it refuses
//!
//! 1. A full queue makes a write wait, and then refuses it. It never writes past what is queued.
//! 2. A journal and a sink that do not belong together refuse to open, with an error that says what was lost.
//! 3. An operation that the sink rejects becomes a [dead letter](WriteBehind::dead_letters). Later operations of its key
//!    wait behind it.
//!
//! # Before you deploy it
//!
//! - The queue with a [`Disk`] journal belongs to one process, and each key must be written by one process. Other processes
//!   see the value in the database, which is late by the interval, or by as long as the database is down. A journal in Redis
//!   (`larder_redis::Redis::write_behind`) is shared by processes that write the same keys.
//! - A disk that is lost loses the operations that are only there. [`Memory`] loses them with the process.
//! - Another program that writes the same rows is overwritten by an absolute operation. If that matters, let the operation
//!   carry the version that it expects, and let the sink reject it.
//! - A relative operation reads the row in the transaction that writes it, so another program may change the row between
//!   two batches.
//!
//! # Examples
//!
//! `larder_sql::TableSink` is a sink for a table. This one is a map:
//!
//! ```
//! use std::time::Duration;
//! use larder_core::Larder;
//! use larder_write_behind::{Add, MapSink, Memory, WriteBehind};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let larder = Larder::builder().build()?;
//! let sink = MapSink::<String, Add>::default();
//! let views = WriteBehind::builder("views", &larder, sink.clone(), Memory::lost_on_crash()).open().await?;
//! for _ in 0..1_000 {
//!     let _logged = views.write("/".to_owned(), Add(1)).await?;
//! }
//! assert_eq!(views.get(&"/".to_owned()).await?.as_deref(), Some(&1_000), "written or not");
//! assert_eq!(views.close(Duration::from_secs(5)).await, 0, "operations are left");
//! assert_eq!(sink.value(&"/".to_owned()), Some(1_000));
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "disk")]
#[doc(inline)]
pub use self::journal::disk::Disk;
pub use self::{
    bounds::QueueBound,
    builder::WriteBehindBuilder,
    delivery::{Delivery, OperationId},
    error::{OpenError, OpenErrorKind, WriteError, WriteErrorKind},
    journal::memory::Memory,
    map_sink::MapSink,
    operation::{Add, Max, MergePatch, Min, Operation, Union, Write},
    sink::{
        Batch, BatchOperation, ReadableSink, Sink, SinkError, SinkErrorKind, SinkKey, SinkPosition,
        SinkSnapshot,
    },
    write_behind::{DeadLetter, MergedSnapshot, QueuedOperation, WriteBehind},
};

pub mod journal;

mod bounds;
mod builder;
mod delivery;
mod error;
mod map_sink;
mod operation;
mod partition;
mod queue;
mod sink;
mod worker;
mod write_behind;

#[cfg(test)]
mod tests;
