//! The bounds of a queue.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

/// A bound of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueBound {
    /// The most operations in the queue.
    Operations(usize),
    /// The most bytes of operations in the queue.
    Bytes(usize),
    /// The longest time that an operation may be in the queue.
    Age(Duration),
}

impl fmt::Display for QueueBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operations(most) => write!(f, "{most} operations"),
            Self::Bytes(most) => write!(f, "{most} bytes"),
            Self::Age(longest) => write!(f, "an age of {longest:?}"),
        }
    }
}

/// The room that is left in a queue.
#[derive(Debug)]
pub(crate) struct Bounds {
    operations: Room,
    bytes: Room,
}

impl Bounds {
    /// Creates the bounds of a queue that already has operations.
    pub(crate) fn new(operations: usize, bytes: usize, used: (usize, usize)) -> Self {
        Self { operations: Room::new(operations, used.0), bytes: Room::new(bytes, used.1) }
    }

    /// Takes room for an operation of `bytes`, and waits for it until `deadline`. Otherwise returns the bound.
    pub(crate) async fn take(&self, bytes: usize, deadline: Instant) -> Result<(), QueueBound> {
        let Self { operations, bytes: all } = self;
        // Both are given back if the caller is dropped while it waits.
        let one = operations.take(1, deadline).await;
        let one = one.ok_or(QueueBound::Operations(operations.all))?;
        let room = all.take(bytes, deadline).await.ok_or(QueueBound::Bytes(all.all))?;
        one.forget();
        room.forget();
        Ok(())
    }

    /// Takes room that may not be there.
    pub(crate) fn exceed(&self, (operations, bytes): (usize, usize)) {
        self.operations.exceed(operations);
        self.bytes.exceed(bytes);
    }

    pub(crate) fn give_back(&self, (operations, bytes): (usize, usize)) {
        self.operations.give_back(operations);
        self.bytes.give_back(bytes);
    }
}

#[derive(Debug)]
struct Room {
    all: usize,
    left: Semaphore,
    /// What is used beyond `all`: by operations that were accepted by an earlier process.
    excess: AtomicUsize,
}

impl Room {
    fn new(all: usize, used: usize) -> Self {
        let all = all.min(Semaphore::MAX_PERMITS);
        let left = Semaphore::new(all.saturating_sub(used));
        Self { all, left, excess: AtomicUsize::new(used.saturating_sub(all)) }
    }

    async fn take(&self, size: usize, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        let size = u32::try_from(size).ok().filter(|_| size <= self.all)?;
        tokio::time::timeout_at(deadline, self.left.acquire_many(size)).await.ok()?.ok()
    }

    fn exceed(&self, size: usize) {
        let taken = self.left.forget_permits(size);
        self.excess.fetch_add(size - taken, Ordering::AcqRel);
    }

    fn give_back(&self, size: usize) {
        let mut of_excess = 0;
        let lowered = self.excess.fetch_update(Ordering::AcqRel, Ordering::Acquire, |excess| {
            of_excess = excess.min(size);
            Some(excess - of_excess)
        });
        debug_assert!(lowered.is_ok(), "the closure always returns a value");
        self.left.add_permits(size - of_excess);
    }
}
