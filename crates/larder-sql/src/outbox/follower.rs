//! Follows an outbox: reads its rows, and invalidates the tables and rows that they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use larder_core::{Invalidated, Reason, Target, kernel::Event, store::CommitId};

use crate::{
    analysis::ChangedColumns,
    catalog::{Catalog, KeyColumn, folded},
    context::QueryContext,
    driver::DriverError,
    error::QueryError,
    tags::Tags,
};

/// The owner of a read position in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ReadPosition {
    /// This process alone, at this position.
    Alone(String),
    /// All processes of a shared log, at the position with this name.
    Shared(String),
}

/// The outbox rows after a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutboxBatch {
    pub(crate) lines: Vec<OutboxRow>,
    pub(crate) events: Vec<OutboxEvent>,
    /// The position from which the next read starts.
    pub(crate) place: String,
    /// Whether outbox rows may have been missed, so that any table may have changed.
    pub(crate) gap: bool,
    /// Whether the shared position has to be written again, so that it does not become too old.
    pub(crate) ages: bool,
}

impl OutboxBatch {
    fn is_nothing(&self) -> bool {
        self.lines.is_empty() && self.events.is_empty() && !self.gap && !self.ages
    }
}

/// A domain event that a transaction has left in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutboxEvent {
    pub(crate) name: String,
    pub(crate) body: String,
}

impl OutboxEvent {
    /// Returns the event of an outbox row, if the row is one.
    pub(crate) fn of(relation: &str, body: Option<&str>) -> Option<Self> {
        let name = relation.strip_prefix(EVENT)?;
        Some(Self { name: name.to_owned(), body: body.unwrap_or_default().to_owned() })
    }
}

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutboxRow {
    pub(crate) table: String,
    /// The keys of the changed rows; `None` means any row.
    pub(crate) keys: Option<Vec<Vec<Option<String>>>>,
    /// The columns that have changed. `None` if they are unknown.
    pub(crate) columns: Option<ChangedColumns>,
    /// The values of each lookup column in the changed rows, before and after the change. `None` if they are unknown.
    pub(crate) lookups: Option<BTreeMap<String, Vec<String>>>,
    /// The identity of the transaction, if larder itself invalidates after the commit.
    pub(crate) commit: Option<CommitId>,
    /// Whether the keys are missing because `REPLACE` may have removed other rows, for which no trigger fires.
    pub(crate) may_replace: bool,
}

impl OutboxRow {
    /// Returns the row of a statement whose analysis names the rows that it changes. If the triggers do not name them because
    /// `REPLACE` may have removed others, the analysis has to be trusted, and only the table is left to compare.
    fn of_known_statement(&self) -> Self {
        match self.keys {
            None if self.may_replace => Self { keys: Some(Vec::new()), ..self.clone() },
            _ => self.clone(),
        }
    }

    pub(crate) fn new(table: String, keys: Option<&str>, commit: Option<&str>) -> Self {
        // If the keys cannot be parsed, any row may have changed.
        let keys = keys.and_then(|keys| serde_json::from_str(keys).ok());
        let commit = commit.and_then(CommitId::parse);
        Self { table, keys, columns: None, lookups: None, commit, may_replace: false }
    }

    /// Adds the values of lookups, a JSON object of arrays. An array that is null is empty.
    pub(crate) fn with_lookups(mut self, lookups: Option<&str>) -> Self {
        type Noted = BTreeMap<String, Option<Vec<String>>>;
        let noted: Option<Noted> = lookups.and_then(|json| serde_json::from_str(json).ok());
        let folded = |(column, values): (String, Option<Vec<String>>)| {
            (folded(&column), values.unwrap_or_default())
        };
        self.lookups = noted.map(|noted| noted.into_iter().map(folded).collect());
        self
    }

    /// Adds the columns that have changed, a JSON array. It is empty if rows were added or removed.
    pub(crate) fn with_columns(mut self, columns: Option<&str>) -> Self {
        let changed: Option<BTreeSet<String>> =
            columns.and_then(|json| serde_json::from_str(json).ok());
        self.columns = changed.map(|columns| match columns.is_empty() {
            true => ChangedColumns::Rows,
            false => ChangedColumns::Set(columns.iter().map(|column| folded(column)).collect()),
        });
        self
    }

