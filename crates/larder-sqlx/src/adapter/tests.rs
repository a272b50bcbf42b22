//! Queries that the application writes with sqlx, on SQLite, over each version of sqlx.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use larder_core::{Larder, Policy, Target};
use larder_sql::Statement;

use super::{
    CachedPool, CachedTransaction, DatabaseHandle, SharedQueryRow, cached,
    compat::sql,
    invalidating,
    sqlx::{self, Error, Sqlite, SqlitePool, sqlite::SqlitePoolOptions},
};

/// A row type that serde does not know.
#[derive(Debug, PartialEq)]
struct Product {
    id: i64,
    name: String,
}

impl sqlx::FromRow<'_, sqlx::sqlite::SqliteRow> for Product {
    fn from_row(row: &sqlx::sqlite::SqliteRow) -> Result<Self, Error> {
        use sqlx::Row as _;
        Ok(Self { id: row.try_get("id")?, name: row.try_get("name")? })
    }
}

const SCHEMA: &str = "
    CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    INSERT INTO products VALUES (1, 'pear'), (2, 'plum'), (3, 'fig')";
const PRODUCT: &str = "SELECT id, name FROM products WHERE id = ?";
const RENAME: &str = "UPDATE products SET name = ? WHERE id = ?";

async fn pool(connections: u32) -> (SqlitePool, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("db").display());
    let pool = SqlitePoolOptions::new().max_connections(connections).connect(&url).await.unwrap();
    sqlx::raw_sql(SCHEMA).execute(&pool).await.unwrap();
    (pool, folder)
}

struct Shop {
    larder: Larder,
    pool: CachedPool<Sqlite>,
    _folder: tempfile::TempDir,
}

async fn shop() -> Shop {
    let larder = Larder::builder().tag_table_slots(1 << 12).build().unwrap();
    let (pool, folder) = pool(2).await;
    let pool = CachedPool::new(pool, &larder).await.unwrap();
    Shop { larder, pool, _folder: folder }
}

impl Shop {
    fn hits(&self) -> u64 {
        self.larder.stats().cache("queries").map_or(0, |cache| cache.total.hits)
    }

    async fn name(&self, id: i64) -> String {
        product(&self.pool, id).await.unwrap().name.clone()
    }
}

/// A helper that reads through the cache, or in a transaction.
async fn product(
    database: impl Into<DatabaseHandle<'_, Sqlite>>,
    id: i64,
) -> Result<SharedQueryRow<Product>, Error> {
    cached([id], move || sqlx::query_as::<_, Product>(PRODUCT).bind(id)).fetch_one(database).await
}

async fn rename(
    database: impl Into<DatabaseHandle<'_, Sqlite>>,
    id: i64,
    name: &'static str,
) -> Result<u64, Error> {
    let query = move || sqlx::query(RENAME).bind(name).bind(id);
    invalidating((name, id), query).execute(database).await.map(|done| done.rows_affected())
}

#[tokio::test]
async fn a_write_invalidates_the_rows_that_its_values_name() {
    let shop = shop().await;
    assert_eq!((shop.name(1).await, shop.name(2).await), ("pear".into(), "plum".into()));
    assert_eq!(rename(&shop.pool, 1, "quince").await.unwrap(), 1);
    let before = shop.hits();
    assert_eq!(shop.name(1).await, "quince");
    assert_eq!(shop.hits(), before, "it was invalidated");
    assert_eq!(shop.name(2).await, "plum");
    assert_eq!(shop.hits(), before + 1, "another row stays");
    shop.pool.db().query(RENAME).bind("cherry").bind(2).execute().await.unwrap();
    assert_eq!(shop.name(2).await, "cherry", "a write through the handle invalidates, too");
}

#[tokio::test]
async fn all_kinds_of_queries_are_cached_in_memory() {
    let shop = shop().await;
    let names = async || {
        let names = || sqlx::query_scalar::<_, String>("SELECT name FROM products ORDER BY id");
        cached((), names).fetch_all(&shop.pool).await.unwrap().to_vec()
    };
    let count = async || {
        let count = || {
            sqlx::query(sql("SELECT count(*) FROM products")).try_map(
                |row: sqlx::sqlite::SqliteRow| {
                    use sqlx::Row as _;
                    row.try_get::<i64, _>(0)
                },
            )
        };
        *cached((), count).fetch_one(&shop.pool).await.unwrap()
    };
    for round in 0..2 {
        assert_eq!(names().await, ["pear", "plum", "fig"]);
        assert_eq!(count().await, 3);
        assert_eq!(shop.hits(), 2 * round);
    }
    let insert = || sqlx::query("INSERT INTO products VALUES (4, 'date')");
    invalidating((), insert).execute(&shop.pool).await.unwrap();
    assert_eq!((names().await.len(), count().await), (4, 4));
    assert!(shop.larder.stats().memory.bytes > 4 * size_of::<String>());
}

