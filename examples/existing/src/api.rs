//! The JSON API, for clients with a token.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, patch, post},
};
use larder::{
    Larder,
    axum::{CachePolicy, HttpCache, identity},
    sqlx_08::{SharedQueryRow, SharedQueryRows},
};
use serde::{Deserialize, Serialize};
use tower::ServiceBuilder;
use uuid::Uuid;

use crate::{
    access::{own_list, visible_list},
    auth::{self, Claims},
    config::Config,
    db::{
        items::{self, Item},
        lists::{self, ListSummary, Settings},
        users,
    },
    error::AppError,
    input,
    state::AppState,
    web::PAGE_LIVES,
};

/// Puts the cache around the API. Each user has answers of its own.
pub(crate) fn cached(api: Router<AppState>, larder: &Larder, config: &Config) -> Router<AppState> {
    let (verifying, is_enabled) = (config.clone(), config.cache);
    let cache = HttpCache::new(larder)
        .partition_by_identity()
        .responses(move |layer| if is_enabled { layer } else { layer.disabled() });
    api.layer(
        ServiceBuilder::new()
            .map_request(move |request| Claims::verify(request, &verifying))
            .layer(identity::from_extension(|claims: &Claims| claims.sub.to_string()))
            .layer(cache),
    )
}

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
    let login = users::login(&state.pool, &given.name).await?;
    let login = auth::verified(&state.config, login, given.password).await?;
    let login = login.ok_or(AppError::SignInFirst)?;
    Ok(Json(Token { token: Claims::sign(&state.config, login.id, &login.name)? }))
}

#[derive(Serialize)]
struct Me {
    id: Uuid,
    name: String,
    about: String,
    lists: SharedQueryRows<ListSummary>,
}

async fn me(
    State(state): State<AppState>,
    policy: CachePolicy,
    claims: Claims,
) -> Result<Json<Me>, AppError> {
    policy.ttl(PAGE_LIVES);
    let profile = users::profile(&state.pool, claims.sub).await?;
    let lists = lists::of_user(&state.pool, claims.sub, true).await?;
    Ok(Json(Me { id: profile.id, name: profile.name.clone(), about: profile.about.clone(), lists }))
}

async fn newest(
    State(state): State<AppState>,
    policy: CachePolicy,
) -> Result<Json<SharedQueryRows<ListSummary>>, AppError> {
    policy.ttl(PAGE_LIVES);
    Ok(Json(lists::newest(&state.pool, 50).await?))
}

async fn own(
    State(state): State<AppState>,
    policy: CachePolicy,
    claims: Claims,
) -> Result<Json<SharedQueryRows<ListSummary>>, AppError> {
    policy.ttl(PAGE_LIVES);
    Ok(Json(lists::of_user(&state.pool, claims.sub, true).await?))
}

#[derive(Serialize)]
struct WholeList {
    id: Uuid,
    title: String,
    owner: String,
    is_public: bool,
    settings: Settings,
    items: SharedQueryRows<Item>,
}

async fn show(
    State(state): State<AppState>,
    policy: CachePolicy,
    Path(id): Path<Uuid>,
    claims: Claims,
) -> Result<Json<WholeList>, AppError> {
    policy.ttl(PAGE_LIVES);
    let list = visible_list(&state.pool, id, Some(claims.sub)).await?;
    let items = items::of_list(&state.pool, id).await?;
    Ok(Json(WholeList {
        id: list.id,
        title: list.title.clone(),
        owner: list.owner_name.clone(),
        is_public: list.is_public,
        settings: list.settings.0.clone(),
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
    let title = input::title(&new.title)?;
    input::color(new.settings.color.as_deref())?;
    let id = lists::create(&state.pool, claims.sub, title, new.is_public, &new.settings).await?;
    Ok((StatusCode::CREATED, Json(Created { id })))
}

async fn remove(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    claims: Claims,
) -> Result<StatusCode, AppError> {
    let mut transaction = state.pool.begin().await?;
    own_list(&mut transaction, id, claims.sub).await?;
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
) -> Result<(StatusCode, Json<SharedQueryRow<Item>>), AppError> {
    let (title, url) = (input::title(&new.title)?, input::link(new.url.as_deref())?);
    let mut transaction = state.pool.begin().await?;
    own_list(&mut transaction, id, claims.sub).await?;
    let item = items::add(&mut transaction, id, title, url, &new.labels).await?;
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
) -> Result<Json<SharedQueryRow<Item>>, AppError> {
    let mut transaction = state.pool.begin().await?;
    let item = items::get(&mut transaction, id).await?;
    own_list(&mut transaction, item.list, claims.sub).await?;
    items::set_read(&mut transaction, id, change.is_read).await?;
    let item = items::get(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(Json(item))
}
