//! The pages of lists.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    response::{Html, Redirect},
};
use larder::{
    axum::CachePolicy,
    sqlx_08::{SharedQueryRow, SharedQueryRows},
};
use serde::Deserialize;
use tower_sessions::Session;
use uuid::Uuid;

use super::{PAGE_LIVES, page::Frame};
use crate::{
    access::{own_list, visible_list},
    auth::SessionUser,
    csrf,
    db::{
        comments::{self, Comment},
        items::{self, Item},
        lists::{self, List, ListSummary, Settings},
        stars,
    },
    error::AppError,
    input,
    state::AppState,
};

#[derive(Template)]
#[template(path = "list.html")]
struct ListPage {
    frame: Frame,
    list: SharedQueryRow<List>,
    items: SharedQueryRows<Item>,
    comments: SharedQueryRows<Comment>,
    stars: i64,
    is_starred: bool,
}

#[derive(Template)]
#[template(path = "own_lists.html")]
struct OwnLists {
    frame: Frame,
    own: SharedQueryRows<ListSummary>,
    starred: SharedQueryRows<ListSummary>,
}

pub(super) async fn show(
    State(state): State<AppState>,
    policy: CachePolicy,
    Path(id): Path<Uuid>,
    frame: Frame,
) -> Result<Html<String>, AppError> {
    policy.ttl(PAGE_LIVES);
    let list = visible_list(&state.pool, id, frame.user.as_ref().map(|user| user.id)).await?;
    let items = items::of_list(&state.pool, id).await?;
    let comments = comments::of_list(&state.pool, id).await?;
    let stars = stars::count(&state.pool, id).await?;
    let is_starred = match &frame.user {
        Some(user) => stars::has(&state.pool, id, user.id).await?,
        None => false,
    };
    Ok(Html(ListPage { frame, list, items, comments, stars, is_starred }.render()?))
}

pub(super) async fn own(
    State(state): State<AppState>,
    policy: CachePolicy,
    user: SessionUser,
    frame: Frame,
) -> Result<Html<String>, AppError> {
    policy.ttl(PAGE_LIVES);
    let own = lists::of_user(&state.pool, user.id, true).await?;
    let starred = lists::starred_by(&state.pool, user.id).await?;
    Ok(Html(OwnLists { frame, own, starred }.render()?))
}

#[derive(Deserialize)]
pub(super) struct NewList {
    csrf: String,
    title: String,
    is_public: Option<String>,
    color: Option<String>,
}

pub(super) async fn create(
    State(state): State<AppState>,
    user: SessionUser,
    session: Session,
    Form(form): Form<NewList>,
) -> Result<Redirect, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let title = input::title(&form.title)?;
    let color = input::color(form.color.as_deref())?.map(str::to_owned);
    let settings = Settings { color, allows_comments: true };
    let is_public = form.is_public.is_some();
    let id = lists::create(&state.pool, user.id, title, is_public, &settings).await?;
    Ok(Redirect::to(&format!("/lists/{id}")))
}

#[derive(Deserialize)]
pub(super) struct NewTitle {
    csrf: String,
    title: String,
}

pub(super) async fn rename(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    user: SessionUser,
    session: Session,
    Form(form): Form<NewTitle>,
) -> Result<Redirect, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let title = input::title(&form.title)?;
    let mut transaction = state.pool.begin().await?;
    own_list(&mut transaction, id, user.id).await?;
    lists::rename(&mut transaction, id, title).await?;
    transaction.commit().await?;
    Ok(Redirect::to(&format!("/lists/{id}")))
}

#[derive(Deserialize)]
pub(super) struct OnlyToken {
    pub(super) csrf: String,
}

pub(super) async fn delete(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    user: SessionUser,
    session: Session,
    Form(form): Form<OnlyToken>,
) -> Result<Redirect, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let mut transaction = state.pool.begin().await?;
    own_list(&mut transaction, id, user.id).await?;
    lists::delete(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(Redirect::to("/lists"))
}

pub(super) async fn star(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    user: SessionUser,
    session: Session,
    Form(form): Form<OnlyToken>,
) -> Result<Redirect, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let mut transaction = state.pool.begin().await?;
    visible_list(&mut transaction, id, Some(user.id)).await?;
    stars::toggle(&mut transaction, id, user.id).await?;
    transaction.commit().await?;
    Ok(Redirect::to(&format!("/lists/{id}")))
}
