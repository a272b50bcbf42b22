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
    fmt,
    sync::{Arc, Weak},
};

use tokio::task::JoinSet;

use crate::{
    backend::Backend,
    context::QueryContext,
    db::Db,
    error::{QueryError, QueryErrorKind},
};
pub(crate) mod follower;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
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
        self.backend().outbox_sql().await.map_err(QueryError::database)
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
        self.backend().run_all(definition).await.map_err(QueryError::database)?;
        let again = Arc::downgrade(self.context());
        let backend = Arc::clone(self.backend());
        *self.context().outbox.lock() = Some(Arc::new(move || {
            let (backend, again) = (Arc::clone(&backend), again.clone());
            Box::pin(async move { reinstall(&*backend, again).await.is_ok() })
        }));
        // Its own objects are not in the catalog, but tables may have been created before.
        match self.context().relearn().await {
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
        let tasks = self.backend().follow(Arc::clone(self.context())).await?;
        Ok(OutboxFollower { _tasks: tasks })
    }

    fn backend(&self) -> &Arc<dyn Backend> {
        self.db.cache().inner().backend()
    }

    fn context(&self) -> &Arc<QueryContext> {
        self.db.cache().context()
    }
}

/// Installs the outbox again, and reads the catalog.
async fn reinstall(backend: &dyn Backend, context: Weak<QueryContext>) -> sqlx::Result<()> {
    backend.run_all(backend.outbox_sql().await?).await?;
    if let Some(context) = context.upgrade() {
        context.relearn().await;
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
