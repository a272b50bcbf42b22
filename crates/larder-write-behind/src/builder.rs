//! Opens a queue: recovers its journal, and compares it with the position of the sink.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use larder_core::{Larder, Policy, Target};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};

use crate::{
    bounds::Bounds,
    error::{OpenError, OpenErrorKind},
    journal::{Journal, JournalId, Record, Recovered},
    partition::{Partition, Queued},
    queue::{Queue, Targets, read},
    sink::{Sink, SinkPosition},
    worker::Worker,
    write_behind::WriteBehind,
};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) partitions: u32,
    pub(crate) interval: Duration,
    pub(crate) batch: usize,
    pub(crate) max_operations: usize,
    pub(crate) max_bytes: usize,
    pub(crate) max_age: Option<Duration>,
    pub(crate) full_wait: Duration,
    pub(crate) attempts: u32,
}

/// Configures a queue. [`WriteBehind::builder`] begins it, and [`open`](Self::open) ends it.
#[must_use = "a builder does nothing until `open` is called"]
pub struct WriteBehindBuilder<S: Sink> {
    name: String,
    larder: Larder,
    sink: S,
    journal: Arc<dyn Journal>,
    options: Options,
    policy: Policy,
    accepted: Option<String>,
    targets: Option<Targets<S>>,
}

impl<S: Sink> WriteBehindBuilder<S> {
    pub(crate) fn new(name: String, larder: Larder, sink: S, journal: Arc<dyn Journal>) -> Self {
        let options = Options {
            partitions: 1,
            interval: Duration::from_millis(100),
            batch: 1_000,
            max_operations: 100_000,
            max_bytes: 64 * 1024 * 1024,
            max_age: None,
            full_wait: Duration::from_secs(5),
            attempts: 5,
        };
        let policy = Policy::ttl(Duration::from_secs(60));
        Self { name, larder, sink, journal, options, policy, accepted: None, targets: None }
    }

