//! The handle of a queue.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use larder_core::{
    Invalidated, Larder, LoadError, LoadHandle, WriteBehindStats,
    kernel::{QueueReport, TagSource},
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};

use crate::{
    bounds::QueueBound,
    builder::WriteBehindBuilder,
    error::{WriteError, WriteErrorKind},
    journal::{Draft, Journal, JournalError, JournalId},
    operation::Operation,
    partition::Unflushed,
    queue::{Queue, partition_of},
    sink::{ReadableSink, Sink, SinkError, SinkSnapshot},
    worker::{Chosen, Request},
};

/// A write-behind queue. Clones share it.
#[doc(alias("write-back", "write-behind", "async write", "batch writer"))]
pub struct WriteBehind<S: Sink> {
    pub(crate) inner: Arc<Inner<S>>,
}

pub(crate) struct Inner<S: Sink> {
    pub(crate) queue: Arc<Queue<S>>,
    workers: Mutex<JoinSet<()>>,
    requests: Vec<mpsc::UnboundedSender<Request<S>>>,
}

/// The value type of a sink.
type ValueOf<S> = <<S as Sink>::Operation as Operation>::Value;

impl<S: Sink> WriteBehind<S> {
    /// Starts building a queue over a sink.
    ///
    /// The name distinguishes the queues of a sink, and begins the names of the cached values: the value of the key `ada`
    /// in the queue `scores` has the tag `scores:ada`.
    pub fn builder(
        name: impl Into<String>,
        larder: &Larder,
        sink: S,
        journal: impl Journal,
    ) -> WriteBehindBuilder<S> {
        WriteBehindBuilder::new(name.into(), larder.clone(), sink, Arc::new(journal))
    }

    pub(crate) fn new(
        queue: Arc<Queue<S>>,
        workers: JoinSet<()>,
        requests: Vec<mpsc::UnboundedSender<Request<S>>>,
    ) -> Self {
        let report: Weak<dyn QueueReport> = Arc::downgrade(&(Arc::clone(&queue) as Arc<_>));
        queue.larder.kernel().add_queue_report(report);
        Self { inner: Arc::new(Inner { queue, workers: Mutex::new(workers), requests }) }
    }

    /// Writes an operation. When this returns, the operation is durable (as far as the journal is), every read through this
    /// queue sees it (unless its key is blocked by a [dead letter](Self::dead_letters)), and larder has invalidated what was made of the value before.
    ///
    /// If the queue is full, this waits for room. Once the operation is given to the journal, dropping the future does not
    /// stop it.
    ///
    /// # Errors
    ///
    /// See [`WriteErrorKind`], which says whether an operation that was refused may be written nevertheless.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    #[doc(alias("put", "enqueue", "add"))]
    pub async fn write(
        &self,
        key: S::Key,
        operation: S::Operation,
    ) -> Result<Invalidated, WriteError> {
        let queue = &self.inner.queue;
        if queue.larder.kernel().is_in_shadow() {
            return Ok(Invalidated::Logged);
        }
        let draft = queue.draft(&key, &operation)?;
        let bytes = draft.bytes();
        let targets = queue.targets_of(&key, &operation);
        self.wait_for_room(bytes).await?;
        let own = Arc::clone(queue);
        let writing = queue.larder.kernel().spawn(async move {
            if let Err(error) = own.append(key, operation, draft).await {
                own.bounds.give_back((1, bytes));
                return Err(error);
            }
            Ok(own.larder.invalidate(targets).await)
        });
        let cancelled = |error| Err(WriteError::because(WriteErrorKind::Journal, error));
        writing.await.unwrap_or_else(cancelled)
    }

    async fn wait_for_room(&self, bytes: usize) -> Result<(), WriteError> {
        let queue = &self.inner.queue;
        let deadline = Instant::now() + queue.options.full_wait;
        loop {
            let lowered = queue.lowered.notified();
            if queue.is_closing() {
                return Err(WriteError::new(WriteErrorKind::Closed));
            }
            if let Some(why) = &*queue.stopped.lock() {
                return Err(WriteError::because(WriteErrorKind::Stopped, why.clone()));
            }
            let Some(most) = queue.options.max_age else { break };
            if queue.oldest().is_none_or(|oldest| oldest.elapsed() <= most) {
                break;
            }
            let is_late = tokio::time::timeout_at(deadline, lowered).await.is_err();
            if is_late && queue.oldest().is_some_and(|oldest| oldest.elapsed() > most) {
                return Err(WriteError::new(WriteErrorKind::Full(QueueBound::Age(most))));
            }
        }
        let room = queue.bounds.take(bytes, deadline).await;
        room.map_err(|bound| WriteError::new(WriteErrorKind::Full(bound)))
    }

