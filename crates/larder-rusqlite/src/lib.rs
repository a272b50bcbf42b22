//! Cached queries of larder over rusqlite, versions 0.32 to 0.43.
//!
//! Applications depend on `larder`, which re-exports this crate as `larder::rusqlite`.
//!
//! rusqlite blocks, so larder runs its calls on the threads that tokio has for blocking code, and on connections of its
//! own. The application keeps its connections, its pool and its statements:
//!
//! - [`Db::query`](larder_sql::Db::query) runs a statement on a connection of larder, and caches its rows;
//! - [`Db::cached`](larder_sql::Db::cached) caches what a closure reads, by the statement that it runs on a connection of
//!   the application. rusqlite numbers `$2` and `$1` by their first occurrence, and larder by their numbers, so write `?1`
//!   in such a statement;
//! - [`Db::write`](larder_sql::Db::write) invalidates after a closure has written;
//! - the [outbox](larder_sql::Outbox) reports the writes of all other connections.
//!
//! ```
//! use larder_core::Larder;
//! use rusqlite::Connection;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("shop.db");
//! let larder = Larder::builder().build()?;
//! let db = larder_rusqlite::sqlite(move || Connection::open(&path)).cached(&larder).await?;
//! db.query("CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT)").execute().await?;
//! db.query("INSERT INTO products VALUES (7, 'boots')").execute().await?;
//!
//! let boots = db.query("SELECT name FROM products WHERE id = $1").bind(7).fetch_scalar::<String>().await?;
//! assert_eq!(boots, "boots");
//! # Ok(())
//! # }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod connection;
mod pool;
mod statement;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use larder_core::store::BoxFuture;
use larder_sql::{
    DatabaseService, SqlDialect,
    driver::{Connection, Driver, DriverError, TransactionConnection},
};

use self::{connection::BlockingConnection, pool::ConnectionPool};

/// Creates a service over the connections that `open` opens.
///
/// larder keeps up to four connections for queries, and one for the outbox if it is followed. `open` runs on a thread for
/// blocking code, and sets what a connection needs (`PRAGMA busy_timeout`, functions, extensions).
///
/// # Errors
///
/// The service returns an error of the driver if `open` fails or opens a private database in memory, which other
/// connections do not see. Open a shared one instead: `file:NAME?mode=memory&cache=shared`.
pub fn sqlite(
    open: impl Fn() -> rusqlite::Result<rusqlite::Connection> + Send + Sync + 'static,
) -> DatabaseService {
    sqlite_with_connections(open, 4)
}

/// Does the same with up to this number of connections for queries. Each open transaction of larder holds one.
///
/// # Panics
///
/// If `connections` is zero.
pub fn sqlite_with_connections(
    open: impl Fn() -> rusqlite::Result<rusqlite::Connection> + Send + Sync + 'static,
    connections: usize,
) -> DatabaseService {
    assert!(connections > 0, "the number of connections is 0, and must be at least 1");
    DatabaseService::new(RusqliteDriver { pool: ConnectionPool::new(Arc::new(open), connections) })
}

/// The driver: the connections of larder.
struct RusqliteDriver {
    pool: Arc<ConnectionPool>,
}

impl Driver for RusqliteDriver {
    fn dialect(&self) -> SqlDialect {
        SqlDialect::Sqlite
    }

    fn acquire(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async { Ok(Box::new(self.pool.acquire().await?) as Box<dyn Connection>) })
    }

    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async {
            let connection = self.pool.open().await?;
            Ok(Box::new(BlockingConnection::new(connection, None)) as Box<dyn Connection>)
        })
    }

    fn begin<'a>(
        &'a self,
        begin: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn TransactionConnection>, DriverError>> {
        Box::pin(async move {
            let mut connection = self.pool.acquire().await?;
            connection.run_script(begin).await?;
            Ok(Box::new(connection) as Box<dyn TransactionConnection>)
        })
    }
}
