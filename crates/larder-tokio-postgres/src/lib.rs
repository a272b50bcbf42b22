//! Cached queries of larder over tokio-postgres and deadpool-postgres.
//!
//! Applications depend on `larder`, which re-exports this crate as `larder::tokio_postgres`.
//!
//! The application keeps its pool and its statements:
//!
//! - [`Db::query`](larder_sql::Db::query) runs a statement on a connection of the pool, and caches its rows;
//! - [`Db::cached`](larder_sql::Db::cached) caches what a closure reads, by the statement that it runs;
//! - [`Db::write`](larder_sql::Db::write) invalidates after a closure has written;
//! - [`Transaction::connection`](larder_sql::Transaction::connection) returns the `tokio_postgres::Client` of a
//!   transaction of larder;
//! - the [outbox](larder_sql::Outbox) reports the writes of all other connections.
//!
//! ```no_run
//! use deadpool_postgres::{Manager, Pool};
//! use larder_core::Larder;
//! use tokio_postgres::{Config, NoTls};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config: Config = "postgres://shop@localhost/shop".parse()?;
//! let pool = Pool::builder(Manager::new(config.clone(), NoTls)).max_size(16).build()?;
//!
//! let larder = Larder::builder().build()?;
//! let db = larder_tokio_postgres::postgres(pool, config, NoTls).cached(&larder).await?;
//! let boots = db.query("SELECT name FROM products WHERE id = $1").bind(7).fetch_scalar::<String>().await?;
//! # Ok(())
//! # }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod connection;
mod notifications;
mod statement;
mod types;

use std::sync::Arc;

use deadpool_postgres::{ClientWrapper, Pool};
use larder_core::store::BoxFuture;
use larder_sql::{
    DatabaseService, SqlDialect,
    driver::{Connection, Driver, DriverError, Notifications, TransactionConnection},
};
use tokio_postgres::{
    Config, Socket,
    tls::{MakeTlsConnect, TlsConnect},
};

use self::{
    connection::{OwnConnection, PooledConnection},
    notifications::NotificationChannel,
    statement::driver_error,
};

/// Creates a service over a pool of deadpool-postgres.
///
/// `config` and `tls` are those with which the pool connects. larder opens two connections of its own with them if the
/// [outbox](larder_sql::Outbox) is followed: to read it and to listen for it.
///
/// Placeholders, parameters and types are those of sqlx's adapter in larder: integers are bound as `bigint`, other numbers
/// as `double precision`; the server infers the type of a text or a null. If it cannot infer the type, it returns an
/// error; then write `CAST($1 AS text)`, for example. For types that larder cannot decode (`tsvector`, `point`, …) select
/// `column::text`; the error says so.
pub fn postgres<T>(pool: Pool, config: Config, tls: T) -> DatabaseService
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let connect = Arc::new(Connector { config, tls });
    DatabaseService::new(TokioPostgresDriver { pool, connect })
}

/// The driver: the pool of the application, and a way to open other connections.
struct TokioPostgresDriver {
    pool: Pool,
    connect: Arc<dyn Connect>,
}

/// Opens connections.
trait Connect: Send + Sync + 'static {
    /// Opens a connection that receives no notifications.
    fn connect(&self) -> BoxFuture<'_, Result<OwnConnection, tokio_postgres::Error>>;

    /// Opens a connection that listens for a channel.
    fn listen<'a>(
        &'a self,
        channel: &'a str,
    ) -> BoxFuture<'a, Result<notifications::Listening, tokio_postgres::Error>>;
}

struct Connector<T> {
    config: Config,
    tls: T,
}

impl<T> Connect for Connector<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(&self) -> BoxFuture<'_, Result<OwnConnection, tokio_postgres::Error>> {
        Box::pin(async {
            let (client, connection) = self.config.connect(self.tls.clone()).await?;
            // The wrapper ends the task.
            let task = tokio::spawn(async move { drop(connection.await) });
            Ok(OwnConnection::new(ClientWrapper::new(client, task)))
        })
    }

    fn listen<'a>(
        &'a self,
        channel: &'a str,
    ) -> BoxFuture<'a, Result<notifications::Listening, tokio_postgres::Error>> {
        Box::pin(async move {
            let (client, connection) = self.config.connect(self.tls.clone()).await?;
            notifications::listen(client, connection, channel).await
        })
    }
}

impl Driver for TokioPostgresDriver {
    fn dialect(&self) -> SqlDialect {
        SqlDialect::Postgres
    }

    fn acquire(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async { Ok(Box::new(self.acquire().await?) as Box<dyn Connection>) })
    }

    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, DriverError>> {
        Box::pin(async {
            let opened = self.connect.connect().await.map_err(driver_error)?;
            Ok(Box::new(opened) as Box<dyn Connection>)
        })
    }

    fn begin<'a>(
        &'a self,
        begin: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn TransactionConnection>, DriverError>> {
        Box::pin(async move {
            let begun = self.acquire().await?.begun(begin).await?;
            Ok(Box::new(begun) as Box<dyn TransactionConnection>)
        })
    }

    fn listen(
        &self,
        channel: &'static str,
    ) -> BoxFuture<'_, Result<Option<Box<dyn Notifications>>, DriverError>> {
        Box::pin(async move {
            let listening = self.connect.listen(channel).await.map_err(driver_error)?;
            let channel = NotificationChannel::new(Arc::clone(&self.connect), channel, listening);
            Ok(Some(Box::new(channel) as Box<dyn Notifications>))
        })
    }
}

impl TokioPostgresDriver {
    async fn acquire(&self) -> Result<PooledConnection, DriverError> {
        let connection = self.pool.get().await.map_err(DriverError::failed)?;
        Ok(PooledConnection::new(connection))
    }
}