    /// Returns the operations that the sink has rejected, and those that wait behind them.
    #[doc(alias("dead letter queue", "DLQ", "poison message"))]
    pub fn dead_letters(&self) -> Vec<DeadLetter<S::Key, S::Operation>> {
        let all =
            self.inner.queue.partitions.iter().flat_map(|partition| partition.dead(|_, _| true));
        let mut letters: Vec<_> = all
            .map(|(dead, error)| DeadLetter {
                number: dead.number,
                key: dead.key,
                operation: S::Operation::clone(&dead.operation),
                error,
                created: created(&dead.draft),
            })
            .collect();
        letters.sort_by_key(|letter| letter.number);
        letters
    }

    /// Returns the operations that the sink does not have, in the order of their numbers, for a look into the journal.
    #[doc(alias("inspect", "pending"))]
    pub fn queued(&self) -> Vec<QueuedOperation<S::Key, S::Operation>> {
        let all =
            self.inner.queue.partitions.iter().flat_map(|partition| partition.queued(|_, _| true));
        let mut operations: Vec<_> = all
            .map(|queued| QueuedOperation {
                number: queued.number,
                key: queued.key,
                operation: S::Operation::clone(&queued.operation),
                created: created(&queued.draft),
            })
            .collect();
        operations.sort_by_key(|operation| operation.number);
        operations
    }

    /// Gives the dead letters of all keys that have a chosen one new numbers, in order, so that the sink is given them again.
    /// Later operations of these keys stay behind them. Returns how many they are.
    ///
    /// # Errors
    ///
    /// If the journal fails. What was not revived stays a dead letter.
    pub async fn revive(
        &self,
        chosen: impl Fn(&S::Key, &S::Operation) -> bool + Send + Sync + 'static,
    ) -> Result<usize, JournalError> {
        let chosen: Chosen<S> = Arc::new(chosen);
        self.ask(|done| Request::Revive(Arc::clone(&chosen), done)).await
    }

    /// Removes dead letters. Operations that wait behind a removed one stay dead letters until they are
    /// [revived](Self::revive). Returns how many were removed.
    ///
    /// # Errors
    ///
    /// If the journal fails.
    pub async fn discard_dead(
        &self,
        chosen: impl Fn(&S::Key, &S::Operation) -> bool + Send + Sync + 'static,
    ) -> Result<usize, JournalError> {
        let chosen: Chosen<S> = Arc::new(chosen);
        self.ask(|done| Request::Discard { chosen: Arc::clone(&chosen), only_dead: true, done })
            .await
    }

    /// Removes all operations that are chosen, queued and dead, such as those of a tenant whose data has to be deleted.
    /// Returns how many were removed. Operations that the sink has already are not undone.
    ///
    /// # Errors
    ///
    /// If the journal fails, or the outcome of the last batch is unknown and the sink does not answer.
    #[doc(alias("erasure", "GDPR"))]
    pub async fn discard(
        &self,
        chosen: impl Fn(&S::Key, &S::Operation) -> bool + Send + Sync + 'static,
    ) -> Result<usize, JournalError> {
        let chosen: Chosen<S> = Arc::new(chosen);
        self.ask(|done| Request::Discard { chosen: Arc::clone(&chosen), only_dead: false, done })
            .await
    }

    async fn ask(
        &self,
        request: impl Fn(oneshot::Sender<Result<usize, JournalError>>) -> Request<S>,
    ) -> Result<usize, JournalError> {
        let mut all = 0;
        for requests in &self.inner.requests {
            let (done, answer) = oneshot::channel();
            drop(requests.send(request(done)));
            let closed = |_| JournalError::new("the queue is closed");
            all += answer.await.map_err(closed)??;
        }
        Ok(all)
    }

    /// Returns the identity of the journal.
    pub fn journal(&self) -> JournalId {
        self.inner.queue.id
    }

    /// Returns the state of the queue.
    pub fn stats(&self) -> WriteBehindStats {
        self.inner.queue.stats()
    }

    /// Writes without a wait for more operations, until the queue is empty or `deadline` has passed. Returns how many
    /// operations are left in the queue.
    pub async fn flush(&self, deadline: Duration) -> usize {
        let queue = &self.inner.queue;
        let _hurry = Hurry::new(queue);
        let empty = async {
            loop {
                let (emptied, lowered) = (queue.emptied.notified(), queue.lowered.notified());
                if queue.waiting() == 0 {
                    return;
                }
                tokio::select! { () = emptied => {}, () = lowered => {} }
            }
        };
        drop(tokio::time::timeout(deadline, empty).await);
        queue.waiting()
    }

