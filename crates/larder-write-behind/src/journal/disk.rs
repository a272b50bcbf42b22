//! The journal on disk: a database file of redb, written by one thread.
//!
//! The thread takes all operations that have arrived while it wrote the last ones, and writes them in one transaction with
//! one `fsync` (*group commit*). Removals alone are not synchronised: a removal that is lost costs a look at the position
//! of the sink when the journal is opened.
//!
//! After a failure the content of the file is unknown, so the thread opens the file again before it writes more, and
//! removes the operations that were not accepted.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use larder_core::store::BoxFuture;
use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, StorageBackend,
    TableDefinition,
};
use tokio::sync::oneshot;

use super::{Accepted, DeadRecord, Draft, Journal, JournalError, JournalId, Record, Recovered};

/// Stores operations in a directory. An operation is accepted once it is on disk (`fsync`).
///
/// The journal belongs to one process. A lock on its file refuses a second one.
///
/// # Cost
///
/// One `fsync` for all operations that arrive during the `fsync` before it.
#[derive(Debug)]
#[doc(alias("write-ahead log", "WAL", "redb", "fsync"))]
pub struct Disk {
    commands: mpsc::Sender<Command>,
    /// Where it is, for messages.
    place: String,
}

impl Disk {
    /// Opens the journal in a directory, or creates both.
    ///
    /// # Errors
    ///
    /// If the directory or the file cannot be created, is not a journal, or is open in another process.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, JournalError> {
        let directory = directory.as_ref();
        let place = directory.display().to_string();
        std::fs::create_dir_all(directory).map_err(|error| {
            JournalError::because(format!("the journal directory {place} cannot be created"), error)
        })?;
        let file = File(directory.join(FILE));
        Self::on(file, place)
    }

    /// Opens a journal on any storage.
    pub(crate) fn on(storage: impl Storage, place: String) -> Result<Self, JournalError> {
        let writer = Writer::open(Box::new(storage), &place)?;
        let (commands, received) = mpsc::channel();
        let thread = thread::Builder::new().name("larder-journal".to_owned());
        let running = thread.spawn(move || writer.run(&received));
        running.map_err(|error| {
            JournalError::because("the thread of the journal cannot be started", error)
        })?;
        Ok(Self { commands, place })
    }

    fn send(&self, command: Command) {
        // The thread runs for as long as this sender exists. If it has panicked, the command drops what it would have
        // answered.
        drop(self.commands.send(command));
    }

    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> BoxFuture<'_, Result<T, JournalError>> {
        let (done, answer) = oneshot::channel();
        self.send(command(done));
        Box::pin(async move {
            let stopped = |_| JournalError::new(format!("the journal {} has stopped", self.place));
            answer.await.map_err(stopped)
        })
    }
}

impl Journal for Disk {
    fn is_durable(&self) -> bool {
        true
    }

    fn recover(&self, partitions: u32) -> BoxFuture<'_, Result<Recovered, JournalError>> {
        let asked = self.ask(|done| Command::Recover { partitions, done });
        Box::pin(async move { asked.await? })
    }

    fn append(&self, draft: Draft, accepted: Accepted) {
        let command = Command::Append { draft, accepted };
        if let Err(mpsc::SendError(Command::Append { accepted, .. })) = self.commands.send(command)
        {
            accepted(Err(JournalError::new(format!("the journal {} has stopped", self.place))));
        }
    }

    fn revive(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<Vec<u64>, JournalError>> {
        let asked = self.ask(|done| Command::Revive { dead, done });
        Box::pin(async move { asked.await? })
    }

    fn applied(&self, partition: u32, number: u64) {
        self.send(Command::Applied { partition, number });
    }

    fn bury(&self, dead: Vec<DeadRecord>) -> BoxFuture<'_, Result<(), JournalError>> {
        let asked = self.ask(|done| Command::Bury { dead, done });
        Box::pin(async move { asked.await? })
    }

    fn discard(&self, numbers: Vec<u64>) -> BoxFuture<'_, Result<(), JournalError>> {
        let asked = self.ask(|done| Command::Discard { numbers, done });
        Box::pin(async move { asked.await? })
    }

    fn register(&self, last: u64) -> BoxFuture<'_, Result<(), JournalError>> {
        let asked = self.ask(|done| Command::Register { last, done });
        Box::pin(async move { asked.await? })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let asked = self.ask(|done| Command::Close { done });
        Box::pin(async move { asked.await.unwrap_or_default() })
    }
}

