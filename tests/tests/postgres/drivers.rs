//! The drivers of PostgreSQL.

use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use larder::{Larder, sql::DatabaseService};
use larder_testkit::conformance;
use tests::{postgres::Server, until};
use tokio_postgres::{Client, Config, NoTls};

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 12).build().unwrap()
}

fn pool(server: &Server) -> (Pool, Config) {
    let config: Config = server.url().parse().unwrap();
    let manager = Manager::new(config.clone(), NoTls);
    (Pool::builder(manager).max_size(4).build().unwrap(), config)
}

fn tokio_postgres_service(server: &Server) -> DatabaseService {
    let (pool, config) = pool(server);
    larder::tokio_postgres::postgres(pool, config, NoTls)
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn the_drivers_conform() {
    let server = Server::start();
    let sqlx = larder::sqlx::postgres(server.pool().await);
    conformance::driver(sqlx.driver()).await;
    conformance::driver(tokio_postgres_service(&server).driver()).await;
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn over_tokio_postgres_a_row_is_cached_until_any_client_writes_it() {
    let server = Server::start();
    server.psql("CREATE TABLE a (id uuid PRIMARY KEY, v bigint); INSERT INTO a SELECT gen_random_uuid(), n FROM generate_series(1, 2) n");
    let id = server.psql("SELECT id FROM a WHERE v = 1");
    let larder = larder();
    let service = tokio_postgres_service(&server);
    let db = service.cached(&larder).await.unwrap();
    db.outbox().install().await.unwrap();
    let follower = db.outbox().follow().await.unwrap();
    let value = async || {
        let value = db.query("SELECT v FROM a WHERE id = $1").bind(&*id);
        value.fetch_scalar::<i64>().await.unwrap()
    };
    assert_eq!(value().await, 1);
    let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
    let before = hits();
    server.psql("UPDATE a SET v = 3 WHERE v = 2");
    // The write of the other row has arrived when a query of the whole table has its result.
    until("the outbox is read", || async {
        db.query("SELECT max(v) FROM a").fetch_scalar::<i64>().await.unwrap() == 3
    })
    .await;
    assert_eq!(value().await, 1);
    assert!(hits() > before, "the row is still cached");
    server.psql(&format!("UPDATE a SET v = 4 WHERE id = '{id}'"));
    until("the write of another client is seen", || async { value().await == 4 }).await;
    db.query("UPDATE a SET v = 5 WHERE id = $1").bind(&*id).execute().await.unwrap();
    assert_eq!(value().await, 5);
    drop(follower);
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn over_tokio_postgres_the_application_uses_its_client_in_a_transaction_and_in_closures() {
    let server = Server::start();
    server.psql("CREATE TABLE a (id bigint PRIMARY KEY, v bigint); INSERT INTO a VALUES (7, 1)");
    let (pool, config) = pool(&server);
    let db = larder::tokio_postgres::postgres(pool.clone(), config, NoTls);
    let db = db.cached(&larder()).await.unwrap();
    let read = larder::sql::Statement::new("SELECT v FROM a WHERE id = $1").bind(7);
    let value = async || {
        let pool = pool.clone();
        let load = move || async move {
            let client = pool.get().await.unwrap();
            client
                .query_one("SELECT v FROM a WHERE id = $1", &[&7_i64])
                .await
                .map(|row| row.get::<_, i64>(0))
        };
        *db.cached(read.clone()).load(load).await.unwrap()
    };
    assert_eq!(value().await, 1);
    server.psql("UPDATE a SET v = 2");
    assert_eq!(value().await, 1, "it is cached");
    let mut transaction = db.begin().await.unwrap();
    {
        let client: &mut Client = transaction.connection().await.unwrap().unwrap();
        client.execute("UPDATE a SET v = 3 WHERE id = $1", &[&7_i64]).await.unwrap();
    }
    transaction.wrote("UPDATE a SET v = 3 WHERE id = 7");
    transaction.commit().await.unwrap();
    assert_eq!(value().await, 3);
    let update = larder::sql::Statement::new("UPDATE a SET v = 4 WHERE id = $1").bind(7);
    let writing = pool.clone();
    let write = async move {
        let client = writing.get().await.unwrap();
        client.execute("UPDATE a SET v = 4 WHERE id = $1", &[&7_i64]).await
    };
    db.write(update, write).await.unwrap();
    assert_eq!(value().await, 4);
}

#[tokio::test]
#[cfg_attr(not(has_postgres), ignore = "needs PostgreSQL")]
async fn a_channel_of_tokio_postgres_is_opened_again_after_a_loss() {
    let server = Server::start();
    let service = tokio_postgres_service(&server);
    let mut channel = service.driver().listen("larder_test").await.unwrap().unwrap();
    server
        .psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'");
    // The first two report the loss and the new connection.
    for _ in 0..2 {
        tokio::time::timeout(Duration::from_secs(60), channel.next()).await.unwrap();
    }
    server.psql("NOTIFY larder_test");
    tokio::time::timeout(Duration::from_secs(60), channel.next()).await.unwrap();
}
