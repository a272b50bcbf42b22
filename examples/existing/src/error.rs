//! Errors of handlers, as responses, and of the start.

use std::fmt;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

/// The error of a handler.
#[derive(Debug)]
pub(crate) enum AppError {
    NotFound,
    NotAllowed,
    /// The user has to sign in first.
    SignInFirst,
    /// The request has a mistake, which the text names.
    Invalid(String),
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

impl AppError {
    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }
}

impl From<sqlx::Error> for AppError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::RowNotFound => Self::NotFound,
            error => Self::internal(error),
        }
    }
}

impl From<larder::sql::QueryError> for AppError {
    fn from(error: larder::sql::QueryError) -> Self {
        Self::internal(error)
    }
}

impl From<tower_sessions::session::Error> for AppError {
    fn from(error: tower_sessions::session::Error) -> Self {
        Self::internal(error)
    }
}

impl From<askama::Error> for AppError {
    fn from(error: askama::Error) -> Self {
        Self::internal(error)
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "there is no such page".to_owned()),
            Self::NotAllowed => {
                (StatusCode::FORBIDDEN, "this list belongs to another user".to_owned())
            }
            Self::SignInFirst => (StatusCode::UNAUTHORIZED, "sign in first".to_owned()),
            Self::Invalid(text) => (StatusCode::UNPROCESSABLE_ENTITY, text),
            Self::Internal(error) => {
                tracing::error!(%error, "a request has failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "the request has failed".to_owned())
            }
        };
        (status, text).into_response()
    }
}

/// The error of a start.
#[derive(Debug)]
pub struct StartError(Box<dyn std::error::Error + Send + Sync>);

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for StartError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the application cannot start: {}", self.0)
    }
}
