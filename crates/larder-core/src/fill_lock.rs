//! Fill locks: one fill of a key across all processes, by a lock with expiry in the second level.
//!
//! A process that misses takes the fill lock of the key before it sends a request to the origin. If another process
//! holds the lock, it reads the second level again, with growing pauses, until the entry is there or the lock is
//! free. A holder that dies delays the other processes by one expiry; then one of them takes the lock and the
//! others wait for that one. After [`MOST_HOLDERS`] dead holders each process fills for itself. A fill lock saves
//! work and decides nothing: entries are judged by their stamps either way.

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
    /// Releases the lock in the background, once the entry is written to the second level: the next holder finds it
    /// there.
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
                // The sender is dropped when the write ends, which is an error here.
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
    /// Reads the entry of a leader's key from the second level. With `fill_lock_expiry`, the expiry of a fill lock, the
    /// processes fill one after the other, and this returns the entry if another process stores it meanwhile.
    /// `None` if this process has to fill.
    pub async fn fetch_in_turn<F, Fut>(
        &self,
        scope: &Scope,
        leader: &mut Leader,
        fill_lock_expiry: Option<Duration>,
        fetch: F,
    ) -> Option<AnyEntry>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Option<AnyEntry>>,
    {
        if let Some(entry) = fetch().await {
            return Some(entry);
        }
        let engine = self.engine();
        let (expiry, fill_locks) = (fill_lock_expiry?, engine.fill_locks.as_ref()?);
        // No process waits for a fill that cannot be shared. And without a log position, entries can be neither
        // written to the second level nor read from it.
        engine.registry.applied().filter(|_| !leader.is_alone())?;
        let (name, holder) = (leader.key().store_key(), WriterId::random());
        // Registered before the lock is taken: it may be taken even if no answer comes or this future is dropped.
        leader.hold(HeldFillLock {
            engine: self.downgraded(),
            fill_locks: Arc::clone(fill_locks),
            name: name.clone(),
            holder,
        });
        // A lock that is still held after an expiry has a new holder: the one before has died.
        let until = Instant::now() + MOST_HOLDERS * expiry.min(LONGEST_EXPIRY);
        let patience = engine.shared.as_ref().map_or(READ_DEADLINE, |shared| shared.deadline());
        let mut pause = FIRST_PAUSE;
        loop {
            let left = scope.store_waits().map_or(Duration::MAX, StoreWaits::left);
            if left.is_zero() {
                return None;
            }
            let began = Instant::now();
            let taking = fill_locks.take(&name, holder, expiry);
            let taken = tokio::time::timeout(patience.min(left), taking).await;
            if let (Ok(Err(_)) | Err(_), Some(waits)) = (&taken, scope.store_waits()) {
                waits.add(began.elapsed());
            }
            match taken {
                // Another process may have stored the entry between the read and the lock.
                Ok(Ok(FillLockState::Acquired)) => return fetch().await,
                Ok(Ok(FillLockState::Held)) if Instant::now() < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    if let Some(entry) = fetch().await {
                        return Some(entry);
                    }
                }
                Ok(Ok(FillLockState::Held | FillLockState::NotStorable)) | Ok(Err(_)) | Err(_) => {
                    return None;
                }
            }
        }
    }
}

/// How long no process waits for a key whose value was not storable.
const VAIN: Duration = Duration::from_secs(10);
/// The longest expiry that counts: a process waits for at most [`MOST_HOLDERS`] times this.
const LONGEST_EXPIRY: Duration = Duration::from_secs(86_400);
/// How many holders in a row may die before each process fills for itself.
const MOST_HOLDERS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
