//! The overviews of lists.

use askama::Template;
use axum::{extract::State, response::Html};
use larder::{axum::CachePolicy, sqlx_08::SharedQueryRows};

use super::{PAGE_LIVES, page::Frame};
use crate::{
    db::lists::{self, ListSummary},
    error::AppError,
    state::AppState,
};

#[derive(Template)]
#[template(path = "overview.html")]
pub(super) struct Overview {
    pub(super) frame: Frame,
    pub(super) heading: &'static str,
    pub(super) lists: SharedQueryRows<ListSummary>,
}

pub(super) async fn newest(
    State(state): State<AppState>,
    policy: CachePolicy,
    frame: Frame,
) -> Result<Html<String>, AppError> {
    policy.ttl(PAGE_LIVES);
    let lists = lists::newest(&state.pool, LISTS_OF_A_PAGE).await?;
    let heading = frame.t("newest");
    Ok(Html(Overview { frame, heading, lists }.render()?))
}

pub(super) async fn popular(
    State(state): State<AppState>,
    policy: CachePolicy,
    frame: Frame,
) -> Result<Html<String>, AppError> {
    policy.ttl(PAGE_LIVES);
    let lists = lists::popular(&state.pool, LISTS_OF_A_PAGE).await?;
    let heading = frame.t("popular");
    Ok(Html(Overview { frame, heading, lists }.render()?))
}

const LISTS_OF_A_PAGE: i64 = 20;
