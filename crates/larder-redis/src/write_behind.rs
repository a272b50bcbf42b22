//! The journal of a write-behind queue in Redis, for several processes that write the same keys.
//!
//! One script makes each change, and appends it to a stream as an event with the next number. Each process follows the
//! stream, so all processes have the same queue, and an operation is accepted in a process once this process has read it
//! back. One process at a time holds the lease of a partition and writes its operations to the sink. The lease only saves
//! work: two processes that write the same operations find out by the position of the sink, which one of them has moved.
//!
//! Redis must not lose or evict operations. So the journal refuses to open on a server without an append-only file, or with
//! an eviction policy that evicts keys without expiry, and it waits for the file (`WAITAOF`) unless `appendfsync` is
//! `always`. A fail-over to a replica can still lose operations that were accepted; those that a process has read go to the
//! sink from its memory. Numbers are never given again, because the script continues far above the last one when the server
//! is another or was restarted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use larder_core::store::{BoxFuture, WriterId};
use larder_write_behind::journal::{
    Accepted, DeadRecord, Draft, FlushLease, Journal, JournalError, JournalEvent, JournalEvents,
    JournalId, Record, Recovered,
};
use parking_lot::Mutex;
use redis::{
    FromRedisValue as _, Script, Value, cmd, streams::StreamRangeReply, streams::StreamReadReply,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    Redis,
    connection::{Failure, SharedConnection, is_broken},
};

impl Redis {
    /// Returns a journal in Redis for the write-behind queue of this name. All processes that open it write to the same
    /// queue.
    ///
    /// The server needs `appendonly yes`, and the eviction policy `noeviction` or one of `volatile-…`. Unless it has
    /// `appendfsync always`, each write waits until Redis has written its file (`WAITAOF`, from version 7.2), which takes up
    /// to a second with `everysec`.
    #[must_use]
    pub fn write_behind(&self, queue: &str) -> RedisJournal {
        let (commands, appends, reader) = (SHORT, SHORT, None);
        let [commands, appends, reader] =
            [commands, appends, reader].map(|patience| self.link(&self.server, patience));
        // The braces put all keys into the same slot of a cluster.
        let keys = ["meta", "stream", "dead", "applied", "controls", "lease"]
            .map(|part| format!("larder:write-behind:{{{}:{queue}}}:{part}", self.name));
        let shared = Shared {
            commands,
            reader,
            keys,
            script: Script::new(include_str!("write_behind.lua")),
            writer: format!("{:032x}", WriterId::random().to_bits()),
            id: OnceLock::new(),
            state: Mutex::new(State::default()),
            seen: watch::Sender::new(0),
            waits_for_file: OnceLock::new(),
        };
        RedisJournal {
            shared: Arc::new(shared),
            appends,
            tasks: Mutex::default(),
            groups: OnceLock::new(),
        }
    }
}

/// A journal of a write-behind queue in Redis. [`Redis::write_behind`] returns it.
pub struct RedisJournal {
    shared: Arc<Shared>,
    appends: Arc<SharedConnection>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    groups: OnceLock<mpsc::UnboundedSender<(Draft, Accepted)>>,
}

struct Shared {
    commands: Arc<SharedConnection>,
    reader: Arc<SharedConnection>,
    keys: [String; 6],
    script: Script,
    /// Distinguishes the operations of this process from those of others.
    writer: String,
    id: OnceLock<JournalId>,
    state: Mutex<State>,
    /// The number of the last event that this process has applied.
    seen: watch::Sender<u64>,
    /// Whether an append has to wait until the server has written its file.
    waits_for_file: OnceLock<bool>,
}

#[derive(Default)]
struct State {
    /// Operations in the stream that this process has not read back yet.
    waiting: BTreeMap<u64, Accepted>,
    /// The numbers of the operations in the stream, by partition.
    numbers: BTreeMap<u32, BTreeSet<u64>>,
}

