//! What the shop reads and writes.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use larder::{
    Larder,
    sql::{Db, One, Query, QueryError, SqlxService},
};
use serde::{Deserialize, Serialize};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use crate::{Options, seed};

/// A product as pages show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) id: i64,
    pub(crate) category: String,
    pub(crate) category_slug: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) price_cents: i64,
    pub(crate) stock: i64,
}

impl Product {
    pub(crate) fn price(&self) -> String {
        price(self.price_cents)
    }
}

/// An amount as people read it.
pub(crate) fn price(cents: i64) -> String {
    format!("€ {}.{:02}", cents / 100, cents % 100)
}

/// A category.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Category {
    pub(crate) slug: String,
    pub(crate) name: String,
    pub(crate) products: i64,
}

/// What somebody thinks of a product.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Review {
    pub(crate) author: String,
    pub(crate) stars: i64,
    pub(crate) opinion: String,
}

/// A line of a cart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CartLine {
    pub(crate) product_id: i64,
    pub(crate) name: String,
    pub(crate) price_cents: i64,
    pub(crate) quantity: i64,
}

/// The database of the shop. What it reads is kept until it is written, and so is every page made of it.
#[derive(Clone, Debug)]
pub struct Database {
    db: Db<SqlxService>,
    cached: bool,
}

/// Rows that are shared with everybody who asks the same.
pub(crate) type Shared<T> = Arc<Vec<T>>;

/// How many products a page of a list has.
pub(crate) const PAGE: i64 = 24;

impl Database {
    /// Opens the database, and fills it if it is new.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or is not a database of the shop.
    pub async fn open(options: &Options, larder: &Larder) -> Result<Self, DatabaseError> {
        let given = options.database.as_deref().unwrap_or("sqlite::memory:");
        if !given.starts_with("sqlite:") {
            return Err(DatabaseError(format!("--database is {given}, allowed is sqlite://FILE")));
        }
        let failed = |error: sqlx::Error| DatabaseError(format!("the database {given}: {error}"));
        let connect = SqliteConnectOptions::from_str(given)
            .map_err(failed)?
            .create_if_missing(true)
            .busy_timeout(Duration::from_secs(5));
        // A database in memory belongs to its connection: one, for ever.
        let in_memory = given.contains(":memory:");
        let pool = SqlitePoolOptions::new()
            .max_connections(if in_memory { 1 } else { 4 })
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(connect)
            .await
            .map_err(failed)?;
        let is_new = prepare(&pool, options).await?;
        let db = SqlxService::sqlite(pool).cached(larder).await.map_err(failed)?;
        if is_new {
            // A Redis may know another database of the same name.
            let _logged_or_queued = db.invalidate_all().await;
        }
        Ok(Self { db, cached: !options.no_cache })
    }

