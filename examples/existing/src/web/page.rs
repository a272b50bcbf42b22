//! The frame around each page: the language, the user, and the token of the session for its forms.

use axum::{extract::FromRequestParts, http::request::Parts};
use tower_sessions::Session;

use crate::{auth::SessionUser, csrf, error::AppError, language::Language};

/// The inputs of the frame.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) language: Language,
    pub(super) user: Option<SessionUser>,
    /// The token for forms. Empty for visitors, who have no forms outside of the pages to sign in.
    pub(super) csrf: String,
    /// Whether htmx wants a part of the page.
    pub(super) is_partial: bool,
}

impl Frame {
    pub(super) fn t(&self, key: &'static str) -> &'static str {
        self.language.text(key)
    }

    /// Whether this user is signed in.
    pub(super) fn is(&self, id: &uuid::Uuid) -> bool {
        self.user.as_ref().is_some_and(|user| user.id == *id)
    }

    /// Adds a token for visitors, too, for the forms to sign in.
    pub(super) async fn with_form(mut self, session: &Session) -> Result<Self, AppError> {
        self.csrf = csrf::token(session).await?;
        Ok(self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Frame {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, AppError> {
        let user = <SessionUser as axum::extract::OptionalFromRequestParts<S>>::from_request_parts(
            parts, state,
        )
        .await?;
        let Ok(language) = Language::from_request_parts(parts, state).await;
        let session = parts.extensions.get::<Session>();
        let csrf = match (&user, session) {
            (Some(_), Some(session)) => csrf::token(session).await?,
            _ => String::new(),
        };
        let is_partial = parts.headers.contains_key("hx-request");
        Ok(Self { language, user, csrf, is_partial })
    }
}
