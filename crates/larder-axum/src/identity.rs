//! Identity layers for sessions, verified tokens and cookies.
//!
//! Each finds three kinds of requests. A request of a user gets the partition of that user, or bypasses the cache
//! ([`partition_by_identity`](crate::HttpCache::partition_by_identity), [`bypass_users`](crate::HttpCache::bypass_users)).
//! Requests of visitors share. A request whose identity cannot be read (the session store fails, the signature of a cookie
//! is wrong) bypasses the cache.

use std::future::{Ready, ready};

use http::request::Parts;

use crate::{Identity, IdentityLayer, PartitionName};

/// Finds the user of a value that an outer layer has verified and left in the request extensions, such as the claims of a
/// JWT. `name` returns the name of the user.
///
/// A request without the value is one of a visitor. A request with `Authorization` but without the value bypasses the cache,
/// because its token was not accepted. A token in another place, such as a cookie, is not noticed: then use
/// [`IdentityLayer::new`].
///
/// # Examples
///
/// ```
/// use larder_axum::{HttpCache, identity};
/// use tower::ServiceBuilder;
/// # use larder_core::Larder;
///
/// #[derive(Clone)]
/// struct Claims { sub: String }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let larder = Larder::builder().build()?;
/// # let authentication = tower::layer::util::Identity::new();
/// let layers = ServiceBuilder::new()
///     .layer(authentication) // verifies the token, and inserts the claims
///     .layer(identity::from_extension(|claims: &Claims| claims.sub.clone()))
///     .layer(HttpCache::new(&larder).partition_by_identity());
/// # let _: axum::Router = axum::Router::new().layer(layers);
/// # Ok(()) }
/// ```
pub fn from_extension<T, P>(
    name: impl Fn(&T) -> P + Clone,
) -> IdentityLayer<impl Fn(&Parts) -> Ready<Identity> + Clone>
where
    T: Send + Sync + 'static,
    P: PartitionName,
{
    IdentityLayer::new(move |head: &Parts| {
        ready(match head.extensions.get::<T>() {
            Some(value) => Identity::user(name(value)),
            None if head.headers.contains_key(http::header::AUTHORIZATION) => Identity::Unknown,
            None => Identity::Anonymous,
        })
    })
}

/// A session of tower-sessions, of version 0.15 (feature `tower-sessions`) or 0.14 (feature `tower-sessions-014`).
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
pub trait SessionHandle: Clone + Send + Sync + 'static {
    /// Returns the value of this key. The session is read from its store if it was not read before.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    fn value(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Option<serde_json::Value>, UnreadableSession>> + Send;

    /// Whether the session was written to during this request.
    fn is_written(&self) -> bool;
}

/// The error for a session that cannot be read.
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableSession;

#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
impl std::fmt::Display for UnreadableSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the session cannot be read")
    }
}

#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
impl std::error::Error for UnreadableSession {}

/// Implements [`SessionHandle`] for a version of tower-sessions.
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
macro_rules! session {
    ($session:ty) => {
        impl SessionHandle for $session {
            async fn value(
                &self,
                key: &str,
            ) -> Result<Option<serde_json::Value>, UnreadableSession> {
                self.get_value(key).await.map_err(|error| {
                    tracing::warn!(target: "larder", %error, "a session cannot be read: the request bypasses the cache");
                    UnreadableSession
                })
            }

            fn is_written(&self) -> bool {
                self.is_modified()
            }
        }
    };
}

#[cfg(feature = "tower-sessions")]
session!(tower_sessions_core::Session);
#[cfg(feature = "tower-sessions-014")]
session!(tower_sessions_core_014::Session);

/// Finds the user of a session of tower-sessions: the value of this key, a string or a number, that the sign-in has
/// written to the session. A value of another type (a boolean, an object) does not identify a user, so the request bypasses
/// the cache. The value is part of keys, so it should be no secret.
///
/// Add [`session_is_written`] to the cache, so that a page whose handler writes to the session, for example a token against
/// request forgery, is not stored.
///
/// # Examples
///
/// ```
/// use larder_axum::{FinalHeadLayer, HttpCache, identity};
/// use tower::ServiceBuilder;
/// use tower_sessions::{MemoryStore, Session, SessionManagerLayer};
/// # use larder_core::Larder;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let larder = Larder::builder().build()?;
/// let layers = ServiceBuilder::new()
///     .layer(FinalHeadLayer::new())
///     .layer(SessionManagerLayer::new(MemoryStore::default()))
///     .layer(identity::from_session::<Session>("user_id"))
///     .layer(
///         HttpCache::new(&larder)
///             .partition_by_identity()
///             .responses(|layer| layer.refuse_if(identity::session_is_written::<Session>)),
///     );
/// # let _: axum::Router = axum::Router::new().layer(layers);
/// # Ok(()) }
/// ```
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
pub fn from_session<S: SessionHandle>(
    key: &'static str,
) -> IdentityLayer<impl Fn(&Parts) -> SessionIdentity + Clone> {
    IdentityLayer::new(move |head: &Parts| {
        let session = head.extensions.get::<S>().cloned();
        let found: SessionIdentity = Box::pin(async move {
            // Without the layer of tower-sessions around this one, no request has a session.
            let Some(session) = session else { return Identity::Unknown };
            match session.value(key).await {
                Ok(None | Some(serde_json::Value::Null)) => Identity::Anonymous,
                Ok(Some(serde_json::Value::String(user))) => Identity::user(user),
                Ok(Some(serde_json::Value::Number(user))) => Identity::user(user.to_string()),
                Ok(Some(_)) | Err(UnreadableSession) => Identity::Unknown,
            }
        });
        found
    })
}

