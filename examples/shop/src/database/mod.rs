//! The database of the shop: its queries and writes.

pub(crate) use self::fill::DEFAULT_PRODUCTS;
use std::{fmt, sync::Arc, time::Duration};

use larder::{
    Larder, LoadError, Policy,
    axum::ConditionUnmet,
    http::EntityTag,
    sql::{Db, OutboxFollower, Query, QueryError, TableSink},
    values::Values,
    write_behind::{Add, Disk, Memory, WriteBehind},
};
use serde::{Deserialize, Serialize};

use crate::{Options, secret};

mod fill;
mod open;

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
    /// Changes whenever the price or the stock changes.
    pub(crate) fn revision(&self) -> EntityTag {
        let revision = EntityTag::strong(format!("{}-{}", self.price_cents, self.stock));
        revision.expect("digits are visible ASCII")
    }

    pub(crate) fn price(&self) -> String {
        price(self.price_cents)
    }
}

/// Formats an amount for people.
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

/// A customer's review of a product.
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

/// The database of the shop. Results are cached until their rows are written, and so is every page rendered from them.
#[derive(Clone, Debug)]
pub struct Database {
    db: Db,
    products: Values<Product>,
    cached: bool,
    /// While this lives, writes by other clients, such as `psql`, invalidate too.
    _following: Option<Arc<OutboxFollower>>,
}

/// Rows shared by all requests for the same query.
pub(crate) type Shared<T> = Arc<Vec<T>>;

/// The number of products on a page of a list.
pub(crate) const PAGE: i64 = 24;

impl Database {
    /// Opens the database, and fills it if it is new.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or is not a database of the shop.
    pub async fn open(options: &Options, larder: &Larder) -> Result<Self, DatabaseError> {
        let given = options.database.as_deref().unwrap_or("sqlite::memory:");
        let failed = |error: QueryError| DatabaseError::new(given, error);
        let service = open::connect(given).await?;
        let db = service.cached(larder).await.map_err(failed)?;
        if fill::fill_if_new(&db, options).await? {
            // A shared Redis may hold results of another database of the same name.
            let _logged_or_queued = db.invalidate_all().await;
        }
        // No other process writes to a database in memory.
        let follows = !options.no_cache && !given.contains(":memory:");
        let following =
            if follows { Some(Arc::new(open::follow(&db, given).await?)) } else { None };
        let products = larder.values(Policy::ttl(PRODUCT_LIVES).name("products"));
        Ok(Self { db, products, cached: !options.no_cache, _following: following })
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

    pub(crate) async fn product(
        &self,
        id: i64,
    ) -> Result<Option<Arc<Product>>, LoadError<QueryError>> {
        let db = self.db.clone();
        let load = async move || {
            let row = db.query(PRODUCT).bind(id).uncached().fetch_optional::<Product>().await?;
            Ok(row.map(|row| Product::clone(&row)))
        };
        if !self.cached {
            let loaded = load().await.map_err(|error| LoadError::Failed(Arc::new(error)))?;
            return Ok(loaded.map(Arc::new));
        }
        self.products
            .get_or_load_optional(("product", id), move |_| async move { load().await })
            .await
    }

    pub(crate) async fn reviews(&self, id: i64) -> Result<Shared<Review>, QueryError> {
        let text = "SELECT author, stars, opinion FROM reviews WHERE product_id = $1 ORDER BY id";
        self.query(text).bind(id).fetch_all().await
    }

    /// One page of a category, or of all products, and the total number of products.
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

    /// Changes a product by write-through: the next page that shows it does not read the database. `None` where there is no
    /// such product.
    ///
    /// # Errors
    ///
    /// What `check` says about the product as it is now.
    pub(crate) async fn update(
        &self,
        id: i64,
        price_cents: Option<i64>,
        stock: Option<i64>,
        check: impl FnOnce(&Product) -> Result<(), ConditionUnmet> + Send + 'static,
    ) -> Result<Option<Arc<Product>>, UpdateError> {
        let db = self.db.clone();
        let write = move |_| async move {
            let mut transaction = db.begin().await?;
            // Locks the row, so that no other request changes it between the check and the change.
            let lock = "UPDATE products SET stock = stock WHERE id = $1";
            transaction.query(lock).bind(id).execute().await?;
            let found = transaction.query(PRODUCT).bind(id).fetch_optional::<Product>().await?;
            let Some(before) = found else { return Ok(None) };
            check(&before).map_err(UpdateError::Unmet)?;
            let price_cents = price_cents.unwrap_or(before.price_cents);
            let stock = stock.unwrap_or(before.stock);
            let text = "UPDATE products SET price_cents = $1, stock = $2 WHERE id = $3";
            let update = transaction.query(text).bind(price_cents).bind(stock).bind(id);
            update.execute().await?;
            transaction.commit().await?;
            Ok(Some(Product { price_cents, stock, ..Product::clone(&before) }))
        };
        match self.products.write_through_optional(("product", id), write).await {
            Ok(written) => Ok(written.value),
            Err(larder::values::WriteError::Failed(error)) => Err(error),
            Err(_) => Err(UpdateError::Failed("the shop is shutting down".into())),
        }
    }

    /// Opens the queue that counts how often each product was seen.
    pub(crate) async fn views(
        &self,
        larder: &Larder,
        options: &Options,
    ) -> Result<Views, Box<dyn std::error::Error>> {
        let table = TableSink::open(&self.db, "views", ["product_id"], ["n"]).await?;
        let views = match &options.journal {
            Some(directory) => {
                // The position of a queue belongs to its name.
                let name = format!("views {}", options.name);
                let journal =
                    Disk::open(directory).map_err(|error| format!("--journal: {error}"))?;
                WriteBehind::builder(name, larder, table, journal)
            }
            None => {
                let name = format!("views {:032x}", secret());
                WriteBehind::builder(name, larder, table, Memory::lost_on_crash())
            }
        };
        Ok(views.open().await?)
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

/// How often each product was seen.
pub type Views = WriteBehind<TableSink<i64, Add>>;

/// A product that was not changed.
#[derive(Debug)]
pub(crate) enum UpdateError {
    /// The preconditions of the request are not met.
    Unmet(ConditionUnmet),
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl From<QueryError> for UpdateError {
    fn from(error: QueryError) -> Self {
        Self::Failed(error.into())
    }
}

const PRODUCT: &str = "SELECT p.*, c.name AS category FROM products p \
     JOIN categories c ON c.slug = p.category_slug WHERE p.id = $1";
const PRODUCT_LIVES: Duration = Duration::from_secs(3600);

/// The error for a database that cannot be used, with the cause in one sentence.
#[derive(Debug)]
pub struct DatabaseError(String);

impl DatabaseError {
    fn new(given: &str, error: impl std::error::Error) -> Self {
        Self(format!("the database {}: {}", shown(given), causes(&error)))
    }
}

/// The URL without a password, fit for logs.
fn shown(given: &str) -> String {
    let given = given.split_once('?').map_or(given, |(place, _)| place);
    let scheme = given.split_once("://").map_or("…", |(scheme, _)| scheme);
    match given.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://…@{place}"),
        None => given.to_owned(),
    }
}

/// The text of an error and of its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Some errors already include the text of their cause.
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