#[tokio::test]
async fn mappers_of_one_text_do_not_share_rows() {
    use sqlx::Row as _;
    type Row = sqlx::sqlite::SqliteRow;
    let shop = shop().await;
    const TEXT: &str = "SELECT id, id * 10 FROM products WHERE id = 2";
    for _ in 0..2 {
        let first = || sqlx::query(TEXT).map(|row: Row| row.get::<i64, _>(0));
        let second = || sqlx::query(TEXT).map(|row: Row| row.get::<i64, _>(1));
        assert_eq!(*cached((), first).fetch_one(&shop.pool).await.unwrap(), 2);
        assert_eq!(*cached((), second).fetch_one(&shop.pool).await.unwrap(), 20);
    }
    assert_eq!(shop.hits(), 2);
}

#[tokio::test]
async fn values_that_do_not_match_the_query_never_share_rows() {
    let shop = shop().await;
    let with = async |given: i64, bound: i64| {
        let query = move || sqlx::query_as::<_, Product>(PRODUCT).bind(bound);
        cached([given], query).fetch_one(&shop.pool).await.map(|row| row.id)
    };
    assert_eq!(with(1, 1).await.unwrap(), 1);
    assert_eq!(with(1, 2).await.unwrap(), 2, "the value that is given is that of another query");
    let forgotten = || sqlx::query_as::<_, Product>(PRODUCT).bind(2);
    let error = cached((), forgotten).fetch_one(&shop.pool).await.unwrap_err().to_string();
    assert!(error.contains("0 values are given to larder, and 1 are bound"), "{error}");
    let forgotten = || sqlx::query(RENAME).bind("x").bind(1);
    let error = invalidating([1], forgotten).execute(&shop.pool).await.unwrap_err().to_string();
    assert!(error.contains("1 values are given to larder, and 2 are bound"), "{error}");
    assert_eq!(shop.name(1).await, "pear", "nothing was written");
}

#[tokio::test]
async fn a_row_that_does_not_exist_is_cached_until_it_is_inserted() {
    let shop = shop().await;
    let missing = async || matches!(product(&shop.pool, 9).await, Err(Error::RowNotFound));
    assert!(missing().await && missing().await);
    assert_eq!(shop.hits(), 1);
    let insert = || sqlx::query("INSERT INTO products VALUES (?, 'lime')").bind(9);
    invalidating([9], insert).execute(&shop.pool).await.unwrap();
    assert_eq!(shop.name(9).await, "lime");
}

#[tokio::test]
async fn a_transaction_reads_its_own_writes_and_invalidates_at_its_commit() {
    let shop = shop().await;
    shop.name(1).await;
    let mut transaction = shop.pool.begin().await.unwrap();
    rename(&mut transaction, 1, "quince").await.unwrap();
    assert_eq!(product(&mut transaction, 1).await.unwrap().name, "quince");
    let before = shop.hits();
    assert_eq!(shop.name(1).await, "pear", "it is not committed");
    assert_eq!(shop.hits(), before + 1);
    transaction.commit().await.unwrap();
    assert_eq!(shop.name(1).await, "quince");

    let mut transaction = shop.pool.begin().await.unwrap();
    rename(&mut transaction, 1, "cherry").await.unwrap();
    transaction.rollback().await.unwrap();
    let before = shop.hits();
    assert_eq!(shop.name(1).await, "quince");
    assert_eq!(shop.hits(), before + 1, "a rollback invalidates nothing");
}

#[tokio::test]
async fn nested_transactions_and_statements_that_larder_does_not_see() {
    let shop = shop().await;
    for id in 1..=3 {
        shop.name(id).await;
    }
    async fn helper(connection: &mut sqlx::SqliteConnection, name: &str) {
        sqlx::query("UPDATE products SET name = ? WHERE id = 3")
            .bind(name)
            .execute(connection)
            .await
            .unwrap();
    }
    let mut outer = shop.pool.begin().await.unwrap();
    let mut kept: CachedTransaction<'_, Sqlite> = outer.begin().await.unwrap();
    rename(&mut kept, 1, "quince").await.unwrap();
    kept.commit().await.unwrap();
    let mut dropped = outer.begin().await.unwrap();
    rename(&mut dropped, 2, "cherry").await.unwrap();
    drop(dropped);
    helper(outer.connection().await.unwrap(), "lemon").await;
    outer.wrote(Statement::new("UPDATE products SET name = ? WHERE id = 3").bind("lemon"));
    outer.commit().await.unwrap();
    let before = shop.hits();
    assert_eq!(shop.name(2).await, "plum");
    assert_eq!(shop.hits(), before + 1, "it was rolled back");
    assert_eq!((shop.name(1).await, shop.name(3).await), ("quince".into(), "lemon".into()));
    assert_eq!(shop.hits(), before + 1);
}