impl Shared {
    /// Runs the script.
    async fn run<T: redis::FromRedisValue>(
        &self,
        arguments: Vec<Vec<u8>>,
    ) -> Result<T, JournalError> {
        let mut call = self.script.prepare_invoke();
        call.key(&self.keys[..5]);
        call.arg(self.id.get().map(JournalId::to_string).unwrap_or_default());
        for argument in arguments {
            call.arg(argument);
        }
        let ran = self.commands.run(DEADLINE, |mut connection| async move {
            call.invoke_async::<T>(&mut connection).await
        });
        ran.await.map_err(failed)
    }

    /// Reads the identity and the number of the last event.
    async fn end(&self) -> Result<(Option<String>, Option<u64>), Failure> {
        let asked = self.commands.run(DEADLINE, |mut connection| async move {
            let mut ask = cmd("HMGET");
            ask.arg(&self.keys[0]).arg("id").arg("last");
            ask.query_async(&mut connection).await
        });
        asked.await
    }

    /// Waits until this process has applied the event of this number.
    async fn reach(&self, number: u64) -> Result<(), JournalError> {
        let mut seen = self.seen.subscribe();
        let reached =
            tokio::time::timeout(LONGEST_LAG, seen.wait_for(|seen| *seen >= number)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(JournalError::new("this process does not read the journal in Redis in time")),
        }
    }

    fn note(&self, record: &Record) {
        let numbers = &mut self.state.lock().numbers;
        numbers.entry(record.draft.partition).or_default().insert(record.number);
    }
}

impl Journal for RedisJournal {
    fn is_durable(&self) -> bool {
        true
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn recover(&self, partitions: u32) -> BoxFuture<'_, Result<Recovered, JournalError>> {
        Box::pin(async move {
            let shared = &self.shared;
            self.check_settings().await?;
            let open = vec![
                b"open".to_vec(),
                JournalId::random().to_string().into(),
                partitions.to_string().into(),
            ];
            let (id, last, stored, registered): (String, u64, u32, u8) = shared.run(open).await?;
            if stored != partitions {
                return Err(JournalError::new(format!(
                    "the journal in Redis has {stored} partitions, and the queue asks for {partitions}: open it with {stored}, since the partition of a key must not change"
                )));
            }
            let unreadable = || JournalError::new("the journal in Redis cannot be read");
            let id = JournalId::parse(&id).ok_or_else(unreadable)?;
            let id = *shared.id.get_or_init(|| id);
            let keys = &shared.keys;
            let (records, dead, applied) = shared
                .commands
                .run(LONGEST_RECOVERY, |mut connection| async move {
                    let (mut records, mut after) = (Vec::new(), "-".to_owned());
                    loop {
                        let mut range = cmd("XRANGE");
                        range.arg(&keys[1]).arg(&after).arg("+").arg("COUNT").arg(PAGE);
                        let page: StreamRangeReply = range.query_async(&mut connection).await?;
                        let Some(end) = page.ids.last() else { break };
                        after = format!("({}", end.id);
                        records.extend(page.ids);
                    }
                    let dead: BTreeMap<u64, Vec<u8>> =
                        cmd("HGETALL").arg(&keys[2]).query_async(&mut connection).await?;
                    let applied: BTreeMap<u32, u64> =
                        cmd("HGETALL").arg(&keys[3]).query_async(&mut connection).await?;
                    Ok((records, dead, applied))
                })
                .await
                .map_err(failed)?;
            let mut operations = Vec::new();
            for entry in &records {
                if let Some(Event::Added { record, .. }) = Event::of(&entry.id, &entry.map) {
                    shared.note(&record);
                    operations.push(record);
                }
            }
            let mut all_dead = Vec::new();
            for record in dead.values() {
                all_dead.push(rmp_serde::from_slice(record).map_err(|_| unreadable())?);
            }
            shared.seen.send_replace(last);
            Ok(Recovered {
                id,
                is_registered: registered == 1,
                last,
                applied,
                records: operations,
                dead: all_dead,
            })
        })
    }

