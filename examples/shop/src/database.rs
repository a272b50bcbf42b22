//! What the shop reads and writes.

use std::{fmt, str::FromStr, time::Duration};

use serde::Serialize;
use sqlx::{
    FromRow, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use crate::{Options, seed};

/// A product as pages show it.
#[derive(Clone, Debug, FromRow, Serialize)]
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
#[derive(Clone, Debug, FromRow, Serialize)]
pub(crate) struct Category {
    pub(crate) slug: String,
    pub(crate) name: String,
    pub(crate) products: i64,
}

/// What somebody thinks of a product.
#[derive(Clone, Debug, FromRow, Serialize)]
pub(crate) struct Review {
    pub(crate) author: String,
    pub(crate) stars: i64,
    pub(crate) opinion: String,
}

/// A line of a cart.
#[derive(Clone, Debug, FromRow)]
pub(crate) struct CartLine {
    pub(crate) product_id: i64,
    pub(crate) name: String,
    pub(crate) price_cents: i64,
    pub(crate) quantity: i64,
}

/// The database of the shop.
#[derive(Clone, Debug)]
pub struct Database {
    pool: SqlitePool,
}

/// How many products a page of a list has.
pub(crate) const PAGE: i64 = 24;

impl Database {
    /// Opens the database, and fills it if it is new.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or is not a database of the shop.
    pub async fn open(options: &Options) -> Result<Self, DatabaseError> {
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
        let database = Self { pool };
        database.prepare(options).await?;
        Ok(database)
    }

    async fn prepare(&self, options: &Options) -> Result<(), DatabaseError> {
        let failed = |error: sqlx::Error| DatabaseError(format!("the database: {error}"));
        sqlx::raw_sql(SCHEMA).execute(&self.pool).await.map_err(failed)?;
        let (products,): (i64,) = sqlx::query_as("SELECT count(*) FROM products")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        if products > 0 {
            return Ok(());
        }
        let made_up = |number| seed::product(number);
        let new: Vec<_> = match &options.import {
            Some(path) => seed::read_csv(path).map_err(DatabaseError)?,
            None => (1..=options.products).map(made_up).collect(),
        };
        self.fill(new, options.import.is_none()).await.map_err(failed)
    }

    /// All or nothing: one transaction.
    async fn fill(&self, new: Vec<seed::NewProduct>, with_reviews: bool) -> sqlx::Result<()> {
        let mut transaction = self.pool.begin().await?;
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

    pub(crate) async fn categories(&self) -> sqlx::Result<Vec<Category>> {
        sqlx::query_as(
            "SELECT c.slug, c.name, count(p.id) AS products FROM categories c \
             LEFT JOIN products p ON p.category_slug = c.slug GROUP BY c.slug ORDER BY c.name",
        )
        .fetch_all(&self.pool)
        .await
    }

    pub(crate) async fn featured(&self) -> sqlx::Result<Vec<Product>> {
        sqlx::query_as(concat!(
            "SELECT p.*, c.name AS category FROM products p ",
            "JOIN categories c ON c.slug = p.category_slug ",
            "ORDER BY p.stock DESC, p.id LIMIT 12"
        ))
        .fetch_all(&self.pool)
        .await
    }

    pub(crate) async fn product(&self, id: i64) -> sqlx::Result<Option<Product>> {
        sqlx::query_as(
            "SELECT p.*, c.name AS category FROM products p \
             JOIN categories c ON c.slug = p.category_slug WHERE p.id = ?",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await
    }

    pub(crate) async fn reviews(&self, id: i64) -> sqlx::Result<Vec<Review>> {
        sqlx::query_as(
            "SELECT author, stars, opinion FROM reviews WHERE product_id = ? ORDER BY id",
        )
        .bind(id)
        .fetch_all(&self.pool)
        .await
    }

    /// A page of a category, or of all products, and how many there are.
    pub(crate) async fn list(
        &self,
        category: Option<&str>,
        page: i64,
    ) -> sqlx::Result<(Vec<Product>, i64)> {
        let products = sqlx::query_as(
            "SELECT p.*, c.name AS category FROM products p \
             JOIN categories c ON c.slug = p.category_slug \
             WHERE ?1 IS NULL OR p.category_slug = ?1 ORDER BY p.id LIMIT ?2 OFFSET ?3",
        )
        .bind(category)
        .bind(PAGE)
        .bind((page - 1) * PAGE)
        .fetch_all(&self.pool)
        .await?;
        let (count,) =
            sqlx::query_as("SELECT count(*) FROM products WHERE ?1 IS NULL OR category_slug = ?1")
                .bind(category)
                .fetch_one(&self.pool)
                .await?;
        Ok((products, count))
    }

    pub(crate) async fn search(&self, words: &str) -> sqlx::Result<Vec<Product>> {
        let escaped = words.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
        sqlx::query_as(
            r"SELECT p.*, c.name AS category FROM products p
              JOIN categories c ON c.slug = p.category_slug
              WHERE p.name LIKE ? ESCAPE '\' ORDER BY p.id LIMIT ?",
        )
        .bind(format!("%{escaped}%"))
        .bind(PAGE)
        .fetch_all(&self.pool)
        .await
    }

    /// Changes a product. `None` where there is no such product.
    pub(crate) async fn update(
        &self,
        id: i64,
        price_cents: Option<i64>,
        stock: Option<i64>,
    ) -> sqlx::Result<Option<Product>> {
        sqlx::query(
            "UPDATE products SET price_cents = coalesce(?, price_cents), \
             stock = coalesce(?, stock) WHERE id = ?",
        )
        .bind(price_cents)
        .bind(stock)
        .bind(id)
        .execute(&self.pool)
        .await?;
        self.product(id).await
    }

    pub(crate) async fn add_to_cart(
        &self,
        cart: &str,
        product: i64,
        quantity: i64,
    ) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO carts (cart, product_id, quantity) VALUES (?, ?, ?) \
             ON CONFLICT (cart, product_id) DO UPDATE SET quantity = quantity + excluded.quantity",
        )
        .bind(cart)
        .bind(product)
        .bind(quantity)
        .execute(&self.pool)
        .await
        .map(|_| ())
    }

    pub(crate) async fn cart(&self, cart: &str) -> sqlx::Result<Vec<CartLine>> {
        sqlx::query_as(
            "SELECT p.id AS product_id, p.name, p.price_cents, l.quantity FROM carts l \
             JOIN products p ON p.id = l.product_id WHERE l.cart = ? ORDER BY p.id",
        )
        .bind(cart)
        .fetch_all(&self.pool)
        .await
    }
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
