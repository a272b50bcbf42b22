//! Runs the calls of a connection on the threads that tokio has for blocking code.

use std::any::Any;

use larder_core::store::BoxFuture;
use larder_sql::{
    Statement, StatementOutcome,
    driver::{Connection, DriverError, TransactionConnection},
};
use rusqlite::InterruptHandle;

use super::{
    pool::PoolSlot,
    statement::{driver_error, run},
};

/// A connection, which is on another thread during a call. If the caller is cancelled during a call, the call is
/// interrupted, and then the connection is closed, which rolls a transaction back.
pub(super) struct BlockingConnection {
    held: Option<HeldConnection>,
}

/// A connection with its slot in the pool. The slot becomes free after the connection has been closed or put back.
struct HeldConnection {
    connection: rusqlite::Connection,
    slot: Option<PoolSlot>,
}

impl BlockingConnection {
    pub(super) fn new(connection: rusqlite::Connection, slot: Option<PoolSlot>) -> Self {
        Self { held: Some(HeldConnection { connection, slot }) }
    }

    async fn call<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut rusqlite::Connection) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let lost = "the connection was lost, because an earlier call was cancelled";
        let mut held = self.held.take().ok_or_else(|| DriverError::failed(lost))?;
        let mut interrupting = InterruptOnDrop(Some(held.connection.get_interrupt_handle()));
        let (held, acted) = blocking(move || {
            let acted = act(&mut held.connection);
            (held, acted)
        })
        .await?;
        interrupting.0 = None;
        self.held = Some(held);
        acted
    }
}

/// Interrupts a call whose caller is cancelled.
struct InterruptOnDrop(Option<InterruptHandle>);

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.interrupt();
        }
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
        match self {
            Self { held: Some(held) } => &mut held.connection,
            lost => lost,
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

impl Drop for BlockingConnection {
    fn drop(&mut self) {
        let Some(HeldConnection { connection, slot }) = self.held.take() else { return };
        match slot {
            Some(slot) if connection.is_autocommit() => slot.put_back(connection),
            // Closing writes to the disk.
            slot => {
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    drop(runtime.spawn_blocking(move || {
                        drop(connection);
                        drop(slot);
                    }));
                }
            }
        }
    }
}

/// Runs a function on a thread for blocking code.
pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(act).await.map_err(DriverError::failed)
}