    /// Sets the longest time that an operation waits for others before it is written. The default is 100 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.options.interval = interval;
        self
    }

    /// Sets the most operations that are written in one transaction. The default is 1,000.
    pub fn batch(mut self, operations: usize) -> Self {
        self.options.batch = operations;
        self
    }

    /// Sets the most operations in the queue. The default is 100,000.
    pub fn max_operations(mut self, operations: usize) -> Self {
        self.options.max_operations = operations;
        self
    }

    /// Sets the most bytes of operations in the queue. The default is 64 MiB.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.options.max_bytes = bytes;
        self
    }

    /// Sets the longest time that an operation may be in the queue before others are refused. There is none by default.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.options.max_age = Some(age);
        self
    }

    /// Sets how long a write waits for room in a full queue before it is refused. The default is 5 s.
    pub fn full_wait(mut self, wait: Duration) -> Self {
        self.options.full_wait = wait;
        self
    }

    /// Sets how often an operation that the sink rejects is tried before it becomes a dead letter. The default is 5.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.options.attempts = attempts;
        self
    }

    /// Sets the number of partitions, which are written independently of each other. A journal has the number with which it
    /// was created. The default is 1, which is best for SQLite, since it has one writer at a time.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.options.partitions = partitions;
        self
    }

    /// Sets the policy under which values that are read through the queue are cached. The default is a lifetime of 60 s.
    pub fn policy(mut self, policy: impl Into<Policy>) -> Self {
        self.policy = policy.into();
        self
    }

    /// Adds targets that an operation invalidates, besides the tags of its key and of the queue.
    pub fn invalidates(
        mut self,
        targets: impl Fn(&S::Key, &S::Operation) -> Vec<Target> + Send + Sync + 'static,
    ) -> Self {
        self.targets = Some(Arc::new(targets));
        self
    }

    /// Goes on with this journal although it does not belong to the position of the sink. The error of
    /// [`open`](Self::open) names the identity to give here, and what is lost. It has no effect for another journal, so it
    /// does no harm if it is left in the code.
    pub fn accept_journal(mut self, id: impl Into<String>) -> Self {
        self.accepted = Some(id.into());
        self
    }

    /// Opens the queue: reads its journal, compares it with the position of the sink, and begins to write.
    ///
    /// # Errors
    ///
    /// See [`OpenErrorKind`]. Nothing is skipped: a journal that does not belong to the sink, or has an operation that
    /// cannot be read, refuses to open.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn open(self) -> Result<WriteBehind<S>, OpenError> {
        self.check_options()?;
        let journal = self.journal.recover(self.options.partitions).await;
        let recovered = journal.map_err(|error| {
            OpenError::because(
                OpenErrorKind::Journal,
                format!("the journal of {:?} cannot be read: {error}", self.name),
                error,
            )
        })?;
        let positions = self.positions(&recovered).await?;
        let arrived = Instant::now();
        let mut partitions: Vec<Partition<S::Key, S::Operation>> = Vec::new();
        for (number, position) in (0..).zip(&positions) {
            partitions.push(Partition::new(number, *position));
        }
        let (mut used, mut first_bad) = ((0, 0), None);
        // What the last process may not have invalidated before it ended.
        let mut uninvalidated: Vec<Queued<S::Key, S::Operation>> = Vec::new();
        let mut read = |Record { number, draft }: Record| {
            let count = partitions.len();
            match read::<S>(&draft, count) {
                Ok((key, operation)) => {
                    let operation = Arc::new(operation);
                    Some(Queued { number, key, operation, draft, arrived })
                }
                Err(why) => {
                    first_bad.get_or_insert((number, why));
                    None
                }
            }
        };
        for record in recovered.records {
            let at = usize::try_from(record.draft.partition).unwrap_or_default();
            let Some(queued) = read(record) else { continue };
            if queued.number <= positions[at] {
                uninvalidated.push(queued);
                continue;
            }
            used = (used.0 + 1, used.1 + queued.draft.bytes());
            partitions[at].push(queued, usize::MAX);
        }
        for dead in recovered.dead {
            let at = usize::try_from(dead.record.draft.partition).unwrap_or_default();
            let Some(queued) = read(dead.record) else { continue };
            uninvalidated.push(queued.clone());
            partitions[at].push_dead(queued, dead.error);
        }
        if let Some((number, why)) = first_bad {
            return Err(OpenError::new(
                OpenErrorKind::Unreadable,
                format!(
                    "operation {number} of the journal of {:?} cannot be read: {why}",
                    self.name
                ),
            ));
        }
        for (number, position) in (0..).zip(&positions) {
            self.journal.applied(number, *position);
        }
        let queue = Arc::new(Queue {
            bounds: Bounds::new(self.options.max_operations, self.options.max_bytes, used),
            name: self.name,
            larder: self.larder,
            sink: self.sink,
            journal: self.journal,
            id: recovered.id,
            partitions,
            options: self.options,
            policy: self.policy,
            more_targets: self.targets,
            is_closing: AtomicBool::new(false),
            flushing: Default::default(),
            stopped: Mutex::new(None),
            emptied: Notify::new(),
            lowered: Notify::new(),
            hurried: Notify::new(),
            written: Default::default(),
            batches: Default::default(),
            failures: Default::default(),
        });
        if queue.journal.is_shared() {
            // The journal belongs to the queue, so its events must not hold the queue.
            let of_events = Arc::downgrade(&queue);
            queue.journal.follow(Arc::new(move |event| {
                if let Some(queue) = of_events.upgrade() {
                    queue.apply(event);
                }
            }));
        }
        let mut workers = JoinSet::new();
        let mut requests = Vec::new();
        for at in 0..queue.partitions.len() {
            let (request, requested) = mpsc::unbounded_channel();
            workers.spawn(Worker::new(Arc::clone(&queue), at, requested).run());
            requests.push(request);
        }
        // Values that were cached before may lack the operations of the journal.
        let mut targets = queue.targets(&uninvalidated);
        targets.push(Target::prefix(queue.tag_of_all()));
        let _logged_or_queued = queue.larder.invalidate(targets).await;
        Ok(WriteBehind::new(queue, workers, requests))
    }

    fn check_options(&self) -> Result<(), OpenError> {
        let Options { partitions, batch, max_operations, max_bytes, attempts, .. } = self.options;
        let wrong = |what: String| Err(OpenError::new(OpenErrorKind::Option, what));
        if self.name.is_empty()
            || self.name.contains(|letter: char| letter.is_control() || letter == ':')
        {
            return wrong(format!(
                "the name of a queue is {:?}, and must be a text without colons and control characters",
                self.name
            ));
        }
        if partitions == 0 || partitions > MOST_PARTITIONS {
            return wrong(format!(
                "partitions is {partitions}, and must be between 1 and {MOST_PARTITIONS}"
            ));
        }
        let counts = [
            ("batch", batch),
            ("max_operations", max_operations),
            ("max_bytes", max_bytes),
            ("attempts", attempts as usize),
        ];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => wrong(format!("{name} is 0, and must be at least 1")),
            None => Ok(()),
        }
    }

    /// Returns the position of each partition, after a comparison with the journal.
    async fn positions(&self, recovered: &Recovered) -> Result<Vec<u64>, OpenError> {
        let by_journal = |partition: u32, recovered: &Recovered| {
            recovered.applied.get(&partition).copied().unwrap_or_default()
        };
        let all = 0..self.options.partitions;
        if !self.sink.stores_positions() {
            return Ok(all.map(|partition| by_journal(partition, recovered)).collect());
        }
        let failed = |error| {
            OpenError::because(
                OpenErrorKind::Sink,
                format!("the position of {:?} in the sink cannot be read or stored", self.name),
                error,
            )
        };
        let mut found = Vec::new();
        for partition in all.clone() {
            found.push(self.sink.position(&self.name, partition).await.map_err(failed)?);
        }
        let is_accepted = !self.journal.is_durable()
            || self.accepted.as_deref() == Some(&*recovered.id.to_string());
        let mut positions = Vec::new();
        for (partition, found) in all.clone().zip(&found) {
            let applied = by_journal(partition, recovered);
            let mismatch = mismatch(recovered, applied, *found);
            if let Some(mismatch) = &mismatch
                && !is_accepted
            {
                return Err(OpenError::new(
                    OpenErrorKind::Mismatch,
                    format!(
                        "the journal of {:?} does not belong to its sink: {mismatch}; to go on nevertheless, call accept_journal(\"{}\")",
                        self.name, recovered.id
                    ),
                ));
            }
            // What the sink has of this journal it has in any case.
            let of_this = found.filter(|found| found.journal == recovered.id);
            positions.push(of_this.map_or(applied, |found| found.number));
        }
        let registered: Vec<SinkPosition> = positions
            .iter()
            .map(|number| SinkPosition { journal: recovered.id, number: *number })
            .collect();
        for ((partition, found), position) in all.zip(&found).zip(registered) {
            if *found != Some(position) {
                self.sink.set_position(&self.name, partition, position).await.map_err(failed)?;
            }
        }
        // Later operations must have numbers above each position.
        let last = positions.iter().copied().max().unwrap_or_default().max(recovered.last);
        if !recovered.is_registered || last > recovered.last {
            self.journal.register(last).await.map_err(|error| {
                let message = format!("the journal of {:?} cannot be written: {error}", self.name);
                OpenError::because(OpenErrorKind::Journal, message, error)
            })?;
        }
        Ok(positions)
    }
}

