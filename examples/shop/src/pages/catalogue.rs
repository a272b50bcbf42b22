//! Pages that are the same for everyone.

use std::time::Duration;

use askama::Template;
use axum::{
    extract::{Path, Query, State},
    response::Html,
};
use larder::{
    LoadError, Policy,
    axum::{CachePolicy, FragmentCache},
};
use serde::Deserialize;

use super::{PageError, Shop, html};
use crate::database::{Category, PAGE, Product, Review};

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    title: &'static str,
    categories: String,
    products: Vec<Product>,
}

#[derive(Template)]
#[template(path = "categories.html")]
struct Categories {
    categories: Vec<Category>,
}

#[derive(Template)]
#[template(path = "list.html")]
struct List {
    title: String,
    query: String,
    products: Vec<Product>,
    previous: Option<i64>,
    next: Option<i64>,
}

#[derive(Template)]
#[template(path = "product.html")]
struct ProductPage {
    title: String,
    product: Product,
    reviews: Vec<Review>,
}

/// Which page of a list.
#[derive(Debug, Deserialize)]
pub(crate) struct Paging {
    page: Option<i64>,
}

/// What to search for.
#[derive(Debug, Deserialize)]
pub(crate) struct Search {
    #[serde(default)]
    q: String,
}

pub(crate) async fn home(
    policy: CachePolicy,
    fragments: FragmentCache,
    State(app): Shop,
) -> Result<Html<String>, PageError> {
    let products = app.database.featured().await?;
    tag_with(&policy, &products);
    // Which products are featured depends on the stock of all of them.
    policy.tag("stock");
    let database = app.database.clone();
    let render = move || async move {
        let categories = Categories { categories: database.categories().await? };
        Ok::<_, PageError>(categories.render()?)
    };
    let keep = Policy::ttl(Duration::from_hours(1)).tag("categories").until_invalidated();
    let categories = fragments.get_or_render("categories", "", keep, render).await;
    let categories = categories.map_err(|error| PageError::Broken(reason(&error).into()))?;
    html(&Home { title: "Welcome", categories: categories.to_string(), products })
}

pub(crate) async fn category(
    policy: CachePolicy,
    State(app): Shop,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Html<String>, PageError> {
    let page = paging.page.unwrap_or(1);
    if !(1..=1_000_000).contains(&page) {
        return Err(PageError::BadInput(format!("page is {page}, allowed is 1 to 1000000")));
    }
    let (products, count) = app.database.list(Some(&slug), page).await?;
    let Some(first) = products.first() else { return Err(PageError::NotFound) };
    tag_with(&policy, &products);
    html(&List {
        title: first.category.clone(),
        query: String::new(),
        previous: (page > 1).then_some(page - 1),
        next: (page * PAGE < count).then_some(page + 1),
        products,
    })
}

pub(crate) async fn product(
    policy: CachePolicy,
    State(app): Shop,
    Path(id): Path<i64>,
) -> Result<Html<String>, PageError> {
    policy.tag(("product", id));
    let product = app.database.product(id).await?.ok_or(PageError::NotFound)?;
    let reviews = app.database.reviews(id).await?;
    html(&ProductPage { title: product.name.clone(), product, reviews })
}

pub(crate) async fn search(
    policy: CachePolicy,
    State(app): Shop,
    Query(search): Query<Search>,
) -> Result<Html<String>, PageError> {
    let words = search.q.trim();
    let products = match words {
        "" => Vec::new(),
        words => app.database.search(words).await?,
    };
    tag_with(&policy, &products);
    html(&List {
        title: format!("Search: {words}"),
        query: words.to_owned(),
        products,
        previous: None,
        next: None,
    })
}

/// A page is made of the products it shows.
pub(super) fn tag_with(policy: &CachePolicy, products: &[Product]) {
    policy.tags(products.iter().map(|product| ("product", product.id)));
}

fn reason(error: &LoadError<PageError>) -> String {
    match error {
        LoadError::Failed(error) => format!("{error:?}"),
        other => other.to_string(),
    }
}
