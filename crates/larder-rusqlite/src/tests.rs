use std::{path::Path, time::Duration};

use larder_core::{Larder, Reason};
use larder_sql::{Db, SqlValue, Statement, driver::DriverErrorKind};
use rusqlite::Connection;

use super::*;

fn service(path: &Path) -> DatabaseService {
    let path = path.join("test.db");
    sqlite(move || {
        let connection = Connection::open(&path)?;
        connection.busy_timeout(Duration::from_secs(30))?;
        Ok(connection)
    })
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

/// A database with an empty table of products.
async fn products(folder: &Path) -> Db {
    let db = service(folder).cached(&larder()).await.unwrap();
    let schema = "CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER)";
    db.query(schema).execute().await.unwrap();
    db
}

async fn price(db: &Db) -> i64 {
    let price = db.query("SELECT price FROM products WHERE id = $1").bind(7);
    price.fetch_scalar::<i64>().await.unwrap()
}

#[tokio::test]
async fn the_driver_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let service = sqlite(move || Connection::open(&path));
    larder_testkit::conformance::driver(service.driver()).await;
}

#[tokio::test]
async fn a_row_is_cached_until_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let db = products(folder.path()).await;
    db.query("INSERT INTO products VALUES (7, 10), (8, 20)").execute().await.unwrap();
    assert_eq!(price(&db).await, 10);
    let other = Connection::open(folder.path().join("test.db")).unwrap();
    other.execute("UPDATE products SET price = 11", []).unwrap();
    assert_eq!(price(&db).await, 10, "larder does not see this write without an outbox");
    db.query("UPDATE products SET price = 12 WHERE id = 8").execute().await.unwrap();
    assert_eq!(price(&db).await, 10, "a write of another row");
    db.query("UPDATE products SET price = 13 WHERE id = 7").execute().await.unwrap();
    assert_eq!(price(&db).await, 13);
    let mut transaction = db.begin().await.unwrap();
    transaction.query("UPDATE products SET price = 14").execute().await.unwrap();
    assert_eq!(price(&db).await, 13);
    transaction.commit().await.unwrap();
    assert_eq!(price(&db).await, 14);
}

#[tokio::test]
async fn the_outbox_reports_the_writes_of_the_application() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let application = Connection::open(folder.path().join("test.db")).unwrap();
    application.busy_timeout(Duration::from_secs(30)).unwrap();
    application
        .execute_batch("CREATE TABLE products (id INTEGER PRIMARY KEY, price INTEGER); INSERT INTO products VALUES (7, 10)")
        .unwrap();
    let larder = larder();
    let db = service.cached(&larder).await.unwrap();
    db.outbox().install().await.unwrap();
    let follower = db.outbox().follow().await.unwrap();
    assert_eq!(price(&db).await, 10);
    let mut invalidations = larder.invalidations();
    application.execute("UPDATE products SET price = 11 WHERE id = 7", []).unwrap();
    while price(&db).await != 11 {
        let event = tokio::time::timeout(Duration::from_secs(60), invalidations.next()).await;
        event.expect("the outbox reports the write");
    }
    drop(follower);
}

#[tokio::test]
async fn a_closure_of_the_application_is_cached_by_its_statement() {
    let folder = tempfile::tempdir().unwrap();
    let db = products(folder.path()).await;
    let path = folder.path().join("test.db");
    let written = path.clone();
    let statement = || Statement::new("SELECT count(*) FROM products");
    let count = async || {
        let path = path.clone();
        let read = move || async move {
            let count = || {
                Connection::open(path)?
                    .query_row("SELECT count(*) FROM products", [], |row| row.get::<_, i64>(0))
            };
            tokio::task::spawn_blocking(count).await.expect("it does not panic")
        };
        *db.cached(statement()).load(read).await.unwrap()
    };
    assert_eq!(count().await, 0);
    Connection::open(&path).unwrap().execute("INSERT INTO products VALUES (1, 1)", []).unwrap();
    assert_eq!(count().await, 0, "it is cached");
    let write = Statement::new("INSERT INTO products VALUES (2, 1)");
    let insert = async move {
        Connection::open(&written)?.execute("INSERT INTO products VALUES (2, 1)", [])
    };
    db.write(write, insert).await.unwrap();
    assert_eq!(count().await, 2);
}

#[tokio::test]
async fn a_private_database_in_memory_is_refused() {
    let error = sqlite(Connection::open_in_memory).cached(&larder()).await.unwrap_err();
    let cause = error.driver_error().unwrap().to_string();
    assert!(cause.contains("mode=memory&cache=shared"), "{cause}");
    let shared = sqlite(|| Connection::open("file:larder-shared?mode=memory&cache=shared"));
    let keeper = Connection::open("file:larder-shared?mode=memory&cache=shared").unwrap();
    keeper.execute_batch("CREATE TABLE products (id INTEGER PRIMARY KEY)").unwrap();
    let db = shared.cached(&larder()).await.unwrap();
    assert_eq!(db.explain(&Statement::new("SELECT * FROM products")).not_stored, None::<Reason>);
}

#[tokio::test]
async fn a_parameter_has_the_value_of_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let db = products(folder.path()).await;
    db.query("INSERT INTO products VALUES (7, 10), (13, 20)").execute().await.unwrap();
    let update = "UPDATE products SET price = $2 WHERE id = $1";
    db.query(update).bind(7).bind(13).execute().await.unwrap();
    assert_eq!(price(&db).await, 13);
    let other = db.query("SELECT price FROM products WHERE id = 13");
    assert_eq!(other.fetch_scalar::<i64>().await.unwrap(), 20);
    for (text, expected) in [
        ("SELECT :id", "the parameter is :id, and must be ?, ?1, ?2, … or $1, $2, …"),
        ("SELECT $3", "the statement has parameter 3, and 2 values are bound"),
    ] {
        let error = db.query(text).bind(1).bind(2).fetch_scalar::<i64>().await.unwrap_err();
        assert_eq!(error.driver_error().unwrap().to_string(), expected);
    }
}

#[tokio::test]
async fn a_text_whose_first_statement_has_run_is_not_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let service = service(folder.path());
    let mut connection = service.driver().acquire().await.unwrap();
    connection
        .run_script("CREATE TABLE stock (n INTEGER); INSERT INTO stock VALUES (8)")
        .await
        .unwrap();
    let text = Statement::new("UPDATE stock SET n = n - 1; INSERT INTO stock VALUES (?)");
    let kind = connection.run(&text).await.unwrap_err().kind();
    assert_eq!(kind, DriverErrorKind::Failed);
    let rows = connection.run(&Statement::new("SELECT n FROM stock")).await.unwrap().rows.rows;
    assert_eq!(rows, [[SqlValue::Int(7)]]);
}

#[tokio::test]
async fn a_transaction_that_writes_first_waits_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let db = service(folder.path()).cached(&larder()).await.unwrap();
    db.query("CREATE TABLE products (id INTEGER PRIMARY KEY)").execute().await.unwrap();
    let mut one = db.begin().await.unwrap();
    one.query("INSERT INTO products VALUES (1)").execute().await.unwrap();
    let other = tokio::spawn(async move {
        let mut other = db.begin().await.unwrap();
        other.query("INSERT INTO products VALUES (2)").execute().await.unwrap();
        other.commit().await.unwrap();
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    one.commit().await.unwrap();
    other.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_connections_are_all_in_use_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let service = sqlite_with_connections(move || Connection::open(&path), 1);
    let _held = service.driver().acquire().await.unwrap();
    let error = service.driver().acquire().await.err().unwrap();
    assert!(error.to_string().contains("sqlite_with_connections"), "{error}");
}
