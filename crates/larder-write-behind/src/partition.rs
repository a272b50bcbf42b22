//! The operations of one partition that the sink does not have: in order for the worker, by key for readers.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, RwLock},
    time::Instant,
};

use crate::{
    journal::{DeadRecord, Draft, JournalId, Record},
    operation::Operation,
    sink::{Batch, BatchOperation, SinkKey},
};

/// An operation that the sink does not have.
#[derive(Clone, Debug)]
pub(crate) struct Queued<K, O> {
    pub(crate) number: u64,
    pub(crate) key: K,
    pub(crate) operation: Arc<O>,
    pub(crate) draft: Draft,
    pub(crate) arrived: Instant,
}

/// Operations in order.
pub(crate) type AllQueued<K, O> = Vec<Queued<K, O>>;

/// Dead operations, and the errors of those that the sink has rejected.
pub(crate) type AllDead<K, O> = Vec<(Queued<K, O>, Option<String>)>;

/// The operations of a key that the sink does not have, with their numbers, in order.
pub(crate) type Unflushed<O> = Vec<(u64, Arc<O>)>;

#[derive(Debug)]
pub(crate) struct Partition<K, O> {
    pub(crate) number: u32,
    state: Mutex<State<K, O>>,
    /// The last number that the sink is known to have.
    applied: AtomicU64,
    /// Notified when the worker has something to do.
    pub(crate) arrived: Notify,
    /// Held shared while an operation is given to the journal, and alone while operations are numbered anew.
    pub(crate) intake: RwLock<()>,
}

#[derive(Debug)]
struct State<K, O> {
    queue: VecDeque<Queued<K, O>>,
    /// The highest number of an operation.
    newest: u64,
    by_key: HashMap<K, VecDeque<(u64, Arc<O>)>>,
    /// The keys with an operation that the sink has rejected. Later operations of these keys wait behind it.
    blocked: HashSet<K>,
    dead: BTreeMap<u64, (Queued<K, O>, Option<String>)>,
}

impl<K: SinkKey, O: Operation> Partition<K, O> {
    pub(crate) fn new(number: u32, applied: u64) -> Self {
        let state = State {
            queue: VecDeque::new(),
            newest: 0,
            by_key: HashMap::new(),
            blocked: HashSet::new(),
            dead: BTreeMap::new(),
        };
        Self {
            number,
            state: Mutex::new(state),
            applied: AtomicU64::new(applied),
            arrived: Notify::new(),
            intake: RwLock::new(()),
        }
    }

    /// Adds an operation, unless it is there already. Its number is higher than all others.
    pub(crate) fn push(&self, queued: Queued<K, O>, batch: usize) -> bool {
        let mut state = self.state.lock();
        if queued.number <= state.newest {
            // A shared journal repeats what was recovered.
            return false;
        }
        state.newest = queued.number;
        let operation = (queued.number, Arc::clone(&queued.operation));
        state.by_key.entry(queued.key.clone()).or_default().push_back(operation);
        state.queue.push_back(queued);
        if state.queue.len() == 1 || state.queue.len() == batch {
            self.arrived.notify_one();
        }
        true
    }

    /// Adds a dead operation of the journal.
    pub(crate) fn push_dead(&self, dead: Queued<K, O>, error: Option<String>) {
        let mut state = self.state.lock();
        state.blocked.insert(dead.key.clone());
        state.dead.insert(dead.number, (dead, error));
    }

