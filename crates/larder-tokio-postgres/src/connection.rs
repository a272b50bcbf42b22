//! The connections of the pool, and those that larder opens itself.

use std::any::Any;

use deadpool_postgres::{ClientWrapper, Object};
use larder_core::store::BoxFuture;
use larder_sql::{
    Statement, StatementOutcome,
    driver::{Connection, DriverError, TransactionConnection},
};
use tokio_postgres::Client;

use crate::statement::{driver_error, forget_prepared, run};

/// A connection of the pool, in a transaction or not. One that is dropped in a transaction or during a call does not return
/// to the pool, and is closed, which rolls a transaction back.
pub(super) struct PooledConnection {
    /// `None` only while it is dropped.
    connection: Option<Object>,
    in_transaction: bool,
    in_call: bool,
}

impl PooledConnection {
    pub(super) fn new(connection: Object) -> Self {
        Self { connection: Some(connection), in_transaction: false, in_call: false }
    }

    fn get(&self) -> &Object {
        self.connection.as_ref().expect("the connection is taken only while it is dropped")
    }

    /// Begins a transaction.
    pub(super) async fn begun(mut self, begin: &str) -> Result<Self, DriverError> {
        self.in_transaction = true;
        self.get().batch_execute(begin).await.map_err(driver_error)?;
        Ok(self)
    }

    async fn end(mut self: Box<Self>, end: &str) -> Result<(), DriverError> {
        self.get().batch_execute(end).await.map_err(driver_error)?;
        self.in_transaction = false;
        Ok(())
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if (self.in_transaction || self.in_call)
            && let Some(connection) = self.connection.take()
        {
            drop(Object::take(connection));
        }
    }
}

impl Connection for PooledConnection {
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, Result<StatementOutcome, DriverError>> {
        Box::pin(async move {
            self.in_call = true;
            let outcome = run(self.get(), statement).await;
            self.in_call = false;
            outcome
        })
    }

    fn run_script<'a>(&'a mut self, script: &'a str) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            self.in_call = true;
            let run = self.get().batch_execute(script).await.map_err(driver_error);
            self.in_call = false;
            run
        })
    }

    fn forget_prepared(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        forget_prepared(self.get());
        Box::pin(std::future::ready(Ok(())))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        let client: &mut Client =
            self.connection.as_mut().expect("the connection is taken only while it is dropped");
        client
    }
}

impl TransactionConnection for PooledConnection {
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>> {
        Box::pin(self.end("COMMIT"))
    }

    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>> {
        Box::pin(self.end("ROLLBACK"))
    }
}

/// A connection outside of the pool, with the same cache of prepared statements.
pub(super) struct OwnConnection(ClientWrapper);

impl OwnConnection {
    pub(super) fn new(connection: ClientWrapper) -> Self {
        Self(connection)
    }
}

impl Connection for OwnConnection {
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, Result<StatementOutcome, DriverError>> {
        Box::pin(run(&self.0, statement))
    }

    fn run_script<'a>(&'a mut self, script: &'a str) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.0.batch_execute(script).await.map_err(driver_error) })
    }

    fn forget_prepared(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        forget_prepared(&self.0);
        Box::pin(std::future::ready(Ok(())))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        let client: &mut Client = &mut self.0;
        client
    }
}
