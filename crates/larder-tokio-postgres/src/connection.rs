//! The connections of the pool, and those that larder opens itself.

use std::{any::Any, collections::HashMap};

use deadpool_postgres::Object;
use larder_core::store::BoxFuture;
use larder_sql::{
    Statement, StatementOutcome,
    driver::{Connection, DriverError, TransactionConnection},
};
use tokio_postgres::{Client, types::Type};

use crate::statement::{driver_error, lost, run};

/// A connection of the pool, in a transaction or not. One that is dropped in a transaction does not return to the pool,
/// and is closed, which rolls the transaction back.
pub(super) struct PooledConnection {
    connection: Option<Object>,
    in_transaction: bool,
}

impl PooledConnection {
    pub(super) fn new(connection: Object) -> Self {
        Self { connection: Some(connection), in_transaction: false }
    }

    fn get(&self) -> Result<&Object, DriverError> {
        self.connection.as_ref().ok_or_else(lost)
    }

    /// Begins a transaction.
    pub(super) async fn begun(mut self, begin: &str) -> Result<Self, DriverError> {
        self.in_transaction = true;
        self.get()?.batch_execute(begin).await.map_err(driver_error)?;
        Ok(self)
    }

    async fn end(mut self: Box<Self>, end: &str) -> Result<(), DriverError> {
        self.get()?.batch_execute(end).await.map_err(driver_error)?;
        self.in_transaction = false;
        Ok(())
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let (true, Some(connection)) = (self.in_transaction, self.connection.take()) {
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
            let connection = self.get()?;
            let prepare = async |text: &str, types: &[Type]| {
                connection.prepare_typed_cached(text, types).await
            };
            run(connection, prepare, statement).await
        })
    }

    fn run_script<'a>(&'a mut self, script: &'a str) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.get()?.batch_execute(script).await.map_err(driver_error) })
    }

    fn forget_prepared(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            self.get()?.statement_cache.clear();
            Ok(())
        })
    }

    fn as_any(&mut self) -> &mut dyn Any {
        match &mut self.connection {
            Some(connection) => {
                let client: &mut Client = connection;
                client
            }
            None => &mut self.in_transaction,
        }
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

/// A connection outside of the pool.
pub(super) struct OwnConnection {
    client: Client,
    prepared: HashMap<String, tokio_postgres::Statement>,
}

impl OwnConnection {
    pub(super) fn new(client: Client) -> Self {
        Self { client, prepared: HashMap::new() }
    }
}

impl Connection for OwnConnection {
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, Result<StatementOutcome, DriverError>> {
        Box::pin(async move {
            let Self { client, prepared } = self;
            let client = &*client;
            let prepare = async |text: &str, types: &[Type]| {
                if let Some(known) = prepared.get(text) {
                    return Ok(known.clone());
                }
                let new = client.prepare_typed(text, types).await?;
                prepared.insert(text.to_owned(), new.clone());
                Ok(new)
            };
            run(client, prepare, statement).await
        })
    }

    fn run_script<'a>(&'a mut self, script: &'a str) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move { self.client.batch_execute(script).await.map_err(driver_error) })
    }

    fn forget_prepared(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        self.prepared.clear();
        Box::pin(std::future::ready(Ok(())))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.client
    }
}
