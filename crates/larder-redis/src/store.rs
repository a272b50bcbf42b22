//! Entries in Redis, each in a key of its own: `GET`, `MGET`, `SET` with a time to live, and `UNLINK`. Fill locks have separate
//! keys.

use std::{
    collections::HashMap,
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
    BoxFuture, FillLockState, FillLocks, ServerState, ServerUsage, Store, StoreError,
    StoreErrorKind, WriterId,
};
use redis::{RedisResult, RedisWrite, Script, ToRedisArgs, ToSingleRedisArg, Value, cmd};

use crate::{
    connection::{Connection, Failure, is_broken},
    guarded_connection::GuardedConnection,
    report::usage_of,
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
    replace: Script,
}

impl Inner {
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
            replace: Script::new(include_str!("replace.lua")),
        }))
    }

    /// Returns the states of the connections to the primary and to the replicas.
    pub(crate) fn states(&self) -> Vec<ServerState> {
        std::iter::once(&self.0.primary)
            .chain(&self.0.replicas)
            .map(GuardedConnection::state)
            .collect()
    }

    /// Asks the primary, or all primaries of a cluster, how much they store.
    pub(crate) async fn usage(&self) -> Result<ServerUsage, StoreError> {
        let ask = |mut connection| async move {
            let keys: u64 = cmd("DBSIZE").query_async(&mut connection).await?;
            let info: Value = cmd("INFO").arg("memory").query_async(&mut connection).await?;
            Ok((keys, info))
        };
        // The circuit of any slot serves: a cluster answers both commands from all of its primaries.
        let answered = self.0.primary.run(0, WRITE_DEADLINE, ask).await;
        let (keys, info) = answered.map_err(store_error)?;
        let mut texts = Vec::new();
        collect_texts(&info, &mut texts);
        Ok(usage_of(keys, texts))
    }

    /// Returns the Redis key of an entry. Each larder name has its own entries.
    fn entry<'a>(&'a self, key: &'a str) -> Name<'a> {
        Name { of: &self.0.name, what: ":", key }
    }

    fn lease<'a>(&'a self, key: &'a str) -> Name<'a> {
        Name { of: &self.0.name, what: ":lease:", key }
    }

    /// Runs a read on the first server of `read_from`, and on the second if the first fails before its deadline.
    async fn read<'a, T, C>(&'a self, circuit_of: Name<'a>, command: C) -> Result<T, Failure>
    where
        C: Fn(Connection) -> BoxFuture<'a, RedisResult<T>>,
    {
        let inner = &*self.0;
        let run = |place: &'a GuardedConnection| {
            let circuit = place.circuit_of(&circuit_of.pieces());
            place.run(circuit, inner.deadline, &command)
        };
        let replica = inner.next_replica();
        let (first, second) = match inner.read_from {
            ReadFrom::Primary => (&inner.primary, None),
            ReadFrom::PrimaryThenReplica => (&inner.primary, replica),
            ReadFrom::AnyReplica => {
                (replica.unwrap_or(&inner.primary), replica.map(|_| &inner.primary))
            }
        };
        match (run(first).await, second) {
            // A read that timed out leaves no time for a second read.
            (Err(failure), Some(second)) if !failure.is_late() => run(second).await,
            (outcome, _) => outcome,
        }
    }

    /// Reads keys of one slot or of one server by one command.
    async fn read_group<'a>(
        &'a self,
        names: &[Name<'a>],
    ) -> Vec<Result<Option<Bytes>, StoreError>> {
        let Some(first) = names.first() else { return Vec::new() };
        let mut mget = cmd("MGET");
        names.iter().for_each(|name| {
            mget.arg(*name);
        });
        let mget = Arc::new(mget);
        let read = self.read(*first, |mut connection| {
            let mget = Arc::clone(&mget);
            Box::pin(async move { mget.query_async(&mut connection).await })
        });
        match read.await {
            Ok(found) => Vec::into_iter(found).map(Ok).collect(),
            Err(failure) => names.iter().map(|_| Err(shared_error(&failure))).collect(),
        }
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

/// Collects all strings of an answer: one `INFO` of a server, or a map of those of a cluster.
fn collect_texts<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::BulkString(bytes) => texts.extend(std::str::from_utf8(bytes).ok()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => texts.push(text),
        Value::Array(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, value)| collect_texts(value, texts)),
        _ => {}
    }
}

impl Store for RedisStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        let name = self.entry(key);
        Box::pin(async move {
            let get = |connection| -> BoxFuture<'a, _> { Box::pin(get(connection, name)) };
            self.read(name, get).await.map_err(store_error)
        })
    }

    fn get_many<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Vec<Result<Option<Bytes>, StoreError>>> {
        // A cluster refuses a command with keys of several slots.
        let mut groups: HashMap<usize, Vec<usize>> = HashMap::new();
        for (number, key) in keys.iter().enumerate() {
            let slot = self.0.primary.slot_of(&self.entry(key).pieces());
            groups.entry(slot).or_default().push(number);
        }
        Box::pin(async move {
            // A server runs one command at a time, so a long command would delay the commands of others.
            let groups = groups.values().flat_map(|numbers| numbers.chunks(MOST_KEYS));
            let reads = groups.map(|numbers| async move {
                let names: Vec<_> =
                    numbers.iter().map(|number| self.entry(keys[*number])).collect();
                numbers.iter().copied().zip(self.read_group(&names).await)
            });
            let mut found: Vec<_> = keys.iter().map(|_| Ok(None)).collect();
            for (number, result) in join_all(reads).await.into_iter().flatten() {
                found[number] = result;
            }
            found
        })
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

    fn replace<'a>(
        &'a self,
        key: &'a str,
        read: Bytes,
        value: Bytes,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let name = self.entry(key);
        let mut replace = self.0.replace.prepare_invoke();
        replace.key(name).arg(&read[..]).arg(&value[..]).arg(millis(lifetime));
        Box::pin(self.write(name, WRITE_DEADLINE, move |mut connection| async move {
            replace.invoke_async(&mut connection).await
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
    let error = StoreError::new(kind_of(&failure));
    match failure {
        Failure::Redis(cause) => error.because(cause),
        Failure::Late | Failure::Unconnected => error,
    }
}

/// Returns the error of one key of a command for several.
fn shared_error(failure: &Failure) -> StoreError {
    let error = StoreError::new(kind_of(failure));
    match failure {
        Failure::Redis(cause) => error.because(cause.to_string()),
        Failure::Late | Failure::Unconnected => error,
    }
}

fn kind_of(failure: &Failure) -> StoreErrorKind {
    match failure {
        Failure::Late => StoreErrorKind::Timeout,
        Failure::Unconnected => StoreErrorKind::Unreachable,
        Failure::Redis(error) if error.is_timeout() => StoreErrorKind::Timeout,
        Failure::Redis(error) if is_broken(error) => StoreErrorKind::Unreachable,
        Failure::Redis(_) => StoreErrorKind::Refused,
    }
}

/// Maximum number of keys that one command reads.
const MOST_KEYS: usize = 256;
/// Writes run in the background, so no request waits for them.
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
/// A hundred years; Redis refuses times that overflow its clock.
const MOST_MILLIS: u64 = 100 * 366 * 86_400_000;
