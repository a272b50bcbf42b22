//! Pages that are the same for every visitor.

use std::{sync::Arc, time::Duration};

use askama::Template;
use axum::{
    extract::{Path, Query, State, rejection::PathRejection},
    response::Html,
};
use larder::{
    LoadError, Policy,
    axum::{CachePolicy, FragmentCache},
};
use serde::Deserialize;

use super::{PageError, Shop, fresh, html, page_of};
use crate::database::{Category, PAGE, Product, Review, Shared};

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    title: &'static str,
    categories: String,
    products: Shared<Product>,
}

#[derive(Template)]
#[template(path = "categories.html")]
struct Categories {
    categories: Shared<Category>,
}

#[derive(Template)]
#[template(path = "list.html")]
struct List {
    title: String,
    query: String,
    products: Shared<Product>,
    previous: Option<i64>,
    next: Option<i64>,
}

#[derive(Template)]
#[template(path = "product.html")]
struct ProductPage {
    title: String,
    product: Arc<Product>,
    reviews: Shared<Review>,
}

/// The page number of a list.
#[derive(Debug, Deserialize)]
pub(crate) struct Paging {
    #[serde(default)]
    page: String,
}

/// The words of a search.
#[derive(Debug, Deserialize)]
pub(crate) struct Search {
    #[serde(default)]
    q: String,
}

pub(crate) async fn home(
    policy: Option<CachePolicy>,
    fragments: Option<FragmentCache>,
    State(app): Shop,
) -> Result<Html<String>, PageError> {
    fresh(policy.as_ref());
    let products = app.database.featured().await?;
    let database = app.database.clone();
    let render = move || async move {
        let categories = Categories { categories: database.categories().await? };
        Ok::<_, PageError>(categories.render()?)
    };
    let categories = match fragments {
        Some(fragments) => {
            let keep = Policy::ttl(Duration::from_secs(3600)).until_invalidated();
            let kept = fragments.get_or_render("categories", keep, render).await;
            kept.map_err(|error| PageError::Broken(reason(&error).into()))?.to_string()
        }
        // Without a cache there is no fragment to store.
        None => render().await?,
    };
    html(&Home { title: "Welcome", categories, products })
}

pub(crate) async fn category(
    policy: Option<CachePolicy>,
    State(app): Shop,
    Path(slug): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Html<String>, PageError> {
    fresh(policy.as_ref());
    let page = page_of(&paging.page).map_err(PageError::BadInput)?;
    let (products, count) = app.database.list(Some(&slug), page).await?;
    let Some(first) = products.first() else { return Err(PageError::NotFound) };
    html(&List {
        title: first.category.clone(),
        query: String::new(),
        previous: (page > 1).then_some(page - 1),
        next: (page * PAGE < count).then_some(page + 1),
        products,
    })
}

pub(crate) async fn product(
    policy: Option<CachePolicy>,
    State(app): Shop,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Html<String>, PageError> {
    fresh(policy.as_ref());
    // An id that is not a number matches no product.
    let Path(id) = id.map_err(|_| PageError::NotFound)?;
    let product = app.database.product(id).await?.ok_or(PageError::NotFound)?;
    let reviews = app.database.reviews(id).await?;
    html(&ProductPage { title: product.name.clone(), product, reviews })
}

pub(crate) async fn search(
    policy: Option<CachePolicy>,
    State(app): Shop,
    Query(search): Query<Search>,
) -> Result<Html<String>, PageError> {
    fresh(policy.as_ref());
    let words = search.q.trim();
    let products = match words {
        "" => Shared::default(),
        words => app.database.search(words).await?,
    };
    html(&List {
        title: format!("Search: {words}"),
        query: words.to_owned(),
        products,
        previous: None,
        next: None,
    })
}

fn reason(error: &LoadError<PageError>) -> String {
    match error {
        LoadError::Failed(error) => format!("{error:?}"),
        other => other.to_string(),
    }
}
