//! Background refreshes: how many run at a time, and how long a refresh that failed is not repeated.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    clock::Moment,
    engine::{Engine, SAME_FILL},
    entry::AnyEntry,
    reason::Reason,
};

/// The refreshes of a larder.
#[derive(Debug)]
pub(crate) struct Refreshes {
    permits: Arc<Semaphore>,
    /// The entries whose last refresh failed, by the hash of their key.
    failed: Mutex<HashMap<u64, Backoff>>,
}

#[derive(Clone, Copy, Debug)]
struct Backoff {
    failures: u32,
    until: Moment,
}

impl Refreshes {
    pub(crate) fn new(most: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(most)), failed: Mutex::default() }
    }

    /// Returns a permit to refresh an entry.
    pub(crate) fn permit(
        &self,
        engine: &Arc<Engine>,
        entry: &AnyEntry,
        now: Moment,
    ) -> Result<RefreshPermit, Reason> {
        let failed = self.failed.lock().get(&entry.hash).copied();
        if failed.is_some_and(|failed| now < failed.until) {
            return Err(Reason::RefreshBackoff);
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let permit = permit.map_err(|_| Reason::RefreshBudget)?;
        let (engine, entry) = (Arc::downgrade(engine), Arc::clone(entry));
        Ok(RefreshPermit { engine, entry, is_leading: false, _permit: permit })
    }

    fn note(&self, hash: u64, has_failed: bool, now: Moment) {
        let mut failed = self.failed.lock();
        if !has_failed {
            failed.remove(&hash);
            return;
        }
        if failed.len() >= MOST_FAILED {
            failed.retain(|_, backoff| now < backoff.until);
        }
        if failed.len() < MOST_FAILED {
            let backoff = failed.entry(hash).or_insert(Backoff { failures: 0, until: now });
            let pause = FIRST_PAUSE * 2_u32.pow(backoff.failures.min(MOST_DOUBLINGS));
            *backoff = Backoff { failures: backoff.failures + 1, until: now.after(pause) };
        }
    }
}

/// The permit of one refresh, which its task holds to its end. If no later fill has replaced the entry by then, the
/// refresh has failed, and the next refresh of the entry waits for a second, then for two, up to a minute.
#[derive(Debug)]
pub struct RefreshPermit {
    engine: Weak<Engine>,
    entry: AnyEntry,
    /// Whether the holder leads a fill, so that the refresh can fail.
    is_leading: bool,
    _permit: OwnedSemaphorePermit,
}

impl RefreshPermit {
    /// Notes that the holder leads the fill.
    #[must_use]
    pub fn leading(mut self) -> Self {
        self.is_leading = true;
        self
    }
}

impl Drop for RefreshPermit {
    fn drop(&mut self) {
        let Some(engine) = self.engine.upgrade().filter(|_| self.is_leading) else { return };
        let entry = &self.entry;
        let now = engine.memory.get(entry.hash, entry.key().as_bytes());
        let latest = entry.ends().filled().after(SAME_FILL);
        let has_failed = now.is_some_and(|now| now.ends().filled() <= latest);
        engine.refreshes.note(entry.hash, has_failed, engine.clock.now());
    }
}

/// Maximum number of entries whose failures are remembered.
const MOST_FAILED: usize = 10_000;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Up to 64 s.
const MOST_DOUBLINGS: u32 = 6;
