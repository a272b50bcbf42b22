//! What a queue, its workers and its callers share.

use std::{
    collections::HashSet,
    fmt,
    hash::Hasher as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use larder_core::{Larder, Policy, Tag, Target, WriteBehindStats, kernel::QueueReport};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use xxhash_rust::xxh3::Xxh3Default;

use crate::{
    bounds::Bounds,
    builder::Options,
    error::{WriteError, WriteErrorKind},
    journal::{DeadRecord, Draft, Journal, JournalError, JournalEvent, JournalId, Record},
    operation::Operation,
    partition::{AllDead, Partition, Queued},
    sink::Sink,
};

/// Returns further targets of an operation.
pub(crate) type Targets<S> =
    Arc<dyn Fn(&<S as Sink>::Key, &<S as Sink>::Operation) -> Vec<Target> + Send + Sync>;

pub(crate) struct Queue<S: Sink> {
    pub(crate) name: String,
    pub(crate) larder: Larder,
    pub(crate) sink: S,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) id: JournalId,
    pub(crate) partitions: Vec<Partition<S::Key, S::Operation>>,
    pub(crate) bounds: Bounds,
    pub(crate) options: Options,
    pub(crate) policy: Policy,
    pub(crate) more_targets: Option<Targets<S>>,
    pub(crate) is_closing: AtomicBool,
    /// How many callers wait until the queue is empty.
    pub(crate) flushing: AtomicUsize,
    /// Why the workers cannot go on.
    pub(crate) stopped: Mutex<Option<String>>,
    /// Notified when a partition has no operation left.
    pub(crate) emptied: Notify,
    /// Notified when operations have left the queue.
    pub(crate) lowered: Notify,
    /// Notified when a caller begins to wait until the queue is empty.
    pub(crate) hurried: Notify,
    pub(crate) written: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) failures: AtomicU64,
}

impl<S: Sink> Queue<S> {
    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Whether operations are written without a wait for others.
    pub(crate) fn is_hurried(&self) -> bool {
        self.is_closing() || self.flushing.load(Ordering::Acquire) > 0
    }

    /// Returns the name under which the value of a key is cached. No value of an application has such a name.
    pub(crate) fn cached_as(&self, key: &S::Key) -> String {
        format!("larder write-behind {}:{key}", self.name)
    }

    /// Returns the tag of the value of a key.
    pub(crate) fn tag_of(&self, key: &S::Key) -> Tag {
        Tag::new(format!("{}:{key}", self.name))
    }

    /// Returns the tag of everything that is made of several values.
    pub(crate) fn tag_of_all(&self) -> Tag {
        Tag::new(&self.name)
    }

    /// Returns the targets of operations, each once.
    pub(crate) fn targets(&self, operations: &[Queued<S::Key, S::Operation>]) -> Vec<Target> {
        let of =
            |queued: &Queued<S::Key, S::Operation>| self.targets_of(&queued.key, &queued.operation);
        let targets: HashSet<Target> = operations.iter().flat_map(of).collect();
        targets.into_iter().collect()
    }

    /// Returns the targets of an operation: the tag of its key, that of the queue, and those of the application.
    pub(crate) fn targets_of(&self, key: &S::Key, operation: &S::Operation) -> Vec<Target> {
        let mut targets = vec![Target::tag(self.tag_of(key)), Target::tag(self.tag_of_all())];
        if let Some(more) = &self.more_targets {
            targets.extend(more(key, operation));
        }
        targets
    }

    /// Returns the partition of this number.
    fn partition(&self, number: u32) -> &Partition<S::Key, S::Operation> {
        &self.partitions[usize::try_from(number).unwrap_or_default()]
    }

    /// Returns the partition of a key.
    pub(crate) fn partition_of(&self, key: &[u8]) -> usize {
        partition_of(key, self.partitions.len())
    }

    /// Prepares an operation for the journal.
    pub(crate) fn draft(
        &self,
        key: &S::Key,
        operation: &S::Operation,
    ) -> Result<Draft, WriteError> {
        let failed = |error| WriteError::because(WriteErrorKind::Unserialisable, error);
        let key = rmp_serde::to_vec_named(key).map_err(failed)?;
        let operation = rmp_serde::to_vec_named(operation).map_err(failed)?;
        let partition = u32::try_from(self.partition_of(&key)).unwrap_or_default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created = u64::try_from(since.as_millis()).unwrap_or_default();
        Ok(Draft { partition, key, operation, version: S::Operation::VERSION, created })
    }

    /// Gives an operation to the journal, and adds it to its partition once it is durable.
    pub(crate) async fn append(
        self: &Arc<Self>,
        key: S::Key,
        operation: S::Operation,
        draft: Draft,
    ) -> Result<u64, WriteError> {
        let _intake = self.partition(draft.partition).intake.read().await;
        if self.is_closing() {
            return Err(WriteError::new(WriteErrorKind::Closed));
        }
        let (done, appended) = oneshot::channel();
        let (queue, own, operation) = (Arc::clone(self), draft.clone(), Arc::new(operation));
        let accepted = move |number: Result<u64, JournalError>| {
            // A shared journal has passed the operation as an event.
            if let Ok(number) = number
                && !queue.journal.is_shared()
            {
                let arrived = Instant::now();
                let queued = Queued { number, key, operation, draft: own, arrived };
                queue.partition(queued.draft.partition).push(queued, queue.options.batch);
            }
            drop(done.send(number));
        };
        self.journal.append(draft, Box::new(accepted));
        let stopped = |_| Err(JournalError::new("the journal has stopped"));
        let appended = appended.await.unwrap_or_else(stopped);
        appended.map_err(|error| WriteError::because(WriteErrorKind::Journal, error))
    }

