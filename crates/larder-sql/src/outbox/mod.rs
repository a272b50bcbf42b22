//! The outbox: makes writes known that do not come through a [`Db`], those of other programs, by hand, and of a process
//! that died between its commit and its invalidation.
//!
//! # The idea
//!
//! Database triggers add a row to a table, the *outbox*, for each statement (in SQLite: for each row) that changes
//! another table, in the transaction of that statement. A committed change has its outbox row, whichever program made
//! it and even if that program has died; a change that was rolled back has none. An [`OutboxFollower`] reads the outbox
//! rows, and invalidates the tables and rows that they name. So no invalidation is lost after a commit: at worst it is
//! late.
//!
//! # Read positions
//!
//! A process without a shared log reads all outbox rows from its start on: before that its first level was empty.
//! Processes that share a log share a read position in the outbox, too, stored in the database under the epoch of that
//! log: one of them at a time reads the outbox rows behind it, invalidates, and moves the position. A process that dies
//! meanwhile has not moved it, and the next one reads the same outbox rows again. A log that was lost has a new epoch,
//! which voids all entries stored under the old one anyway.
//!
//! # Failures
//!
//! 1. A transaction that commits late. In PostgreSQL the numbers of outbox rows are drawn before the commit, so "all
//!    above the last one" would skip it. The position is a *snapshot* instead: the set of transactions that had ended.
//!    An outbox row is read once its transaction has ended and was not in that set, in whichever order transactions
//!    began. In SQLite there is one writer at a time, and numbers are in the order of commits.
//! 2. A lost notification. It only wakes the reader, which reads the table once a second in any case.
//! 3. Outbox rows that were removed before they were read. They are removed after two hours at the earliest; a reader
//!    whose position is older than one hour invalidates everything. So does a reader that finds another server than
//!    before, or one that was restarted, since it may have lost transactions that it had reported as committed; and a
//!    reader that finds no shared position.
//! 4. A process that hangs while it holds the shared position. PostgreSQL ends its transaction after ten idle seconds.
//!
//! A process that follows the outbox invalidates its own writes twice, at once and a little later by their outbox rows.
//! The cost is a second fill of pages built in between.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Weak},
    time::Duration,
};

use larder_core::{Invalidated, Reason, Target, kernel::Event};
use tokio::task::JoinSet;

use crate::{
    catalog::{Catalog, folded},
    db::Db,
    error::{QueryError, QueryErrorKind},
    plan::QueryContext,
    sqlx_service::Pool,
};

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// The outbox of a database, which makes writes known that do not come through a [`Db`]. Given by [`Db::outbox`].
///
/// # Examples
///
/// ```no_run
/// # async fn start(db: larder_sql::Db) -> Result<(), larder_sql::QueryError> {
/// let outbox = db.outbox();
/// outbox.install().await?; // or have an administrator run the text of `outbox.sql()`
/// let following = outbox.follow().await?; // until it is dropped
/// # drop(following); Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[doc(alias("transactional outbox", "change data capture", "listen", "notify"))]
pub struct Outbox {
    db: Db,
}

impl Db {
    /// Returns the outbox, which makes writes known that do not come through this handle.
    pub fn outbox(&self) -> Outbox {
        Outbox { db: self.clone() }
    }
}

