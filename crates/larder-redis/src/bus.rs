//! The invalidation log, as a Redis Stream to which one script appends.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use larder_core::{
    Mode, Selector,
    store::{
        BoxFuture, Bus, BusError, BusErrorKind, Epoch, LogPage, Position, Record, RecordNote,
        Rules, ServerState, WriterId,
    },
};
use parking_lot::Mutex;
use redis::{FromRedisValue, RedisResult, Script, Value, cmd, streams::StreamReadReply};
use tokio::time::Instant;

use crate::{
    advice::{self, Advice},
    connection::{Connection, Failure, SharedConnection, is_broken},
    guarded_connection::GuardedConnection,
    replica_ack::ReplicaAck,
};

/// The invalidation log of a [`Redis`](crate::Redis).
#[derive(Clone, Debug)]
pub struct RedisBus {
    /// For commands that the server answers at once.
    place: Arc<GuardedConnection>,
    confirmer: Arc<ReplicaAck>,
    /// For blocking reads, which would delay the answers to all other commands on a shared connection.
    reader: Arc<SharedConnection>,
    keys: Arc<[String; 5]>,
    /// The rules that processes have published, by the second of their last publication.
    rules: Arc<str>,
    log: Arc<Script>,
    page: Arc<Script>,
    longest_millis: Arc<AtomicU64>,
    /// The number of replicas that must have a record before it is treated as appended.
    durable: u32,
    /// Whether the settings of the server were checked.
    advised: Arc<AtomicBool>,
    time: Arc<Mutex<Option<ServerTime>>>,
}

/// The time of the server at an instant of this process.
#[derive(Clone, Copy, Debug)]
struct ServerTime {
    at: Instant,
    time: SystemTime,
    /// The round-trip time of the answer. The time of the server may be wrong by half of it.
    round_trip: Duration,
}

impl ServerTime {
    /// Returns the more exact of two measurements, but ignores `other` if it is older than `self` by `RENEWED_WITHIN`
    /// or more.
    fn or_better(self, other: Option<Self>) -> Self {
        let is_better = |other: &Self| {
            other.round_trip < self.round_trip && self.at.duration_since(other.at) < RENEWED_WITHIN
        };
        other.filter(is_better).unwrap_or(self)
    }
}

impl RedisBus {
    pub(crate) fn new(
        [link, confirming, reader]: [Arc<SharedConnection>; 3],
        name: &str,
        durable: u32,
        address: &str,
    ) -> Self {
        // The braces put all keys into the same slot of a cluster.
        let keys = ["meta", "stream", "compact", "clock", "due"]
            .map(|part| format!("larder:log:{{{name}}}:{part}"));
        Self {
            place: Arc::new(GuardedConnection::of_log(link).at(address)),
            confirmer: Arc::new(ReplicaAck::new(confirming, keys[0].clone())),
            reader,
            keys: Arc::new(keys),
            rules: format!("larder:log:{{{name}}}:rules").into(),
            log: Arc::new(Script::new(include_str!("log.lua"))),
            page: Arc::new(Script::new(include_str!("page.lua"))),
            longest_millis: Arc::new(AtomicU64::new(0)),
            durable,
            advised: Arc::default(),
            time: Arc::default(),
        }
    }

    /// Returns the state of the connection to the server of the log.
    pub(crate) fn state(&self) -> ServerState {
        self.place.state()
    }

