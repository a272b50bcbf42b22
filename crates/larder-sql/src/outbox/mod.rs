//! Writes from elsewhere: of other programs, by hand, and of a process that died before it could say what it wrote.
//!
//! # The idea
//!
//! Triggers of the database leave a line in a table, the *outbox*, for each statement that changes another table, in the
//! transaction of that statement. What is committed has left its line, whoever wrote it and whatever became of him; what is
//! rolled back has left none. A [`OutboxFollower`] reads the lines and invalidates what they name. So between a commit and its
//! invalidation nothing can be lost: at worst it is late.
//!
//! # Who reads what
//!
//! A process whose cache is its own memory reads every line from where it began: it had nothing before. Processes that share
//! a log share a place in the outbox too, kept beside it under the epoch of that log: one of them at a time takes the lines
//! behind it, invalidates, and moves it. Who dies meanwhile has not moved it, and the next one takes them again. A log that was
//! lost has another epoch, by which all that was kept under the old one is void anyway.
//!
//! # What must not be missed
//!
//! 1. A transaction that commits late. In PostgreSQL the numbers of lines are drawn before the commit, so "all above the last
//!    one" would skip it. The place is a *snapshot* instead: which transactions were over. What was not over then and is
//!    now is read, in whatever order they were begun. In SQLite there is one writer at a time, and numbers are in the order
//!    of commits.
//! 2. A notification that got lost. It only wakes: the table is the truth, and is looked at once a second whoever is silent.
//! 3. Lines that were removed before they were read. They are removed when they were there for an hour or more; whoever was
//!    away for longer takes everything for changed. So does whoever finds another server than before, or one that was started
//!    anew, since it may have lost what it had said it had committed; and whoever finds no shared place.
//! 4. Somebody who hangs while he has the shared place. PostgreSQL ends his transaction after ten seconds.
//!
//! A write of a process that follows is invalidated twice, by itself at once and by its line a little later. That costs a
//! page made in between, and nothing else.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Weak},
    time::Duration,
};

use larder_core::{Invalidated, Target, kernel::Event};
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

/// The outbox of a database: what makes writes from elsewhere known. Given by [`Db::outbox`].
///
/// ```no_run
/// # async fn start(db: larder_sql::Db) -> Result<(), larder_sql::QueryError> {
/// let outbox = db.outbox();
/// outbox.install().await?; // or let somebody else run what `outbox.sql()` says
/// let following = outbox.follow().await?; // until it is dropped
/// # drop(following); Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[doc(alias("transactional outbox", "change data capture", "listen", "notify"))]
pub struct Outbox {
    db: Db,
}

impl Db {
    /// What makes writes known that do not come through this handle.
    pub fn outbox(&self) -> Outbox {
        Outbox { db: self.clone() }
    }
}

impl Outbox {
    /// What [`Outbox::install`] runs: for those whose programs may not define tables and triggers.
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

    /// Makes the outbox, and the triggers that fill it for each table there is. What is there already stays: run it at each
    /// start, after migrations. After that it is run again by itself when this handle has run a statement that defines tables.
    ///
    /// PostgreSQL: tables of the schema `public`, by statement, with the keys of up to 64 rows; needs the right to make a
    /// schema (`larder_outbox`) and triggers. SQLite: by row.
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
        // What it has defined is no change to what was known, but tables may have been made before.
        match self.plan().relearn().await {
            true => Ok(()),
            false => Err(QueryError::new(QueryErrorKind::Database)),
        }
    }

    /// Invalidates what the lines of the outbox name, from now on and until what this gives is dropped. With a log that is
    /// shared also what was written since any of those who share it last followed.
    ///
    /// # Errors
    ///
    /// When there is no outbox, or with [`NothingToFollow`](crate::QueryErrorKind::NothingToFollow) for a database in
    /// memory, which nobody else can write.
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

/// Runs the definition of the outbox once more.
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

