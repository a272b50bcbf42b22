//! Transactions, which invalidate when they are committed, and not when they are rolled back, unless a statement has
//! failed or was dropped while it ran.

use larder_core::{Reason, Target, events::StoredEvent, store::CommitId};
use std::{any::Any, borrow::Cow, collections::BTreeSet, fmt, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use tokio::runtime::Handle;

use crate::{
    analysis::{SqlDialect, StatementKind},
    context::{PreparedStatement, QueryContext, SchemaSnapshot},
    database::{DatabaseService, DatabaseTransaction},
    db::{Db, SharedRow},
    driver::{Connection, DriverError},
    error::{QueryError, QueryErrorKind},
    outbox::{self, follower::OutboxRow},
    rows::StatementOutcome,
    service::{CacheableRow, written_unread},
    statement::Statement,
    value::SqlValue,
};

/// A transaction. If it is dropped, it is rolled back, and nothing is invalidated.
///
/// Its queries bypass the cache, because they may read rows that only this transaction sees. A statement that fails or
/// is dropped while it runs may have ended the transaction, as `INSERT OR ROLLBACK` does in SQLite. larder then
/// invalidates everything that the transaction wrote, whether or not it is committed. In PostgreSQL a transaction with
/// a failed statement can only be rolled back.
pub struct Transaction {
    /// `None` once the transaction has ended.
    inner: Option<DatabaseTransaction>,
    /// The identity of the transaction, for the outbox. `None` once it may contain statements that larder does not know.
    commit: Option<CommitId>,
    uncertain: bool,
    context: Arc<QueryContext>,
    targets: Vec<Target>,
    /// The tables whose changed rows have unknown values in a lookup column, unless the outbox notes them.
    unknown_lookups: BTreeSet<String>,
    /// The events that the transaction has left in the outbox: names and bodies.
    events: Vec<(&'static str, String)>,
    defines: bool,
    /// The number of open nested transactions, including nested transactions that were dropped but are not rolled back
    /// yet.
    depth: usize,
    /// The outermost nested transaction that was dropped, which is rolled back before the next statement.
    dropped: Option<Savepoint>,
    /// The schema snapshot at the first statement.
    known: Option<Arc<SchemaSnapshot>>,
}

impl Db<DatabaseService> {
    /// Begins a transaction.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use larder_core::Larder;
    /// # use larder_sql::*;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # let schema = "CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO stock VALUES (42, 8)";
    /// # sqlx::raw_sql(schema).execute(&pool).await?;
    /// # let larder = Larder::builder().build()?;
    /// # let db = larder_sqlx::v0_9::sqlite(pool).cached(&larder).await?;
    /// let stock = || db.query("SELECT n FROM stock WHERE id = ?").bind(42).fetch_scalar::<i64>();
    /// assert_eq!(stock().await?, 8);
    ///
    /// let mut order = db.begin().await?;
    /// order.query("UPDATE stock SET n = n - 1 WHERE id = ?").bind(42).execute().await?;
    /// assert_eq!(stock().await?, 8, "not committed: the stored result is still valid");
    /// order.commit().await?;
    /// assert_eq!(stock().await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn begin(&self) -> Result<Transaction, QueryError> {
        let commit = self.cache().context().commit_id();
        // Inside of a value that is written through, it writes.
        self.begin_as(commit, commit.is_some()).await
    }

    /// Begins a transaction without an identity for the outbox. No statement has run in it.
    #[cfg(feature = "write-behind")]
    pub(crate) async fn begin_unmarked(&self, writes: bool) -> Result<Transaction, QueryError> {
        self.begin_as(None, writes).await
    }

    async fn begin_as(
        &self,
        commit: Option<CommitId>,
        writes: bool,
    ) -> Result<Transaction, QueryError> {
        let begun = self.cache().inner().begin(commit, writes).await;
        Ok(Transaction {
            inner: Some(begun.map_err(QueryError::database)?),
            commit,
            uncertain: false,
            context: Arc::clone(self.cache().context()),
            targets: Vec::new(),
            unknown_lookups: BTreeSet::new(),
            events: Vec::new(),
            defines: false,
            depth: 0,
            dropped: None,
            known: None,
        })
    }
}

impl Transaction {
    /// Creates a query or another statement within the transaction.
    pub fn query(&mut self, text: impl Into<Cow<'static, str>>) -> TransactionQuery<'_> {
        TransactionQuery { transaction: self, statement: Statement::new(text) }
    }

    /// Begins a nested transaction, which is a savepoint of the database. If it is committed, it becomes part of this
    /// transaction. If it is rolled back or dropped, its writes are undone, and nothing is invalidated for them.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or in PostgreSQL after a failed statement.
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn order(db: &larder_sql::Db) -> Result<(), larder_sql::QueryError> {
    /// let mut transaction = db.begin().await?;
    /// transaction.query("UPDATE stock SET n = n - 1 WHERE id = 7").execute().await?;
    /// let mut gift = transaction.begin().await?;
    /// match gift.query("UPDATE gifts SET n = n - 1 WHERE id = 1").execute().await {
    ///     Ok(_) => gift.commit().await?,
    ///     Err(_) => gift.rollback().await?,
    /// }
    /// transaction.commit().await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("savepoint"))]
    pub async fn begin(&mut self) -> Result<NestedTransaction<'_>, QueryError> {
        self.take_back_dropped().await?;
        let begun = self.savepoint("SAVEPOINT larder_", self.depth + 1).await;
        self.uncertain |= begun.is_err();
        begun?;
        self.depth += 1;
        let (targets, events) = (self.targets.len(), self.events.len());
        let savepoint = Savepoint { depth: self.depth, targets, events };
        Ok(NestedTransaction { transaction: self, savepoint: Some(savepoint) })
    }

    async fn savepoint(&mut self, what: &str, depth: usize) -> Result<(), QueryError> {
        let statement = Statement::new(format!("{what}{depth}"));
        self.begun().run(&statement).await.map(|_| ()).map_err(QueryError::database)
    }

    /// Rolls back to this savepoint, which also undoes the savepoints that were begun later. If that fails, the writes
    /// may have been made outside of any transaction, so larder invalidates everything that they changed, whether or
    /// not this transaction is committed.
    async fn take_back(&mut self, savepoint: Savepoint) -> Result<(), QueryError> {
        self.depth = savepoint.depth - 1;
        let taken_back = async {
            self.savepoint("ROLLBACK TO SAVEPOINT larder_", savepoint.depth).await?;
            self.savepoint("RELEASE SAVEPOINT larder_", savepoint.depth).await
        };
        let taken_back = taken_back.await;
        match taken_back {
            Ok(()) => {
                self.targets.truncate(savepoint.targets);
                self.events.truncate(savepoint.events);
            }
            Err(_) => self.uncertain = true,
        }
        taken_back
    }

    async fn take_back_dropped(&mut self) -> Result<(), QueryError> {
        let Some(savepoint) = self.dropped else { return Ok(()) };
        self.take_back(savepoint).await?;
        self.dropped = None;
        Ok(())
    }

    /// Leaves a domain event in the outbox, in this transaction. If it is committed, [`commit`](Self::commit) emits the
    /// event, and returns once it is in effect. If the process dies in between, the processes that follow the
    /// [outbox](crate::Outbox) emit it, so an event of a committed transaction is never lost, and may be emitted more than
    /// once. If it is rolled back, nothing happens.
    ///
    /// Install the outbox first. The processes that follow it need the handlers of the event and
    /// [`Larder::receive_stored`](larder_core::Larder::receive_stored); one that does not know the name invalidates everything.
    ///
    /// # Errors
    ///
    /// When the database refuses the event, for example because the outbox is not installed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_core::{Larder, events::StoredEvent};
    /// # use larder_sql::*;
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Clone, Serialize, Deserialize)]
    /// struct Sold { product: i64 }
    ///
    /// impl StoredEvent for Sold {
    ///     const NAME: &'static str = "sold-1";
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # sqlx::raw_sql("CREATE TABLE stock (id INTEGER PRIMARY KEY, n INTEGER)").execute(&pool).await?;
    /// # let larder = Larder::builder().build()?;
    /// # let db = larder_sqlx::v0_9::sqlite(pool).cached(&larder).await?;
    /// larder.on(|event: &Sold| ("bestsellers-with", event.product));
    /// larder.receive_stored::<Sold>();
    /// db.outbox().install().await?;
    ///
    /// let mut order = db.begin().await?;
    /// order.query("UPDATE stock SET n = n - 1 WHERE id = ?").bind(42).execute().await?;
    /// order.emit(&Sold { product: 42 }).await?;
    /// order.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("transactional outbox", "domain event", "publish"))]
    pub async fn emit<E: StoredEvent>(&mut self, event: &E) -> Result<(), QueryError> {
        self.take_back_dropped().await?;
        self.context.kernel.receive_stored::<E>();
        let body = self.context.kernel.stored_event(event);
        let body = body.map_err(|error| QueryError::because(QueryErrorKind::Event, error))?;
        let statement = match self.context.options.dialect {
            SqlDialect::Postgres => Statement::new("SELECT larder_outbox.event($1, $2)"),
            _ => Statement::new(
                "INSERT INTO larder_outbox (relation, row_key) VALUES ('larder event ' || ?, ?)",
            ),
        };
        let statement = statement.bind(E::NAME).bind(body.clone());
        let was_uncertain = std::mem::replace(&mut self.uncertain, true);
        let left = self.begun().run(&statement).await;
        self.uncertain = was_uncertain || left.is_err();
        left.map_err(QueryError::database)?;
        self.events.push((E::NAME, body));
        Ok(())
    }

    /// Commits, and then invalidates everything that the transaction has changed, and emits its events, even if the
    /// caller is dropped or the driver panics.
    ///
    /// # Errors
    ///
    /// When the database does not confirm the commit. It may have committed nevertheless, so larder invalidates
    /// everything that the transaction wrote. With [`QueryErrorKind::RolledBack`] if a statement has failed in
    /// PostgreSQL, which would report a commit but roll back. With [`QueryErrorKind::Event`] if the handler of an event
    /// has failed: the transaction is committed, and the followers of the outbox try the event again.
    pub async fn commit(mut self) -> Result<(), QueryError> {
        // If this fails, nothing is committed, because dropping the transaction rolls it back.
        self.take_back_dropped().await?;
        let (context, defines, uncertain) =
            (Arc::clone(&self.context), self.defines, self.uncertain);
        let commit = self.commit;
        let (inner, mut targets) = (self.inner.take(), std::mem::take(&mut self.targets));
        let unknown = std::mem::take(&mut self.unknown_lookups);
        let events = std::mem::take(&mut self.events);
        let scope = self.context.kernel.current_scope();
        let known = self.known.take();
        let committing = self.context.kernel.spawn(async move {
            let committed = match inner {
                // The driver may have committed before it panicked.
                Some(inner) => AssertUnwindSafe(end(&context, inner, uncertain, &unknown))
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| Err(QueryError::new(QueryErrorKind::Panicked))),
                None => Ok(Vec::new()),
            };
            let noted = committed.as_deref().unwrap_or_default();
            targets.extend(unknown.iter().flat_map(|table| context.lookup_targets(table, noted)));
            let committed = committed.map(|_| ());
            if defines {
                // Invalidates now, because the next steps may wait for locks of other connections.
                let everything = vec![context.tags.everything()];
                let _logged_or_queued =
                    context.invalidate_in(scope.as_ref(), None, everything).await;
                context.relearn().await;
                context.reinstall().await;
            } else if known.is_some_and(|known| !context.is_current(&known)) {
                // The schema has changed in the meantime, so the transaction may have changed more tables than the
                // analysis found.
                targets = vec![context.tags.everything()];
            }
            if !targets.is_empty() {
                // A transaction that has not reported its commit may still be committed, after this invalidation.
                let commit = commit.filter(|_| committed.is_ok() && !uncertain);
                let _logged_or_queued =
                    context.invalidate_in(scope.as_ref(), commit, targets).await;
            }
            // They are emitted even if the commit is in doubt, as the targets are invalidated.
            let is_undone = |error: &QueryError| error.kind() == QueryErrorKind::RolledBack;
            let events = if committed.as_ref().is_err_and(is_undone) { Vec::new() } else { events };
            let emitted = emit_all(&context, events).await;
            committed.and(emitted)
        });
        committing.await.unwrap_or_else(|_| Err(QueryError::new(QueryErrorKind::Cancelled)))
    }

    /// Rolls the transaction back. Nothing is invalidated, unless a statement has failed or was dropped while it ran.
    ///
    /// # Errors
    ///
    /// When the database does not answer. It then rolls back by itself.
    pub async fn rollback(mut self) -> Result<(), QueryError> {
        match self.inner.take() {
            Some(inner) => inner.rollback().await.map_err(QueryError::database),
            None => Ok(()),
        }
    }

    /// Returns the connection of the driver, such as `sqlx::PgConnection`, for features of the driver that larder lacks;
    /// `None` if the connection has another type. larder does not invalidate after writes through it, unless they are
    /// reported ([`wrote`](Self::wrote)), or a process follows the [outbox](crate::Outbox).
    ///
    /// # Errors
    ///
    /// When a nested transaction that was dropped cannot be rolled back. It has to be rolled back first, or the statements
    /// of the caller would be rolled back with it.
    pub async fn connection<C: Any>(&mut self) -> Result<Option<&mut C>, QueryError> {
        self.take_back_dropped().await?;
        self.commit = None;
        Ok(self.driver_connection())
    }

    /// Returns the connection of the driver, for a statement that [`begin_statement`](Self::begin_statement) has noted.
    /// `None` if the connection has another type.
    #[doc(hidden)]
    pub fn driver_connection<C: Any>(&mut self) -> Option<&mut C> {
        self.begun().connection().as_any().downcast_mut()
    }

    fn begun(&mut self) -> &mut DatabaseTransaction {
        self.inner.as_mut().expect("only methods that consume the transaction end it")
    }

    /// Runs a statement of larder's own, which neither depends on data of the application nor changes it.
    #[cfg(feature = "write-behind")]
    pub(crate) async fn run_unanalysed(
        &mut self,
        statement: &Statement,
    ) -> Result<StatementOutcome, QueryError> {
        self.begun().run(statement).await.map_err(QueryError::database)
    }

    /// Notes a statement that the application runs itself on the [connection](Self::driver_connection) of this transaction,
    /// before it runs it. What it may write is invalidated when the transaction is committed. Call
    /// [`end_statement`](Self::end_statement) after it has run.
    ///
    /// # Errors
    ///
    /// When a nested transaction that was dropped cannot be rolled back, or with [`QueryErrorKind::NotAllowed`] if the
    /// statement begins or ends a transaction.
    #[doc(hidden)]
    pub async fn begin_statement(
        &mut self,
        statement: impl Into<Statement>,
    ) -> Result<RunningStatement, QueryError> {
        let prepared = self.context.prepare(statement.into());
        self.begin_prepared(&prepared).await
    }

    /// Notes whether a statement has succeeded. If it has failed, or this is not called because its future was dropped, the
    /// statement may have ended the transaction, so larder invalidates whether or not it is committed.
    #[doc(hidden)]
    #[allow(clippy::needless_pass_by_value)] // A statement ends once.
    pub fn end_statement(&mut self, statement: RunningStatement, has_succeeded: bool) {
        let RunningStatement { was_uncertain } = statement;
        self.uncertain = was_uncertain || !has_succeeded;
    }

    /// Notes a write that the application has run itself on the [connection](Self::connection) of this transaction.
    /// What it may have changed is invalidated when the transaction is committed.
    pub fn wrote(&mut self, statement: impl Into<Statement>) {
        let prepared = self.context.prepare(statement.into());
        self.note(&prepared);
    }

    async fn begin_prepared(
        &mut self,
        prepared: &PreparedStatement,
    ) -> Result<RunningStatement, QueryError> {
        if prepared.analysis.nature == StatementKind::Unknown(Reason::TransactionControl) {
            return Err(QueryError::new(QueryErrorKind::NotAllowed));
        }
        self.take_back_dropped().await?;
        // Notes the targets before the statement runs, because a statement that fails may have written a part of its
        // changes.
        self.note(prepared);
        // A statement that is dropped while it runs may also have ended the transaction.
        Ok(RunningStatement { was_uncertain: std::mem::replace(&mut self.uncertain, true) })
    }

    fn note(&mut self, prepared: &PreparedStatement) {
        self.defines |= prepared.may_redefine();
        self.known.get_or_insert_with(|| Arc::clone(&prepared.schema));
        let written = self.context.written_by(prepared);
        self.targets.extend(written.targets);
        self.unknown_lookups.extend(written.unknown_lookups);
        self.context.note_bypass(prepared, Reason::Transaction);
        self.context.note_written(prepared);
    }

    /// Runs a statement.
    pub(crate) async fn run(
        &mut self,
        statement: Statement,
    ) -> Result<StatementOutcome, QueryError> {
        let prepared = self.context.prepare(statement);
        let nature = prepared.analysis.nature;
        let running = self.begin_prepared(&prepared).await?;
        let answer = AssertUnwindSafe(self.begun().run(&prepared.statement)).catch_unwind().await;
        self.end_statement(running, matches!(answer, Ok(Ok(_))));
        let answer = answer.map_err(|_| QueryError::new(QueryErrorKind::Panicked))?;
        let writes = nature == StatementKind::Write;
        let failed = |error| if writes { written_unread(error) } else { error };
        answer.map_err(QueryError::database).map_err(failed)
    }
}