#[tokio::test]
async fn a_write_whose_caller_is_dropped_invalidates_after_it_has_run() {
    let shop = shop().await;
    shop.name(1).await;
    // Both connections are taken, so the write waits for one.
    let taken = (shop.pool.pool().acquire().await.unwrap(), shop.pool.pool().acquire().await);
    let mut invalidations = shop.larder.invalidations();
    let written = rename(&shop.pool, 1, "quince");
    assert!(tokio::time::timeout(Duration::ZERO, written).await.is_err(), "it is dropped");
    drop(taken);
    invalidations.next().await.unwrap();
    assert_eq!(shop.name(1).await, "quince");
}

#[tokio::test]
async fn a_query_of_the_application_that_writes_is_not_cached() {
    let shop = shop().await;
    let count = async || {
        let count = || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM products");
        *cached((), count).fetch_one(&shop.pool).await.unwrap()
    };
    assert_eq!(count().await, 3);
    for id in [7, 8] {
        let insert = move || {
            sqlx::query_scalar::<_, i64>("INSERT INTO products VALUES (?1, 'n' || ?1) RETURNING id")
                .bind(id)
        };
        assert_eq!(*cached([id], insert).fetch_one(&shop.pool).await.unwrap(), id);
    }
    assert_eq!(count().await, 5);
    let insert =
        || sqlx::query_scalar::<_, i64>("INSERT INTO products VALUES (9, 'n') RETURNING id");
    assert_eq!(invalidating((), insert).fetch_one(&shop.pool).await.unwrap(), 9);
    assert_eq!(count().await, 6);
    let mut transaction = shop.pool.begin().await.unwrap();
    let delete = || sqlx::query_scalar::<_, i64>("DELETE FROM products WHERE id > 6 RETURNING id");
    let deleted = invalidating((), delete).fetch_all(&mut transaction).await.unwrap();
    assert_eq!((deleted.len(), count().await), (3, 6));
    transaction.commit().await.unwrap();
    assert_eq!(count().await, 3);
    let nothing = || sqlx::query_scalar::<_, i64>("DELETE FROM products WHERE id > 6 RETURNING id");
    assert_eq!(invalidating((), nothing).fetch_optional(&shop.pool).await.unwrap(), None);
}

#[tokio::test]
async fn waiters_get_the_code_and_the_constraint_of_an_error() {
    let shop = shop().await;
    let failing = async || {
        let query = || sqlx::query_scalar::<_, i64>("SELECT json_array_length('[') AS n");
        cached((), query).fetch_one(&shop.pool).await.unwrap_err()
    };
    let (first, second) = tokio::join!(failing(), failing());
    for error in [&first, &second] {
        let error = error.as_database_error().expect("the error of the database");
        assert!(error.code().is_some());
        assert!(error.message().contains("malformed JSON"), "{error}");
    }
    // An error that is shared is not of the type of the driver, and says so.
    for error in [first, second] {
        let Error::Database(error) = error else { panic!("it is one of the database") };
        match error.try_downcast::<sqlx::sqlite::SqliteError>() {
            Ok(error) => assert!(error.to_string().contains("malformed JSON")),
            Err(error) => assert!(error.message().contains("malformed JSON")),
        }
    }
}

#[tokio::test]
async fn a_value_that_is_made_of_a_query_has_its_tags() {
    let shop = shop().await;
    let loads = Arc::new(AtomicU32::new(0));
    let page = async || {
        let (pool, loads) = (shop.pool.clone(), Arc::clone(&loads));
        let load = move |_| async move {
            loads.fetch_add(1, Ordering::Relaxed);
            let mut transaction = pool.begin().await.map_err(|error| error.to_string())?;
            let row = product(&mut transaction, 1).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(row.name.clone())
        };
        let policy = Policy::ttl(Duration::from_secs(60));
        shop.larder.get_or_load("page", policy, load).await.unwrap().to_string()
    };
    assert_eq!((page().await, page().await), ("pear".into(), "pear".into()));
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    rename(&shop.pool, 2, "cherry").await.unwrap();
    page().await;
    assert_eq!(loads.load(Ordering::Relaxed), 1, "another row");
    rename(&shop.pool, 1, "quince").await.unwrap();
    assert_eq!(page().await, "quince");
    let _logged = shop.larder.invalidate(Target::tag(shop.pool.row_tag("products", [1]))).await;
    page().await;
    assert_eq!(loads.load(Ordering::Relaxed), 3, "the tag of the row is public");
}
