//! Entries in Redis: `GET`, `SET` with a time to live, `UNLINK`, one key each.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use larder_core::{Store, StoreError, StoreErrorKind};
use redis::{RedisResult, cmd};

use crate::{
    breaker::Breaker,
    link::{Connection, Failure, Link, is_broken},
};

/// The shared store of a [`Redis`](crate::Redis).
#[derive(Clone, Debug)]
pub struct RedisStore {
    link: Arc<Link>,
    breaker: Arc<Breaker>,
    deadline: Duration,
    name: Arc<str>,
}

impl RedisStore {
    pub(crate) fn new(link: Arc<Link>, deadline: Duration, name: &str) -> Self {
        let breaker = Arc::new(Breaker::new("store"));
        Self { link, breaker, deadline, name: name.into() }
    }

    /// Where a key lies: each name has entries of its own.
    fn place(&self, key: &str) -> String {
        format!("{}:{key}", self.name)
    }

    async fn run<T, F, Fut>(&self, deadline: Duration, commands: F) -> Result<T, StoreError>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        if !self.breaker.allows() {
            return Err(StoreError::new(StoreErrorKind::Unreachable));
        }
        let outcome = self.link.run(deadline, commands).await;
        match outcome {
            Ok(value) => {
                self.breaker.succeeded();
                Ok(value)
            }
            Err(failure) => {
                let error = store_error(failure);
                if error.kind() == StoreErrorKind::Refused {
                    // It answers; it only will not. Perhaps it is no longer the primary.
                    self.breaker.succeeded();
                    self.link.forget();
                } else if self.breaker.failed() {
                    // A server that was stopped keeps its connections open for ever.
                    self.link.forget();
                }
                Err(error)
            }
        }
    }
}

impl Store for RedisStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        let place = self.place(key);
        Box::pin(self.run(self.deadline, move |connection| get(connection, place)))
    }

    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, StoreError>> {
        // One command for each: in a cluster they lie in different slots, and on one connection they go out
        // together all the same.
        Box::pin(self.run(self.deadline, move |connection| {
            try_join_all(keys.iter().map(move |key| get(connection.clone(), self.place(key))))
        }))
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX).clamp(1, MOST_MILLIS);
        let place = self.place(key);
        Box::pin(self.run(WRITE_DEADLINE, move |mut connection| async move {
            let mut set = cmd("SET");
            set.arg(place).arg(&value[..]).arg("PX").arg(millis);
            set.query_async(&mut connection).await
        }))
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        let place = self.place(key);
        Box::pin(self.run(self.deadline, move |mut connection| async move {
            cmd("UNLINK").arg(place).query_async(&mut connection).await
        }))
    }
}

async fn get(mut connection: Connection, key: String) -> RedisResult<Option<Bytes>> {
    cmd("GET").arg(key).query_async(&mut connection).await
}

fn store_error(failure: Failure) -> StoreError {
    match failure {
        Failure::Late => StoreError::new(StoreErrorKind::Timeout),
        Failure::Unconnected => StoreError::new(StoreErrorKind::Unreachable),
        Failure::Redis(error) => {
            let kind = if error.is_timeout() {
                StoreErrorKind::Timeout
            } else if is_broken(&error) {
                StoreErrorKind::Unreachable
            } else {
                StoreErrorKind::Refused
            };
            StoreError::new(kind).because(error)
        }
    }
}

/// Behind the request: nobody waits for it.
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
/// A hundred years; Redis refuses what does not fit its clock.
const MOST_MILLIS: u64 = 100 * 366 * 86_400_000;