    /// Runs the script of the log. Returns the end of the log. After an append, this is the position of the record.
    async fn ask(&self, lost: Option<Epoch>, act: Act<'_>) -> Result<Position, BusError> {
        let mut call = self.log.prepare_invoke();
        call.key(&self.keys[..]);
        call.arg(text_of(Epoch::random()))
            .arg(lost.map(text_of).unwrap_or_default())
            .arg(self.longest_millis.load(Ordering::Relaxed))
            .arg(MOST_RECORDS);
        let record = match act {
            Act::Ask => None,
            Act::Append(record) => {
                call.arg("append").arg("").arg("");
                Some(record)
            }
            Act::Schedule(id, record, after) => {
                let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).min(MOST_MILLIS);
                call.arg("schedule").arg(millis).arg(id);
                Some(record)
            }
        };
        if let Some(record) = record {
            call.arg(written_record(record)?);
            for selector in &record.what {
                call.arg(member(record.mode, selector)?);
            }
        }
        let sent = Instant::now();
        let asked = self.run(|mut connection| async move {
            call.invoke_async::<(String, u64, u64)>(&mut connection).await
        });
        let (epoch, number, millis) = asked.await?;
        self.note_time(sent, millis);
        let epoch = epoch_of(&epoch).ok_or_else(|| BusError::new(BusErrorKind::Refused))?;
        let position = Position { epoch, number };
        let durable = if matches!(act, Act::Append(_)) { self.durable } else { 0 };
        if durable > 0 && !self.confirmer.is_on(durable, position).await {
            return Err(BusError::unconfirmed(position));
        }
        if !self.advised.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().warn());
        }
        Ok(position)
    }

    /// Records the time of the server, and assumes that the server read it in the middle of the round trip.
    fn note_time(&self, sent: Instant, millis: u64) {
        let round_trip = sent.elapsed();
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let new = ServerTime { at: sent + round_trip / 2, time, round_trip };
        let mut known = self.time.lock();
        *known = Some(new.or_better(*known));
    }

    /// Lists the settings of the server that cost hits or invalidations.
    pub(crate) async fn advice(&self) -> Result<Vec<Advice>, BusError> {
        let home = self.keys[0].clone();
        self.run(|connection| advice::ask(connection, home)).await
    }

    async fn warn(self) {
        match self.advice().await {
            Ok(all) => {
                for advice in all {
                    tracing::warn!(target: "larder", %advice, "a setting of redis costs hits or invalidations");
                }
            }
            Err(error) => {
                tracing::debug!(target: "larder", %error, "the settings of redis cannot be read");
            }
        }
    }

    async fn read_after(
        &self,
        after: Position,
        wait: Duration,
    ) -> Result<Vec<(u64, Record)>, BusError> {
        // A cluster connection times out if an answer takes longer.
        let wait = wait.min(LONGEST_WAIT);
        let keys = Arc::clone(&self.keys);
        let read = self.reader.run(wait + DEADLINE, |mut connection| async move {
            let mut read = cmd("XREAD");
            read.arg("COUNT").arg(MOST_READ);
            if !wait.is_zero() {
                read.arg("BLOCK").arg(u64::try_from(wait.as_millis()).unwrap_or(1).max(1));
            }
            // The sentinel of a log of this epoch has the id 0-1.
            let id = match after.number {
                0 => "0-1".to_owned(),
                number => format!("{number}-0"),
            };
            read.arg("STREAMS").arg(&keys[1]).arg(id);
            let found: Option<StreamReadReply> = read.query_async(&mut connection).await?;
            // Reads the epoch, too, because a stream of another epoch says nothing about this epoch, whether it holds
            // records or not.
            let epoch: Option<String> =
                cmd("HGET").arg(&keys[0]).arg("epoch").query_async(&mut connection).await?;
            Ok((found, epoch))
        });
        let (found, epoch) = match read.await {
            Ok(found) => found,
            Err(failure) => {
                self.reader.forget();
                return Err(bus_error(failure));
            }
        };
        if epoch.as_deref().and_then(epoch_of) != Some(after.epoch) {
            // The two connections may lead to different servers, of which one was replaced, so both reconnect.
            self.reader.forget();
            self.place.forget();
            return Err(BusError::new(BusErrorKind::Gone));
        }
        let entries = found.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        let epoch = text_of(after.epoch);
        entries
            .map(|entry| {
                let of = |name: &str| Vec::<u8>::from_redis_value_ref(entry.map.get(name)?).ok();
                let number = entry.id.split('-').next().and_then(|number| number.parse().ok());
                // A newer version of larder may have written a record that this version cannot decode. It is treated as
                // an invalidation of everything.
                let record = of("record").map(|bytes| read_record(&bytes).unwrap_or_else(anything));
                if of("epoch").as_deref() != Some(epoch.as_bytes()) {
                    return Err(BusError::new(BusErrorKind::Gone));
                }
                number.zip(record).ok_or_else(|| BusError::new(BusErrorKind::Gone))
            })
            .collect()
    }

    async fn page_after(&self, after: u64) -> Result<LogPage, BusError> {
        let mut call = self.page.prepare_invoke();
        call.key(&self.keys[..]);
        call.arg(after).arg(PAGE);
        let asked = self.run(|mut connection| async move {
            type Reply = (String, u64, u64, u64, Vec<Value>);
            call.invoke_async::<Reply>(&mut connection).await
        });
        let (epoch, last, horizon, more, members) = asked.await?;
        let epoch = epoch_of(&epoch).ok_or_else(|| BusError::new(BusErrorKind::Gone))?;
        let mut records: BTreeMap<(u64, u8), Record> = BTreeMap::new();
        for pair in members.chunks_exact(2) {
            let (number, letter, selector) =
                read_member(pair).ok_or_else(|| BusError::new(BusErrorKind::Gone))?;
            let (mode, selector) = match (mode_of(letter), selector) {
                (Some(mode), Some(selector)) => (mode, selector),
                // A newer version of larder may have written a member that this version cannot decode. It is treated as
                // an invalidation of everything.
                _ => (Mode::Hard, Selector::Everything),
            };
            let record = records.entry((number, letter)).or_insert_with(|| Record {
                origin: WriterId::random(),
                mode,
                what: Vec::new(),
                // A transaction is only of interest shortly after its commit.
                commit: None,
                note: RecordNote::default(),
            });
            record.what.push(selector);
        }
        Ok(LogPage {
            end: Position { epoch, number: last },
            horizon,
            records: records.into_iter().map(|((number, _), record)| (number, record)).collect(),
            more: more > 0,
        })
    }

    async fn add_rules(&self, rules: &Rules) -> Result<(), BusError> {
        let packed = rmp_serde::to_vec(rules).map_err(|_| BusError::new(BusErrorKind::Refused))?;
        let key = Arc::clone(&self.rules);
        self.run(|mut connection| async move {
            let now = second(&mut connection).await?;
            let old = now.saturating_sub(24 * 3600);
            cmd("ZREMRANGEBYSCORE")
                .arg(&*key)
                .arg("-inf")
                .arg(old)
                .query_async::<()>(&mut connection)
                .await?;
            cmd("ZADD").arg(&*key).arg(now).arg(packed).query_async::<()>(&mut connection).await
        })
        .await
    }

    async fn recent_rules(&self) -> Result<Option<Rules>, BusError> {
        let key = Arc::clone(&self.rules);
        let found: Vec<Vec<u8>> = self
            .run(|mut connection| async move {
                let since = second(&mut connection).await?.saturating_sub(3600);
                let mut recent = cmd("ZRANGEBYSCORE");
                recent.arg(&*key).arg(since).arg("+inf").query_async(&mut connection).await
            })
            .await?;
        let mut all: Option<Rules> = None;
        for packed in found {
            let rules =
                rmp_serde::from_slice(&packed).map_err(|_| BusError::new(BusErrorKind::Refused))?;
            all.get_or_insert_default().extend(rules);
        }
        Ok(all)
    }

    async fn run<T, F, Fut>(&self, commands: F) -> Result<T, BusError>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        self.place.run(0, DEADLINE, commands).await.map_err(bus_error)
    }
}