    /// Returns the number of operations, and the arrival of the oldest.
    pub(crate) fn waiting(&self) -> (usize, Option<Instant>) {
        let state = self.state.lock();
        (state.queue.len(), state.queue.front().map(|queued| queued.arrived))
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    pub(crate) fn has_unflushed(&self, key: &K) -> bool {
        self.state.lock().by_key.contains_key(key)
    }

    pub(crate) fn unflushed(&self, key: &K) -> Unflushed<O> {
        let state = self.state.lock();
        state.by_key.get(key).map(|all| all.iter().cloned().collect()).unwrap_or_default()
    }

    pub(crate) fn all_unflushed(&self) -> Vec<(K, Unflushed<O>)> {
        let state = self.state.lock();
        let copy = |(key, all): (&K, &VecDeque<_>)| (key.clone(), all.iter().cloned().collect());
        state.by_key.iter().map(copy).collect()
    }

    /// Returns the first operations: those to write, and those of keys that are blocked.
    pub(crate) fn first(&self, most: usize) -> (AllQueued<K, O>, AllQueued<K, O>) {
        let state = self.state.lock();
        let first = state.queue.iter().take(most).cloned();
        first.partition(|queued| !state.blocked.contains(&queued.key))
    }

    /// Returns the queued operation of this number, if there is one.
    pub(crate) fn numbered(&self, number: u64) -> AllQueued<K, O> {
        let state = self.state.lock();
        state.queue.iter().find(|queued| queued.number == number).cloned().into_iter().collect()
    }

    /// Returns the queued operations that `chosen` returns `true` for.
    pub(crate) fn queued(&self, chosen: impl Fn(&K, &O) -> bool) -> Vec<Queued<K, O>> {
        let state = self.state.lock();
        let chosen = |queued: &&Queued<K, O>| chosen(&queued.key, &queued.operation);
        state.queue.iter().filter(chosen).cloned().collect()
    }

    /// Returns the dead operations that `chosen` returns `true` for, in order.
    pub(crate) fn dead(&self, chosen: impl Fn(&K, &O) -> bool) -> AllDead<K, O> {
        let state = self.state.lock();
        state
            .dead
            .values()
            .filter(|(dead, _)| chosen(&dead.key, &dead.operation))
            .cloned()
            .collect()
    }

    pub(crate) fn dead_len(&self) -> usize {
        self.state.lock().dead.len()
    }

    /// Removes the operations up to a number, which the sink has. Returns how many they were, and their bytes.
    pub(crate) fn remove_applied(&self, number: u64) -> (usize, usize) {
        let mut state = self.state.lock();
        let mut removed = (0, 0);
        while let Some(first) = state.pop_up_to(number) {
            removed = (removed.0 + 1, removed.1 + first.draft.bytes());
            state.forget(&first);
        }
        self.applied.fetch_max(number, Ordering::AcqRel);
        removed
    }

    /// Moves operations to the dead ones. The journal has already done so.
    pub(crate) fn bury(&self, dead: Vec<Queued<K, O>>, error: Option<&str>) -> (usize, usize) {
        let numbers: HashSet<u64> = dead.iter().map(|dead| dead.number).collect();
        let removed = self.remove(&numbers);
        for queued in dead {
            self.push_dead(queued, error.map(str::to_owned));
        }
        removed
    }

    /// Removes operations from the queue and from the dead ones.
    pub(crate) fn discard(&self, numbers: &HashSet<u64>) -> (usize, usize) {
        let removed = self.remove(numbers);
        let mut state = self.state.lock();
        state.dead.retain(|number, _| !numbers.contains(number));
        let blocked = state.dead.values().map(|(dead, _)| dead.key.clone()).collect();
        state.blocked = blocked;
        removed
    }

    fn remove(&self, numbers: &HashSet<u64>) -> (usize, usize) {
        let mut state = self.state.lock();
        let queue = std::mem::take(&mut state.queue);
        let (removed, rest): (VecDeque<_>, _) =
            queue.into_iter().partition(|queued| numbers.contains(&queued.number));
        state.queue = rest;
        removed.iter().for_each(|queued| state.forget(queued));
        (removed.len(), removed.iter().map(|queued| queued.draft.bytes()).sum())
    }
}

impl<K: SinkKey, O> State<K, O> {
    fn pop_up_to(&mut self, number: u64) -> Option<Queued<K, O>> {
        self.queue
            .front()
            .is_some_and(|first| first.number <= number)
            .then(|| self.queue.pop_front())?
    }

    /// Removes an operation that is no longer in the queue from the operations of its key.
    fn forget(&mut self, removed: &Queued<K, O>) {
        let Some(of_key) = self.by_key.get_mut(&removed.key) else { return };
        of_key.retain(|(number, _)| *number != removed.number);
        if of_key.is_empty() {
            self.by_key.remove(&removed.key);
        }
    }
}

/// Makes a batch of operations in order. Folds the operations of a key if `folds`.
pub(crate) fn batch<K: SinkKey, O: Operation>(
    queue: &str,
    partition: u32,
    journal: JournalId,
    after: u64,
    queued: &[Queued<K, O>],
    folds: bool,
) -> Batch<K, O> {
    let mut operations: Vec<BatchOperation<K, O>> = Vec::with_capacity(queued.len());
    let mut latest: HashMap<&K, usize> = HashMap::new();
    for Queued { number, key, operation, .. } in queued {
        if let Some(at) = latest.get(key).copied().filter(|_| folds)
            && operations[at].operation.fold(operation)
        {
            operations[at].number = *number;
            continue;
        }
        latest.insert(key, operations.len());
        let operation = O::clone(operation);
        operations.push(BatchOperation { key: key.clone(), operation, number: *number });
    }
    let last = queued.last().map_or(after, |queued| queued.number);
    Batch { queue: queue.to_owned(), partition, journal, after, last, operations }
}

impl<K, O> Queued<K, O> {
    /// Returns the record of a dead operation.
    pub(crate) fn dead_record(&self, error: Option<&str>) -> DeadRecord {
        let record = Record { number: self.number, draft: self.draft.clone() };
        DeadRecord { record, error: error.map(str::to_owned) }
    }
}