    /// Returns the targets of its columns.
    fn column_targets(&self, tags: &Tags) -> Vec<Target> {
        let columns = self.columns.as_ref().unwrap_or(&ChangedColumns::Any);
        tags.changed_columns(&folded(&self.table), columns)
    }

    /// Returns the targets of its lookups.
    pub(crate) fn lookup_targets(&self, tags: &Tags, catalog: &Catalog) -> Vec<Target> {
        let table = folded(&self.table);
        let columns = catalog.lookups(&table);
        let of = |column: &KeyColumn| {
            let values = self.lookups.as_ref()?.get(&column.name)?;
            let values = Some(values).filter(|values| values.len() <= MOST_LOOKUPS)?;
            let tag = |value: &String| {
                let value = column.kind.canonical(value)?;
                Some(Target::tag(tags.lookup(&table, &column.name, &value)))
            };
            values.iter().map(tag).collect::<Option<Vec<_>>>()
        };
        let known: Option<Vec<_>> = columns.iter().map(of).collect();
        known.map_or_else(|| vec![tags.any_lookup(&table)], |known| known.concat())
    }
}

/// Reads the outbox of one kind of database.
pub(crate) trait Reader: Send + 'static {
    /// The claim to a shared position while this process invalidates by the outbox rows after it.
    type Claim<'a>: Claim + Send
    where
        Self: 'a;

    /// Reads the outbox rows after a position. For the empty position, `OutboxBatch::gap` is always set.
    fn behind(
        &mut self,
        place: &str,
    ) -> impl Future<Output = Result<OutboxBatch, DriverError>> + Send;

    /// Claims a shared position, and reads the outbox rows after it; `None` while another process holds the position.
    /// If the position does not exist, it is created as the empty position.
    fn claim(
        &mut self,
        name: &str,
    ) -> impl Future<Output = Result<Option<(OutboxBatch, Self::Claim<'_>)>, DriverError>> + Send;

    /// Removes outbox rows that all readers have had two hours to read, and positions that no process has moved for 30
    /// days.
    fn clean(&mut self) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Waits until there may be new outbox rows, for at most one second.
    fn wait(&mut self) -> impl Future<Output = ()> + Send;
}

/// The right to move a shared position. If it is dropped, the position does not change.
pub(crate) trait Claim {
    /// Gives the right back, without moving the position.
    fn release(self) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Moves the position, and gives the right back.
    fn move_to(self, place: &str) -> impl Future<Output = Result<(), DriverError>> + Send;
}

/// Reads the outbox of a database, and invalidates.
pub(crate) struct OutboxReader<R> {
    context: Arc<QueryContext>,
    reader: R,
    reading: ReadPosition,
    /// The position up to which this process has invalidated, while its invalidations wait to be appended to the log.
    told: Option<String>,
    cleaned: tokio::time::Instant,
    failing: bool,
}

impl<R: Reader> OutboxReader<R> {
    pub(crate) async fn begin(
        context: Arc<QueryContext>,
        mut reader: R,
    ) -> Result<Self, QueryError> {
        let here = reader.behind("").await.map_err(QueryError::database)?.place;
        let reading = shared_place(&context);
        if reading.is_none() {
            // Outbox rows before this position may not have invalidated the entries that are already stored.
            let _logged_or_queued = invalidate_missed(&context).await;
        }
        let reading = reading.unwrap_or(ReadPosition::Alone(here));
        let cleaned = tokio::time::Instant::now();
        Ok(Self { context, reader, reading, told: None, cleaned, failing: false })
    }