impl Bus for RedisBus {
    fn is_shared(&self) -> bool {
        true
    }

    fn server_time(&self) -> Option<(Instant, SystemTime)> {
        self.time.lock().map(|known| (known.at, known.time))
    }

    fn keep_for(&self, longest: Duration) {
        let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        self.longest_millis.fetch_max(millis, Ordering::Relaxed);
    }

    fn append<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<Position, BusError>> {
        Box::pin(self.ask(None, Act::Append(record)))
    }

    fn schedule<'a>(
        &'a self,
        id: u64,
        record: &'a Record,
        after: Duration,
    ) -> BoxFuture<'a, Result<Position, BusError>> {
        Box::pin(self.ask(None, Act::Schedule(id, record, after)))
    }

    fn end(&self, lost: Option<Epoch>) -> BoxFuture<'_, Result<Position, BusError>> {
        Box::pin(self.ask(lost, Act::Ask))
    }

    fn read(
        &self,
        after: Position,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Vec<(u64, Record)>, BusError>> {
        Box::pin(self.read_after(after, wait))
    }

    fn compacted(&self, after: u64) -> BoxFuture<'_, Result<LogPage, BusError>> {
        Box::pin(self.page_after(after))
    }

    fn publish_rules<'a>(&'a self, rules: &'a Rules) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.add_rules(rules))
    }

    fn published_rules(&self) -> BoxFuture<'_, Result<Option<Rules>, BusError>> {
        Box::pin(self.recent_rules())
    }
}

/// Returns the second of the server, since the clocks of processes may differ.
async fn second(connection: &mut Connection) -> RedisResult<u64> {
    let (second, _): (u64, u64) = cmd("TIME").query_async(connection).await?;
    Ok(second)
}