    fn follow(&self, events: JournalEvents) {
        let (groups, appended) = mpsc::unbounded_channel();
        self.groups.get_or_init(|| groups);
        let appending =
            append_groups(Arc::clone(&self.shared), Arc::clone(&self.appends), appended);
        let following = follow(Arc::clone(&self.shared), events);
        *self.tasks.lock() = vec![tokio::spawn(appending), tokio::spawn(following)];
    }

    fn append(&self, draft: Draft, accepted: Accepted) {
        let closed = || JournalError::new("the journal in Redis is closed");
        match self.groups.get() {
            Some(groups) => {
                if let Err(mpsc::error::SendError((_, accepted))) = groups.send((draft, accepted)) {
                    accepted(Err(closed()));
                }
            }
            None => accepted(Err(closed())),
        }
    }

    fn applied(&self, partition: u32, number: u64) {
        let shared = Arc::clone(&self.shared);
        let numbers: Vec<u64> = {
            let state = shared.state.lock();
            let numbers = state.numbers.get(&partition);
            numbers.map(|numbers| numbers.range(..=number).copied().collect()).unwrap_or_default()
        };
        if numbers.is_empty() {
            return;
        }
        tokio::spawn(async move {
            // If this fails, the next one removes these operations, too.
            let fixed = ["applied".to_owned(), partition.to_string(), number.to_string()];
            let numbers = numbers.iter().map(u64::to_string);
            let arguments = fixed.into_iter().chain(numbers).map(String::into_bytes).collect();
            if let Err(error) = shared.run::<u64>(arguments).await {
                tracing::debug!(target: "larder", %error, "operations that are written stay in the journal for now");
            }
        });
    }

    fn bury(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let mut arguments = vec![b"bury".to_vec(), encoded(&dead)?];
            for record in &dead {
                arguments.push(record.record.number.to_string().into_bytes());
                arguments.push(encoded(record)?);
            }
            let event = self.shared.run(arguments).await?;
            self.shared.reach(event).await
        })
    }

    fn revive(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<Vec<u64>, JournalError>> {
        Box::pin(async move {
            let old: Vec<u64> = dead.iter().map(|dead| dead.record.number).collect();
            let seen = *self.shared.seen.borrow();
            let mut arguments =
                vec![b"revive".to_vec(), encoded(&old)?, seen.to_string().into_bytes()];
            for record in &dead {
                arguments.push(record.record.number.to_string().into_bytes());
                arguments.push(encoded(&record.record.draft)?);
            }
            let mut numbers: Vec<u64> = self.shared.run(arguments).await?;
            if let Some(event) = numbers.pop() {
                self.shared.reach(event).await?;
            }
            Ok(numbers)
        })
    }

    fn discard(&self, numbers: Vec<u64>) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let mut arguments = vec![b"discard".to_vec(), encoded(&numbers)?];
            arguments.extend(numbers.iter().map(|number| number.to_string().into_bytes()));
            let event = self.shared.run(arguments).await?;
            self.shared.reach(event).await
        })
    }

    fn register(&self, last: u64) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let arguments = vec![b"register".to_vec(), last.to_string().into_bytes()];
            self.shared.run::<u64>(arguments).await.map(|_| ())
        })
    }

    fn catch_up(&self) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async move {
            let (id, last) = match self.shared.end().await {
                // The connection was broken when it was used, so the next command opens another.
                Err(Failure::Redis(error)) if is_broken(&error) => self.shared.end().await,
                end => end,
            }
            .map_err(failed)?;
            let own = self.shared.id.get().map(JournalId::to_string);
            match last.filter(|_| id == own) {
                Some(last) => self.shared.reach(last).await,
                None => Err(JournalError::new("the journal in Redis was lost or replaced")),
            }
        })
    }

    fn flush_lease(&self, partition: u32) -> BoxFuture<'_, Result<FlushLease, JournalError>> {
        Box::pin(async move {
            let lease = format!("{}:{partition}", self.shared.keys[5]);
            let writer = &self.shared.writer;
            let taken = self.shared.commands.run(DEADLINE, |mut connection| async move {
                let mut take = cmd("EVAL");
                take.arg(TAKE_LEASE).arg(1).arg(lease).arg(writer).arg(LEASE_MILLIS);
                take.query_async::<u8>(&mut connection).await
            });
            Ok(match taken.await.map_err(failed)? {
                0 => FlushLease::Other,
                1 => FlushLease::Held,
                _ => FlushLease::Taken,
            })
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.tasks.lock().drain(..).for_each(|task| task.abort());
            let keys = &self.shared.keys;
            let writer = &self.shared.writer;
            let partitions: Vec<u32> = self.shared.state.lock().numbers.keys().copied().collect();
            let released = self.shared.commands.run(DEADLINE, |mut connection| async move {
                let give_back = Script::new(include_str!("give_back.lua"));
                for partition in partitions {
                    let mut release = give_back.key(format!("{}:{partition}", keys[5]));
                    release.arg(writer).arg(0);
                    release.invoke_async::<()>(&mut connection).await?;
                }
                Ok(())
            });
            // Otherwise the leases expire.
            drop(released.await);
        })
    }
}

