//! What the shop reads and writes.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use larder::{
    Larder,
    sql::{
        Db, Following, One, Query, QueryError, SqlValue, SqlxService, Transaction, TransactionQuery,
    },
};
use serde::{Deserialize, Serialize};
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection,
    postgres::PgPoolOptions,
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
    db: Db,
    cached: bool,
    /// Writes of others, as by `psql`, are seen while this lives.
    _following: Option<Arc<Following>>,
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
        let failed = |error: sqlx::Error| DatabaseError::new(given, error);
        let service = connect(given).await?;
        let db = service.cached(larder).await.map_err(failed)?;
        if fill_if_new(&db, options).await? {
            // A Redis may know another database of the same name.
            let _logged_or_queued = db.invalidate_all().await;
        }
        // A database in memory is written by nobody else.
        let follows = !options.no_cache && !given.contains(":memory:");
        let following = if follows { Some(Arc::new(follow(&db, given).await?)) } else { None };
        Ok(Self { db, cached: !options.no_cache, _following: following })
    }

    fn query(&self, text: &'static str) -> Query<'_> {
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
             JOIN categories c ON c.slug = p.category_slug WHERE p.id = $1";
        self.query(text).bind(id).fetch_optional().await
    }

    pub(crate) async fn reviews(&self, id: i64) -> Result<Shared<Review>, QueryError> {
        let text = "SELECT author, stars, opinion FROM reviews WHERE product_id = $1 ORDER BY id";
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
             WHERE CAST($1 AS TEXT) IS NULL OR p.category_slug = $1 ORDER BY p.id LIMIT $2 OFFSET $3";
        let products = self.query(text).bind(category).bind(PAGE).bind((page - 1) * PAGE);
        let products = products.fetch_all().await?;
        let text =
            "SELECT count(*) FROM products WHERE CAST($1 AS TEXT) IS NULL OR category_slug = $1";
        Ok((products, self.query(text).bind(category).fetch_scalar().await?))
    }

    pub(crate) async fn search(&self, words: &str) -> Result<Shared<Product>, QueryError> {
        let escaped = words.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
        let text = r"SELECT p.*, c.name AS category FROM products p
              JOIN categories c ON c.slug = p.category_slug
              WHERE lower(p.name) LIKE lower($1) ESCAPE '\' ORDER BY p.id LIMIT $2";
        self.query(text).bind(format!("%{escaped}%")).bind(PAGE).fetch_all().await
    }

    /// Changes a product. `None` where there is no such product.
    pub(crate) async fn update(
        &self,
        id: i64,
        price_cents: Option<i64>,
        stock: Option<i64>,
    ) -> Result<Option<One<Product>>, QueryError> {
        let text = "UPDATE products SET price_cents = coalesce($1, price_cents), \
             stock = coalesce($2, stock) WHERE id = $3";
        self.query(text).bind(price_cents).bind(stock).bind(id).execute().await?;
        self.product(id).await
    }

    pub(crate) async fn add_to_cart(
        &self,
        cart: &str,
        product: i64,
        quantity: i64,
    ) -> Result<(), QueryError> {
        let text = "INSERT INTO carts (cart, product_id, quantity) VALUES ($1, $2, $3) \
             ON CONFLICT (cart, product_id) DO UPDATE SET quantity = carts.quantity + excluded.quantity";
        self.query(text).bind(cart).bind(product).bind(quantity).execute().await.map(|_| ())
    }

    pub(crate) async fn cart(&self, cart: &str) -> Result<Shared<CartLine>, QueryError> {
        let text = "SELECT p.id AS product_id, p.name, p.price_cents, l.quantity FROM carts l \
             JOIN products p ON p.id = l.product_id WHERE l.cart = $1 ORDER BY p.id";
        self.query(text).bind(cart).fetch_all().await
    }
}

/// Connects, and makes the tables where there are none.
async fn connect(given: &str) -> Result<SqlxService, DatabaseError> {
    let failed = |error: sqlx::Error| DatabaseError::new(given, error);
    if given.starts_with("postgres:") || given.starts_with("postgresql:") {
        // A pool would try until its time is up, and say no more than that.
        let first = PgConnection::connect(given).await.map_err(failed)?;
        first.close().await.map_err(failed)?;
        let pool = PgPoolOptions::new().max_connections(8).connect(given).await.map_err(failed)?;
        // Two shops that start at once would make the same tables.
        let schema = format!("SELECT pg_advisory_xact_lock(42);{}", schema(IDENTITY));
        sqlx::raw_sql(AssertSqlSafe(schema)).execute(&pool).await.map_err(failed)?;
        return Ok(SqlxService::postgres(pool));
    }
    if !given.starts_with("sqlite:") {
        let allowed = "allowed are sqlite://FILE and postgres://USER@HOST/NAME";
        return Err(DatabaseError(format!("--database is {given}, {allowed}")));
    }
    let connect = SqliteConnectOptions::from_str(given)
        .map_err(failed)?
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(5));
    // A database in memory belongs to its connection: one, for ever.
    let most = if given.contains(":memory:") { 1 } else { 4 };
    let pool = SqlitePoolOptions::new().max_connections(most).min_connections(1);
    let pool = pool.idle_timeout(None).max_lifetime(None).connect_with(connect);
    let pool = pool.await.map_err(failed)?;
    sqlx::raw_sql(AssertSqlSafe(schema("INTEGER"))).execute(&pool).await.map_err(failed)?;
    Ok(SqlxService::sqlite(pool))
}