/// The action that the script of the log takes.
#[derive(Clone, Copy)]
enum Act<'a> {
    Ask,
    Append(&'a Record),
    Schedule(u64, &'a Record, Duration),
}

fn text_of(epoch: Epoch) -> String {
    format!("{:032x}", epoch.to_bits())
}

pub(crate) fn epoch_of(text: &str) -> Option<Epoch> {
    u128::from_str_radix(text, 16).ok().map(Epoch::from_bits)
}

fn written<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, BusError> {
    rmp_serde::to_vec(value).map_err(|error| BusError::new(BusErrorKind::Refused).because(error))
}

/// Writes a record, and its note after it. A reader that does not know notes reads the record, and ignores what follows;
/// it could not read a record with one more field.
fn written_record(record: &Record) -> Result<Vec<u8>, BusError> {
    let mut bytes = written(record)?;
    if !record.note.is_empty() {
        bytes.extend(written(&record.note)?);
    }
    Ok(bytes)
}

/// Reads a record, and its note if it has one that can be read.
fn read_record(mut bytes: &[u8]) -> Option<Record> {
    let mut record: Record = rmp_serde::from_read(&mut bytes).ok()?;
    record.note = rmp_serde::from_slice(bytes).unwrap_or_default();
    Some(record)
}

/// A member of the compacted log: the mode as a letter, and the target.
fn member(mode: Mode, selector: &Selector) -> Result<Vec<u8>, BusError> {
    let mut member = vec![match mode {
        Mode::Hard => b'h',
        Mode::Soft { grace: None } => b's',
        Mode::Soft { grace: Some(_) } => b'g',
    }];
    member.extend(written(selector)?);
    Ok(member)
}

fn read_member(pair: &[Value]) -> Option<(u64, u8, Option<Selector>)> {
    let [member, number] = pair else { return None };
    let member = Vec::<u8>::from_redis_value_ref(member).ok()?;
    let number = String::from_redis_value_ref(number).ok()?.parse().ok()?;
    let (letter, selector) = member.split_first()?;
    Some((number, *letter, rmp_serde::from_slice(selector).ok()))
}

fn mode_of(letter: u8) -> Option<Mode> {
    Some(match letter {
        b'h' => Mode::Hard,
        b's' => Mode::Soft { grace: None },
        // The start of the grace period is unknown, so the period is zero.
        b'g' => Mode::Soft { grace: Some(Duration::ZERO) },
        _ => return None,
    })
}

fn anything() -> Record {
    let what = vec![Selector::Everything];
    Record {
        origin: WriterId::random(),
        mode: Mode::Hard,
        what,
        commit: None,
        note: RecordNote::default(),
    }
}

fn bus_error(failure: Failure) -> BusError {
    match failure {
        Failure::Late => BusError::new(BusErrorKind::Timeout),
        Failure::Unconnected => BusError::new(BusErrorKind::Unreachable),
        Failure::Redis(error) => {
            let kind = if error.code() == Some("GONE") {
                BusErrorKind::Gone
            } else if error.is_timeout() {
                BusErrorKind::Timeout
            } else if is_broken(&error) {
                BusErrorKind::Unreachable
            } else {
                BusErrorKind::Refused
            };
            BusError::new(kind).because(error)
        }
    }
}

/// For this long, a more exact measurement of the server's time is preferred to a newer measurement. Clocks drift by
/// less than a millisecond in this time.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);
/// The longest time that one read blocks.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A hundred years, the longest delay of a scheduled record.
const MOST_MILLIS: u64 = 100 * 366 * 86_400_000;
/// The time that a command may take. An append that takes longer is treated as failed, and the record is appended
/// again.
const DEADLINE: Duration = Duration::from_secs(1);
/// The approximate length of the stream, in records. A process that is further behind reads the compacted log.
const MOST_RECORDS: u64 = 100_000;
/// The most records that one read returns.
const MOST_READ: u64 = 512;
/// The approximate number of members on one page of the compacted log.
const PAGE: u64 = 1_000;

#[cfg(test)]
mod tests {
    use larder_core::{Tag, store::CommitId};
    use serde::{Deserialize, Serialize};

    use super::*;

    /// The record as the versions of larder before notes have it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct RecordWithoutNote {
        origin: WriterId,
        mode: Mode,
        what: Vec<Selector>,
        commit: Option<CommitId>,
    }

    /// An old reader that failed would invalidate everything.
    #[test]
    fn old_and_new_processes_read_the_records_of_each_other() {
        let (origin, mode) = (WriterId::random(), Mode::Soft { grace: None });
        let (what, commit) = (vec![Selector::Tag(Tag::new("a"))], Some(CommitId::random()));
        let old = RecordWithoutNote { origin, mode, what: what.clone(), commit };
        for note in [RecordNote::default(), RecordNote::new(Some("a reason"), Some("an actor"))] {
            let new = Record { origin, mode, what: what.clone(), commit, note };
            let bytes = written_record(&new).unwrap();
            assert_eq!(rmp_serde::from_slice::<RecordWithoutNote>(&bytes).unwrap(), old);
            let read = read_record(&bytes).unwrap();
            assert_eq!((&read, read.note.because()), (&new, new.note.because()));
        }
        let read = read_record(&written(&old).unwrap()).unwrap();
        assert!(read.note.is_empty() && read.what == old.what);
        assert!(read_record(b"?").is_none());
    }
}