impl Outbox {
    /// Returns the SQL that [`Outbox::install`] runs: for programs without the right to create tables and triggers.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn sql(&self) -> Result<String, QueryError> {
        match self.pool() {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pool) => sqlite::definition(pool).await.map_err(QueryError::database),
            #[cfg(feature = "postgres")]
            Pool::Postgres(_) => Ok(postgres::DEFINITION.to_owned()),
        }
    }

    /// Creates the outbox, and on each table the triggers that fill it. Existing outbox rows stay: run it at each
    /// start, after migrations. It runs again by itself after this handle has run a statement that changes the schema.
    ///
    /// PostgreSQL: on tables of the schema `public`, by statement, with the keys of up to 128 rows (64 for an `UPDATE`,
    /// which counts old and new rows); needs the right to create a schema (`larder_outbox`) and triggers. SQLite: by
    /// row.
    ///
    /// # Errors
    ///
    /// When the database refuses.
    pub async fn install(&self) -> Result<(), QueryError> {
        let definition = self.sql().await?;
        match self.pool() {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pool) => run_all(pool, &definition).await,
            #[cfg(feature = "postgres")]
            Pool::Postgres(pool) => run_all(pool, &definition).await,
        }
        .map_err(QueryError::database)?;
        let again = Arc::downgrade(self.plan());
        let pool = self.pool().clone();
        *self.plan().outbox.lock() = Some(Arc::new(move || {
            let (pool, again) = (pool.clone(), again.clone());
            Box::pin(async move { reinstall(&pool, again).await.is_ok() })
        }));
        // Its own objects are not in the catalog, but tables may have been created before.
        match self.plan().relearn().await {
            true => Ok(()),
            false => Err(QueryError::new(QueryErrorKind::Database)),
        }
    }

    /// Follows the outbox: invalidates the tables and rows named in it, until the returned follower is dropped. With a
    /// shared log it begins with the writes since a process on that log last followed; without one it begins with an
    /// invalidation of everything.
    ///
    /// # Errors
    ///
    /// When there is no outbox, or with [`NothingToFollow`](crate::QueryErrorKind::NothingToFollow) for an in-memory
    /// database, which has no other writers.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn follow(&self) -> Result<OutboxFollower, QueryError> {
        let mut tasks = JoinSet::new();
        match self.pool() {
            #[cfg(feature = "sqlite")]
            Pool::Sqlite(pool) => {
                let reader = sqlite::Reader::open(pool).await?;
                tasks.spawn(OutboxReader::begin(self.db.clone(), reader).await?.run());
            }
            #[cfg(feature = "postgres")]
            Pool::Postgres(pool) => {
                let reader =
                    postgres::Reader::open(pool, &mut tasks).await.map_err(QueryError::database)?;
                tasks.spawn(OutboxReader::begin(self.db.clone(), reader).await?.run());
            }
        }
        Ok(OutboxFollower { _tasks: tasks })
    }

    fn pool(&self) -> &Pool {
        self.db.cache().inner().pool()
    }

    fn plan(&self) -> &Arc<QueryContext> {
        self.db.cache().plan()
    }
}

/// Installs the outbox again, and reads the catalog.
async fn reinstall(pool: &Pool, plan: Weak<QueryContext>) -> sqlx::Result<()> {
    match pool {
        #[cfg(feature = "sqlite")]
        Pool::Sqlite(pool) => run_all(pool, &sqlite::definition(pool).await?).await?,
        #[cfg(feature = "postgres")]
        Pool::Postgres(pool) => run_all(pool, postgres::DEFINITION).await?,
    }
    if let Some(plan) = plan.upgrade() {
        plan.relearn().await;
    }
    Ok(())
}

/// A running follower of the outbox. Dropping it stops it.
#[must_use = "the outbox is followed only until this is dropped"]
pub struct OutboxFollower {
    _tasks: JoinSet<()>,
}

impl fmt::Debug for OutboxFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxFollower").finish_non_exhaustive()
    }
}

/// The owner of a read position in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ReadPosition {
    /// This process alone, at this position.
    Alone(String),
    /// All processes of a shared log, at the position of this name.
    Shared(String),
}

/// The outbox rows behind a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OutboxBatch {
    lines: Vec<OutboxRow>,
    /// The position from which the next read starts.
    place: String,
    /// Whether outbox rows may have been missed, so that anything may have changed.
    gap: bool,
    /// Whether the shared position has to be written again, so that it does not become too old.
    ages: bool,
}

impl OutboxBatch {
    fn is_nothing(&self) -> bool {
        self.lines.is_empty() && !self.gap && !self.ages
    }
}

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OutboxRow {
    table: String,
    /// The keys of the changed rows; `None` stands for any row.
    keys: Option<Vec<Vec<Option<String>>>>,
}

impl OutboxRow {
    fn new(table: String, keys: Option<&str>) -> Self {
        // Keys that cannot be parsed stand for any row.
        Self { table, keys: keys.and_then(|keys| serde_json::from_str(keys).ok()) }
    }
}

