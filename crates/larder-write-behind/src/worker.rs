//! The worker of a partition: writes its operations to the sink, in order.
//!
//! Each attempt takes the first operations of the queue, so a worker that waits after a failure holds nothing, and
//! operations can be discarded meanwhile. An operation that the sink rejects is found by halving the number of operations
//! in an attempt, until one is alone.

use std::{collections::HashSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    journal::{FlushLease, JournalError},
    partition::{Queued, batch},
    queue::Queue,
    sink::{Sink, SinkError, SinkErrorKind},
};

/// A choice of operations by key.
pub(crate) type Chosen<S> =
    Arc<dyn Fn(&<S as Sink>::Key, &<S as Sink>::Operation) -> bool + Send + Sync>;

/// What a caller asks of a worker, which does it between two attempts.
pub(crate) enum Request<S: Sink> {
    /// Gives dead operations new numbers.
    Revive(Chosen<S>, oneshot::Sender<Result<usize, JournalError>>),
    /// Removes operations.
    Discard {
        chosen: Chosen<S>,
        only_dead: bool,
        done: oneshot::Sender<Result<usize, JournalError>>,
    },
}

pub(crate) struct Worker<S: Sink> {
    queue: Arc<Queue<S>>,
    at: usize,
    requests: mpsc::UnboundedReceiver<Request<S>>,
    /// How many operations the next attempt may take.
    limit: usize,
    /// Failures in a row.
    failures: u32,
    /// The operation that was rejected last when it was alone, and how often.
    rejected: (u64, u32),
    /// The time before which no attempt is made.
    resumes: Option<Instant>,
    /// Whether the outcome of the last attempt is unknown.
    is_uncertain: bool,
}

impl<S: Sink> Worker<S> {
    pub(crate) fn new(
        queue: Arc<Queue<S>>,
        at: usize,
        requests: mpsc::UnboundedReceiver<Request<S>>,
    ) -> Self {
        let limit = queue.options.batch;
        Self {
            queue,
            at,
            requests,
            limit,
            failures: 0,
            rejected: (0, 0),
            resumes: None,
            is_uncertain: false,
        }
    }

    /// Runs until the queue is closed. A panic of an operation or of the sink stops the queue.
    pub(crate) async fn run(self) {
        let queue = Arc::clone(&self.queue);
        if AssertUnwindSafe(self.work()).catch_unwind().await.is_err() {
            queue.stop("its worker has panicked, in an operation or in the sink".to_owned());
        }
    }

