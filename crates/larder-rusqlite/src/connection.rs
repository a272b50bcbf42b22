//! Runs the calls of a connection on the threads that tokio has for blocking code.

use std::any::Any;

use larder_core::store::BoxFuture;
use larder_sql::{
    Statement, StatementOutcome,
    driver::{Connection, DriverError, TransactionConnection},
};

use super::{
    pool::PoolPlace,
    statement::{driver_error, run},
};

/// A connection, which is on another thread during a call. A caller that is cancelled during a call loses it: the call
/// ends, and then the connection is closed, which rolls a transaction back.
pub(super) struct BlockingConnection {
    connection: Option<rusqlite::Connection>,
    place: Option<PoolPlace>,
}

impl BlockingConnection {
    pub(super) fn new(connection: rusqlite::Connection) -> Self {
        Self { connection: Some(connection), place: None }
    }

    pub(super) fn of_pool(connection: rusqlite::Connection, place: PoolPlace) -> Self {
        Self { connection: Some(connection), place: Some(place) }
    }

    async fn call<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut rusqlite::Connection) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let lost = "the connection was lost, because an earlier call was cancelled";
        let mut connection = self.connection.take().ok_or_else(|| DriverError::failed(lost))?;
        let (connection, acted) = blocking(move || {
            let acted = act(&mut connection);
            (connection, acted)
        })
        .await?;
        self.connection = Some(connection);
        acted
    }
}

impl Connection for BlockingConnection {
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, Result<StatementOutcome, DriverError>> {
        let statement = statement.clone();
        Box::pin(self.call(move |connection| run(connection, &statement)))
    }

    fn run_script<'a>(&'a mut self, script: &'a str) -> BoxFuture<'a, Result<(), DriverError>> {
        let script = script.to_owned();
        Box::pin(
            self.call(move |connection| connection.execute_batch(&script).map_err(driver_error)),
        )
    }

    fn forget_prepared(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        // larder prepares each statement anew.
        Box::pin(std::future::ready(Ok(())))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        match &mut self.connection {
            Some(connection) => connection,
            None => &mut self.place,
        }
    }
}

impl Drop for BlockingConnection {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let unused = match self.place.take() {
            Some(place) => place.put_back(connection),
            None => Some(connection),
        };
        // Closing writes to the disk.
        if let (Some(connection), Ok(runtime)) = (unused, tokio::runtime::Handle::try_current()) {
            drop(runtime.spawn_blocking(move || drop(connection)));
        }
    }
}

/// A connection that is dropped in a transaction is closed, which rolls the transaction back.
impl TransactionConnection for BlockingConnection {
    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>> {
        Box::pin(async move { self.run_script("COMMIT").await })
    }

    fn rollback(mut self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>> {
        Box::pin(async move { self.run_script("ROLLBACK").await })
    }
}

/// Runs a function on a thread for blocking code.
pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(act).await.map_err(DriverError::failed)
}
