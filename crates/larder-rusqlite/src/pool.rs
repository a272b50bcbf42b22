//! The connections that larder opens, and keeps for its queries.

use std::{fmt, sync::Arc};

use larder_sql::driver::DriverError;
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    connection::{BlockingConnection, blocking},
    statement::driver_error,
};

type Open = dyn Fn() -> rusqlite::Result<Connection> + Send + Sync;

/// Up to four connections.
pub(super) struct ConnectionPool {
    open: Arc<Open>,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// The place of a connection in the pool, to which the connection returns.
pub(super) struct PoolPlace {
    pool: Arc<ConnectionPool>,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionPool {
    pub(super) fn new(open: Arc<Open>) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        Arc::new(Self { open, idle: Mutex::default(), permits })
    }

    /// Takes an idle connection, or opens one. Waits while all connections are in use.
    pub(super) async fn acquire(self: &Arc<Self>) -> Result<BlockingConnection, DriverError> {
        let permit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(DriverError::failed)?;
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let place = PoolPlace { pool: Arc::clone(self), _permit: permit };
        Ok(BlockingConnection::of_pool(connection, place))
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

impl PoolPlace {
    /// Puts a connection back into the pool, or returns it if it is in a transaction.
    pub(super) fn put_back(self, connection: Connection) -> Option<Connection> {
        if !connection.is_autocommit() {
            return Some(connection);
        }
        self.pool.idle.lock().push(connection);
        None
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool").finish_non_exhaustive()
    }
}

const MOST_CONNECTIONS: usize = 4;