    async fn work(mut self) {
        loop {
            tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    // The choice of a caller may panic, which drops its answer.
                    Some(request) => drop(AssertUnwindSafe(self.answer(request)).catch_unwind().await),
                    None => return,
                },
                () = Self::due(&self.queue, self.at, self.resumes) => {
                    self.resumes = None;
                    self.attempt().await;
                }
            }
        }
    }

    /// Waits until an attempt is due.
    async fn due(queue: &Queue<S>, at: usize, resumes: Option<Instant>) {
        let partition = &queue.partitions[at];
        if let Some(resumes) = resumes {
            let hurried = queue.hurried.notified();
            tokio::select! { () = tokio::time::sleep_until(resumes) => {}, () = hurried => {} }
        }
        loop {
            let arrived = partition.arrived.notified();
            let (waiting, oldest) = partition.waiting();
            let Some(oldest) = oldest else {
                queue.emptied.notify_waiters();
                arrived.await;
                continue;
            };
            let due = oldest + queue.options.interval;
            if waiting >= queue.options.batch || queue.is_hurried() || due <= Instant::now() {
                return;
            }
            // Either a batch is full, or its time has come.
            drop(tokio::time::timeout_at(due, arrived).await);
        }
    }

    /// Writes the first operations of the queue.
    async fn attempt(&mut self) {
        let queue = Arc::clone(&self.queue);
        let partition = &queue.partitions[self.at];
        match queue.journal.flush_lease(partition.number).await {
            Ok(FlushLease::Held) => {}
            // The process that had it before may have written more than this one knows.
            Ok(FlushLease::Taken) => self.is_uncertain = true,
            Ok(FlushLease::Other) => {
                self.resumes = Some(Instant::now() + WITHOUT_LEASE);
                return;
            }
            Err(_) => return self.pause(),
        }
        if self.is_uncertain && !self.look_at_position().await {
            return;
        }
        let (first, blocked) = partition.first(self.limit);
        if !blocked.is_empty() && !self.bury(blocked, None).await {
            return;
        }
        if first.is_empty() {
            return;
        }
        let folds = queue.sink.stores_positions();
        let batch =
            batch(&queue.name, partition.number, queue.id, partition.applied(), &first, folds);
        match queue.sink.write(&batch).await {
            Ok(()) => self.written(&first, batch.last).await,
            Err(error) => self.failed(first, error).await,
        }
    }

    async fn written(&mut self, written: &[Queued<S::Key, S::Operation>], last: u64) {
        let queue = &self.queue;
        if self.failures > 0 {
            tracing::info!(target: "larder", queue = queue.name, "the sink accepts operations again");
        }
        self.failures = 0;
        drop(queue.stopped.lock().take());
        self.limit = (self.limit * 2).min(queue.options.batch);
        // Pages and queries may have been built from the sink since the operations were accepted, without them.
        let _logged_or_queued = queue.larder.invalidate(queue.targets(written)).await;
        queue.applied(self.at, last, written.len());
    }

    async fn failed(&mut self, first: Vec<Queued<S::Key, S::Operation>>, error: SinkError) {
        let name = &self.queue.name;
        match error.kind() {
            SinkErrorKind::Rejected if first.len() > 1 => {
                self.limit = first.len() / 2;
            }
            SinkErrorKind::Rejected => {
                let (number, times) = self.rejected;
                let times = if number == first[0].number { times + 1 } else { 1 };
                self.rejected = (first[0].number, times);
                if times < self.queue.options.attempts {
                    self.queue.count_failure();
                    self.resumes = Some(Instant::now() + AFTER_A_REJECTION);
                    return;
                }
                tracing::error!(target: "larder", queue = name, key = %first[0].key, %error, "the sink rejects an operation, which is now a dead letter");
                // The next ones may be rejected, too, so the limit grows again with each that is written.
                self.bury(first, Some(&error.to_string())).await;
            }
            SinkErrorKind::Displaced | SinkErrorKind::Unavailable => {
                if self.failures.is_multiple_of(FAILURES_BETWEEN_WARNINGS) {
                    tracing::warn!(target: "larder", queue = name, %error, "operations are not written; larder tries again");
                }
                self.is_uncertain = true;
                self.pause();
            }
        }
    }

    /// Waits longer after each failure, up to a limit, and never at the same time as other processes.
    fn pause(&mut self) {
        self.queue.count_failure();
        let most = if self.queue.is_hurried() { LONGEST_HURRIED_PAUSE } else { LONGEST_PAUSE };
        let longest = most.min(FIRST_PAUSE * 2_u32.saturating_pow(self.failures.min(10)));
        self.failures = self.failures.saturating_add(1);
        let share = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), self.failures);
        let jitter = longest.mul_f64(0.5 * (share % 1024) as f64 / 1024.0);
        self.resumes = Some(Instant::now() + longest - jitter);
    }

    /// Reads the position of the sink, after an attempt whose outcome is unknown. Returns `false` if the queue cannot go
    /// on now.
    async fn look_at_position(&mut self) -> bool {
        let queue = Arc::clone(&self.queue);
        let partition = &queue.partitions[self.at];
        match queue.sink.position(&queue.name, partition.number).await {
            Ok(Some(position)) => {
                if position.journal != queue.id || position.number < partition.applied() {
                    queue.stop(format!(
                        "the sink has the position {} of the journal {}, and this queue has written up to {} of the journal {}: another process uses the queue, or the sink was replaced",
                        position.number, position.journal, partition.applied(), queue.id
                    ));
                    self.resumes = Some(Instant::now() + LONGEST_PAUSE);
                    return false;
                }
                self.is_uncertain = false;
                if position.number > partition.applied() {
                    // The attempt was committed, although it failed.
                    let (first, _) = partition.first(usize::MAX);
                    let written: Vec<_> = first
                        .into_iter()
                        .take_while(|queued| queued.number <= position.number)
                        .collect();
                    self.written(&written, position.number).await;
                }
                true
            }
            Ok(None) if queue.sink.stores_positions() => {
                queue.stop("the sink has no position: it was replaced".to_owned());
                self.resumes = Some(Instant::now() + LONGEST_PAUSE);
                false
            }
            Ok(None) => {
                self.is_uncertain = false;
                true
            }
            Err(_) => {
                self.pause();
                false
            }
        }
    }

    /// Makes operations dead letters. Returns `false` if the journal does not answer.
    async fn bury(&mut self, dead: Vec<Queued<S::Key, S::Operation>>, error: Option<&str>) -> bool {
        let queue = &self.queue;
        let records = dead.iter().map(|dead| dead.dead_record(error)).collect();
        if let Err(error) = queue.journal.bury(records).await {
            tracing::error!(target: "larder", queue = queue.name, %error, "a dead letter cannot be stored; larder tries again");
            self.pause();
            return false;
        }
        // Values were read with these operations.
        let targets = queue.targets(&dead);
        let room = queue.partitions[self.at].bury(dead, error);
        queue.release(room);
        let _logged_or_queued = queue.larder.invalidate(targets).await;
        true
    }

    async fn answer(&mut self, request: Request<S>) {
        match request {
            Request::Revive(chosen, done) => drop(done.send(self.revive(&*chosen).await)),
            Request::Discard { chosen, only_dead, done } => {
                drop(done.send(self.discard(&*chosen, only_dead).await));
            }
        }
    }

    /// Gives the dead operations of these keys new numbers, in order, before any operation that is given to the queue later.
    async fn revive(
        &mut self,
        chosen: &(dyn Fn(&S::Key, &S::Operation) -> bool + Send + Sync),
    ) -> Result<usize, JournalError> {
        let queue = Arc::clone(&self.queue);
        let partition = &queue.partitions[self.at];
        // Each operation that was given to the journal is in the partition.
        let _alone = partition.intake.write().await;
        let keys: HashSet<S::Key> =
            partition.dead(chosen).into_iter().map(|(dead, _)| dead.key).collect();
        let all = loop {
            queue.journal.catch_up().await?;
            // Operations of these keys that are queued came later, so they get later numbers, too.
            let queued = partition.queued(|key, _| keys.contains(key));
            if !queued.is_empty() && !self.bury(queued, None).await {
                return Err(JournalError::new("the journal does not answer"));
            }
            let dead = partition.dead(|key, _| keys.contains(key));
            let all: Vec<_> = dead.iter().map(|(dead, _)| dead.clone()).collect();
            match queue.revive(self.at, dead).await {
                Err(error) if error.is_overtaken() => {}
                revived => break revived.map(|()| all)?,
            }
        };
        let _logged_or_queued = queue.larder.invalidate(queue.targets(&all)).await;
        Ok(all.len())
    }

    async fn discard(
        &mut self,
        chosen: &(dyn Fn(&S::Key, &S::Operation) -> bool + Send + Sync),
        only_dead: bool,
    ) -> Result<usize, JournalError> {
        let queue = Arc::clone(&self.queue);
        let partition = &queue.partitions[self.at];
        if self.is_uncertain && !self.look_at_position().await {
            return Err(JournalError::new(
                "the sink does not answer, and may have these operations",
            ));
        }
        let mut all: Vec<_> = partition.dead(chosen).into_iter().map(|(dead, _)| dead).collect();
        if !only_dead {
            all.extend(partition.queued(chosen));
        }
        let numbers: HashSet<u64> = all.iter().map(|queued| queued.number).collect();
        queue.journal.discard(numbers.iter().copied().collect()).await?;
        let room = partition.discard(&numbers);
        queue.release(room);
        let _logged_or_queued = queue.larder.invalidate(queue.targets(&all)).await;
        Ok(all.len())
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause while a caller waits until the queue is empty.
const LONGEST_HURRIED_PAUSE: Duration = Duration::from_millis(200);
/// The pause while another process writes the operations of the partition.
const WITHOUT_LEASE: Duration = Duration::from_millis(500);
const AFTER_A_REJECTION: Duration = Duration::from_millis(20);
const FAILURES_BETWEEN_WARNINGS: u32 = 30;
