//! A database under the query cache, with one implementation of [`Backend`] for each kind of database. The code that runs
//! statements and transactions uses only this trait.

use std::{any::Any, sync::Arc};

use futures_util::future::BoxFuture;
use larder_core::store::CommitId;
use tokio::task::JoinSet;

use crate::{
    analysis::SqlDialect, catalog::Catalog, context::QueryContext, error::QueryError,
    rows::StatementOutcome, statement::Statement,
};

/// A database that runs statements and transactions, and has a catalog and an outbox.
pub(crate) trait Backend: Send + Sync + 'static {
    /// The dialect of its statements.
    fn dialect(&self) -> SqlDialect;

    /// Reads its catalog.
    fn catalog(&self) -> BoxFuture<'_, sqlx::Result<Catalog>>;

    /// Runs a statement to its end, outside of a transaction, or in one of its own if the statement has a [`CommitId`].
    fn run(
        self: Arc<Self>,
        statement: Statement,
    ) -> BoxFuture<'static, sqlx::Result<StatementOutcome>>;

    /// Begins a transaction. If it has an identity, its rows in the outbox get that identity. If it `writes`, it waits for the
    /// writer before it instead of failing later, where the database has one writer at a time.
    fn begin(
        &self,
        commit: Option<CommitId>,
        writes: bool,
    ) -> BoxFuture<'_, sqlx::Result<Box<dyn BackendTransaction>>>;

    /// Returns the SQL that creates the outbox and its triggers.
    fn outbox_sql(&self) -> BoxFuture<'_, sqlx::Result<String>>;

    /// Runs all statements of a text in one transaction.
    fn run_all(&self, text: String) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Follows the outbox in these tasks.
    fn follow(&self, context: Arc<QueryContext>) -> BoxFuture<'_, Result<JoinSet<()>, QueryError>>;
}

/// A transaction of a database.
pub(crate) trait BackendTransaction: Send {
    /// Runs a statement to its end.
    fn run<'a>(
        &'a mut self,
        statement: &'a Statement,
    ) -> BoxFuture<'a, sqlx::Result<StatementOutcome>>;

    /// Whether the transaction can only be rolled back, because a statement has failed. PostgreSQL would then report a
    /// commit but roll back.
    fn is_spoiled(&mut self) -> BoxFuture<'_, bool>;

    /// Commits.
    fn commit(self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>>;

    /// Rolls back.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, sqlx::Result<()>>;

    /// The connection of the driver, for [`Transaction::sqlite`](crate::Transaction) and the like.
    fn connection(&mut self) -> &mut dyn Any;
}

/// Runs a statement in a transaction of its own with an identity.
pub(crate) async fn run_as(
    backend: &dyn Backend,
    commit: CommitId,
    statement: &Statement,
) -> sqlx::Result<StatementOutcome> {
    let mut transaction = backend.begin(Some(commit), true).await?;
    let outcome = transaction.run(statement).await?;
    transaction.commit().await?;
    Ok(outcome)
}

/// Runs all statements of a text in one transaction.
pub(crate) async fn run_all<D>(pool: &sqlx::Pool<D>, text: &str) -> sqlx::Result<()>
where
    D: sqlx::Database,
    for<'c> &'c mut D::Connection: sqlx::Executor<'c, Database = D>,
{
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut *transaction).await?;
    transaction.commit().await
}
