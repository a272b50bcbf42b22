//! Users: passwords, sessions and tokens.

use argon2::{
    Algorithm, Argon2, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::{SaltString, rand_core::OsRng},
};
use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    http::{HeaderMap, Request, header, request::Parts},
};
use jsonwebtoken::{Algorithm as TokenAlgorithm, Header, Validation};
use larder::sqlx_08::SharedQueryRow;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tower_sessions::Session;
use uuid::Uuid;

use crate::{config::Config, csrf, db::users::Login, error::AppError};

/// Hashes a password for the database, on a thread that may take its time.
pub(crate) async fn hash(config: &Config, password: String) -> Result<String, AppError> {
    let argon = Argon2::new(Algorithm::default(), Version::default(), config.passwords.clone());
    let hashing = tokio::task::spawn_blocking(move || {
        let salt = SaltString::generate(&mut OsRng);
        let hash = argon.hash_password(password.as_bytes(), &salt);
        hash.map(|hash| hash.to_string())
    });
    let hash = hashing.await.map_err(AppError::internal)?;
    hash.map_err(|error| AppError::internal(error.to_string()))
}

/// Returns the login if the password is its password. An unknown name takes as long as a wrong password, so that the time
/// of the answer does not tell which names exist.
pub(crate) async fn verified(
    config: &Config,
    login: Option<SharedQueryRow<Login>>,
    password: String,
) -> Result<Option<SharedQueryRow<Login>>, AppError> {
    let Some(login) = login else {
        hash(config, password).await?;
        return Ok(None);
    };
    let expected = login.password_hash.clone();
    let verifying = tokio::task::spawn_blocking(move || {
        PasswordHash::new(&expected)
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
    });
    Ok(verifying.await.map_err(AppError::internal)?.then_some(login))
}

/// A user who is signed in to a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SessionUser {
    pub(crate) id: Uuid,
    pub(crate) name: String,
}

impl SessionUser {
    /// Signs a user in, with a new session and a new token.
    pub(crate) async fn sign_in(session: &Session, user: Self) -> Result<(), AppError> {
        session.cycle_id().await?;
        session.insert(USER, user).await?;
        csrf::renew(session).await.map(|_| ())
    }

    async fn of(parts: &mut Parts) -> Result<Option<Self>, AppError> {
        let session = parts.extensions.get::<Session>().cloned();
        let session = session.ok_or_else(|| AppError::internal("there is no session layer"))?;
        Ok(session.get(USER).await?)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SessionUser {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, AppError> {
        Self::of(parts).await?.ok_or(AppError::SignInFirst)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for SessionUser {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, AppError> {
        Self::of(parts).await
    }
}

/// The claims of a token of the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: Uuid,
    pub(crate) name: String,
    exp: i64,
}

impl Claims {
    pub(crate) fn sign(config: &Config, sub: Uuid, name: &str) -> Result<String, AppError> {
        let exp = (OffsetDateTime::now_utc() + Duration::hours(12)).unix_timestamp();
        let claims = Self { sub, name: name.to_owned(), exp };
        jsonwebtoken::encode(&Header::new(TokenAlgorithm::HS256), &claims, &config.signing)
            .map_err(AppError::internal)
    }

    /// Leaves the claims of a valid token in the extensions of its request, for the cache and the handler.
    pub(crate) fn verify<B>(mut request: Request<B>, config: &Config) -> Request<B> {
        if let Some(claims) = Self::of(request.headers(), config) {
            request.extensions_mut().insert(claims);
        }
        request
    }

    /// Reads the token of a request. `None` without a token, or with one that is not valid.
    fn of(fields: &HeaderMap, config: &Config) -> Option<Self> {
        let field = fields.get(header::AUTHORIZATION)?.to_str().ok()?;
        let token = field.strip_prefix("Bearer ")?;
        let validation = Validation::new(TokenAlgorithm::HS256);
        jsonwebtoken::decode(token, &config.verifying, &validation).ok().map(|token| token.claims)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Claims {
    type Rejection = AppError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, AppError> {
        parts.extensions.get::<Self>().cloned().ok_or(AppError::SignInFirst)
    }
}

const USER: &str = "user";
