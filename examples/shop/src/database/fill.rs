//! Fills a new shop, with generated products or with those of a file.

use std::collections::BTreeMap;

use larder::sql::{Db, QueryError, SqlValue, Transaction, TransactionQuery};

use super::{DatabaseError, causes};
use crate::{Options, seed};

/// Fills the tables if they are empty. Returns whether they were.
pub(super) async fn fill_if_new(db: &Db, options: &Options) -> Result<bool, DatabaseError> {
    let failed = |error: QueryError| DatabaseError(format!("the database: {}", causes(&error)));
    let count = db.query("SELECT count(*) FROM products").uncached().fetch_scalar::<i64>();
    if count.await.map_err(failed)? > 0 {
        // The shop may be restarted with the same command line.
        let asked = options.import.as_ref().map(|_| "--import");
        if let Some(flag) = asked.or(options.products.map(|_| "--products")) {
            eprintln!("note: {flag} is ignored: the database already has products");
        }
        return Ok(false);
    }
    let made_up = |number| seed::product(number);
    let new: Vec<_> = match &options.import {
        Some(path) => seed::read_csv(path).map_err(DatabaseError)?,
        None => (1..=options.products.unwrap_or(DEFAULT_PRODUCTS)).map(made_up).collect(),
    };
    let filled = fill(db, &new, options.import.is_none()).await;
    if filled.is_err() {
        // Another shop started at the same time may have filled the tables first.
        let count = db.query("SELECT count(*) FROM products").uncached().fetch_scalar::<i64>();
        if count.await.is_ok_and(|count| count > 0) {
            return Ok(false);
        }
    }
    filled.map_err(failed)?;
    Ok(true)
}

/// Inserts all rows in one transaction.
async fn fill(db: &Db, new: &[seed::NewProduct], with_reviews: bool) -> Result<(), QueryError> {
    let (mut slugs, mut products, mut reviews) = (Slugs::default(), Vec::new(), Vec::new());
    for (number, product) in (1_i64..).zip(new) {
        let slug = slugs.of(product.category.trim());
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
        slugs.0.into_iter().map(|(name, slug)| vec![slug.into(), name.into()]).collect();
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

/// The names of categories, and the slug of each for URLs.
#[derive(Default)]
struct Slugs(BTreeMap<String, String>);

impl Slugs {
    /// Returns the slug of a name. No two names share one, even if they differ only in letters that a URL cannot have.
    fn of(&mut self, name: &str) -> String {
        if let Some(slug) = self.0.get(name) {
            return slug.clone();
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let text: String = name.chars().map(plain).collect();
        let text = match text.trim_matches('-') {
            "" => "category",
            text => text,
        };
        let numbered = (2..).map(|number| format!("{text}-{number}"));
        let mut candidates = std::iter::once(text.to_owned()).chain(numbered);
        let is_free = |slug: &String| !self.0.values().any(|taken| taken == slug);
        let slug = candidates.find(is_free).expect("there is always one more number");
        self.0.insert(name.to_owned(), slug.clone());
        slug
    }
}

pub(crate) const DEFAULT_PRODUCTS: u32 = 10_000;

/// The number of rows that one statement inserts.
const AT_ONCE: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_categories_share_a_slug() {
        let mut slugs = Slugs::default();
        let found: Vec<_> =
            ["C#", "C+", "書籍", "玩具", "C#", "Home & Garden"].map(|name| slugs.of(name)).into();
        assert_eq!(found, ["c", "c-2", "category", "category-2", "c", "home---garden"]);
    }
}
