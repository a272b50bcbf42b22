//! Comments on lists.

use askama::Template;
use axum::{
    Form,
    extract::{Path, State},
    response::{Html, IntoResponse, Redirect, Response},
};
use larder::{axum::CachePolicy, sqlx_08::SharedQueryRows};
use serde::Deserialize;
use tower_sessions::Session;
use uuid::Uuid;

use super::{PAGE_LIVES, page::Frame};
use crate::{
    access::visible_list,
    auth::SessionUser,
    csrf,
    db::comments::{self, Comment},
    error::AppError,
    state::AppState,
};

#[derive(Template)]
#[template(path = "comments.html")]
struct Comments {
    comments: SharedQueryRows<Comment>,
}

/// Shows the comments alone to htmx.
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
    visible_list(&state.pool, id, frame.user.as_ref().map(|user| user.id)).await?;
    let comments = comments::of_list(&state.pool, id).await?;
    Ok(Html(Comments { comments }.render()?).into_response())
}

#[derive(Deserialize)]
pub(super) struct NewComment {
    csrf: String,
    body: String,
}

pub(super) async fn add(
    State(state): State<AppState>,
    Path(id): Path<Uuid>,
    user: SessionUser,
    session: Session,
    frame: Frame,
    Form(form): Form<NewComment>,
) -> Result<Response, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let body = form.body.trim();
    let given = body.chars().count();
    if !(1..=LONGEST_COMMENT).contains(&given) {
        let error = format!("a comment has {given} characters, allowed are 1 to {LONGEST_COMMENT}");
        return Err(AppError::Invalid(error));
    }
    let mut transaction = state.pool.begin().await?;
    let list = visible_list(&mut transaction, id, Some(user.id)).await?;
    if !list.settings.allows_comments {
        return Err(AppError::NotAllowed);
    }
    comments::add(&mut transaction, id, user.id, body).await?;
    let comments = comments::of_list(&mut transaction, id).await?;
    transaction.commit().await?;
    Ok(match frame.is_partial {
        true => Html(Comments { comments }.render()?).into_response(),
        false => Redirect::to(&format!("/lists/{id}")).into_response(),
    })
}

const LONGEST_COMMENT: usize = 2000;