/// Somebody follows the outbox. Dropping it ends that.
#[must_use = "dropped, nobody follows any more"]
pub struct OutboxFollower {
    _tasks: JoinSet<()>,
}

impl fmt::Debug for OutboxFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxFollower").finish_non_exhaustive()
    }
}

/// Who has a place in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ReadPosition {
    /// This process, behind this place.
    Alone(String),
    /// Those who share a log, under this name.
    Shared(String),
}

/// What was found behind a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OutboxBatch {
    lines: Vec<OutboxRow>,
    /// Where the next look begins.
    place: String,
    /// Whether lines may have been missed: then anything may have changed.
    gap: bool,
    /// Whether the shared place has to be written once more to stay a young one.
    ages: bool,
}

impl OutboxBatch {
    fn is_nothing(&self) -> bool {
        self.lines.is_empty() && !self.gap && !self.ages
    }
}

/// A line of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OutboxRow {
    table: String,
    /// The keys of the rows; any row where there are none.
    keys: Option<Vec<Vec<Option<String>>>>,
}

impl OutboxRow {
    fn new(table: String, keys: Option<&str>) -> Self {
        // What cannot be read names any row.
        Self { table, keys: keys.and_then(|keys| serde_json::from_str(keys).ok()) }
    }
}

/// How the outbox of one kind of database is read.
trait Reader: Send + 'static {
    /// A look that others who share the place have to wait for.
    type Claim<'a>: Claim + Send
    where
        Self: 'a;

    /// What is behind a place. Behind nowhere, the empty one, there is a gap.
    fn behind(&mut self, place: &str) -> impl Future<Output = sqlx::Result<OutboxBatch>> + Send;

    /// What is behind a shared place, unless somebody else is at it. One that is not there is made, and is nowhere.
    fn claim(
        &mut self,
        name: &str,
    ) -> impl Future<Output = sqlx::Result<Option<(OutboxBatch, Self::Claim<'_>)>>> + Send;

    /// Removes what all have had an hour to read.
    fn clean(&mut self) -> impl Future<Output = sqlx::Result<()>> + Send;

    /// Waits until there may be more, a second at the longest.
    fn wait(&mut self) -> impl Future<Output = ()> + Send;
}

/// The right to move a shared place. Dropped, it stays where it is.
trait Claim {
    fn move_to(self, place: &str) -> impl Future<Output = sqlx::Result<()>> + Send;
}

struct OutboxReader<R> {
    db: Db,
    reader: R,
    reading: ReadPosition,
    /// Up to where this process has told the log what it could not take yet.
    told: Option<String>,
    cleaned: tokio::time::Instant,
    failing: bool,
}

impl<R: Reader> OutboxReader<R> {
    async fn begin(db: Db, mut reader: R) -> Result<Self, QueryError> {
        let here = reader.behind("").await.map_err(QueryError::database)?.place;
        let reading = shared_place(&db);
        if reading.is_none() {
            // What was kept before this place may have missed a line.
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

    /// Takes what has come, and invalidates it.
    async fn look(&mut self) -> sqlx::Result<()> {
        // Another epoch of the log is another place.
        if let Some(shared) = shared_place(&self.db).filter(|shared| *shared != self.reading) {
            (self.reading, self.told) = (shared, None);
        }
        match &mut self.reading {
            ReadPosition::Alone(place) => Self::tell(&self.db, &mut self.reader, place).await?,
            ReadPosition::Shared(name) => {
                let pending = self.db.cache().plan().kernel.invalidations_pending();
                match self.told.as_mut().filter(|_| pending > 0) {
                    // The log takes nothing: what this process has told itself it tells no second time.
                    Some(place) => Self::tell(&self.db, &mut self.reader, place).await?,
                    None => self.told = Self::take(&self.db, &mut self.reader, name).await?,
                }
            }
        }
        if self.cleaned.elapsed() > BETWEEN_CLEANINGS {
            self.cleaned = tokio::time::Instant::now();
            if let Err(error) = self.reader.clean().await {
                // Somebody else may have the right to do it.
                tracing::debug!(target: "larder", %error, "old lines of the outbox are left");
            }
        }
        Ok(())
    }

    /// Invalidates what is behind a place of this process, and moves it.
    async fn tell(db: &Db, reader: &mut R, place: &mut String) -> sqlx::Result<()> {
        let found = reader.behind(place).await?;
        invalidate(db, &found).await?;
        *place = found.place;
        Ok(())
    }

    /// Invalidates what is behind a shared place, and moves it. Where the log does not take it the place stays: what only
    /// waits in this process would be lost with it. Then gives how far it was told.
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
        plan.kernel.meter(plan.options.name).record(Event::Failed("outbox"), plan.kernel.now());
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(target: "larder", %error, "the outbox cannot be read: what others write is seen late");
        }
    }
}

