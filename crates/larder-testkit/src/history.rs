//! Checks reads against the history of writes.
//!
//! Every write gives its key a higher version. If the invalidation of a version has returned in a process, a read that
//! begins there afterwards must return that version or a later version (P1). In other processes the same applies after
//! a bound (P2). The reads of one client in one process are monotonic: once it has read a version, it does not get an
//! older version.

use std::{collections::HashMap, fmt, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The record of all writes, invalidations and reads, and the violations among them.
#[derive(Debug)]
pub struct History {
    bound: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    committed: HashMap<u64, u64>,
    /// The number of operations so far, which orders operations at the same instant of paused time.
    order: u64,
    /// The newest version that was read, by client, process and key (or derived value).
    seen: HashMap<(u64, usize, u64), u64>,
    invalidated: Vec<InvalidationOutcome>,
    violations: Vec<Violation>,
}

#[derive(Clone, Copy, Debug)]
struct InvalidationOutcome {
    at: Instant,
    order: u64,
    /// Whether the log has the invalidation, so that other processes can apply it.
    logged: bool,
    process: usize,
    key: u64,
    version: u64,
}

/// The time at which a read began, and its order among the operations.
#[derive(Clone, Copy, Debug)]
pub struct OperationStart {
    at: Instant,
    order: u64,
}

/// A read that returned an older version than the promise allows.
#[derive(Clone, Debug)]
pub struct Violation {
    promise: &'static str,
    key: u64,
    process: usize,
    read: u64,
    owed: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { promise, key, process, read, owed } = self;
        write!(
            f,
            "{promise}: process {process} read version {read} of key {key}, expected {owed} or later"
        )
    }
}

impl History {
    /// Creates a history in which other processes must apply an invalidation within `bound`. `None` means that there is
    /// no bound.
    pub fn new(bound: Option<Duration>) -> Self {
        Self { bound, state: Mutex::default() }
    }

    /// Commits a write and returns its version.
    pub fn commit(&self, key: u64) -> u64 {
        let mut state = self.state.lock();
        let version = state.committed.entry(key).or_default();
        *version += 1;
        *version
    }

    /// Returns the current version at the origin.
    pub fn current(&self, key: u64) -> u64 {
        self.state.lock().committed.get(&key).copied().unwrap_or_default()
    }

    /// Notes that the invalidation of a version has returned in a process, and that the log has it.
    pub fn invalidated(&self, process: usize, key: u64, version: u64) {
        self.note(true, process, key, version);
    }

    /// Notes that the invalidation of a version has returned in a process, and that it is queued for the log, so that
    /// other processes cannot apply it yet.
    pub fn queued(&self, process: usize, key: u64, version: u64) {
        self.note(false, process, key, version);
    }

    fn note(&self, logged: bool, process: usize, key: u64, version: u64) {
        let (at, mut state) = (Instant::now(), self.state.lock());
        state.order += 1;
        let order = state.order;
        state.invalidated.push(InvalidationOutcome { at, order, logged, process, key, version });
    }

    /// Notes that a read begins now.
    pub fn begin(&self) -> OperationStart {
        let mut state = self.state.lock();
        state.order += 1;
        OperationStart { at: Instant::now(), order: state.order }
    }

    /// Notes that a client has read this version of a key, or of a value derived from keys. The reads of a client must
    /// not overlap.
    pub fn seen(&self, client: u64, process: usize, thing: u64, version: u64) {
        let mut state = self.state.lock();
        let seen = state.seen.entry((client, process, thing)).or_default();
        let owed = *seen;
        *seen = owed.max(version);
        if version < owed {
            let promise = "monotonic reads";
            let violation = Violation { promise, key: thing, process, read: version, owed };
            state.violations.push(violation);
        }
    }

    /// Checks a read that began at `began` and returned this version.
    pub fn read(&self, process: usize, key: u64, began: OperationStart, version: u64) {
        self.read_within(self.bound, process, key, began, version);
    }

    /// Checks a read that began at `began` and returned this version. It must reflect invalidations by other processes
    /// that are older than `bound`.
    pub fn read_within(
        &self,
        bound: Option<Duration>,
        process: usize,
        key: u64,
        began: OperationStart,
        version: u64,
    ) {
        let mut state = self.state.lock();
        let owed_by = |promise, matters: &dyn Fn(&InvalidationOutcome) -> bool| {
            let owed = state.invalidated.iter().filter(|known| known.key == key && matters(known));
            let owed = owed.map(|known| known.version).max().unwrap_or_default();
            (version < owed).then_some(Violation { promise, key, process, read: version, owed })
        };
        let here = owed_by("P1", &|known| known.process == process && known.order < began.order);
        let elsewhere = bound.and_then(|bound| {
            owed_by("P2", &|known| {
                known.logged && known.process != process && known.at + bound < began.at
            })
        });
        let found: Vec<_> = here.into_iter().chain(elsewhere).collect();
        state.violations.extend(found);
    }

    /// Returns all violations.
    pub fn violations(&self) -> Vec<Violation> {
        self.state.lock().violations.clone()
    }
}