/// Reads the outbox of one kind of database.
trait Reader: Send + 'static {
    /// The hold on a shared position while its outbox rows are invalidated.
    type Claim<'a>: Claim + Send
    where
        Self: 'a;

    /// Reads the outbox rows behind a position. Behind the empty position there is always a gap.
    fn behind(&mut self, place: &str) -> impl Future<Output = sqlx::Result<OutboxBatch>> + Send;

    /// Claims a shared position, and reads the outbox rows behind it; `None` while another process holds it. A position
    /// that does not exist is created, as the empty one.
    fn claim(
        &mut self,
        name: &str,
    ) -> impl Future<Output = sqlx::Result<Option<(OutboxBatch, Self::Claim<'_>)>>> + Send;

    /// Removes outbox rows that all readers have had two hours to read, and positions not moved for 30 days.
    fn clean(&mut self) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Waits until there may be new outbox rows, one second at most.
    fn wait(&mut self) -> impl Future<Output = ()> + Send;
}

/// The right to move a shared position. Dropped, it leaves the position as it is.
trait Claim {
    fn move_to(self, place: &str) -> impl Future<Output = sqlx::Result<()>> + Send;
}

struct OutboxReader<R> {
    db: Db,
    reader: R,
    reading: ReadPosition,
    /// The position up to which this process has invalidated for itself, while its invalidations wait for the log.
    told: Option<String>,
    cleaned: tokio::time::Instant,
    failing: bool,
}

impl<R: Reader> OutboxReader<R> {
    async fn begin(db: Db, mut reader: R) -> Result<Self, QueryError> {
        let here = reader.behind("").await.map_err(QueryError::database)?.place;
        let reading = shared_place(&db);
        if reading.is_none() {
            // Entries stored before this position may have missed an outbox row.
            let _logged_or_queued = db.invalidate_all().await;
        }
        let reading = reading.unwrap_or(ReadPosition::Alone(here));
        let cleaned = tokio::time::Instant::now();
        Ok(Self { db, reader, reading, told: None, cleaned, failing: false })
    }

    async fn run(mut self) {
        loop {
            let looked = tokio::time::timeout(LONGEST_LOOK, self.look()).await;
            match looked.unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))) {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(target: "larder", "the outbox is read again");
                    }
                    self.reader.wait().await;
                }
                Err(error) => {
                    self.note(&error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Reads new outbox rows, and invalidates.
    async fn look(&mut self) -> sqlx::Result<()> {
        // Another epoch of the log has another position.
        if let Some(shared) = shared_place(&self.db).filter(|shared| *shared != self.reading) {
            (self.reading, self.told) = (shared, None);
        }
        match &mut self.reading {
            ReadPosition::Alone(place) => Self::tell(&self.db, &mut self.reader, place).await?,
            ReadPosition::Shared(name) => {
                let pending = self.db.cache().plan().kernel.invalidations_pending();
                match self.told.as_mut().filter(|_| pending > 0) {
                    // The log is out of reach: go on behind the outbox rows that this process has already invalidated.
                    Some(place) => Self::tell(&self.db, &mut self.reader, place).await?,
                    None => self.told = Self::take(&self.db, &mut self.reader, name).await?,
                }
            }
        }
        if self.cleaned.elapsed() > BETWEEN_CLEANINGS {
            self.cleaned = tokio::time::Instant::now();
            if let Err(error) = self.reader.clean().await {
                // Another process may have the right to remove them.
                tracing::debug!(target: "larder", %error, "old rows of the outbox cannot be removed by this process");
            }
        }
        Ok(())
    }

    /// Invalidates the outbox rows behind the position of this process, and moves it.
    async fn tell(db: &Db, reader: &mut R, place: &mut String) -> sqlx::Result<()> {
        let found = reader.behind(place).await?;
        invalidate(db, &found).await?;
        *place = found.place;
        Ok(())
    }

    /// Invalidates the outbox rows behind a shared position, and moves it. If the invalidation is only queued for the
    /// log, the position stays, since the queue would be lost with this process; then returns how far it has
    /// invalidated.
    async fn take(db: &Db, reader: &mut R, name: &str) -> sqlx::Result<Option<String>> {
        let claimed = reader.claim(name).await?;
        let Some((found, claim)) = claimed.filter(|(found, _)| !found.is_nothing()) else {
            return Ok(None);
        };
        if invalidate(db, &found).await? == Some(Invalidated::Queued) {
            return Ok(Some(found.place));
        }
        claim.move_to(&found.place).await?;
        Ok(None)
    }

    fn note(&mut self, error: &sqlx::Error) {
        let plan = self.db.cache().plan();
        plan.kernel
            .meter(plan.options.name)
            .record(Event::Failed(Reason::Outbox), plan.kernel.now());
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(target: "larder", %error, "the outbox cannot be read: writes of other programs are not seen until a retry succeeds");
        }
    }
}

