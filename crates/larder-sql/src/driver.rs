//! The seam to database drivers: what larder needs of a driver to run statements, to read the catalog, and to follow the
//! outbox.
//!
//! The crate `larder-sqlx` implements it for sqlx 0.8 and 0.9. Another driver implements [`Driver`], [`Connection`] and
//! [`TransactionConnection`], and passes a [`Driver`] to [`DatabaseService::new`](crate::DatabaseService::new). The
//! driver only transports statements and rows. The analysis, the tags, the catalog, the outbox and the invalidation
//! after a write are the same for all drivers.
//!
//! A driver of PostgreSQL that uses the binary formats of the server finds their conversion in
//! [`postgres`](crate::postgres) (feature `postgres`).

use std::{any::Any, fmt, sync::Arc};

use larder_core::store::BoxFuture;

use crate::{analysis::SqlDialect, rows::StatementOutcome, statement::Statement};

/// A driver with its connection pool.
pub trait Driver: Send + Sync + 'static {
    /// Returns the SQL dialect of the database.
    fn dialect(&self) -> SqlDialect;

    /// Takes a connection from the pool of the application. It returns to the pool when it is dropped.
    fn acquire(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>>;

    /// Opens a connection outside of the pool, with the same options. The outbox is read on such a connection, because a
    /// reader that uses the pool of the application would be late whenever the pool is busy.
    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>>;

    /// Begins a transaction on a connection of the pool, with this SQL text. In PostgreSQL the text may have several
    /// statements (`BEGIN; SELECT …`), so send it by the simple protocol.
    fn begin<'a>(
        &'a self,
        begin: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn TransactionConnection>, DriverError>>;

    /// Listens for the notifications of a channel (PostgreSQL's `LISTEN`). Without notifications (`None`, the default)
    /// the outbox is read once a second.
    fn listen(
        &self,
        channel: &'static str,
    ) -> BoxFuture<'_, Result<Option<Box<dyn Notifications>>, DriverError>> {
        let _ = channel;
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// A connection to a database.
pub trait Connection: Send {
    /// Runs a statement to its end, with its bound values. An outcome is complete: if the connection fails while rows are
    /// read, this is an error.
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, Result<StatementOutcome, DriverError>>;

    /// Runs all statements of a text that has no placeholders, and ignores their rows.
    fn run_script<'a>(&'a mut self, script: &'a str) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Forgets the prepared statements of this connection, because a schema change may have outdated them.
    fn forget_prepared(&mut self) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Returns the connection of the driver, which an application may use directly.
    fn as_any(&mut self) -> &mut dyn Any;
}

/// A connection in a transaction. If it is dropped, the driver rolls the transaction back.
pub trait TransactionConnection: Connection {
    /// Commits.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>>;

    /// Rolls back.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>>;
}

/// The notifications of a channel.
pub trait Notifications: Send {
    /// Waits for a notification. Also returns whenever a notification may have been lost, for example after the connection
    /// was opened again.
    fn next(&mut self) -> BoxFuture<'_, ()>;
}

/// A failure of a driver.
#[derive(Clone, Debug)]
pub struct DriverError {
    kind: DriverErrorKind,
    code: Option<Arc<str>>,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

/// What a failed statement may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriverErrorKind {
    /// The statement failed, or its outcome is unknown.
    Failed,
    /// A value cannot be bound to the statement, so nothing was sent to the server.
    NotSent,
    /// A schema change may have outdated the prepared form of the statement. Nothing was changed, so larder may run the
    /// statement again.
    Outdated,
    /// The statement was executed, but a value that it returned cannot be read.
    Unreadable,
}

impl DriverErrorKind {
    /// Returns the kind of an error with this SQLSTATE of PostgreSQL. An error of another database has the kind
    /// [`Failed`](Self::Failed).
    ///
    /// A schema change may have outdated a prepared statement if the server reports that, names or types do not match, or
    /// a value does not match the inferred type. A statement that failed with such an error has changed nothing, unless it
    /// commits by itself.
    ///
    /// Source: PostgreSQL, appendix A; 0A000 is "cached plan must not change result type".
    pub fn of_sqlstate(code: &str) -> Self {
        if OUTDATED.contains(&code) { Self::Outdated } else { Self::Failed }
    }
}

impl DriverError {
    /// Creates an error of this kind, from the error of the driver.
    pub fn new(
        kind: DriverErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, code: None, source: source.into().into() }
    }

    /// Creates an error of the kind [`DriverErrorKind::Failed`].
    pub fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(DriverErrorKind::Failed, source)
    }

    /// Adds the code of the database: the SQLSTATE of PostgreSQL, or the extended result code of SQLite.
    #[must_use]
    pub fn with_code(mut self, code: &str) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Returns the code of the database, if the database has refused the statement.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Returns what the statement may have done.
    pub fn kind(&self) -> DriverErrorKind {
        self.kind
    }

    /// Returns the error of the driver.
    pub fn cause(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.source
    }
}

/// Writes the error of the driver.
impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl std::error::Error for DriverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}

/// Feature not supported, invalid binary data, protocol violation, unknown statement; undefined column, table, and
/// function or operator; type mismatch, indeterminate type.
const OUTDATED: [&str; 9] =
    ["0A000", "22P03", "08P01", "26000", "42703", "42P01", "42883", "42804", "42P18"];
