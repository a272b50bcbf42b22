//! Checks reads against the history of writes.
//!
//! Every write gives its key a higher version. A read that begins in a process after the invalidation of a
//! version has returned there must give that version or a later one (P1); in another process the same
//! holds once a bound has passed (P2). And one client in one process never sees time go back: what he has read once he
//! is not given an older version of.

use std::{collections::HashMap, fmt, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// What was written, invalidated and read.
#[derive(Debug)]
pub struct History {
    bound: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    committed: HashMap<u64, u64>,
    /// How much has happened. Time may stand still between two things of which one came first.
    order: u64,
    /// The newest version that a client has read of something in a process.
    seen: HashMap<(u64, usize, u64), u64>,
    invalidated: Vec<InvalidationOutcome>,
    violations: Vec<Violation>,
}

#[derive(Clone, Copy, Debug)]
struct InvalidationOutcome {
    at: Instant,
    order: u64,
    /// Whether the log has it, so that others can know.
    logged: bool,
    process: usize,
    key: u64,
    version: u64,
}

/// When a read began.
#[derive(Clone, Copy, Debug)]
pub struct OperationStart {
    at: Instant,
    order: u64,
}

/// A read that gave what it should not have.
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
        write!(f, "{promise}: process {process} read version {read} of key {key}, owed was {owed}")
    }
}

impl History {
    /// A history that holds other processes to `bound`; `None` where they are not held to any.
    pub fn new(bound: Option<Duration>) -> Self {
        Self { bound, state: Mutex::default() }
    }

    /// Commits a write. Gives its version.
    pub fn commit(&self, key: u64) -> u64 {
        let mut state = self.state.lock();
        let version = state.committed.entry(key).or_default();
        *version += 1;
        *version
    }

    /// What the origin has now.
    pub fn current(&self, key: u64) -> u64 {
        self.state.lock().committed.get(&key).copied().unwrap_or_default()
    }

    /// The invalidation of a version has returned in a process, and the log has it.
    pub fn invalidated(&self, process: usize, key: u64, version: u64) {
        self.note(true, process, key, version);
    }

    /// The invalidation of a version has returned in a process, and waits for the log: others cannot know of it
    /// yet.
    pub fn queued(&self, process: usize, key: u64, version: u64) {
        self.note(false, process, key, version);
    }

    fn note(&self, logged: bool, process: usize, key: u64, version: u64) {
        let (at, mut state) = (Instant::now(), self.state.lock());
        state.order += 1;
        let order = state.order;
        state.invalidated.push(InvalidationOutcome { at, order, logged, process, key, version });
    }

    /// A read begins now.
    pub fn begin(&self) -> OperationStart {
        let mut state = self.state.lock();
        state.order += 1;
        OperationStart { at: Instant::now(), order: state.order }
    }

    /// A client has read this version of something, which may be a key or what was made of it, one read after the
    /// other.
    pub fn seen(&self, client: u64, process: usize, thing: u64, version: u64) {
        let mut state = self.state.lock();
        let seen = state.seen.entry((client, process, thing)).or_default();
        let owed = *seen;
        *seen = owed.max(version);
        if version < owed {
            let promise = "time went back";
            let violation = Violation { promise, key: thing, process, read: version, owed };
            state.violations.push(violation);
        }
    }

    /// A read that began at `began` gave this version.
    pub fn read(&self, process: usize, key: u64, began: OperationStart, version: u64) {
        self.read_within(self.bound, process, key, began, version);
    }

    /// A read that began at `began` gave this version, and what other processes have invalidated holds for it
    /// after `bound`.
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

    /// All that went wrong.
    pub fn violations(&self) -> Vec<Violation> {
        self.state.lock().violations.clone()
    }
}