    pub(crate) async fn run(mut self) {
        loop {
            let looked = tokio::time::timeout(LONGEST_LOOK, self.look()).await;
            match looked.unwrap_or_else(|elapsed| Err(DriverError::failed(elapsed))) {
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

    /// Reads new outbox rows, and invalidates the tables and rows that they name.
    async fn look(&mut self) -> Result<(), DriverError> {
        // Each epoch of the log has its own position.
        if let Some(shared) = shared_place(&self.context).filter(|shared| *shared != self.reading) {
            (self.reading, self.told) = (shared, None);
        }
        match &mut self.reading {
            ReadPosition::Alone(place) => {
                Self::tell(&self.context, &mut self.reader, place).await?;
            }
            ReadPosition::Shared(name) => {
                let pending = self.context.kernel.invalidations_pending();
                match self.told.as_mut().filter(|_| pending > 0) {
                    // The log cannot be reached, so this process continues after the outbox rows that it has already
                    // read.
                    Some(place) => Self::tell(&self.context, &mut self.reader, place).await?,
                    None => self.told = Self::take(&self.context, &mut self.reader, name).await?,
                }
            }
        }
        if self.cleaned.elapsed() > BETWEEN_CLEANINGS {
            self.cleaned = tokio::time::Instant::now();
            if let Err(error) = self.reader.clean().await {
                // Perhaps only another process has the right to remove them.
                tracing::debug!(target: "larder", %error, "old rows of the outbox cannot be removed by this process");
            }
        }
        Ok(())
    }

    /// Reads the outbox rows after the position of this process, invalidates the tables and rows that they name, and
    /// advances the position.
    async fn tell(
        context: &Arc<QueryContext>,
        reader: &mut R,
        place: &mut String,
    ) -> Result<(), DriverError> {
        let found = reader.behind(place).await?;
        invalidate(context, &found).await?;
        *place = found.place;
        Ok(())
    }

    /// Reads the outbox rows after a shared position, invalidates the tables and rows that they name, and advances the
    /// position. If the invalidation is only queued for the log, the position does not change, because the queue would
    /// be lost with this process. Then returns the position up to which this process has invalidated.
    async fn take(
        context: &Arc<QueryContext>,
        reader: &mut R,
        name: &str,
    ) -> Result<Option<String>, DriverError> {
        let Some((found, claim)) = reader.claim(name).await? else { return Ok(None) };
        if found.is_nothing() {
            claim.release().await?;
            return Ok(None);
        }
        if invalidate(context, &found).await? == Some(Invalidated::Queued) {
            claim.release().await?;
            return Ok(Some(found.place));
        }
        claim.move_to(&found.place).await?;
        Ok(None)
    }

    fn note(&mut self, error: &DriverError) {
        let QueryContext { kernel, options, .. } = &*self.context;
        kernel.meter(options.name).record(Event::Failed(Reason::Outbox), kernel.now());
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(target: "larder", %error, "the outbox cannot be read: writes of other programs are not seen until a retry succeeds");
        }
    }
}

/// Returns the position that the processes of a log share. Each epoch has its own position. `None` without a shared
/// log, or while its epoch is unknown.
fn shared_place(context: &Arc<QueryContext>) -> Option<ReadPosition> {
    let log = context.kernel.log();
    let epoch = log.epoch.filter(|_| log.shared)?;
    Some(ReadPosition::Shared(format!("{}:{:032x}", context.options.database, epoch.to_bits())))
}

/// Invalidates everything, after outbox rows were not read: one of them may have been an event, which may invalidate more
/// than the results of this database.
async fn invalidate_missed(context: &Arc<QueryContext>) -> Invalidated {
    context.kernel.invalidate(Target::everything()).await
}

/// Invalidates the targets of all outbox rows of a batch, in one append, and then emits the events. `None` if there are
/// none. If the handler of an event fails, this returns an error, so that the rows and events are read again.
async fn invalidate(
    context: &Arc<QueryContext>,
    found: &OutboxBatch,
) -> Result<Option<Invalidated>, DriverError> {
    if found.gap {
        return Ok(Some(invalidate_missed(context).await));
    }
    let known = context.known();
    let is_known = |line: &OutboxRow| {
        known.catalog().is_some_and(|catalog| catalog.is_relation(&folded(&line.table)))
    };
    // An unknown table was created since the catalog was read. If the catalog cannot be read again, the outbox rows are
    // read again later.
    if !found.lines.iter().all(is_known) && !context.relearn().await {
        return Err(DriverError::failed("the catalog of the database cannot be read"));
    }
    let catalog = context.known();
    let mut outcomes = Vec::new();
    // The rows of larder's own transactions come last, because the others must not wait for them.
    let mut own: BTreeMap<CommitId, Vec<&OutboxRow>> = BTreeMap::new();
    let mut foreign = Vec::new();
    for line in &found.lines {
        match line.commit {
            Some(commit) => own.entry(commit).or_default().push(line),
            None => foreign.push(line),
        }
    }
    let foreign = targets(context, catalog.catalog(), &foreign);
    let own = own.into_iter().map(async |(commit, lines)| {
        if !context.kernel.has_commit(commit, OWN_INVALIDATION).await {
            return targets(context, catalog.catalog(), &lines);
        }
        let own: Vec<_> = lines.into_iter().map(OutboxRow::of_known_statement).collect();
        let targets = targets(context, catalog.catalog(), &own.iter().collect::<Vec<_>>());
        let is_covered = |target: &Target| context.kernel.is_covered(commit, target);
        targets.into_iter().filter(|target| !is_covered(target)).collect()
    });
    if !foreign.is_empty() {
        outcomes.push(context.kernel.invalidate(foreign).await);
    }
    let uncovered = join_all(own).await.concat();
    if !uncovered.is_empty() {
        outcomes.push(context.kernel.invalidate(uncovered).await);
    }
    let mut failed = None;
    let emitting = found
        .events
        .iter()
        .map(|OutboxEvent { name, body }| context.kernel.emit_stored(name, body.as_bytes()));
    for emitted in join_all(emitting).await {
        match emitted {
            Some(Ok(invalidated)) => outcomes.push(invalidated),
            Some(Err(error)) => failed = Some(error),
            // Another version of the program knows what the event invalidates.
            None => outcomes.push(context.kernel.invalidate(Target::everything()).await),
        }
    }
    if let Some(error) = failed {
        return Err(DriverError::failed(error));
    }
    let is_queued = outcomes.contains(&Invalidated::Queued);
    Ok(if is_queued { Some(Invalidated::Queued) } else { outcomes.pop() })
}

/// The targets of these outbox rows.
fn targets(context: &QueryContext, catalog: Option<&Catalog>, lines: &[&OutboxRow]) -> Vec<Target> {
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
            // The catalog has only its name, so no process with this catalog stores a query that reads it.
            Some(catalog) if catalog.is_relation(&table) => None,
            _ => return vec![context.tags.everything()],
        };
        targets.extend(tree.into_iter().flatten().map(|table| context.tags.any_row(table)));
        let rows = rows.map(|rows| rows.iter().map(|key| context.tags.row(&table, key)).collect());
        targets.extend(context.tags.changed(&table, rows));
        for line in lines.iter().filter(|line| folded(&line.table) == table) {
            targets.extend(line.column_targets(&context.tags));
            if let Some(catalog) = catalog {
                targets.extend(line.lookup_targets(&context.tags, catalog));
            }
        }
    }
    targets
}