    /// Closes the queue: refuses further operations, and writes those that it has until `deadline` has passed. Returns how
    /// many are left; a durable journal has them, and the next process writes them. The journal is released, and values can
    /// still be read.
    pub async fn close(&self, deadline: Duration) -> usize {
        let queue = &self.inner.queue;
        let deadline = Instant::now() + deadline;
        queue.is_closing.store(true, Ordering::Release);
        queue.lowered.notify_waiters();
        for partition in &queue.partitions {
            // Operations that are on their way to the journal are still accepted.
            drop(tokio::time::timeout_at(deadline, partition.intake.write()).await);
        }
        let left = self.flush(deadline.saturating_duration_since(Instant::now())).await;
        let mut workers = std::mem::take(&mut *self.inner.workers.lock());
        workers.shutdown().await;
        // A disk that hangs must not keep the process from ending.
        drop(tokio::time::timeout(LONGEST_CLOSE, queue.journal.close()).await);
        left
    }
}

impl<S: ReadableSink> WriteBehind<S> {
    /// Returns the value of a key, with all its operations that the sink does not have yet.
    ///
    /// While the key has such operations, the value is not cached, and a read reads the sink, unless one of them is
    /// [absolute](Operation::is_absolute). Otherwise the value comes from the cache. Inside of a page, the page depends on
    /// the value.
    ///
    /// # Errors
    ///
    /// If the value has to be read from the sink and cannot be.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn get(&self, key: &S::Key) -> Result<Option<Arc<ValueOf<S>>>, LoadError<SinkError>> {
        let queue = &self.inner.queue;
        let at = self.partition_of(key);
        if !queue.partitions[at].has_unflushed(key) {
            let (own, own_key) = (self.clone(), key.clone());
            let load = move |fill: LoadHandle| async move {
                fill.tag(own.inner.queue.tag_of(&own_key));
                own.load(at, &own_key).await
            };
            let values = queue.larder.values::<ValueOf<S>>(queue.policy.clone());
            return values.get_or_load_optional(queue.cached_as(key), load).await;
        }
        if let Some(scope) = queue.larder.kernel().current_scope() {
            scope.add_tags(TagSource::Object, [queue.tag_of(key)]);
        }
        let value = self.load(at, key).await;
        value.map(|value| value.map(Arc::new)).map_err(|error| LoadError::Failed(Arc::new(error)))
    }

    /// Waits until this process knows the operations that other processes have accepted.
    async fn catch_up(&self) -> Result<(), SinkError> {
        self.inner.queue.journal.catch_up().await.map_err(SinkError::unavailable)
    }

    fn partition_of(&self, key: &S::Key) -> usize {
        let queue = &self.inner.queue;
        // A key that cannot be serialised was never written.
        rmp_serde::to_vec_named(key).map_or(0, |key| partition_of(&key, queue.partitions.len()))
    }

    /// Reads the value of a key from the sink, and adds the operations that it lacks. If the cache stores the value, it
    /// invalidates it when these operations are written.
    async fn load(&self, at: usize, key: &S::Key) -> Result<Option<ValueOf<S>>, SinkError> {
        self.catch_up().await?;
        let partition = &self.inner.queue.partitions[at];
        // They are taken before the snapshot: what has left the queue by now is in the snapshot.
        let unflushed = partition.unflushed(key);
        if let Some(absolute) = unflushed.iter().rposition(|(_, operation)| operation.is_absolute())
        {
            let mut value = None;
            unflushed[absolute..].iter().for_each(|(_, operation)| operation.apply(&mut value));
            return Ok(value);
        }
        let mut snapshot = self.inner.queue.sink.snapshot().await?;
        let position = position(&self.inner.queue, &mut snapshot, partition.number).await?;
        let value = snapshot.values(std::slice::from_ref(key)).await?.pop().flatten();
        Ok(with(value, &unflushed, position))
    }

    /// Begins a snapshot of the sink, together with all operations that it lacks: for listings, such as the ten highest
    /// scores. Inside of a page, the page depends on the values of all keys, by the tag that is the name of the queue.
    ///
    /// # Errors
    ///
    /// If the sink does not answer.
    pub async fn snapshot(&self) -> Result<MergedSnapshot<S>, SinkError> {
        let queue = &self.inner.queue;
        if let Some(scope) = queue.larder.kernel().current_scope() {
            scope.add_tags(TagSource::Object, [queue.tag_of_all()]);
        }
        self.catch_up().await?;
        let mut unflushed = HashMap::new();
        for (at, partition) in queue.partitions.iter().enumerate() {
            let of_partition = partition.all_unflushed().into_iter();
            unflushed.extend(of_partition.map(|(key, operations)| (key, (at, operations))));
        }
        let inner = queue.sink.snapshot().await?;
        Ok(MergedSnapshot { queue: Arc::clone(queue), unflushed, inner })
    }
}