    fn query(&self, text: &'static str) -> Query<'_, SqlxService> {
        let query = self.db.query(text);
        if self.cached { query } else { query.uncached() }
    }

    pub(crate) async fn categories(&self) -> Result<Shared<Category>, QueryError> {
        let text = "SELECT c.slug, c.name, count(p.id) AS products FROM categories c \
             LEFT JOIN products p ON p.category_slug = c.slug GROUP BY c.slug ORDER BY c.name";
        self.query(text).fetch_all().await
    }

    pub(crate) async fn featured(&self) -> Result<Shared<Product>, QueryError> {
        let text = "SELECT p.*, c.name AS category FROM products p \
             JOIN categories c ON c.slug = p.category_slug ORDER BY p.stock DESC, p.id LIMIT 12";
        self.query(text).fetch_all().await
    }

    pub(crate) async fn product(&self, id: i64) -> Result<Option<One<Product>>, QueryError> {
        let text = "SELECT p.*, c.name AS category FROM products p \
             JOIN categories c ON c.slug = p.category_slug WHERE p.id = ?";
        self.query(text).bind(id).fetch_optional().await
    }

    pub(crate) async fn reviews(&self, id: i64) -> Result<Shared<Review>, QueryError> {
        let text = "SELECT author, stars, opinion FROM reviews WHERE product_id = ? ORDER BY id";
        self.query(text).bind(id).fetch_all().await
    }

    /// A page of a category, or of all products, and how many there are.
    pub(crate) async fn list(
        &self,
        category: Option<&str>,
        page: i64,
    ) -> Result<(Shared<Product>, i64), QueryError> {
        let text = "SELECT p.*, c.name AS category FROM products p \
             JOIN categories c ON c.slug = p.category_slug \
             WHERE ?1 IS NULL OR p.category_slug = ?1 ORDER BY p.id LIMIT ?2 OFFSET ?3";
        let products = self.query(text).bind(category).bind(PAGE).bind((page - 1) * PAGE);
        let products = products.fetch_all().await?;
        let text = "SELECT count(*) FROM products WHERE ?1 IS NULL OR category_slug = ?1";
        Ok((products, self.query(text).bind(category).fetch_scalar().await?))
    }

    pub(crate) async fn search(&self, words: &str) -> Result<Shared<Product>, QueryError> {
        let escaped = words.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
        let text = r"SELECT p.*, c.name AS category FROM products p
              JOIN categories c ON c.slug = p.category_slug
              WHERE p.name LIKE ? ESCAPE '\' ORDER BY p.id LIMIT ?";
        self.query(text).bind(format!("%{escaped}%")).bind(PAGE).fetch_all().await
    }

    /// Changes a product. `None` where there is no such product.
    pub(crate) async fn update(
        &self,
        id: i64,
        price_cents: Option<i64>,
        stock: Option<i64>,
    ) -> Result<Option<One<Product>>, QueryError> {
        let text = "UPDATE products SET price_cents = coalesce(?, price_cents), \
             stock = coalesce(?, stock) WHERE id = ?";
        self.query(text).bind(price_cents).bind(stock).bind(id).execute().await?;
        self.product(id).await
    }

    pub(crate) async fn add_to_cart(
        &self,
        cart: &str,
        product: i64,
        quantity: i64,
    ) -> Result<(), QueryError> {
        let text = "INSERT INTO carts (cart, product_id, quantity) VALUES (?, ?, ?) \
             ON CONFLICT (cart, product_id) DO UPDATE SET quantity = quantity + excluded.quantity";
        self.query(text).bind(cart).bind(product).bind(quantity).execute().await.map(|_| ())
    }

    pub(crate) async fn cart(&self, cart: &str) -> Result<Shared<CartLine>, QueryError> {
        let text = "SELECT p.id AS product_id, p.name, p.price_cents, l.quantity FROM carts l \
             JOIN products p ON p.id = l.product_id WHERE l.cart = ? ORDER BY p.id";
        self.query(text).bind(cart).fetch_all().await
    }
}

/// Makes the tables, and fills them if they are new. Says whether they were.
async fn prepare(pool: &SqlitePool, options: &Options) -> Result<bool, DatabaseError> {
    let failed = |error: sqlx::Error| DatabaseError(format!("the database: {error}"));
    sqlx::raw_sql(SCHEMA).execute(pool).await.map_err(failed)?;
    let (products,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM products").fetch_one(pool).await.map_err(failed)?;
    if products > 0 {
        return Ok(false);
    }
    let made_up = |number| seed::product(number);
    let new: Vec<_> = match &options.import {
        Some(path) => seed::read_csv(path).map_err(DatabaseError)?,
        None => (1..=options.products).map(made_up).collect(),
    };
    fill(pool, new, options.import.is_none()).await.map_err(failed)?;
    Ok(true)
}

/// All or nothing: one transaction.
async fn fill(
    pool: &SqlitePool,
    new: Vec<seed::NewProduct>,
    with_reviews: bool,
) -> sqlx::Result<()> {
    let mut transaction = pool.begin().await?;
    for (number, product) in (1_u32..).zip(new) {
        let slug = slug(&product.category);
        sqlx::query("INSERT OR IGNORE INTO categories (slug, name) VALUES (?, ?)")
            .bind(&slug)
            .bind(&product.category)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO products (id, category_slug, name, description, price_cents, stock) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(number)
        .bind(&slug)
        .bind(&product.name)
        .bind(&product.description)
        .bind(product.price_cents)
        .bind(product.stock)
        .execute(&mut *transaction)
        .await?;
        for (author, stars, opinion) in seed::reviews(number).filter(|_| with_reviews) {
            sqlx::query(
                "INSERT INTO reviews (product_id, author, stars, opinion) VALUES (?, ?, ?, ?)",
            )
            .bind(number)
            .bind(author)
            .bind(stars)
            .bind(opinion)
            .execute(&mut *transaction)
            .await?;
        }
    }
    transaction.commit().await
}

fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.trim().chars().map(plain).collect()
}

/// The database cannot be used. Says why in one sentence.
#[derive(Debug)]
pub struct DatabaseError(String);

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DatabaseError {}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS categories (slug TEXT PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS products (
        id INTEGER PRIMARY KEY,
        category_slug TEXT NOT NULL REFERENCES categories,
        name TEXT NOT NULL,
        description TEXT NOT NULL,
        price_cents INTEGER NOT NULL CHECK (price_cents >= 0),
        stock INTEGER NOT NULL CHECK (stock >= 0)
    );
    CREATE INDEX IF NOT EXISTS products_by_category ON products (category_slug, id);
    CREATE TABLE IF NOT EXISTS reviews (
        id INTEGER PRIMARY KEY,
        product_id INTEGER NOT NULL REFERENCES products,
        author TEXT NOT NULL,
        stars INTEGER NOT NULL,
        opinion TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS reviews_by_product ON reviews (product_id);
    CREATE TABLE IF NOT EXISTS carts (
        cart TEXT NOT NULL,
        product_id INTEGER NOT NULL REFERENCES products,
        quantity INTEGER NOT NULL,
        PRIMARY KEY (cart, product_id)
    );
";
