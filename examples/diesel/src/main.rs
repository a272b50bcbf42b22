//! Queries of Diesel, cached where they are: larder analyses the text that Diesel builds.
//!
//! `cargo run -p diesel-example` reads and writes a table, and prints what the cache does.

use std::{error::Error, path::Path, sync::Arc, time::Duration};

use diesel::{
    prelude::*,
    query_builder::{QueryBuilder as _, QueryFragment},
    r2d2::{ConnectionManager, Pool},
    sqlite::{Sqlite, SqliteQueryBuilder},
};
use larder::{
    Larder, LoadError,
    sql::{Db, SqlValue, Statement},
};
use serde::{Deserialize, Serialize};

diesel::table! {
    /// The products of the shop.
    products (id) {
        /// The key.
        id -> BigInt,
        /// The name that customers see.
        name -> Text,
        /// The price in cents.
        price_cents -> BigInt,
    }
}

/// A row of `products`.
#[derive(Clone, Debug, PartialEq, Queryable, Selectable, Serialize, Deserialize)]
struct Product {
    id: i64,
    name: String,
    price_cents: i64,
}

type SqlitePool = Pool<ConnectionManager<SqliteConnection>>;

/// A read or a write that failed.
#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error("the pool has no connection")]
    Pool(#[from] diesel::r2d2::PoolError),
    #[error("the query failed")]
    Query(#[from] diesel::result::Error),
    #[error("the query panicked")]
    Panicked(#[from] tokio::task::JoinError),
}

/// The shop: its tables through Diesel, and the cache in front of them.
#[derive(Clone)]
struct Shop {
    pool: SqlitePool,
    db: Db,
}

impl Shop {
    /// Opens the database. larder reads its catalog and its outbox on connections of rusqlite; all queries of the
    /// application stay with Diesel.
    async fn open(path: &Path, larder: &Larder) -> Result<Self, Box<dyn Error>> {
        let url = path.display().to_string();
        let pool = Pool::builder().max_size(4).build(ConnectionManager::new(url))?;
        let schema = "CREATE TABLE IF NOT EXISTS products (id BIGINT PRIMARY KEY, name TEXT NOT NULL, price_cents BIGINT NOT NULL)";
        run(&pool, move |connection| diesel::sql_query(schema).execute(connection)).await?;
        let path = path.to_owned();
        let open = move || {
            let connection = rusqlite::Connection::open(&path)?;
            connection.busy_timeout(Duration::from_secs(10))?;
            Ok(connection)
        };
        Ok(Self { pool, db: larder::rusqlite::sqlite(open).cached(larder).await? })
    }

    /// Returns a product, from the cache if no statement has written its row since it was read.
    async fn product(&self, id: i64) -> Result<Arc<Option<Product>>, LoadError<ShopError>> {
        let query = products::table.find(id).select(Product::as_select());
        let read = self.db.cached(statement(&query, [id.into()]));
        let pool = self.pool.clone();
        let load = move || async move {
            run(&pool, move |connection| {
                products::table.find(id).select(Product::as_select()).first(connection).optional()
            })
            .await
        };
        read.load(load).await
    }

    /// Returns the products up to a price, from the cache if no statement has written the table.
    async fn cheap(&self, at_most: i64) -> Result<Arc<Vec<Product>>, LoadError<ShopError>> {
        let query = move || {
            let query = products::table.filter(products::price_cents.le(at_most));
            query.order(products::id).select(Product::as_select())
        };
        let read = self.db.cached(statement(&query(), [at_most.into()]));
        let pool = self.pool.clone();
        let load =
            move || async move { run(&pool, move |connection| query().load(connection)).await };
        read.load(load).await
    }

    /// Sets a price. The row, and lists of the table, are invalidated before this returns.
    async fn reprice(&self, id: i64, price_cents: i64) -> Result<usize, LoadError<ShopError>> {
        let update = move || {
            diesel::update(products::table.find(id)).set(products::price_cents.eq(price_cents))
        };
        // Diesel binds the new value before the key, as the text has them.
        let written = statement(&update(), [price_cents.into(), id.into()]);
        let pool = self.pool.clone();
        let write = async move { run(&pool, move |connection| update().execute(connection)).await };
        self.db.write(written, write).await
    }
}

/// Returns the text that Diesel builds for a query, with the values that it binds, in their order.
///
/// Diesel does not give the values of a query to others, so the caller repeats them.
fn statement<Q>(query: &Q, values: impl IntoIterator<Item = SqlValue>) -> Statement
where
    Q: QueryFragment<Sqlite>,
{
    let mut text = SqliteQueryBuilder::new();
    // Only a fragment that runs no SQL fails here.
    query.to_sql(&mut text, &Sqlite).expect("a query has a text");
    values.into_iter().fold(Statement::new(text.finish()), Statement::bind)
}

/// Runs a query of Diesel, which blocks, on a thread for blocking code.
async fn run<T: Send + 'static>(
    pool: &SqlitePool,
    query: impl FnOnce(&mut SqliteConnection) -> QueryResult<T> + Send + 'static,
) -> Result<T, ShopError> {
    let pool = pool.clone();
    tokio::task::spawn_blocking(move || Ok(query(&mut *pool.get()?)?)).await?
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let larder = Larder::builder().build()?;
    let shop = Shop::open(&folder.path().join("shop.db"), &larder).await?;
    shop.db
        .query("INSERT INTO products VALUES (1, 'boots', 9900), (2, 'laces', 300)")
        .execute()
        .await?;
    for _ in 0..2 {
        println!("{:?}, {} cheap products", shop.product(1).await?, shop.cheap(1000).await?.len());
    }
    shop.reprice(1, 900).await?;
    println!("{:?}, {} cheap products", shop.product(1).await?, shop.cheap(1000).await?.len());
    let queries = larder.stats().cache("queries").map(|cache| cache.total);
    println!("{:?}", queries.map(|total| (total.hits, total.misses)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shop(path: &Path) -> (Shop, Larder) {
        let larder = Larder::builder().tag_table_slots(1 << 12).build().unwrap();
        let shop = Shop::open(path, &larder).await.unwrap();
        let insert = "INSERT INTO products VALUES (1, 'boots', 9900), (2, 'laces', 300)";
        shop.db.query(insert).execute().await.unwrap();
        (shop, larder)
    }

    #[tokio::test]
    async fn a_write_of_diesel_invalidates_the_rows_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let (shop, larder) = shop(&folder.path().join("shop.db")).await;
        let hits = || larder.stats().cache("queries").map_or(0, |cache| cache.total.hits);
        let price =
            async |id| shop.product(id).await.unwrap().as_ref().clone().unwrap().price_cents;
        assert_eq!((price(1).await, price(2).await), (9900, 300));
        assert_eq!(shop.cheap(1000).await.unwrap().len(), 1);
        shop.reprice(1, 900).await.unwrap();
        let before = hits();
        assert_eq!(price(2).await, 300);
        assert_eq!(hits(), before + 1, "the other row is still cached");
        assert_eq!(price(1).await, 900);
        assert_eq!(shop.cheap(1000).await.unwrap().len(), 2);
        assert_eq!(hits(), before + 1, "the row and the list were read again");
    }

    #[test]
    fn the_text_of_diesel_names_the_row() {
        let query = products::table.find(7_i64).select(Product::as_select());
        assert_eq!(
            statement(&query, [7_i64.into()]).text(),
            "SELECT `products`.`id`, `products`.`name`, `products`.`price_cents` FROM `products` WHERE (`products`.`id` = ?)"
        );
    }
}