async fn position<S: ReadableSink>(
    queue: &Queue<S>,
    snapshot: &mut S::Snapshot,
    partition: u32,
) -> Result<u64, SinkError> {
    let position = snapshot.position(&queue.name, partition).await?;
    match position {
        Some(position) if position.journal == queue.id => Ok(position.number),
        Some(position) => Err(SinkError::new(
            crate::SinkErrorKind::Displaced,
            format!("it belongs to the journal {}", position.journal),
        )),
        None => Ok(0),
    }
}

fn with<O: Operation>(
    mut value: Option<O::Value>,
    unflushed: &Unflushed<O>,
    position: u64,
) -> Option<O::Value> {
    let missing = unflushed.iter().filter(|(number, _)| *number > position);
    missing.for_each(|(_, operation)| operation.apply(&mut value));
    value
}

/// A snapshot of the sink, and the operations that it lacks.
pub struct MergedSnapshot<S: ReadableSink> {
    queue: Arc<Queue<S>>,
    unflushed: HashMap<S::Key, (usize, Unflushed<S::Operation>)>,
    inner: S::Snapshot,
}

impl<S: ReadableSink> MergedSnapshot<S> {
    /// Returns the snapshot of the sink, for queries of your own. What they return lacks the operations of
    /// [`unflushed`](Self::unflushed).
    pub fn sink(&mut self) -> &mut S::Snapshot {
        &mut self.inner
    }

    /// Returns the values of all keys with operations that the snapshot may lack. `None` for a key that has no value.
    ///
    /// # Errors
    ///
    /// If the sink does not answer.
    pub async fn unflushed(&mut self) -> Result<Vec<(S::Key, Option<ValueOf<S>>)>, SinkError> {
        let mut positions = Vec::new();
        for partition in &self.queue.partitions {
            positions.push(position(&self.queue, &mut self.inner, partition.number).await?);
        }
        let keys: Vec<S::Key> = self.unflushed.keys().cloned().collect();
        let values = self.inner.values(&keys).await?;
        let merged = |(key, value): (S::Key, Option<_>)| {
            let (at, unflushed) = &self.unflushed[&key];
            let value = with(value, unflushed, positions[*at]);
            (key, value)
        };
        Ok(keys.into_iter().zip(values).map(merged).collect())
    }
}

fn created(draft: &Draft) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(draft.created)
}

/// An operation that the sink does not have.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueuedOperation<K, O> {
    /// Its number in the journal.
    pub number: u64,
    /// Its key.
    pub key: K,
    /// The operation.
    pub operation: O,
    /// When it was given to the queue.
    pub created: SystemTime,
}

/// Makes the workers of a queue write without a wait for more operations.
struct Hurry<'a, S: Sink>(&'a Queue<S>);

impl<'a, S: Sink> Hurry<'a, S> {
    fn new(queue: &'a Queue<S>) -> Self {
        queue.flushing.fetch_add(1, Ordering::AcqRel);
        queue.hurried.notify_waiters();
        queue.partitions.iter().for_each(|partition| partition.arrived.notify_one());
        Self(queue)
    }
}

impl<S: Sink> Drop for Hurry<'_, S> {
    fn drop(&mut self) {
        self.0.flushing.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An operation that the sink has rejected, or that waits behind one that it has rejected. Reads do not see it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter<K, O> {
    /// Its number in the journal.
    pub number: u64,
    /// Its key.
    pub key: K,
    /// The operation.
    pub operation: O,
    /// The error of the sink. `None` for an operation that waits behind another of its key.
    pub error: Option<String>,
    /// When it was given to the queue.
    pub created: SystemTime,
}

impl<S: Sink> Clone for WriteBehind<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Sink> fmt::Debug for WriteBehind<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBehind").field("name", &self.inner.queue.name).finish_non_exhaustive()
    }
}

impl<S: ReadableSink> fmt::Debug for MergedSnapshot<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergedSnapshot")
            .field("unflushed", &self.unflushed.len())
            .finish_non_exhaustive()
    }
}

impl<S: Sink> Drop for Inner<S> {
    fn drop(&mut self) {
        let left = self.queue.waiting();
        if left > 0 && !self.queue.journal.is_durable() {
            tracing::error!(target: "larder", queue = self.queue.name, left, "operations were lost with their queue");
        }
    }
}

const LONGEST_CLOSE: Duration = Duration::from_secs(2);