impl RedisJournal {
    /// Refuses a server that may lose or evict operations.
    async fn check_settings(&self) -> Result<(), JournalError> {
        let read = self.shared.commands.run(DEADLINE, |mut connection| async move {
            let mut read = cmd("CONFIG");
            read.arg("GET").arg("maxmemory-policy").arg("appendonly").arg("appendfsync");
            let settings: BTreeMap<String, String> = read.query_async(&mut connection).await?;
            let mut wait = cmd("WAITAOF");
            wait.arg(0).arg(0).arg(1);
            let waits = wait.query_async::<Value>(&mut connection).await.is_ok();
            Ok((settings, waits))
        });
        let (settings, waits) = read.await.map_err(|failure| {
            JournalError::because(
                "the settings of Redis cannot be read, and a journal needs to know them",
                failed(failure),
            )
        })?;
        let of = |name: &str| settings.get(name).map_or("", String::as_str);
        let wrong =
            |what: String| Err(JournalError::new(format!("Redis may lose operations: {what}")));
        if of("maxmemory-policy").starts_with("allkeys") {
            return wrong(format!(
                "maxmemory-policy is {}, allowed are noeviction and volatile-…",
                of("maxmemory-policy")
            ));
        }
        if of("appendonly") != "yes" {
            return wrong(format!("appendonly is {:?}, and must be \"yes\"", of("appendonly")));
        }
        let is_always = of("appendfsync") == "always";
        if !is_always && !waits {
            return wrong(format!(
                "appendfsync is {}, and this server has no WAITAOF: set it to always",
                of("appendfsync")
            ));
        }
        self.shared.waits_for_file.get_or_init(|| !is_always);
        Ok(())
    }
}

impl Drop for RedisJournal {
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }
}

/// Appends operations, all that have arrived in one round trip.
async fn append_groups(
    shared: Arc<Shared>,
    connection: Arc<SharedConnection>,
    mut appended: mpsc::UnboundedReceiver<(Draft, Accepted)>,
) {
    let mut group = Vec::new();
    while appended.recv_many(&mut group, MOST_IN_A_GROUP).await > 0 {
        let (drafts, accepted): (Vec<Draft>, Vec<Accepted>) = group.drain(..).unzip();
        match append(&shared, &connection, &drafts).await {
            Ok(numbers) => {
                let mut ready = Vec::new();
                {
                    let mut state = shared.state.lock();
                    let seen = *shared.seen.borrow();
                    for (number, accepted) in numbers.into_iter().zip(accepted) {
                        if number <= seen {
                            ready.push((number, accepted));
                        } else {
                            state.waiting.insert(number, accepted);
                        }
                    }
                }
                ready.into_iter().for_each(|(number, accepted)| accepted(Ok(number)));
            }
            Err(error) => accepted.into_iter().for_each(|accepted| accepted(Err(error.clone()))),
        }
    }
}