/// Opens the file of a journal, each time anew.
pub(crate) trait Storage: Send + 'static {
    fn open(&self) -> Result<Database, redb::DatabaseError>;
}

struct File(PathBuf);

impl Storage for File {
    fn open(&self) -> Result<Database, redb::DatabaseError> {
        builder().create(&self.0)
    }
}

/// A storage backend that can be opened again, for tests.
impl<B: StorageBackend, F: Fn() -> B + Send + 'static> Storage for F {
    fn open(&self) -> Result<Database, redb::DatabaseError> {
        builder().create_with_backend(self())
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

type Done = oneshot::Sender<Result<(), JournalError>>;

enum Command {
    Recover { partitions: u32, done: oneshot::Sender<Result<Recovered, JournalError>> },
    Append { draft: Draft, accepted: Accepted },
    Revive { dead: Vec<DeadRecord>, done: oneshot::Sender<Result<Vec<u64>, JournalError>> },
    Applied { partition: u32, number: u64 },
    Bury { dead: Vec<DeadRecord>, done: Done },
    Discard { numbers: Vec<u64>, done: Done },
    Register { last: u64, done: Done },
    Close { done: oneshot::Sender<()> },
}

impl Command {
    /// Whether it changes the file.
    fn changes(&self) -> bool {
        !matches!(self, Self::Recover { .. } | Self::Close { .. })
    }

    /// Whether a caller waits until it is durable.
    fn is_awaited(&self) -> bool {
        self.changes() && !matches!(self, Self::Applied { .. })
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").finish_non_exhaustive()
    }
}

/// A step that a caller was told has failed, and that the file may have nevertheless.
enum Undo {
    Bury(Vec<DeadRecord>),
    Revive(Vec<DeadRecord>),
}

impl Undo {
    fn of(command: &Command) -> Option<Self> {
        match command {
            Command::Bury { dead, .. } => Some(Self::Bury(dead.clone())),
            Command::Revive { dead, .. } => Some(Self::Revive(dead.clone())),
            // Operations with numbers that were not accepted are removed in any case. What a caller asked to discard may be
            // gone.
            _ => None,
        }
    }

    fn apply(
        &self,
        operations: &mut redb::Table<'_, (u32, u64), &'static [u8]>,
        dead: &mut redb::Table<'_, u64, &'static [u8]>,
    ) -> Result<(), redb::Error> {
        let (Self::Bury(records) | Self::Revive(records)) = self;
        for record in records {
            let Record { number, draft } = &record.record;
            if matches!(self, Self::Bury(_)) {
                dead.remove(number)?;
                operations.insert((draft.partition, *number), &*encoded(draft)?)?;
            } else {
                dead.insert(number, &*encoded(record)?)?;
            }
        }
        Ok(())
    }
}

/// The thread that owns the file.
struct Writer {
    storage: Box<dyn Storage>,
    place: String,
    /// `None` after a failure.
    database: Option<Database>,
    id: JournalId,
    is_closed: bool,
    /// What has to be undone if the file has it, because callers were told that it failed.
    undo: Vec<Undo>,
    /// The number of the last operation that was accepted.
    last: u64,
}

impl Writer {
    fn open(storage: Box<dyn Storage>, place: &str) -> Result<Self, JournalError> {
        let failed = |error: redb::Error| {
            JournalError::because(format!("the journal {place} cannot be opened: {error}"), error)
        };
        let database = storage.open().map_err(|error| failed(error.into()))?;
        let (id, last) = created(&database).map_err(failed)?;
        Ok(Self {
            storage,
            place: place.to_owned(),
            database: Some(database),
            is_closed: false,
            undo: Vec::new(),
            id,
            last,
        })
    }

    fn run(mut self, received: &mpsc::Receiver<Command>) {
        while !self.is_closed
            && let Ok(first) = received.recv()
        {
            let mut group = vec![first];
            while group.len() < MOST_IN_A_GROUP
                && let Ok(next) = received.try_recv()
            {
                group.push(next);
            }
            self.write(group);
        }
    }

    /// Writes a group of commands in one transaction, and answers them in order.
    fn write(&mut self, group: Vec<Command>) {
        let written = self.written(&group);
        if written.is_err() {
            self.database = None;
            self.undo.extend(group.iter().filter_map(Undo::of));
        }
        let failed = || written.as_ref().err().cloned();
        let outcome = || failed().map_or(Ok(()), Err);
        for command in group {
            match command {
                Command::Append { accepted, .. } => accepted(match failed() {
                    None => {
                        self.last += 1;
                        Ok(self.last)
                    }
                    Some(error) => Err(error),
                }),
                Command::Bury { done, .. } | Command::Discard { done, .. } => {
                    drop(done.send(outcome()));
                }
                Command::Register { last, done } => {
                    if written.is_ok() {
                        self.last = self.last.max(last);
                    }
                    drop(done.send(outcome()));
                }
                Command::Revive { dead, done } => drop(done.send(outcome().map(|()| {
                    let first = self.last + 1;
                    self.last += dead.len() as u64;
                    (first..=self.last).collect()
                }))),
                Command::Applied { .. } => {}
                Command::Close { done } => {
                    self.database = None;
                    self.is_closed = true;
                    // A caller that is gone does not wait for it.
                    let _gone = done.send(());
                }
                Command::Recover { partitions, done } => drop(done.send(self.recover(partitions))),
            }
        }
    }

    fn written(&mut self, group: &[Command]) -> Result<(), JournalError> {
        if !group.iter().any(Command::changes) {
            return Ok(());
        }
        let is_awaited = group.iter().any(Command::is_awaited);
        let written =
            self.database().and_then(|(database, last)| apply(database, group, last, is_awaited));
        written.map_err(|error| {
            JournalError::because(format!("the journal {} cannot be written", self.place), error)
        })
    }

    /// Returns the open file and the last number. Opens the file again after a failure.
    fn database(&mut self) -> Result<(&Database, u64), redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => self.open_again()?,
        };
        Ok((self.database.insert(database), self.last))
    }

    /// Opens the file after a failure, and removes the operations that were written but not accepted.
    fn open_again(&mut self) -> Result<Database, redb::Error> {
        let database = self.storage.open()?;
        let (id, _) = created(&database)?;
        if id != self.id {
            return Err(redb::Error::Corrupted("another journal is in its place".to_owned()));
        }
        let accepted = self.last;
        let write = database.begin_write()?;
        {
            let mut operations = write.open_table(OPERATIONS)?;
            operations.retain(|(_, number), _| number <= accepted)?;
            let mut dead = write.open_table(DEAD)?;
            for undo in self.undo.iter().rev() {
                undo.apply(&mut operations, &mut dead)?;
            }
        }
        write.commit()?;
        self.undo.clear();
        tracing::warn!(target: "larder", journal = self.place, "the journal was opened again after a failure");
        Ok(database)
    }

    fn recover(&mut self, partitions: u32) -> Result<Recovered, JournalError> {
        let found = self.database().and_then(|(database, _)| recovered(database, partitions));
        let (stored, recovered) = found.map_err(|error| {
            JournalError::because(format!("the journal {} cannot be read", self.place), error)
        })?;
        match stored {
            _ if stored == u64::from(partitions) => Ok(Recovered { last: self.last, ..recovered }),
            stored => Err(JournalError::new(format!(
                "the journal {} has {stored} partitions, and the queue asks for {partitions}: open it with {stored}, since the partition of a key must not change",
                self.place
            ))),
        }
    }
}

