//! The connections that larder opens, and keeps for its queries.

use std::{sync::Arc, time::Duration};

use larder_sql::driver::DriverError;
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    connection::{BlockingConnection, blocking},
    statement::driver_error,
};

type Open = dyn Fn() -> rusqlite::Result<Connection> + Send + Sync;

/// A bounded number of connections.
pub(super) struct ConnectionPool {
    open: Arc<Open>,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// The slot of a connection in the pool, to which the connection returns.
pub(super) struct PoolSlot {
    pool: Arc<ConnectionPool>,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionPool {
    pub(super) fn new(open: Arc<Open>, connections: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(connections));
        Arc::new(Self { open, idle: Mutex::default(), permits })
    }

    /// Takes an idle connection, or opens one. Waits for up to 30 seconds while all connections are in use.
    pub(super) async fn acquire(self: &Arc<Self>) -> Result<BlockingConnection, DriverError> {
        let permit = Arc::clone(&self.permits).acquire_owned();
        let permit = tokio::time::timeout(LONGEST_WAIT, permit).await.map_err(|_| {
            DriverError::failed(
                "all connections were in use for 30 seconds: end transactions before you read outside of them, or set \
                 more connections (sqlite_with_connections)",
            )
        })?;
        let permit = permit.map_err(DriverError::failed)?;
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let slot = PoolSlot { pool: Arc::clone(self), _permit: permit };
        Ok(BlockingConnection::new(connection, Some(slot)))
    }

    /// Opens a connection outside of the pool.
    pub(super) async fn open(&self) -> Result<Connection, DriverError> {
        let open = Arc::clone(&self.open);
        blocking(move || {
            let opened = open().map_err(driver_error)?;
            let is_file = opened.path().is_some_and(|path| !path.is_empty());
            if is_file || is_shared(&opened, &open().map_err(driver_error)?) {
                return Ok(opened);
            }
            Err(DriverError::failed(
                "the connection has a private database in memory or a temporary one, which other connections do not \
                 see: open a file, or \"file:NAME?mode=memory&cache=shared\"",
            ))
        })
        .await?
    }
}

/// Whether two connections have the same database: if one of them writes, the other cannot.
fn is_shared(one: &Connection, other: &Connection) -> bool {
    let write = |connection: &Connection| connection.execute_batch("BEGIN IMMEDIATE").is_ok();
    let end = |connection: &Connection| drop(connection.execute_batch("ROLLBACK"));
    // If another connection is writing, the database is shared.
    if !write(one) {
        return true;
    }
    let is_private = write(other);
    if is_private {
        end(other);
    }
    end(one);
    !is_private
}

impl PoolSlot {
    /// Puts a connection back into the pool.
    pub(super) fn put_back(self, connection: Connection) {
        self.pool.idle.lock().push(connection);
    }
}

/// As long as the pool of sqlx waits.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
