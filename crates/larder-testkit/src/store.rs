//! Shared stores for tests: a store in memory, and a wrapper that fails.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use larder_core::store::{
    BoxFuture, FillLockState, FillLocks, Store, StoreError, StoreErrorKind, WriterId,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::seeded_rng::SeededRng;

/// A store in memory. Clones share it, so that several larders can use one store.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    held: Arc<Mutex<HashMap<String, (Bytes, Instant)>>>,
    leases: Arc<Mutex<HashMap<String, Lease>>>,
}

#[derive(Debug)]
struct Lease {
    /// `None` while the value of the key is known to be not storable, so that there is nothing to wait for.
    holder: Option<WriterId>,
    until: Instant,
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the bytes of a key, if it has any, as an attacker or an accident could.
    pub fn tamper(&self, key: &str, change: impl FnOnce(&[u8]) -> Vec<u8>) {
        let mut held = self.held.lock();
        if let Some((bytes, until)) = held.remove(key) {
            held.insert(key.to_owned(), (change(&bytes).into(), until));
        }
    }

    /// Returns all keys, including expired keys.
    pub fn keys(&self) -> Vec<String> {
        self.held.lock().keys().cloned().collect()
    }

    fn read(&self, key: &str) -> Option<Bytes> {
        let held = self.held.lock();
        held.get(key).filter(|(_, until)| Instant::now() < *until).map(|(bytes, _)| bytes.clone())
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(async move { Ok(self.read(key)) })
    }

    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>> {
        Box::pin(async move { keys.iter().map(|key| Ok(self.read(key))).collect() })
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.held.lock().insert(key.to_owned(), (value, Instant::now() + lifetime));
            Ok(())
        })
    }

    fn replace<'a>(
        &'a self,
        key: &'a str,
        read: Bytes,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let is_same = self.read(key).is_some_and(|there| there == read);
            if is_same {
                self.held.lock().insert(key.to_owned(), (value, Instant::now() + lifetime));
            }
            Ok(is_same)
        })
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.held.lock().remove(key);
            Ok(())
        })
    }
}

impl FillLocks for MemoryStore {
    fn take<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        expiry: Duration,
    ) -> BoxFuture<'a, Result<FillLockState, StoreError>> {
        Box::pin(async move {
            let now = Instant::now();
            let mut leases = self.leases.lock();
            Ok(match leases.get(key).filter(|lease| now < lease.until) {
                Some(Lease { holder: Some(_), .. }) => FillLockState::Held,
                Some(Lease { holder: None, .. }) => FillLockState::NotStorable,
                None => {
                    let lease = Lease { holder: Some(holder), until: now + expiry };
                    leases.insert(key.to_owned(), lease);
                    FillLockState::Acquired
                }
            })
        })
    }

    fn give_back<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        vain: Option<Duration>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let now = Instant::now();
            let mut leases = self.leases.lock();
            let is_own = |lease: &Lease| lease.holder == Some(holder) && now < lease.until;
            if leases.get(key).is_some_and(is_own) {
                leases.remove(key);
                if let Some(vain) = vain {
                    leases.insert(key.to_owned(), Lease { holder: None, until: now + vain });
                }
            }
            Ok(())
        })
    }
}

/// A store that fails and delays commands, executes writes that it reports as failed, repeats old writes, and returns
/// the answers to other commands.
#[derive(Clone, Debug)]
pub struct FaultyStore<S> {
    inner: S,
    dice: SeededRng,
    percent: u64,
    longest: Duration,
    before: Arc<Mutex<Before>>,
}

/// The previous write and the previous answer.
#[derive(Debug, Default)]
struct Before {
    written: Option<(String, Bytes, Duration)>,
    answer: Option<Bytes>,
}

impl<S: Store + Clone> FaultyStore<S> {
    /// Creates a store in which `percent` of all commands fail, `percent` of all commands repeat the previous write,
    /// and `percent` of all reads return the answer to the previous read. It delays each command by up to `longest`,
    /// and each read again on its way back.
    pub fn new(inner: S, dice: SeededRng, percent: u64, longest: Duration) -> Self {
        Self { inner, dice, percent, longest, before: Arc::default() }
    }

    async fn stall(&self) -> Result<(), StoreError> {
        self.dice.pause(self.longest).await;
        self.repeat_a_write().await;
        match self.dice.chance(self.percent) {
            true => Err(StoreError::new(StoreErrorKind::Timeout)),
            false => Ok(()),
        }
    }

    /// Repeats the previous write, in `percent` of all commands.
    async fn repeat_a_write(&self) {
        if !self.dice.chance(self.percent) {
            return;
        }
        let written = self.before.lock().written.take();
        if let Some((key, value, lifetime)) = written {
            drop(self.inner.set(&key, value, lifetime).await);
        }
    }

    /// Returns the answer to the previous read, in `percent` of all reads.
    fn confused(&self, answer: Option<Bytes>) -> Option<Bytes> {
        let confused = self.dice.chance(self.percent);
        let mut before = self.before.lock();
        let other = before.answer.take();
        before.answer.clone_from(&answer);
        if confused { other.or(answer) } else { answer }
    }
}

impl<S: Store + Clone> Store for FaultyStore<S> {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(async move {
            self.stall().await?;
            let found = self.inner.get(key).await;
            // The answer is delayed too, so that other commands may write in the meantime.
            self.dice.pause(self.longest).await;
            found.map(|found| self.confused(found))
        })
    }

    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>> {
        Box::pin(async move {
            let failures = join_all(keys.iter().map(|_| self.stall())).await;
            let found = self.inner.get_many(keys).await;
            self.dice.pause(self.longest).await;
            let answer = |(failed, found): (Result<(), _>, Result<_, _>)| {
                failed.and(found).map(|found| self.confused(found))
            };
            failures.into_iter().zip(found).map(answer).collect()
        })
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let failed = self.stall().await;
            self.before.lock().written = Some((key.to_owned(), value.clone(), lifetime));
            if failed.is_ok() || self.dice.chance(50) {
                self.inner.set(key, value, lifetime).await?;
            }
            failed
        })
    }

    fn replace<'a>(
        &'a self,
        key: &'a str,
        read: Bytes,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let failed = self.stall().await;
            if failed.is_ok() || self.dice.chance(50) {
                let replaced = self.inner.replace(key, read, value, lifetime).await?;
                return failed.map(|()| replaced);
            }
            Err(StoreError::new(StoreErrorKind::Timeout))
        })
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let failed = self.stall().await;
            if failed.is_ok() || self.dice.chance(50) {
                self.inner.remove(key).await?;
            }
            failed
        })
    }
}

impl<S: Store + FillLocks + Clone> FillLocks for FaultyStore<S> {
    fn take<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        expiry: Duration,
    ) -> BoxFuture<'a, Result<FillLockState, StoreError>> {
        Box::pin(async move {
            let stalled = self.stall().await;
            if stalled.is_ok() || self.dice.chance(50) {
                let taken = self.inner.take(key, holder, expiry).await;
                return stalled.and(taken);
            }
            Err(StoreError::new(StoreErrorKind::Timeout))
        })
    }

    fn give_back<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        vain: Option<Duration>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.stall().await?;
            self.inner.give_back(key, holder, vain).await
        })
    }
}