    /// Gives dead operations to the journal again, under new numbers. The caller holds the intake of the partition.
    pub(crate) async fn revive(
        &self,
        at: usize,
        dead: AllDead<S::Key, S::Operation>,
    ) -> Result<(), JournalError> {
        let records = dead.iter().map(|(dead, error)| dead.dead_record(error.as_deref()));
        let numbers = self.journal.revive(records.collect()).await?;
        if self.journal.is_shared() {
            // Its events have done the rest.
            return Ok(());
        }
        let partition = &self.partitions[at];
        partition.discard(&dead.iter().map(|(dead, _)| dead.number).collect());
        let arrived = Instant::now();
        for ((dead, _), number) in dead.into_iter().zip(numbers) {
            // It was accepted before, so it does not wait for room.
            self.bounds.exceed((1, dead.draft.bytes()));
            partition.push(Queued { number, arrived, ..dead }, self.options.batch);
        }
        Ok(())
    }

    /// Applies a change of a shared journal, which this or another process has made.
    pub(crate) fn apply(&self, event: JournalEvent) {
        match event {
            JournalEvent::Added { record, is_own } => {
                let Record { number, draft } = record;
                let (key, operation) = match read::<S>(&draft, self.partitions.len()) {
                    Ok(read) => read,
                    Err(why) => {
                        return self.stop(format!(
                            "operation {number} of another process cannot be read: {why}"
                        ));
                    }
                };
                let bytes = draft.bytes();
                let partition = self.partition(draft.partition);
                let (operation, arrived) = (Arc::new(operation), Instant::now());
                let queued = Queued { number, key, operation, draft, arrived };
                if partition.push(queued, self.options.batch) && !is_own {
                    self.bounds.exceed((1, bytes));
                }
            }
            JournalEvent::Applied { partition, number } => {
                let partition = self.partition(partition);
                self.release(partition.remove_applied(number));
                partition.arrived.notify_one();
            }
            JournalEvent::Buried(dead) => {
                for DeadRecord { record: Record { number, draft }, error } in dead {
                    let partition = self.partition(draft.partition);
                    let queued = partition.numbered(number);
                    self.release(partition.bury(queued, error.as_deref()));
                }
            }
            JournalEvent::Removed(numbers) => {
                let numbers: HashSet<u64> = numbers.into_iter().collect();
                for partition in &self.partitions {
                    self.release(partition.discard(&numbers));
                }
            }
            JournalEvent::Lost(why) => self.stop(why),
        }
    }

    /// Gives back the room of operations that have left the queue.
    pub(crate) fn release(&self, room: (usize, usize)) {
        self.bounds.give_back(room);
        self.lowered.notify_waiters();
    }

    /// Removes the operations of a partition up to a number, which the sink has.
    pub(crate) fn applied(&self, at: usize, number: u64, written: usize) {
        let partition = &self.partitions[at];
        let room = partition.remove_applied(number);
        self.journal.applied(partition.number, number);
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.release(room);
    }

    pub(crate) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the workers cannot go on.
    pub(crate) fn stop(&self, why: String) {
        let mut stopped = self.stopped.lock();
        if stopped.is_none() {
            tracing::error!(target: "larder", queue = self.name, why, "the queue has stopped");
            *stopped = Some(why);
        }
    }

    /// Returns the arrival of the oldest operation.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.partitions.iter().filter_map(|partition| partition.waiting().1).min()
    }

    /// Returns the number of operations that the sink does not have.
    pub(crate) fn waiting(&self) -> usize {
        self.partitions.iter().map(|partition| partition.waiting().0).sum()
    }
}

/// Returns the partition of a key. It must not change between versions, because it decides which position covers the key.
pub(crate) fn partition_of(key: &[u8], partitions: usize) -> usize {
    let mut hasher = Xxh3Default::new();
    hasher.write(key);
    usize::try_from(hasher.finish() % partitions as u64).unwrap_or_default()
}

/// Reads the key and the operation of a record.
pub(crate) fn read<S: Sink>(
    draft: &Draft,
    partitions: usize,
) -> Result<(S::Key, S::Operation), String> {
    let key: S::Key =
        rmp_serde::from_slice(&draft.key).map_err(|error| format!("its key: {error}"))?;
    let again = rmp_serde::to_vec_named(&key).map_err(|error| format!("its key: {error}"))?;
    if partition_of(&again, partitions) != usize::try_from(draft.partition).unwrap_or_default() {
        return Err(
            "the serialised form of its key has changed, and with it the partition".to_owned()
        );
    }
    let own = <S::Operation as Operation>::VERSION;
    if draft.version == own {
        let operation = rmp_serde::from_slice(&draft.operation);
        return Ok((key, operation.map_err(|error| format!("its operation: {error}"))?));
    }
    let older = S::Operation::of_version(draft.version, &draft.operation);
    let unknown =
        || format!("it has version {}, and this program reads version {own}", draft.version);
    Ok((key, older.ok_or_else(unknown)?))
}

impl<S: Sink> QueueReport for Queue<S> {
    fn stats(&self) -> WriteBehindStats {
        WriteBehindStats {
            name: self.name.clone(),
            queued: self.waiting(),
            oldest: self.oldest().map(|oldest| oldest.elapsed()).unwrap_or_default(),
            dead_letters: self.partitions.iter().map(Partition::dead_len).sum(),
            written: self.written.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            stopped: self.stopped.lock().clone(),
        }
    }
}

impl<S: Sink> fmt::Debug for Queue<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).finish_non_exhaustive()
    }
}