/// A statement that runs in a transaction.
#[derive(Debug)]
#[doc(hidden)]
#[must_use = "end_statement takes it"]
pub struct RunningStatement {
    was_uncertain: bool,
}

/// Emits the events of a transaction. An event without a handler is logged.
async fn emit_all(
    context: &QueryContext,
    events: Vec<(&'static str, String)>,
) -> Result<(), QueryError> {
    let mut failed = Ok(());
    for (name, body) in events {
        if let Some(Err(error)) = context.kernel.emit_stored(name, body.as_bytes()).await {
            failed = failed.and(Err(QueryError::because(QueryErrorKind::Event, error)));
        }
    }
    failed
}

/// Commits, or rolls back if a failed statement allows nothing else. Returns the rows that the outbox has noted in the
/// transaction, if the values of lookups are unknown otherwise.
async fn end(
    context: &QueryContext,
    mut inner: DatabaseTransaction,
    uncertain: bool,
    unknown: &BTreeSet<String>,
) -> Result<Vec<OutboxRow>, QueryError> {
    if uncertain && inner.is_spoiled().await {
        inner.rollback().await.map_err(QueryError::database)?;
        return Err(QueryError::new(QueryErrorKind::RolledBack));
    }
    let noted = match unknown.is_empty() || uncertain || !context.notes_lookups() {
        true => Vec::new(),
        false => noted(inner.connection()).await.map_err(QueryError::database)?,
    };
    inner.commit().await.map_err(QueryError::database)?;
    Ok(noted)
}

/// Returns the rows that the outbox has noted in the transaction, or none if it cannot be read: the role may have changed
/// to one without permission, or a timeout may pass. That must not fail the transaction, hence the savepoint.
async fn noted(connection: &mut dyn Connection) -> Result<Vec<OutboxRow>, DriverError> {
    connection.run(&Statement::new("SAVEPOINT larder_noted")).await?;
    let Ok(rows) = outbox::postgres::own_rows(connection).await else {
        connection.run(&Statement::new("ROLLBACK TO SAVEPOINT larder_noted")).await?;
        return Ok(Vec::new());
    };
    // The commit releases the savepoint.
    Ok(rows)
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let mut targets = std::mem::take(&mut self.targets);
        let unknown = std::mem::take(&mut self.unknown_lookups);
        targets.extend(unknown.iter().map(|table| self.context.tags.any_lookup(table)));
        if self.uncertain && !targets.is_empty() && Handle::try_current().is_ok() {
            let (context, defines) = (Arc::clone(&self.context), self.defines);
            drop(self.context.kernel.spawn(async move {
                let _logged_or_queued = context.kernel.invalidate(targets).await;
                if defines {
                    context.relearn().await;
                }
            }));
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("targets", &self.targets).finish_non_exhaustive()
    }
}

/// The start of a nested transaction.
#[derive(Clone, Copy, Debug)]
struct Savepoint {
    depth: usize,
    /// The number of targets when it began.
    targets: usize,
    /// The number of events when it began.
    events: usize,
}

/// A transaction within another transaction: a savepoint. If it is dropped, it is rolled back before the next statement
/// of the outer transaction.
#[derive(Debug)]
#[must_use = "it is rolled back if it is dropped"]
pub struct NestedTransaction<'a> {
    transaction: &'a mut Transaction,
    /// `None` once it has ended.
    savepoint: Option<Savepoint>,
}

