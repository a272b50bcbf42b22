//! Sign-up, sign-in, and the profiles of users.

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
use time::macros::format_description;
use tower_sessions::Session;

use super::{PAGE_LIVES, page::Frame};
use crate::{
    auth::{self, SessionUser},
    csrf,
    db::{
        lists::{self, ListSummary},
        users::{self, Profile},
    },
    error::AppError,
    state::AppState,
};

#[derive(Template)]
#[template(path = "sign.html")]
struct SignForm {
    frame: Frame,
    action: &'static str,
    heading: &'static str,
}

#[derive(Template)]
#[template(path = "profile.html")]
struct ProfilePage {
    frame: Frame,
    profile: SharedQueryRow<Profile>,
    joined: String,
    lists: SharedQueryRows<ListSummary>,
}

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    frame: Frame,
    profile: SharedQueryRow<Profile>,
}

pub(super) async fn sign_up_form(frame: Frame, session: Session) -> Result<Html<String>, AppError> {
    let frame = frame.with_form(&session).await?;
    let heading = frame.t("sign_up");
    Ok(Html(SignForm { frame, action: "/sign-up", heading }.render()?))
}

pub(super) async fn sign_in_form(frame: Frame, session: Session) -> Result<Html<String>, AppError> {
    let frame = frame.with_form(&session).await?;
    let heading = frame.t("sign_in");
    Ok(Html(SignForm { frame, action: "/sign-in", heading }.render()?))
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    csrf: String,
    name: String,
    password: String,
}

pub(super) async fn sign_up(
    State(state): State<AppState>,
    session: Session,
    Form(form): Form<Credentials>,
) -> Result<Redirect, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let name = form.name.trim();
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if !(2..=40).contains(&name.len()) || !name.chars().all(is_word) {
        return Err(AppError::Invalid(format!(
            "the name {name:?} is not allowed: 2 to 40 letters, digits and hyphens are"
        )));
    }
    let given = form.password.chars().count();
    if given < SHORTEST_PASSWORD {
        return Err(AppError::Invalid(format!(
            "the password has {given} characters, {SHORTEST_PASSWORD} or more are needed"
        )));
    }
    let hash = auth::hash(&state.config, form.password).await?;
    let Some(id) = users::create(&state.pool, name, &hash).await? else {
        return Err(AppError::Invalid(format!("the name {name:?} is taken")));
    };
    SessionUser::sign_in(&session, SessionUser { id, name: name.to_owned() }).await?;
    Ok(Redirect::to("/lists"))
}

pub(super) async fn sign_in(
    State(state): State<AppState>,
    session: Session,
    Form(form): Form<Credentials>,
) -> Result<Redirect, AppError> {
    csrf::check(&session, &form.csrf).await?;
    let login = users::login(&state.pool, form.name.trim()).await?;
    let login = auth::verified(&state.config, login, form.password).await?;
    let Some(login) = login else {
        return Err(AppError::Invalid("the name or the password is wrong".to_owned()));
    };
    SessionUser::sign_in(&session, SessionUser { id: login.id, name: login.name.clone() }).await?;
    Ok(Redirect::to("/lists"))
}

#[derive(Deserialize)]
pub(super) struct SignOut {
    csrf: String,
}

pub(super) async fn sign_out(
    session: Session,
    Form(form): Form<SignOut>,
) -> Result<Redirect, AppError> {
    csrf::check(&session, &form.csrf).await?;
    session.flush().await?;
    Ok(Redirect::to("/"))
}

pub(super) async fn profile(
    State(state): State<AppState>,
    policy: CachePolicy,
    Path(name): Path<String>,
    frame: Frame,
) -> Result<Html<String>, AppError> {
    policy.ttl(PAGE_LIVES);
    let profile = users::profile_by_name(&state.pool, &name).await?;
    let lists = lists::of_user(&state.pool, profile.id, frame.is(&profile.id)).await?;
    let day = format_description!("[year]-[month]-[day]");
    let joined = profile.joined.format(&day).map_err(AppError::internal)?;
    Ok(Html(ProfilePage { frame, profile, joined, lists }.render()?))
}

pub(super) async fn show(
    State(state): State<AppState>,
    policy: CachePolicy,
    user: SessionUser,
    frame: Frame,
) -> Result<Html<String>, AppError> {
    policy.ttl(PAGE_LIVES);
    let profile = users::profile(&state.pool, user.id).await?;
    Ok(Html(AccountPage { frame, profile }.render()?))
}

#[derive(Deserialize)]
pub(super) struct About {
    csrf: String,
    about: String,
}

pub(super) async fn save(
    State(state): State<AppState>,
    user: SessionUser,
    session: Session,
    Form(form): Form<About>,
) -> Result<Response, AppError> {
    csrf::check(&session, &form.csrf).await?;
    users::set_about(&state.pool, user.id, form.about.trim()).await?;
    Ok(Redirect::to("/account").into_response())
}

const SHORTEST_PASSWORD: usize = 8;