/// Reads the identity and the last number, and creates them in a new file.
fn created(database: &Database) -> Result<(JournalId, u64), redb::Error> {
    let write = database.begin_write()?;
    let found = {
        let mut meta = write.open_table(META)?;
        write.open_table(OPERATIONS)?;
        write.open_table(DEAD)?;
        write.open_table(APPLIED)?;
        let get = |name| meta.get(name).map(|value| value.map(|value| value.value()));
        match (get(FORMAT)?, get(ID)?) {
            (None, None) => {
                let id = JournalId::random();
                meta.insert(FORMAT, CURRENT_FORMAT)?;
                meta.insert(ID, id.to_bits())?;
                (id, 0)
            }
            (Some(CURRENT_FORMAT), Some(id)) => {
                (JournalId::of_bits(id), get(LAST)?.unwrap_or_default())
            }
            (format, _) => {
                let what = format!(
                    "its format is {format:?}, and this version of larder reads {CURRENT_FORMAT}"
                );
                return Err(redb::Error::Io(io::Error::other(what)));
            }
        }
    };
    write.commit()?;
    Ok(found)
}

/// Writes a group of commands in one transaction.
fn apply(
    database: &Database,
    group: &[Command],
    last: u64,
    is_awaited: bool,
) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    if !is_awaited {
        write.set_durability(Durability::None)?;
    }
    {
        let mut meta = write.open_table(META)?;
        let mut operations = write.open_table(OPERATIONS)?;
        let mut dead = write.open_table(DEAD)?;
        let mut applied = write.open_table(APPLIED)?;
        let mut number = last;
        for command in group {
            match command {
                Command::Append { draft, .. } => {
                    number += 1;
                    operations.insert((draft.partition, number), &*encoded(draft)?)?;
                }
                Command::Revive { dead: revived, .. } => {
                    for DeadRecord { record: Record { number: old, draft }, .. } in revived {
                        number += 1;
                        dead.remove(old)?;
                        operations.insert((draft.partition, number), &*encoded(draft)?)?;
                    }
                }
                Command::Applied { partition, number } => {
                    operations.retain_in((*partition, 0)..=(*partition, *number), |_, _| false)?;
                    applied.insert(partition, number)?;
                }
                Command::Bury { dead: buried, .. } => {
                    for record in buried {
                        let DeadRecord { record: Record { number, draft }, .. } = record;
                        operations.remove((draft.partition, *number))?;
                        dead.insert(number, &*encoded(record)?)?;
                    }
                }
                Command::Discard { numbers, .. } => {
                    for number in numbers {
                        dead.remove(number)?;
                    }
                    operations.retain(|(_, number), _| !numbers.contains(&number))?;
                }
                Command::Register { last, .. } => {
                    meta.insert(REGISTERED, 1)?;
                    number = number.max(*last);
                }
                Command::Recover { .. } | Command::Close { .. } => {}
            }
        }
        if number != last {
            meta.insert(LAST, number)?;
        }
    }
    Ok(write.commit()?)
}

