//! Entries in Redis, each in a key of its own: `GET`, `SET` with a time to live, and `UNLINK`. Fill locks have separate
//! keys.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use larder_core::store::{
    BoxFuture, FillLockState, FillLocks, Store, StoreError, StoreErrorKind, WriterId,
};
use redis::{RedisResult, RedisWrite, Script, ToRedisArgs, ToSingleRedisArg, cmd};

use crate::{
    connection::{Connection, Failure, is_broken},
    guarded_connection::GuardedConnection,
};

/// The servers from which entries are read. The log and the fill locks always use the primary.
///
/// A replica that lags returns an older entry or no entry. The stamp shows that an older entry is invalidated, so the
/// read is a miss and the response is never stale. With fill locks, the lag can also cause another fill, if a waiter
/// looks for the entry of the last holder on a replica that does not have it yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadFrom {
    /// The primary.
    #[default]
    Primary,
    /// The primary, or a replica if the primary refuses or cannot be reached. A read that times out is treated as a
    /// miss; after five timeouts in a row, the primary is treated as unreachable.
    PrimaryThenReplica,
    /// The replicas in turn, or the primary if the replica whose turn it is refuses or cannot be reached.
    AnyReplica,
}

/// The shared store of a [`Redis`](crate::Redis).
#[derive(Clone, Debug)]
pub struct RedisStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    primary: GuardedConnection,
    replicas: Vec<GuardedConnection>,
    read_from: ReadFrom,
    turn: AtomicUsize,
    deadline: Duration,
    max_value_bytes: usize,
    name: String,
    take: Script,
    give_back: Script,
}

impl Inner {
    async fn ask(
        &self,
        place: &GuardedConnection,
        name: Name<'_>,
    ) -> Result<Option<Bytes>, Failure> {
        let circuit = place.circuit_of(&name.pieces());
        place.run(circuit, self.deadline, |connection| get(connection, name)).await
    }

    /// Returns the replica whose turn it is, if there are replicas.
    fn next_replica(&self) -> Option<&GuardedConnection> {
        match self.replicas.len() {
            0 => None,
            replicas => self.replicas.get(self.turn.fetch_add(1, Ordering::Relaxed) % replicas),
        }
    }
}

impl RedisStore {
    pub(crate) fn new(
        primary: GuardedConnection,
        replicas: Vec<GuardedConnection>,
        read_from: ReadFrom,
        deadline: Duration,
        max_value_bytes: usize,
        name: &str,
    ) -> Self {
        Self(Arc::new(Inner {
            primary,
            replicas,
            read_from,
            turn: AtomicUsize::new(0),
            deadline,
            max_value_bytes,
            name: name.to_owned(),
            take: Script::new(include_str!("take.lua")),
            give_back: Script::new(include_str!("give_back.lua")),
        }))
    }

    /// Returns the Redis key of an entry. Each larder name has its own entries.
    fn entry<'a>(&'a self, key: &'a str) -> Name<'a> {
        Name { of: &self.0.name, what: ":", key }
    }

    fn lease<'a>(&'a self, key: &'a str) -> Name<'a> {
        Name { of: &self.0.name, what: ":lease:", key }
    }

    /// Reads from the first server of `read_from`, and from the second if the first fails before its deadline.
    async fn read(&self, name: Name<'_>) -> Result<Option<Bytes>, StoreError> {
        let inner = &*self.0;
        let replica = inner.next_replica();
        let (first, second) = match inner.read_from {
            ReadFrom::Primary => (&inner.primary, None),
            ReadFrom::PrimaryThenReplica => (&inner.primary, replica),
            ReadFrom::AnyReplica => {
                (replica.unwrap_or(&inner.primary), replica.map(|_| &inner.primary))
            }
        };
        let read = match (inner.ask(first, name).await, second) {
            // A read that timed out leaves no time for a second read.
            (Err(failure), Some(second)) if !failure.is_late() => inner.ask(second, name).await,
            (outcome, _) => outcome,
        };
        read.map_err(store_error)
    }

    async fn write<T, F, Fut>(
        &self,
        name: Name<'_>,
        deadline: Duration,
        commands: F,
    ) -> Result<T, StoreError>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let primary = &self.0.primary;
        let circuit = primary.circuit_of(&name.pieces());
        primary.run(circuit, deadline, commands).await.map_err(store_error)
    }
}

impl Store for RedisStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(self.read(self.entry(key)))
    }

    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>> {
        // Sends one command for each key, because the keys of a cluster are in different slots, and the connection
        // pipelines the commands anyway.
        Box::pin(join_all(keys.iter().map(move |key| self.read(self.entry(key)))))
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let name = self.entry(key);
        Box::pin(self.write(name, WRITE_DEADLINE, move |mut connection| async move {
            let mut set = cmd("SET");
            set.arg(name).arg(&value[..]).arg("PX").arg(millis(lifetime));
            set.query_async(&mut connection).await
        }))
    }

    fn deadline(&self) -> Option<Duration> {
        // A failed read is tried once more on another server.
        Some(self.0.deadline * if self.0.replicas.is_empty() { 1 } else { 2 })
    }

    fn max_value_bytes(&self) -> Option<usize> {
        Some(self.0.max_value_bytes)
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        let name = self.entry(key);
        Box::pin(self.write(name, self.0.deadline, move |mut connection| async move {
            cmd("UNLINK").arg(name).query_async(&mut connection).await
        }))
    }
}

impl FillLocks for RedisStore {
    fn take<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        expiry: Duration,
    ) -> BoxFuture<'a, Result<FillLockState, StoreError>> {
        let mut take = self.0.take.prepare_invoke();
        take.key(self.lease(key)).arg(text_of(holder)).arg(millis(expiry));
        Box::pin(async move {
            let taken =
                self.write(self.lease(key), self.0.deadline, move |mut connection| async move {
                    take.invoke_async::<u8>(&mut connection).await
                });
            Ok(match taken.await? {
                0 => FillLockState::Held,
                1 => FillLockState::Acquired,
                _ => FillLockState::NotStorable,
            })
        })
    }

    fn give_back<'a>(
        &'a self,
        key: &'a str,
        holder: WriterId,
        vain: Option<Duration>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut give_back = self.0.give_back.prepare_invoke();
        give_back.key(self.lease(key)).arg(text_of(holder)).arg(vain.map_or(0, millis));
        Box::pin(self.write(self.lease(key), WRITE_DEADLINE, move |mut connection| async move {
            give_back.invoke_async(&mut connection).await
        }))
    }
}

fn text_of(holder: WriterId) -> String {
    format!("{:032x}", holder.to_bits())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, MOST_MILLIS)
}

async fn get(mut connection: Connection, name: Name<'_>) -> RedisResult<Option<Bytes>> {
    cmd("GET").arg(name).query_async(&mut connection).await
}

/// A Redis key, which is written into the command from its pieces without a copy, because each command needs a key.
#[derive(Clone, Copy, Debug)]
struct Name<'a> {
    of: &'a str,
    what: &'static str,
    key: &'a str,
}

impl<'a> Name<'a> {
    fn pieces(self) -> [&'a str; 3] {
        [self.of, self.what, self.key]
    }
}

impl ToRedisArgs for Name<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut writer = out.writer_for_next_arg();
        let written =
            self.pieces().into_iter().try_for_each(|piece| writer.write_all(piece.as_bytes()));
        written.expect("a command is written to memory");
    }
}

impl ToSingleRedisArg for Name<'_> {}

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

/// Writes run in the background, so no request waits for them.
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
/// A hundred years; Redis refuses times that overflow its clock.
const MOST_MILLIS: u64 = 100 * 366 * 86_400_000;