/// The keys of rows in the form of row tags; `None` if they do not match the primary key.
fn rows(catalog: &Catalog, table: &str, keys: &[Vec<Option<String>>]) -> Option<Vec<Vec<String>>> {
    let columns = catalog.key(table);
    let row = |key: &Vec<Option<String>>| {
        if columns.is_empty() || key.len() != columns.len() {
            return None;
        }
        let value = |(column, value): (&KeyColumn, &Option<String>)| {
            Some(column.kind.canonical(value.as_deref()?)?.into_owned())
        };
        columns.iter().zip(key).map(value).collect()
    };
    keys.iter().map(row).collect()
}

/// The relation of an outbox row that is an event begins with this, and continues with the name of the event. No table
/// has such a name.
pub(crate) const EVENT: &str = "larder event ";
/// The outbox is read after this time even without a wake-up.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A read that takes longer is cancelled and repeated.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// How long a process may take from the commit of its own transaction to its invalidation. After this time the follower
/// invalidates in its place.
const OWN_INVALIDATION: Duration = Duration::from_millis(250);
/// The pause after a failed read.
const PAUSE: Duration = Duration::from_millis(200);
const BETWEEN_CLEANINGS: Duration = Duration::from_secs(60);
/// If one read returns more outbox rows than this, everything is invalidated. The readers fetch one more row to detect
/// that.
pub(crate) const MOST_LINES: usize = 10_000;
/// If the changed rows have more values of a lookup column, all values are invalidated. The triggers note one more.
const MOST_LOOKUPS: usize = 128;
/// If more rows of one table have changed, the whole table is invalidated.
const MOST_ROWS: usize = 256;