/// The place of those who share a log: another for each epoch. `None` where none is shared, or it is out of reach.
fn shared_place(db: &Db) -> Option<ReadPosition> {
    let plan = db.cache().plan();
    let log = plan.kernel.log();
    let epoch = log.epoch.filter(|_| log.shared)?;
    Some(ReadPosition::Shared(format!("{}:{:032x}", plan.options.database, epoch.to_bits())))
}

/// Invalidates all that was found, as one append. `None` where there was nothing.
async fn invalidate(db: &Db, found: &OutboxBatch) -> sqlx::Result<Option<Invalidated>> {
    if found.gap {
        return Ok(Some(db.invalidate_all().await));
    }
    let plan = db.cache().plan();
    let known = plan.known();
    let is_known = |line: &OutboxRow| {
        known.catalog().is_some_and(|catalog| catalog.is_relation(&folded(&line.table)))
    };
    // A table was made since. Where the tables cannot be read the lines are taken another time.
    if !found.lines.iter().all(is_known) && !plan.relearn().await {
        return Err(sqlx::Error::Protocol("the tables of the database cannot be read".to_owned()));
    }
    let targets = targets(plan, plan.known().catalog(), &found.lines);
    if targets.is_empty() {
        return Ok(None);
    }
    Ok(Some(plan.kernel.invalidate(targets).await))
}

/// What these lines make untrue.
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
            // What is not described is kept by nobody who knows what this process knows.
            Some(catalog) if catalog.is_relation(&table) => None,
            _ => return vec![plan.tags.everything()],
        };
        targets.extend(tree.into_iter().flatten().map(|table| plan.tags.any_row(table)));
        let rows = rows.map(|rows| rows.iter().map(|key| plan.tags.row(&table, key)).collect());
        targets.extend(plan.tags.changed(&table, rows));
    }
    targets
}

/// The keys of rows as tags name them, where they do.
fn rows(catalog: &Catalog, table: &str, keys: &[Vec<Option<String>>]) -> Option<Vec<Vec<String>>> {
    let width = catalog.key(table).len();
    let row = |key: &Vec<Option<String>>| {
        let key: Option<Vec<String>> = key.iter().cloned().collect();
        key.filter(|key| width > 0 && key.len() == width)
    };
    keys.iter().map(row).collect()
}

/// Runs statements as one.
async fn run_all<D>(pool: &sqlx::Pool<D>, text: &str) -> sqlx::Result<()>
where
    D: sqlx::Database,
    for<'c> &'c mut D::Connection: sqlx::Executor<'c, Database = D>,
{
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Who is not woken looks all the same.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A database that does not answer for so long is asked anew.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// After a look that failed.
const PAUSE: Duration = Duration::from_millis(200);
const BETWEEN_CLEANINGS: Duration = Duration::from_secs(60);
/// More lines than this at once are as good as everything; the readers ask for one more.
const MOST_LINES: usize = 10_000;
/// More rows of one table than this are as good as the table.
const MOST_ROWS: usize = 256;