async fn append(
    shared: &Shared,
    connection: &Arc<SharedConnection>,
    drafts: &[Draft],
) -> Result<Vec<u64>, JournalError> {
    let id = shared.id.get().map(JournalId::to_string).unwrap_or_default();
    let mut pipe = redis::pipe();
    for (at, draft) in drafts.iter().enumerate() {
        // The first command loads the script.
        match at {
            0 => pipe.cmd("EVAL").arg(include_str!("write_behind.lua")),
            _ => pipe.cmd("EVALSHA").arg(shared.script.get_hash()),
        };
        pipe.arg(5)
            .arg(&shared.keys[..5])
            .arg(&id)
            .arg("append")
            .arg(encoded(draft)?)
            .arg(&shared.writer);
    }
    let waits = shared.waits_for_file.get().copied().unwrap_or(true);
    if waits {
        pipe.cmd("WAITAOF").arg(1).arg(0).arg(FILE_MILLIS);
    }
    let ran = connection.run(DEADLINE, |mut connection| async move {
        pipe.query_async::<Vec<Value>>(&mut connection).await
    });
    let mut answers = ran.await.map_err(failed)?;
    if waits {
        let written = answers.pop().and_then(|answer| <(u64, u64)>::from_redis_value(answer).ok());
        if written.is_none_or(|(local, _)| local == 0) {
            return Err(JournalError::new(
                "Redis does not confirm that operations are in its file",
            ));
        }
    }
    let numbers =
        answers.into_iter().map(|answer| u64::from_redis_value(answer).ok()).collect::<Option<_>>();
    numbers.ok_or_else(|| JournalError::new("Redis has answered something else than numbers"))
}

/// Reads the events of all processes, and applies them in order.
async fn follow(shared: Arc<Shared>, events: JournalEvents) {
    loop {
        let after = *shared.seen.borrow();
        let [_, stream, _, _, controls, _] = &shared.keys;
        let read = shared.reader.run(LONGEST_READ + DEADLINE, |mut connection| async move {
            let mut read = cmd("XREAD");
            let millis = u64::try_from(LONGEST_READ.as_millis()).unwrap_or(1);
            read.arg("COUNT").arg(PAGE).arg("BLOCK").arg(millis);
            read.arg("STREAMS").arg(stream).arg(format!("{after}-0"));
            let read: Option<StreamReadReply> = read.query_async(&mut connection).await?;
            let mut oldest = cmd("LINDEX");
            oldest.arg(controls).arg(MOST_CONTROLS - 1);
            let oldest: Option<u64> = oldest.query_async(&mut connection).await?;
            Ok((read, oldest))
        });
        let (read, oldest) = match read.await {
            Ok(read) => read,
            Err(failure) => {
                tracing::debug!(target: "larder", error = %failed(failure), "the journal in Redis cannot be read");
                shared.reader.forget();
                tokio::time::sleep(AFTER_A_FAILURE).await;
                continue;
            }
        };
        if oldest.is_some_and(|oldest| oldest > after) {
            // Events that are no operations may have been removed before this process has read them.
            let why = "this process was too far behind the journal in Redis: restart it";
            events(JournalEvent::Lost(why.to_owned()));
            return;
        }
        let entries = read.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids);
        for entry in entries {
            let Some(number) = number_of(&entry.id) else { continue };
            match Event::of(&entry.id, &entry.map) {
                Some(event) => shared.apply(event, &events),
                None => {
                    let why = format!(
                        "event {number} of the journal in Redis cannot be read: a newer version has written it"
                    );
                    events(JournalEvent::Lost(why));
                    return;
                }
            }
            let accepted = {
                let mut state = shared.state.lock();
                shared.seen.send_replace(number);
                state.waiting.remove(&number)
            };
            if let Some(accepted) = accepted {
                accepted(Ok(number));
            }
        }
    }
}

