//! The JSON API, for clients with a token.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, patch, post},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    auth::{self, Claims},
    db::{
        items::{self, Item},
        lists::{self, List, ListSummary, Settings},
        users,
    },
    error::AppError,
    state::AppState,
};

pub(crate) fn router() -> Router<AppState> {
    Router::new()
        .route("/token", post(token))
        .route("/me", get(me))
        .route("/newest", get(newest))
        .route("/lists", get(own).post(create))
        .route("/lists/{id}", get(show).delete(remove))
        .route("/lists/{id}/items", post(add_item))
        .route("/items/{id}", patch(change_item))
}

#[derive(Deserialize)]
struct Credentials {
    name: String,
    password: String,
}

#[derive(Serialize)]
struct Token {
    token: String,
}

async fn token(
    State(state): State<AppState>,
    Json(given): Json<Credentials>,
) -> Result<Json<Token>, AppError> {
    let mut connection = state.pool.acquire().await?;
    let login = users::login(&mut connection, &given.name).await?;
    let login = login.filter(|login| auth::verify(&given.password, &login.password_hash));
    let login = login.ok_or(AppError::SignInFirst)?;
    Ok(Json(Token { token: Claims::sign(&state.config, login.id, &login.name)? }))
}

#[derive(Serialize)]
struct Me {
    id: Uuid,
    name: String,
    about: String,
    lists: Vec<ListSummary>,
}

async fn me(State(state): State<AppState>, claims: Claims) -> Result<Json<Me>, AppError> {
    let mut connection = state.pool.acquire().await?;
    let profile = users::profile(&mut connection, claims.sub).await?;
    let lists = lists::of_user(&mut connection, claims.sub, true).await?;
    Ok(Json(Me { id: profile.id, name: profile.name, about: profile.about, lists }))
}

async fn newest(State(state): State<AppState>) -> Result<Json<Vec<ListSummary>>, AppError> {
    let mut connection = state.pool.acquire().await?;
    Ok(Json(lists::newest(&mut connection, 50).await?))
}

async fn own(
    State(state): State<AppState>,
    claims: Claims,
) -> Result<Json<Vec<ListSummary>>, AppError> {
    let mut connection = state.pool.acquire().await?;
    Ok(Json(lists::of_user(&mut connection, claims.sub, true).await?))
}

#[derive(Serialize)]
struct WholeList {
    id: Uuid,
    title: String,
    owner: String,
    is_public: bool,
    settings: Settings,
    items: Vec<Item>,
}

/// Reads a list, if these claims may see it.
async fn visible(
    connection: &mut PgConnection,
    id: Uuid,
    claims: &Claims,
) -> Result<List, AppError> {
    let list = lists::get(connection, id).await?;
    if list.is_public || list.owner == claims.sub { Ok(list) } else { Err(AppError::NotFound) }
}

async fn show(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    claims: Claims,
) -> Result<Json<WholeList>, AppError> {
    let mut connection = state.pool.acquire().await?;
    let list = visible(&mut connection, id, &claims).await?;
    let items = items::of_list(&mut connection, id).await?;
    Ok(Json(WholeList {
        id: list.id,
        title: list.title,
        owner: list.owner_name,
        is_public: list.is_public,
        settings: list.settings.0,
        items,
    }))
}

#[derive(Deserialize)]
struct NewList {
    title: String,
    #[serde(default)]
    is_public: bool,
    #[serde(default)]
    settings: Settings,
}

#[derive(Serialize)]
struct Created {
    id: Uuid,
}

async fn create(
    State(state): State<AppState>,
    claims: Claims,
    Json(new): Json<NewList>,
) -> Result<(StatusCode, Json<Created>), AppError> {
    let mut connection = state.pool.acquire().await?;
    let id = lists::create(&mut connection, claims.sub, &new.title, new.is_public, &new.settings)
        .await?;
    Ok((StatusCode::CREATED, Json(Created { id })))
}

async fn remove(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    claims: Claims,
) -> Result<StatusCode, AppError> {
    let mut transaction = state.pool.begin().await?;
    let list = visible(&mut transaction, id, &claims).await?;
    if list.owner != claims.sub {
        return Err(AppError::NotAllowed);
    }
    lists::delete(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct NewItem {
    title: String,
    url: Option<String>,
    #[serde(default)]
    labels: Vec<String>,
}

async fn add_item(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    claims: Claims,
    Json(new): Json<NewItem>,
) -> Result<(StatusCode, Json<Item>), AppError> {
    let mut transaction = state.pool.begin().await?;
    if visible(&mut transaction, id, &claims).await?.owner != claims.sub {
        return Err(AppError::NotAllowed);
    }
    let item =
        items::add(&mut transaction, id, &new.title, new.url.as_deref(), &new.labels).await?;
    let item = items::get(&mut transaction, item).await?;
    transaction.commit().await?;
    Ok((StatusCode::CREATED, Json(item)))
}

#[derive(Deserialize)]
struct ItemChange {
    is_read: bool,
}

async fn change_item(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    claims: Claims,
    Json(change): Json<ItemChange>,
) -> Result<Json<Item>, AppError> {
    let mut transaction = state.pool.begin().await?;
    let item = items::get(&mut transaction, id).await?;
    if visible(&mut transaction, item.list, &claims).await?.owner != claims.sub {
        return Err(AppError::NotAllowed);
    }
    items::set_read(&mut transaction, id, change.is_read).await?;
    let item = items::get(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(Json(item))
}