/// Reads everything, and the number of partitions, which is `partitions` for a new journal.
fn recovered(database: &Database, partitions: u32) -> Result<(u64, Recovered), redb::Error> {
    let write = database.begin_write()?;
    let stored = {
        let mut meta = write.open_table(META)?;
        let stored = meta.get(PARTITIONS)?.map(|stored| stored.value());
        match stored {
            Some(stored) => stored,
            None => {
                meta.insert(PARTITIONS, u64::from(partitions))?;
                u64::from(partitions)
            }
        }
    };
    write.commit()?;
    let read = database.begin_read()?;
    let meta = read.open_table(META)?;
    let get = |name| meta.get(name).map(|value| value.map(|value| value.value()));
    let mut records = Vec::new();
    for record in read.open_table(OPERATIONS)?.iter()? {
        let (key, value) = record?;
        records.push(Record { number: key.value().1, draft: decoded(value.value())? });
    }
    records.sort_by_key(|record| record.number);
    let mut dead = Vec::new();
    for record in read.open_table(DEAD)?.iter()? {
        dead.push(decoded(record?.1.value())?);
    }
    let mut applied = BTreeMap::new();
    for position in read.open_table(APPLIED)?.iter()? {
        let (partition, number) = position?;
        applied.insert(partition.value(), number.value());
    }
    let recovered = Recovered {
        id: JournalId::of_bits(get(ID)?.unwrap_or_default()),
        is_registered: get(REGISTERED)?.is_some(),
        last: get(LAST)?.unwrap_or_default(),
        applied,
        records,
        dead,
    };
    Ok((stored, recovered))
}

fn encoded<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, redb::Error> {
    postcard::to_allocvec(value).map_err(|error| redb::Error::Io(io::Error::other(error)))
}

fn decoded<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    postcard::from_bytes(bytes).map_err(|error| redb::Error::Io(io::Error::other(error)))
}

const FILE: &str = "journal.redb";
/// All operations that the sink may not have, by partition and number.
const OPERATIONS: TableDefinition<'static, (u32, u64), &'static [u8]> =
    TableDefinition::new("operations");
const DEAD: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("dead");
const APPLIED: TableDefinition<'_, u32, u64> = TableDefinition::new("applied");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const CURRENT_FORMAT: u64 = 1;
const ID: &str = "id";
const LAST: &str = "last";
const PARTITIONS: &str = "partitions";
const REGISTERED: &str = "registered";
/// Maximum number of commands in one transaction.
const MOST_IN_A_GROUP: usize = 1024;
const CACHE_BYTES: usize = 16 * 1024 * 1024;
