//! Fill locks: a lock with expiry in the second level, by which only one process at a time fills a key.
//!
//! A process that misses takes the fill lock of the key before it sends a request to the origin. If another process
//! holds the lock, this process reads the second level again, with growing pauses, until the entry is there or the lock
//! is free. A holder that dies delays the other processes by one expiry; after that, one of them takes the lock and the
//! others wait for the new holder. After [`MOST_HOLDERS`] dead holders each process fills for itself. A fill lock only
//! saves work: with or without it, the stamp of an entry decides whether the entry is valid.

use std::{
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use crate::{
    bus::WriterId,
    engine::Engine,
    entry::AnyEntry,
    flight::{FlightResult, Leader, ReleaseAtEnd},
    kernel::Kernel,
    scope::{Scope, StoreWaits},
    second_level::READ_DEADLINE,
    store::{FillLockState, FillLocks},
};

/// The fill lock of a leader, released when its fill ends.
#[derive(Debug)]
struct HeldFillLock {
    engine: Weak<Engine>,
    fill_locks: Arc<dyn FillLocks>,
    name: String,
    holder: WriterId,
}

impl ReleaseAtEnd for HeldFillLock {
    /// Releases the lock in the background, once the entry is written to the second level, so that the next holder
    /// finds the entry there.
    fn release(self: Box<Self>, result: &FlightResult) {
        let (Some(engine), Ok(_)) = (self.engine.upgrade(), Handle::try_current()) else { return };
        let shared = engine.shared.as_ref();
        let (written, vain) = match result {
            FlightResult::Filled(entry) => {
                (shared.and_then(|shared| shared.under_way(entry)), None)
            }
            FlightResult::NotShared(_) => (None, Some(VAIN)),
            FlightResult::Abandoned | FlightResult::Failed(_) | FlightResult::Withdrawn => {
                (None, None)
            }
        };
        engine.tasks.spawn(async move {
            if let Some(mut written) = written {
                // `changed` returns an error when the write ends, because the write drops the sender.
                drop(written.changed().await);
            }
            let giving = self.fill_locks.give_back(&self.name, self.holder, vain);
            if let Err(error) = giving.await {
                tracing::debug!(target: "larder", %error, "a fill lock was not released; it expires");
            }
        });
    }
}

impl Kernel {
    /// Reads the entry of a leader's key from the second level. If `fill_lock_expiry`, the expiry of a fill lock, is
    /// set, the processes fill one after the other, and this method returns the entry if another process stores it in
    /// the meantime. `None` if this process has to fill, or if `serves_stale` returns that the read has brought an entry
    /// that may be served at once, while a refresh runs.
    pub async fn fetch_in_turn<F, Fut>(
        &self,
        scope: &Scope,
        leader: &mut Leader,
        fill_lock_expiry: Option<Duration>,
        fetch: F,
        serves_stale: impl Fn() -> bool,
    ) -> Option<AnyEntry>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Option<AnyEntry>>,
    {
        if let Some(entry) = fetch().await {
            return Some(entry);
        }
        if serves_stale() {
            return None;
        }
        let engine = self.engine();
        let expiry = fill_lock_expiry?;
        // If the lock is still held after an expiry, the previous holder has died and the lock has a new holder.
        let until = Instant::now() + MOST_HOLDERS * expiry.min(LONGEST_EXPIRY);
        let lock = self.prepare_lock(leader, expiry)?;
        let mut pause = FIRST_PAUSE;
        loop {
            match lock.take(engine, scope).await {
                // Another process may have stored the entry between the read and the lock.
                Some(FillLockState::Acquired) => return fetch().await,
                Some(FillLockState::Held) if Instant::now() < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    if let Some(entry) = fetch().await {
                        return Some(entry);
                    }
                }
                Some(FillLockState::Held | FillLockState::NotStorable) | None => return None,
            }
        }
    }

    /// Takes the fill lock of a leader, without a wait for another holder. `None` if there are no locks, or if it is
    /// unknown whether the lock was taken.
    pub(crate) async fn try_lock(
        &self,
        scope: &Scope,
        leader: &mut Leader,
        expiry: Duration,
    ) -> Option<FillLockState> {
        self.prepare_lock(leader, expiry)?.take(self.engine(), scope).await
    }

    /// Prepares the fill lock of a leader. `None` if the fill needs no lock or if there are no locks.
    ///
    /// The leader holds the lock before it is taken, because the server may take it even if no answer arrives or the
    /// future is dropped.
    fn prepare_lock(&self, leader: &mut Leader, expiry: Duration) -> Option<FillLock> {
        let engine = self.engine();
        let fill_locks = engine.fill_locks.as_ref()?;
        // A fill that cannot be shared needs no lock, because no process waits for it. Without a log position, entries
        // can be neither written to the second level nor read from it.
        engine.registry.applied().filter(|_| !leader.is_alone())?;
        let (name, holder) = (leader.key().store_key(), WriterId::random());
        let fill_locks = Arc::clone(fill_locks);
        leader.hold(HeldFillLock {
            engine: self.downgraded(),
            fill_locks: Arc::clone(&fill_locks),
            name: name.clone(),
            holder,
        });
        Some(FillLock { fill_locks, name, holder, expiry })
    }
}

/// A fill lock that a leader may take.
struct FillLock {
    fill_locks: Arc<dyn FillLocks>,
    name: String,
    holder: WriterId,
    expiry: Duration,
}

impl FillLock {
    /// Asks for the lock once. `None` if it is unknown whether it was taken, or if the request has used up its limit on
    /// waits.
    async fn take(&self, engine: &Engine, scope: &Scope) -> Option<FillLockState> {
        let patience = engine.shared.as_ref().map_or(READ_DEADLINE, |shared| shared.deadline());
        let left = scope.store_waits().map_or(Duration::MAX, StoreWaits::left);
        if left.is_zero() {
            return None;
        }
        let began = Instant::now();
        let taking = self.fill_locks.take(&self.name, self.holder, self.expiry);
        let taken = tokio::time::timeout(patience.min(left), taking).await;
        if let (Ok(Err(_)) | Err(_), Some(waits)) = (&taken, scope.store_waits()) {
            waits.add(began.elapsed());
        }
        taken.ok()?.ok()
    }
}

/// How long processes do not wait for a key after its value was not storable.
const VAIN: Duration = Duration::from_secs(10);
/// The maximum expiry that a process waits for; it waits for at most [`MOST_HOLDERS`] times this.
const LONGEST_EXPIRY: Duration = Duration::from_secs(86_400);
/// How many holders in a row may die before each process fills for itself.
const MOST_HOLDERS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
