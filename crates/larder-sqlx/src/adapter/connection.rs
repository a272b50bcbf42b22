//! The implementations of the traits of larder for the connections of sqlx, which are the same for each database.

/// Implements [`Connection`](larder_sql::driver::Connection) for wrappers of a connection of sqlx. The module has a
/// function `run`.
macro_rules! connection {
    ($($wrapper:ident),+: $connection:ty) => {
        $(impl Connection for $wrapper {
            fn run<'a>(
                &'a mut self,
                statement: &'a Statement,
            ) -> BoxFuture<'a, Result<StatementOutcome, DriverError>> {
                Box::pin(async move { run(&mut self.0, statement).await.map_err(driver_error) })
            }

            fn run_script<'a>(
                &'a mut self,
                script: &'a str,
            ) -> BoxFuture<'a, Result<(), DriverError>> {
                Box::pin(async move {
                    let connection: &mut $connection = &mut self.0;
                    let run = connection.execute(sqlx::raw_sql(sql(script))).await;
                    run.map(|_| ()).map_err(driver_error)
                })
            }

            fn forget_prepared(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
                Box::pin(async move {
                    self.0.clear_cached_statements().await.map_err(driver_error)
                })
            }

            fn as_any(&mut self) -> &mut dyn Any {
                let connection: &mut $connection = &mut self.0;
                connection
            }
        })+
    };
}

/// Implements [`TransactionConnection`](larder_sql::driver::TransactionConnection) for a wrapper of a transaction of
/// sqlx.
macro_rules! transaction {
    ($wrapper:ident) => {
        impl TransactionConnection for $wrapper {
            fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>> {
                Box::pin(async move { self.0.commit().await.map_err(driver_error) })
            }

            fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<(), DriverError>> {
                Box::pin(async move { self.0.rollback().await.map_err(driver_error) })
            }
        }
    };
}