/// Triggers leave a line for what anybody writes, and this shop reads them.
async fn follow(db: &Db, given: &str) -> Result<Following, DatabaseError> {
    let failed = |error: QueryError| DatabaseError::new(given, error);
    db.outbox().install().await.map_err(failed)?;
    db.outbox().follow().await.map_err(failed)
}

/// Fills the tables if they are new. Says whether they were.
async fn fill_if_new(db: &Db, options: &Options) -> Result<bool, DatabaseError> {
    let failed = |error: QueryError| DatabaseError(format!("the database: {}", causes(&error)));
    let count = db.query("SELECT count(*) FROM products").uncached().fetch_scalar::<i64>();
    if count.await.map_err(failed)? > 0 {
        return Ok(false);
    }
    let made_up = |number| seed::product(number);
    let new: Vec<_> = match &options.import {
        Some(path) => seed::read_csv(path).map_err(DatabaseError)?,
        None => (1..=options.products).map(made_up).collect(),
    };
    let filled = fill(db, &new, options.import.is_none()).await;
    if filled.is_err() {
        // Another shop that started at once may have been first.
        let count = db.query("SELECT count(*) FROM products").uncached().fetch_scalar::<i64>();
        if count.await.is_ok_and(|count| count > 0) {
            return Ok(false);
        }
    }
    filled.map_err(failed)?;
    Ok(true)
}

/// All or nothing: one transaction.
async fn fill(db: &Db, new: &[seed::NewProduct], with_reviews: bool) -> Result<(), QueryError> {
    let (mut categories, mut products, mut reviews) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (number, product) in (1_i64..).zip(new) {
        let slug = slug(&product.category);
        categories.entry(slug.clone()).or_insert(&product.category);
        products.push(vec![
            number.into(),
            slug.into(),
            (&product.name).into(),
            (&product.description).into(),
            product.price_cents.into(),
            product.stock.into(),
        ]);
        let made_up = seed::reviews(u32::try_from(number).unwrap_or_default());
        for (author, stars, opinion) in made_up.filter(|_| with_reviews) {
            reviews.push(vec![number.into(), author.into(), stars.into(), opinion.into()]);
        }
    }
    let categories =
        categories.into_iter().map(|(slug, name)| vec![slug.into(), name.into()]).collect();
    let mut transaction = db.begin().await?;
    insert(&mut transaction, "categories (slug, name)", categories).await?;
    let columns = "products (id, category_slug, name, description, price_cents, stock)";
    insert(&mut transaction, columns, products).await?;
    insert(&mut transaction, "reviews (product_id, author, stars, opinion)", reviews).await?;
    transaction.commit().await
}

/// Inserts rows, many with each statement.
async fn insert(
    transaction: &mut Transaction,
    columns: &str,
    rows: Vec<Vec<SqlValue>>,
) -> Result<(), QueryError> {
    for rows in rows.chunks(AT_ONCE) {
        let mut place = 0;
        let mut row = |row: &Vec<SqlValue>| {
            let places = row.iter().map(|_| {
                place += 1;
                format!("${place}")
            });
            format!("({})", places.collect::<Vec<_>>().join(", "))
        };
        let places: Vec<String> = rows.iter().map(&mut row).collect();
        let text = format!("INSERT INTO {columns} VALUES {}", places.join(", "));
        let values = rows.iter().flatten().cloned();
        values.fold(transaction.query(text), TransactionQuery::bind).execute().await?;
    }
    Ok(())
}

fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.trim().chars().map(plain).collect()
}

/// The database cannot be used. Says why in one sentence.
#[derive(Debug)]
pub struct DatabaseError(String);

impl DatabaseError {
    fn new(given: &str, error: impl std::error::Error) -> Self {
        // A URL may have a password, which nobody has to read in a log.
        let given = given.split_once('?').map_or(given, |(place, _)| place);
        let shown = match given.rsplit_once('@') {
            Some((_, place)) => format!("postgres://…@{place}"),
            None => given.to_owned(),
        };
        Self(format!("the database {shown}: {}", causes(&error)))
    }
}

/// An error with what caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Some say themselves what caused them.
        if !text.ends_with(&cause.to_string()) {
            text = format!("{text}: {cause}");
        }
        next = cause.source();
    }
    text
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DatabaseError {}

/// How many rows one statement inserts.
const AT_ONCE: usize = 200;

/// The tables, with numbers for reviews that the database draws: a column of this type.
fn schema(identity: &str) -> String {
    SCHEMA.replace("IDENTITY", identity)
}

/// PostgreSQL's; in SQLite every whole number that is a primary key is drawn.
const IDENTITY: &str = "INTEGER GENERATED BY DEFAULT AS IDENTITY";

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
        id IDENTITY PRIMARY KEY,
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
