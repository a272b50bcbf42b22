//! A process under test: it writes through a query cache and is killed after the commit in the database, before it
//! invalidates anything. Its arguments are a database, a log, and the value to write. With a fourth argument it writes in
//! a transaction with an event, and is killed when the event is handled.

use std::{
    convert::Infallible,
    process::Command,
    task::{Context, Poll},
};

use larder::{
    Larder,
    redis::Redis,
    sql::{DatabaseService, Db, QueryCacheLayer, Statement, StatementOutcome, driver::DriverError},
};
use tests::Changed;
use tower::{Layer as _, Service};

/// A service that kills the process as soon as a statement was committed.
#[derive(Clone)]
struct LastWords(DatabaseService);

impl Service<Statement> for LastWords {
    type Response = StatementOutcome;
    type Error = DriverError;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<StatementOutcome, DriverError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DriverError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, statement: Statement) -> Self::Future {
        let answering = self.0.call(statement);
        Box::pin(async move {
            answering.await?;
            die().await
        })
    }
}

async fn die<T>() -> T {
    let id = std::process::id().to_string();
    drop(Command::new("kill").args(["-KILL", &id]).status());
    std::future::pending().await
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, database, log, v, rest @ ..] = &arguments[..] else {
        eprintln!("usage: dies-after-its-commit DATABASE LOG VALUE");
        std::process::exit(2);
    };
    let larder = Larder::builder().second_level(Redis::open(log).expect("a valid URL")).build();
    let larder = larder.expect("the defaults are valid");
    larder.synced().await;
    let inner = if database.starts_with("sqlite") {
        larder::sqlx::sqlite(sqlx::SqlitePool::connect(database).await.expect("it is there"))
    } else {
        larder::sqlx::postgres(sqlx::PgPool::connect(database).await.expect("it is there"))
    };
    let v: i64 = v.parse().expect("a number");
    if !rest.is_empty() {
        larder.on_async(|_: Changed| async { die::<Result<&'static str, Infallible>>().await });
        larder.receive_stored::<Changed>();
        let db = inner.cached(&larder).await.expect("it answers");
        let mut writing = db.begin().await.expect("it answers");
        let write = writing.query("UPDATE a SET v = $1 WHERE id = 1").bind(v);
        write.execute().await.expect("it answers");
        writing.emit(&Changed { v }).await.expect("it answers");
        drop(writing.commit().await);
        eprintln!("it lives");
        return;
    }
    let layer = QueryCacheLayer::new(&larder, inner.dialect())
        .catalog(inner.catalog().await.expect("it answers"));
    let db = Db::new(layer.layer(LastWords(inner)));
    let write = db.query("UPDATE a SET v = $1 WHERE id = 1").bind(v);
    drop(write.execute().await);
    eprintln!("it lives");
}
