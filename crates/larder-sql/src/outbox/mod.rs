//! The outbox, by which a process also invalidates after writes that do not come through its [`Db`]: writes by other
//! programs, writes made by hand, and writes of a process that died between its commit and its invalidation.
//!
//! # How it works
//!
//! Database triggers add a row to a table, the *outbox*, for each statement (in SQLite, for each row) that changes
//! another table, in the transaction of that statement. So a committed change has an outbox row, whichever program made
//! it and even if that program has died, and a change that was rolled back does not have an outbox row. An
//! [`OutboxFollower`] reads the outbox rows, and invalidates the tables and rows that they name. So after a commit, an
//! invalidation may be late, but it is not lost.
//!
//! # Read positions
//!
//! A process without a shared log invalidates everything when it begins to follow the outbox, and then reads all outbox
//! rows after that point. Processes that share a log also share a read position in the outbox, which is stored in the
//! database under the epoch of that log. One process at a time reads the outbox rows after the position, invalidates,
//! and advances the position. If it dies before it has advanced the position, the next process reads the same outbox
//! rows again. If the log is lost, a new epoch begins, which invalidates all entries of the old epoch anyway.
//!
//! # Failures
//!
//! 1. A transaction commits late. PostgreSQL assigns the numbers of outbox rows before the commit, so a reader that
//!    continues after the last number would skip a row that is committed later. The position is a *snapshot* instead:
//!    the set of transactions that had ended. The reader reads an outbox row if its transaction has ended and was not
//!    in that set, in whichever order transactions began. SQLite has one writer at a time, so its numbers are in the
//!    order of commits.
//! 2. A notification is lost. Notifications only wake the reader, which reads the table once a second in any case.
//! 3. Outbox rows are removed before they are read. They are removed after two hours at the earliest, and a reader
//!    whose position is older than one hour invalidates everything. A reader also invalidates everything if it finds no
//!    shared position, or if the server is a different server or was restarted, because it may have lost transactions
//!    that it had reported as committed.
//! 4. A process hangs while it holds the shared position. PostgreSQL ends the transaction of that process after ten
//!    idle seconds.
//!
//! # Own writes
//!
//! A process that follows the outbox invalidates twice for each of its own writes: at once, and a little later when it
//! reads the outbox row. Pages that are built in between are filled a second time. A value that is written through would
//! be dropped by the outbox row of its own write, so such a write has a [`CommitId`](larder_core::store::CommitId). Its
//! outbox rows carry it, and so does the record of its invalidation, which is appended after the commit. A follower that
//! finds the same identity in the log invalidates only what the record does not cover. If it does not find the identity
//! within 250 ms, because the process has died in between or its record is queued, it invalidates everything that the
//! rows name. A transaction that gives its connection away has no identity, because larder does not know what it wrote.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use tokio::task::JoinSet;

use crate::{
    context::QueryContext,
    database::DatabaseService,
    db::Db,
    driver::DriverError,
    error::{QueryError, QueryErrorKind},
};
pub(crate) mod follower;
pub(crate) mod postgres;
pub(crate) mod sqlite;

/// The outbox of a database. A process that follows it also invalidates after writes that do not come through its
/// [`Db`]. [`Db::outbox`] returns it.
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
    /// Returns the outbox, by which this process also invalidates after writes that do not come through this handle.
    pub fn outbox(&self) -> Outbox {
        Outbox { db: self.clone() }
    }
}

impl Outbox {
    /// Returns the SQL that [`Outbox::install`] runs. An administrator can run it if the program has no right to create
    /// tables and triggers.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn sql(&self) -> Result<String, QueryError> {
        self.database().outbox_sql().await.map_err(QueryError::database)
    }

    /// Creates the outbox, and on each table the triggers that fill it. Call it at each start, after migrations;
    /// existing outbox rows remain. After this handle has run a statement that changes the schema, larder installs the
    /// outbox again by itself.
    ///
    /// In PostgreSQL, the triggers are on the tables of the schema `public`, and add one outbox row for each statement,
    /// with the keys of up to 128 rows (64 for an `UPDATE`, which counts old and new rows). The program needs the right
    /// to create a schema (`larder_outbox`) and triggers. In SQLite, the triggers add an outbox row for each changed
    /// row.
    ///
    /// # Errors
    ///
    /// When the database refuses the SQL or does not answer.
    pub async fn install(&self) -> Result<(), QueryError> {
        let definition = self.sql().await?;
        self.database().run_all(&definition).await.map_err(QueryError::database)?;
        let again = Arc::downgrade(self.context());
        let database = self.database().clone();
        *self.context().outbox.lock() = Some(Arc::new(move || {
            let (database, again) = (database.clone(), again.clone());
            Box::pin(async move { reinstall(&database, again).await.is_ok() })
        }));
        // Tables may have been created since the catalog was read.
        match self.context().relearn().await {
            true => Ok(()),
            false => Err(QueryError::new(QueryErrorKind::Database)),
        }
    }

    /// Follows the outbox: invalidates the tables and rows that it names, until the returned follower is dropped. With
    /// a shared log, it begins with the writes since a process with that log last followed the outbox. Without a shared
    /// log, it begins with an invalidation of everything.
    ///
    /// # Errors
    ///
    /// When there is no outbox, or with [`NothingToFollow`](crate::QueryErrorKind::NothingToFollow) for an in-memory
    /// database, which has no other writers.
    ///
    /// # Panics
    ///
    /// If it is called outside a tokio runtime.
    pub async fn follow(&self) -> Result<OutboxFollower, QueryError> {
        let tasks = self.database().follow(Arc::clone(self.context())).await?;
        Ok(OutboxFollower { _tasks: tasks })
    }

    fn database(&self) -> &DatabaseService {
        self.db.cache().inner()
    }

    fn context(&self) -> &Arc<QueryContext> {
        self.db.cache().context()
    }
}

/// Installs the outbox again, and reads the catalog.
async fn reinstall(
    database: &DatabaseService,
    context: Weak<QueryContext>,
) -> Result<(), DriverError> {
    database.run_all(&database.outbox_sql().await?).await?;
    if let Some(context) = context.upgrade() {
        context.relearn().await;
    }
    Ok(())
}

/// A running follower of the outbox. It stops when it is dropped.
#[must_use = "the outbox is followed only until this is dropped"]
pub struct OutboxFollower {
    _tasks: JoinSet<()>,
}

impl fmt::Debug for OutboxFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxFollower").finish_non_exhaustive()
    }
}