/// The future of an identity that may have to be read from a session store.
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
pub type SessionIdentity = std::pin::Pin<Box<dyn Future<Output = Identity> + Send>>;

/// Whether a handler has written to its session, for [`refuse_if`](crate::ResponseCacheLayer::refuse_if).
#[cfg(any(feature = "tower-sessions", feature = "tower-sessions-014"))]
pub fn session_is_written<S: SessionHandle>(session: &S) -> bool {
    session.is_written()
}

/// Finds the user of axum-login. Put it inside of the layer of axum-login.
///
/// axum-login answers with an error if it cannot read the session, so such a request does not reach the cache.
///
/// # Examples
///
/// ```
/// use axum_login::{
///     AuthManagerLayerBuilder,
///     tower_sessions::{MemoryStore, Session, SessionManagerLayer},
/// };
/// use larder_axum::{FinalHeadLayer, HttpCache, identity};
/// use tower::ServiceBuilder;
/// # use larder_core::Larder;
/// # use axum_login::{AuthUser, AuthnBackend};
/// # #[derive(Clone, Debug)] struct User(i64);
/// # impl AuthUser for User {
/// #     type Id = i64;
/// #     fn id(&self) -> i64 { self.0 }
/// #     fn session_auth_hash(&self) -> &[u8] { b"" }
/// # }
/// # #[derive(Clone)] struct Users;
/// # impl AuthnBackend for Users {
/// #     type User = User;
/// #     type Credentials = i64;
/// #     type Error = std::convert::Infallible;
/// #     async fn authenticate(&self, id: i64) -> Result<Option<User>, Self::Error> { Ok(Some(User(id))) }
/// #     async fn get_user(&self, id: &i64) -> Result<Option<User>, Self::Error> { Ok(Some(User(*id))) }
/// # }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let larder = Larder::builder().build()?;
/// let sessions = SessionManagerLayer::new(MemoryStore::default());
/// let layers = ServiceBuilder::new()
///     .layer(FinalHeadLayer::new())
///     .layer(AuthManagerLayerBuilder::new(Users, sessions).build())
///     .layer(identity::from_auth_session::<Users>())
///     .layer(
///         HttpCache::new(&larder)
///             .partition_by_identity()
///             .responses(|layer| layer.refuse_if(identity::session_is_written::<Session>)),
///     );
/// # let _: axum::Router = axum::Router::new().layer(layers);
/// # Ok(()) }
/// ```
#[cfg(feature = "axum-login")]
pub fn from_auth_session<B>() -> IdentityLayer<impl Fn(&Parts) -> Ready<Identity> + Clone>
where
    B: axum_login::AuthnBackend + 'static,
    axum_login::UserId<B>: ToString,
{
    use axum_login::{AuthSession, AuthUser as _};

    IdentityLayer::new(|head: &Parts| {
        ready(match head.extensions.get::<AuthSession<B>>() {
            Some(session) => match &session.user {
                Some(user) => Identity::user(user.id().to_string()),
                None => Identity::Anonymous,
            },
            None => Identity::Unknown,
        })
    })
}

/// Finds the user of a signed cookie of axum-extra: the value of the cookie with this name.
///
/// A request without the cookie is one of a visitor. A request whose cookie has a wrong signature bypasses the cache.
///
/// # Examples
///
/// ```
/// use axum_extra::extract::cookie::Key;
/// use larder_axum::{HttpCache, identity};
/// use tower::ServiceBuilder;
/// # use larder_core::Larder;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let larder = Larder::builder().build()?;
/// let key = Key::generate(); // in production from the configuration, so that it is the same after a restart
/// let layers = ServiceBuilder::new()
///     .layer(identity::from_signed_cookie("user", key))
///     .layer(HttpCache::new(&larder).partition_by_identity());
/// # let _: axum::Router = axum::Router::new().layer(layers);
/// # Ok(()) }
/// ```
#[cfg(feature = "axum-extra")]
pub fn from_signed_cookie(
    name: &'static str,
    key: axum_extra::extract::cookie::Key,
) -> IdentityLayer<impl Fn(&Parts) -> Ready<Identity> + Clone> {
    use axum_extra::extract::SignedCookieJar;

    IdentityLayer::new(move |head: &Parts| {
        let jar = SignedCookieJar::from_headers(&head.headers, key.clone());
        ready(of_cookie(head, name, jar.get(name)))
    })
}

/// Finds the user of a private (encrypted) cookie of axum-extra, as [`from_signed_cookie`] does.
#[cfg(feature = "axum-extra")]
pub fn from_private_cookie(
    name: &'static str,
    key: axum_extra::extract::cookie::Key,
) -> IdentityLayer<impl Fn(&Parts) -> Ready<Identity> + Clone> {
    use axum_extra::extract::PrivateCookieJar;

    IdentityLayer::new(move |head: &Parts| {
        let jar = PrivateCookieJar::from_headers(&head.headers, key.clone());
        ready(of_cookie(head, name, jar.get(name)))
    })
}

#[cfg(feature = "axum-extra")]
fn of_cookie(
    head: &Parts,
    name: &str,
    verified: Option<axum_extra::extract::cookie::Cookie<'static>>,
) -> Identity {
    use axum_extra::extract::CookieJar;

    match verified {
        Some(cookie) => Identity::user(cookie.value().to_owned()),
        None if CookieJar::from_headers(&head.headers).get(name).is_some() => Identity::Unknown,
        None => Identity::Anonymous,
    }
}