impl Shared {
    fn apply(&self, event: Event, events: &JournalEvents) {
        let event = match event {
            Event::Added { record, by } => {
                self.note(&record);
                JournalEvent::Added { record, is_own: by == self.writer }
            }
            Event::Applied { partition, number } => {
                if let Some(numbers) = self.state.lock().numbers.get_mut(&partition) {
                    *numbers = numbers.split_off(&(number + 1));
                }
                JournalEvent::Applied { partition, number }
            }
            Event::Buried(dead) => {
                self.forget(dead.iter().map(|dead| dead.record.number));
                JournalEvent::Buried(dead)
            }
            Event::Removed(numbers) => {
                self.forget(numbers.iter().copied());
                JournalEvent::Removed(numbers)
            }
        };
        events(event);
    }

    fn forget(&self, numbers: impl Iterator<Item = u64>) {
        let mut state = self.state.lock();
        for number in numbers {
            for numbers in state.numbers.values_mut() {
                numbers.remove(&number);
            }
        }
    }
}

/// An event of the stream.
enum Event {
    Added {
        record: Record,
        by: String,
    },
    Applied {
        partition: u32,
        number: u64,
    },
    Buried(Vec<DeadRecord>),
    /// Dead operations that were revived, or any that were discarded.
    Removed(Vec<u64>),
}

impl Event {
    fn of(id: &str, fields: &std::collections::HashMap<String, Value>) -> Option<Self> {
        let number = number_of(id)?;
        let of = |name: &str| Vec::<u8>::from_redis_value_ref(fields.get(name)?).ok();
        if let Some(draft) = of("add") {
            let record = Record { number, draft: rmp_serde::from_slice(&draft).ok()? };
            return Some(Self::Added { record, by: String::from_utf8(of("by")?).ok()? });
        }
        if let Some(applied) = of("applied") {
            let applied = String::from_utf8(applied).ok()?;
            let (partition, number) = applied.split_once(' ')?;
            return Some(Self::Applied {
                partition: partition.parse().ok()?,
                number: number.parse().ok()?,
            });
        }
        if let Some(dead) = of("buried") {
            return rmp_serde::from_slice(&dead).ok().map(Self::Buried);
        }
        let removed = of("revived").or_else(|| of("discarded"))?;
        rmp_serde::from_slice(&removed).ok().map(Self::Removed)
    }
}

fn number_of(id: &str) -> Option<u64> {
    id.split('-').next()?.parse().ok()
}

fn encoded<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, JournalError> {
    rmp_serde::to_vec_named(value)
        .map_err(|error| JournalError::because("an operation cannot be serialised", error))
}

fn failed(failure: Failure) -> JournalError {
    match failure {
        Failure::Late => JournalError::new("Redis did not answer in time"),
        Failure::Unconnected => JournalError::new("Redis cannot be reached"),
        Failure::Redis(error) if error.code() == Some("OVERTAKEN") => JournalError::overtaken(),
        Failure::Redis(error) => {
            JournalError::because(format!("the journal in Redis: {error}"), error)
        }
    }
}

impl fmt::Debug for RedisJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisJournal").field("stream", &self.shared.keys[1]).finish_non_exhaustive()
    }
}

/// Takes a lease, or extends it: 0 if another process has it, 1 if this one had it, 2 if it is new.
const TAKE_LEASE: &str = "local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return holder and 1 or 2";
const LEASE_MILLIS: u64 = 3_000;
const SHORT: Option<Duration> = Some(Duration::from_secs(5));
const DEADLINE: Duration = Duration::from_secs(3);
/// How long an append waits for the file, in milliseconds. With `everysec` it takes up to a second.
const FILE_MILLIS: u64 = 2_500;
const LONGEST_RECOVERY: Duration = Duration::from_secs(60);
const LONGEST_READ: Duration = Duration::from_secs(1);
/// How long this process may be behind the stream before a read or a write gives up.
const LONGEST_LAG: Duration = Duration::from_secs(5);
const AFTER_A_FAILURE: Duration = Duration::from_millis(100);
const PAGE: u64 = 512;
/// The number of events that are no operations and stay in the stream, as in the script.
const MOST_CONTROLS: usize = 1_000;
const MOST_IN_A_GROUP: usize = 1_024;
