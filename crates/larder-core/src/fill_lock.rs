//! One fill for all processes: a lease in the shared store.
//!
//! Whoever misses takes the lease of the key before the origin is asked. Who finds it taken looks again, with
//! growing pauses, until the entry is there or the lease is free. A holder that dies delays others by the time of a
//! lease; then one of them has it, and the others wait for that one. After [`MOST_HOLDERS`] such times each fills
//! for itself. A lease saves work and decides nothing: what a fill brings is judged by its stamp, as ever.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{runtime::Handle, time::Instant};

use crate::{
    bus::WriterId,
    engine::Engine,
    entry::AnyEntry,
    flight::{FlightResult, Leader},
    kernel::Kernel,
    scope::{Scope, StoreWaits},
    second_level::READ_DEADLINE,
    store::StoreError,
};

/// Leases that all processes see. A further trait for a [`Store`](crate::store::Store) that can.
///
/// What it owes is tested by the conformance suite of `larder-testkit`.
pub trait FillLocks: fmt::Debug + Send + Sync + 'static {
    /// Takes the lease of a key for `holder`, for at most `expiry`.
    ///
    /// # Errors
    ///
    /// When it is not known whether it was taken: it may be, until it expires.
    fn take<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        expiry: Duration,
    ) -> BoxFuture<'a, Result<FillLockState, StoreError>>;

    /// Gives a lease back, if `holder` still has it. With `vain` nobody has to wait for the key for that long,
    /// since what comes is not kept.
    ///
    /// # Errors
    ///
    /// When it is not known whether it was given back; it expires.
    fn give_back<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        vain: Option<Duration>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// What became of asking for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillLockState {
    /// It is taken for whoever asked.
    Acquired,
    /// Another has it.
    Held,
    /// There is nothing to wait for: what the last holder brought was not kept.
    NotStorable,
}

/// The lease that a flight holds. Given back when it lands.
#[derive(Debug)]
pub(crate) struct HeldFillLock {
    engine: Weak<Engine>,
    leases: Arc<dyn FillLocks>,
    name: String,
    holder: WriterId,
}

impl HeldFillLock {
    /// Gives it back, behind the request: once what landed is written, so that whoever takes it next finds that.
    pub(crate) fn give_back(self, landing: &FlightResult) {
        let (Some(engine), Ok(_)) = (self.engine.upgrade(), Handle::try_current()) else { return };
        let shared = engine.shared.as_ref();
        let (written, vain) = match landing {
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
                // An error is the end of the write.
                drop(written.changed().await);
            }
            let giving = self.leases.give_back(&self.name, self.holder, vain);
            if let Err(error) = giving.await {
                tracing::debug!(target: "larder", %error, "a lease is left to expire");
            }
        });
    }
}

impl Kernel {
    /// Asks the shared store for what a flight is about. With `lease`, no two processes fill it at once:
    /// what another brings meanwhile is taken. `None` when it is this one that has to fill.
    pub async fn fetch_in_turn<F, Fut>(
        &self,
        scope: &Scope,
        lead: &mut Leader,
        lease: Option<Duration>,
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
        let (expiry, leases) = (lease?, engine.leases.as_ref()?);
        // What is of use to nobody else is nobody's to wait for. And without a place in the log nothing can be
        // written for others, nor read from them.
        engine.registry.applied().filter(|_| !lead.is_alone())?;
        let (name, holder) = (lead.key().store_key(), WriterId::random());
        // Before it is asked for: it may be taken although no answer comes, or nobody waits for one.
        lead.hold(HeldFillLock {
            engine: self.downgraded(),
            leases: Arc::clone(leases),
            name: name.clone(),
            holder,
        });
        // Whoever holds it at the end of an expiry has taken it over from one that died.
        let until = Instant::now() + MOST_HOLDERS * expiry.min(LONGEST_EXPIRY);
        let patience = engine.shared.as_ref().map_or(READ_DEADLINE, |shared| shared.deadline());
        let mut pause = FIRST_PAUSE;
        loop {
            let left = scope.store_waits().map_or(Duration::MAX, StoreWaits::left);
            if left.is_zero() {
                return None;
            }
            let began = Instant::now();
            let taking = leases.take(&name, holder, expiry);
            let taken = tokio::time::timeout(patience.min(left), taking).await;
            if let (Ok(Err(_)) | Err(_), Some(waits)) = (&taken, scope.store_waits()) {
                waits.add(began.elapsed());
            }
            match taken {
                // Somebody may have filled it between the look and the lease.
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

/// How long nobody waits for a key after what came for it was not kept.
const VAIN: Duration = Duration::from_secs(10);
/// Nobody waits longer for another process, whatever was asked for.
const LONGEST_EXPIRY: Duration = Duration::from_secs(86_400);
/// How many holders in a row may die before each process fills for itself.
const MOST_HOLDERS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
