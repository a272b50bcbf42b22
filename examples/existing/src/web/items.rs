//! The entries of a list, as parts of its page for htmx.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    response::{Html, IntoResponse, Redirect, Response},
};
use larder::{
    axum::CachePolicy,
    sqlx_08::{SharedQueryRow, SharedQueryRows},
};
use serde::Deserialize;
use tower_sessions::Session;
use uuid::Uuid;

use super::{PAGE_LIVES, lists::OnlyToken, page::Frame};
use crate::{
    access::{own_list, visible_list},
    auth::SessionUser,
    csrf,
    db::items::{self, Item},
    error::AppError,
    input,
    state::AppState,
};

#[derive(Template)]
#[template(path = "items.html")]
struct Items {
    frame: Frame,
    items: SharedQueryRows<Item>,
    is_own: bool,
}

#[derive(Template)]
#[template(path = "item.html")]
struct OneItem {
    frame: Frame,
    item: SharedQueryRow<Item>,
    is_own: bool,
}

/// Shows the entries alone to htmx. A browser that opens the URL gets the whole page of the list.
pub(super) async fn of_list(
    State(state): State<AppState>,
    policy: CachePolicy,
    Path(id): Path<Uuid>,
    frame: Frame,
) -> Result<Response, AppError> {
    policy.ttl(PAGE_LIVES);
    if !frame.is_partial {
        return Ok(Redirect::to(&format!("/lists/{id}")).into_response());
    }
    let list = visible_list(&state.pool, id, frame.user.as_ref().map(|user| user.id)).await?;
    let items = items::of_list(&state.pool, id).await?;
    let is_own = frame.is(&list.owner);
    Ok(Html(Items { frame, items, is_own }.render()?).into_response())
}

#[derive(Deserialize)]
pub(super) struct NewItem {
    csrf: String,
    title: String,
    url: Option<String>,
    labels: Option<String>,
}

pub(super) async fn add(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    user: SessionUser,
    session: Session,
    frame: Frame,
    Form(form): Form<NewItem>,
) -> Result<Response, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let title = input::title(&form.title)?;
    let url = input::link(form.url.as_deref())?;
    let labels = form.labels.as_deref().unwrap_or_default().split(',').map(str::trim);
    let labels: Vec<String> = labels.filter(|label| !label.is_empty()).map(str::to_owned).collect();
    let mut transaction = state.pool.begin().await?;
    own_list(&mut transaction, id, user.id).await?;
    let item = items::add(&mut transaction, id, title, url, &labels).await?;
    let item = items::get(&mut transaction, item).await?;
    transaction.commit().await?;
    answer(frame, item)
}

#[derive(Deserialize)]
pub(super) struct SetRead {
    csrf: String,
    is_read: bool,
}

pub(super) async fn set_read(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    user: SessionUser,
    session: Session,
    frame: Frame,
    Form(form): Form<SetRead>,
) -> Result<Response, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let mut transaction = state.pool.begin().await?;
    let item = items::get(&mut transaction, id).await?;
    own_list(&mut transaction, item.list, user.id).await?;
    items::set_read(&mut transaction, id, form.is_read).await?;
    let item = items::get(&mut transaction, id).await?;
    transaction.commit().await?;
    answer(frame, item)
}

pub(super) async fn delete(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    user: SessionUser,
    session: Session,
    frame: Frame,
    Form(form): Form<OnlyToken>,
) -> Result<Response, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let mut transaction = state.pool.begin().await?;
    let item = items::get(&mut transaction, id).await?;
    own_list(&mut transaction, item.list, user.id).await?;
    items::delete(&mut transaction, id).await?;
    transaction.commit().await?;
    // htmx replaces the entry by nothing.
    Ok(match frame.is_partial {
        true => Html(String::new()).into_response(),
        false => Redirect::to(&format!("/lists/{}", item.list)).into_response(),
    })
}

/// Answers htmx with the changed entry, and a browser with the page of the list.
fn answer(frame: Frame, item: SharedQueryRow<Item>) -> Result<Response, AppError> {
    if frame.is_partial {
        return Ok(Html(OneItem { frame, item, is_own: true }.render()?).into_response());
    }
    Ok(Redirect::to(&format!("/lists/{}", item.list)).into_response())
}