/// The position that the processes of a log share, another one for each epoch. `None` without a shared log, or while it
/// is out of reach.
fn shared_place(db: &Db) -> Option<ReadPosition> {
    let plan = db.cache().plan();
    let log = plan.kernel.log();
    let epoch = log.epoch.filter(|_| log.shared)?;
    Some(ReadPosition::Shared(format!("{}:{:032x}", plan.options.database, epoch.to_bits())))
}

/// Invalidates all outbox rows of a batch, as one append. `None` if there are none.
async fn invalidate(db: &Db, found: &OutboxBatch) -> sqlx::Result<Option<Invalidated>> {
    if found.gap {
        return Ok(Some(db.invalidate_all().await));
    }
    let plan = db.cache().plan();
    let known = plan.known();
    let is_known = |line: &OutboxRow| {
        known.catalog().is_some_and(|catalog| catalog.is_relation(&folded(&line.table)))
    };
    // A table was created since. If the catalog cannot be read, the outbox rows are read again later.
    if !found.lines.iter().all(is_known) && !plan.relearn().await {
        return Err(sqlx::Error::Protocol("the catalog of the database cannot be read".to_owned()));
    }
    let targets = targets(plan, plan.known().catalog(), &found.lines);
    if targets.is_empty() {
        return Ok(None);
    }
    Ok(Some(plan.kernel.invalidate(targets).await))
}

/// The targets of these outbox rows.
fn targets(plan: &QueryContext, catalog: Option<&Catalog>, lines: &[OutboxRow]) -> Vec<Target> {
    let mut changed: BTreeMap<String, Option<Vec<Vec<String>>>> = BTreeMap::new();
    for line in lines {
        let table = folded(&line.table);
        let rows = line.keys.as_ref().and_then(|keys| rows(catalog?, &table, keys));
        let before = changed.entry(table).or_insert(Some(Vec::new()));
        *before = match (before.take(), rows) {
            (Some(before), Some(rows)) if before.len() + rows.len() <= MOST_ROWS => {
                Some([before, rows].concat())
            }
            _ => None,
        };
    }
    let mut targets = Vec::new();
    for (table, rows) in changed {
        let tree = match catalog {
            Some(catalog) if catalog.is_table(&table) => catalog.tree(&table),
            // Known by name only: no process with this catalog stores a query that reads it.
            Some(catalog) if catalog.is_relation(&table) => None,
            _ => return vec![plan.tags.everything()],
        };
        targets.extend(tree.into_iter().flatten().map(|table| plan.tags.any_row(table)));
        let rows = rows.map(|rows| rows.iter().map(|key| plan.tags.row(&table, key)).collect());
        targets.extend(plan.tags.changed(&table, rows));
    }
    targets
}

/// The keys of rows in the form of row tags; `None` if they do not fit the primary key.
fn rows(catalog: &Catalog, table: &str, keys: &[Vec<Option<String>>]) -> Option<Vec<Vec<String>>> {
    let width = catalog.key(table).len();
    let row = |key: &Vec<Option<String>>| {
        let key: Option<Vec<String>> = key.iter().cloned().collect();
        key.filter(|key| width > 0 && key.len() == width)
    };
    keys.iter().map(row).collect()
}

/// Runs all statements of a text in one transaction.
async fn run_all<D>(pool: &sqlx::Pool<D>, text: &str) -> sqlx::Result<()>
where
    D: sqlx::Database,
    for<'c> &'c mut D::Connection: sqlx::Executor<'c, Database = D>,
{
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Without a wake-up the outbox is read after this time.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A read that takes longer is given up, and repeated.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// The pause after a failed read.
const PAUSE: Duration = Duration::from_millis(200);
const BETWEEN_CLEANINGS: Duration = Duration::from_secs(60);
/// More outbox rows in one read invalidate everything; the readers fetch one more.
const MOST_LINES: usize = 10_000;
/// More rows of one table invalidate the whole table.
const MOST_ROWS: usize = 256;
