//! The cart of a visitor, never cached.

use askama::Template;
use axum::{
    Form,
    extract::State,
    response::{Html, IntoResponse, Redirect},
};
use http::{HeaderMap, header};
use serde::Deserialize;

use super::{PageError, Shop, html};
use crate::{
    database::{CartLine, Shared, price},
    secret,
};

/// The form that adds a product to the cart.
#[derive(Debug, Deserialize)]
pub(crate) struct AddedItem {
    product_id: i64,
    #[serde(default = "one")]
    quantity: i64,
}

fn one() -> i64 {
    1
}

#[derive(Template)]
#[template(path = "cart.html")]
struct CartPage {
    title: &'static str,
    lines: Shared<CartLine>,
    total: String,
}

impl CartPage {
    fn price(cents: &i64) -> String {
        price(*cents)
    }
}

pub(crate) async fn show(
    State(app): Shop,
    headers: HeaderMap,
) -> Result<impl IntoResponse, PageError> {
    let lines = match cart_of(&headers) {
        Some(cart) => app.database.cart(&cart).await?,
        None => Shared::default(),
    };
    let costs = lines.iter().map(|line| line.price_cents.saturating_mul(line.quantity));
    let total = price(costs.fold(0, i64::saturating_add));
    let page: Html<String> = html(&CartPage { title: "Your cart", lines, total })?;
    Ok(([(header::CACHE_CONTROL, "no-store")], page))
}

pub(crate) async fn add(
    State(app): Shop,
    headers: HeaderMap,
    Form(added): Form<AddedItem>,
) -> Result<impl IntoResponse, PageError> {
    if !(1..=99).contains(&added.quantity) {
        let given = added.quantity;
        return Err(PageError::BadInput(format!("quantity is {given}, allowed is 1 to 99")));
    }
    app.database.product(added.product_id).await?.ok_or(PageError::NotFound)?;
    let cart = cart_of(&headers).unwrap_or_else(new_cart);
    app.database.add_to_cart(&cart, added.product_id, added.quantity).await?;
    let cookie = format!("cart={cart}; Path=/; HttpOnly; SameSite=Lax");
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/cart")))
}

fn cart_of(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).map(str::trim);
    let cart = pairs.find_map(|pair| pair.strip_prefix("cart="))?;
    (cart.len() == 32 && cart.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| cart.to_owned())
}

fn new_cart() -> String {
    format!("{:032x}", secret())
}