/// Returns why a journal does not belong to the position of a sink.
fn mismatch(recovered: &Recovered, applied: u64, found: Option<SinkPosition>) -> Option<String> {
    let id: JournalId = recovered.id;
    match found {
        None if recovered.is_registered => Some(format!(
            "the sink has no position, but this journal ({id}) has written to it up to operation {applied}; the sink was replaced, or restored from a copy that is older than the queue"
        )),
        None => None,
        Some(found) if found.journal != id => Some(format!(
            "the sink has operations of the journal {} up to {}, and this is the journal {id}; if the other journal was lost or replaced, the operations that were only there are lost; those after {applied} of this journal are written, perhaps again",
            found.journal, found.number
        )),
        Some(found) if found.number > recovered.last => Some(format!(
            "the sink has operations of this journal ({id}) up to {}, and the journal has given out numbers up to {}; the journal was restored from an older copy, and operations that were only in the newer one are lost",
            found.number, recovered.last
        )),
        Some(found) if found.number < applied => Some(format!(
            "the sink has operations of this journal ({id}) up to {}, and had them up to {applied}; the sink was restored from an older copy, and the operations in between are lost",
            found.number
        )),
        Some(_) => None,
    }
}

impl<S: Sink> fmt::Debug for WriteBehindBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBehindBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

const MOST_PARTITIONS: u32 = 1024;