impl NestedTransaction<'_> {
    /// Returns the outermost transaction, for an adapter that notes statements of the application in it.
    #[doc(hidden)]
    pub fn outermost(&mut self) -> &mut Transaction {
        self.transaction
    }

    /// Creates a query or another statement within this transaction.
    pub fn query(&mut self, text: impl Into<Cow<'static, str>>) -> TransactionQuery<'_> {
        self.transaction.query(text)
    }

    /// Begins a transaction that is nested in this transaction.
    ///
    /// # Errors
    ///
    /// As [`Transaction::begin`].
    pub async fn begin(&mut self) -> Result<NestedTransaction<'_>, QueryError> {
        self.transaction.begin().await
    }

    /// Leaves a domain event in the outbox, as [`Transaction::emit`] does. It is undone with this nested transaction.
    ///
    /// # Errors
    ///
    /// As [`Transaction::emit`].
    pub async fn emit<E: StoredEvent>(&mut self, event: &E) -> Result<(), QueryError> {
        self.transaction.emit(event).await
    }

    /// Commits. Its writes become part of the outer transaction, and larder invalidates for them when the outer
    /// transaction is committed.
    ///
    /// # Errors
    ///
    /// When the database does not answer, or in PostgreSQL after a failed statement. The nested transaction is then
    /// rolled back.
    pub async fn commit(mut self) -> Result<(), QueryError> {
        self.transaction.take_back_dropped().await?;
        let Some(Savepoint { depth, .. }) = self.savepoint else { return Ok(()) };
        self.transaction.savepoint("RELEASE SAVEPOINT larder_", depth).await?;
        self.savepoint = None;
        self.transaction.depth = depth - 1;
        Ok(())
    }

    /// Rolls back this nested transaction, which undoes its writes. The outer transaction continues, in PostgreSQL even after a failed
    /// statement.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn rollback(mut self) -> Result<(), QueryError> {
        let Some(savepoint) = self.savepoint else { return Ok(()) };
        self.transaction.dropped = None;
        // If this fails or is dropped, the savepoint is rolled back before the next statement.
        self.transaction.take_back(savepoint).await?;
        self.savepoint = None;
        Ok(())
    }
}

impl Drop for NestedTransaction<'_> {
    fn drop(&mut self) {
        // Replaces a nested transaction that was dropped within this one, because that began later and is rolled back
        // with it.
        if let Some(savepoint) = self.savepoint.take() {
            self.transaction.dropped = Some(savepoint);
        }
    }
}

/// A statement of a transaction that has not run yet.
#[derive(Debug)]
#[must_use = "a query does nothing until it is fetched or executed"]
pub struct TransactionQuery<'a> {
    transaction: &'a mut Transaction,
    statement: Statement,
}

impl TransactionQuery<'_> {
    /// Binds the next value.
    pub fn bind(mut self, value: impl Into<SqlValue>) -> Self {
        self.statement = self.statement.bind(value);
        self
    }

    /// Fetches all rows. They are read from the database, and not stored.
    ///
    /// # Errors
    ///
    /// When the database fails, or when a row cannot be decoded into the type.
    pub async fn fetch_all<T: CacheableRow>(self) -> Result<Vec<T>, QueryError> {
        let rows = self.transaction.run(self.statement).await?.rows;
        rows.decode().map_err(|error| QueryError::because(QueryErrorKind::Decode, error))
    }

    /// Fetches the first row, if there is one.
    ///
    /// # Errors
    ///
    /// As [`TransactionQuery::fetch_all`].
    pub async fn fetch_optional<T: CacheableRow>(self) -> Result<Option<SharedRow<T>>, QueryError> {
        Ok(SharedRow::of(Arc::new(self.fetch_all().await?)))
    }

    /// Runs the statement, and returns the number of changed rows.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn execute(self) -> Result<u64, QueryError> {
        self.transaction.run(self.statement).await.map(|answer| answer.affected)
    }
}
