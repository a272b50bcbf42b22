//! The admin API and the dashboard of a larder: [`admin`] returns a router to nest.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the dashboard |
//! | `GET /api/stats` | all counters ([`Stats`](larder_core::Stats)) |
//! | `GET /api/live` | counters and the last invalidations each second, as server-sent events |
//! | `GET /api/explain?url=…` | what the caches would do with a request, and why ([`ExplainRequest`](larder_http::ExplainRequest)); also `method`, `principal`, `anonymous`, `header` |
//! | `GET /api/entries` | entries of the first level: `kind`, `contains`, `tag`, `sort` (`hits`, `bytes`, `age`, `fill`, `ends`), `limit` |
//! | `GET /api/graph?tag=…` | the queries, values, fragments and responses that carry a tag |
//! | `GET /api/invalidations?after=…` | the last 256 invalidations that acted in this process |
//! | `GET /api/audit` | the actions of operators |
//! | `GET /api/whoami` | the actor, its role, and the CSRF token of its session |
//! | `POST /api/preview` | what an invalidation would reach, by a scan of 100 ms |
//! | `POST /api/invalidate` | invalidates |
//! | `POST /login`, `POST /logout` | begins and ends the session of a browser |
//!
//! An invalidation is a JSON object with one of `tag`, `name`, `path`, `prefix`, `pattern` and `everything: true`, and with
//! `soft`, `grace_seconds`, `namespace` and `because`, which are optional.
//!
//! # Access
//!
//! The router cannot be built without a guard: a [token](AdminBuilder::token), a [closure](AdminBuilder::guard), or
//! [`unguarded_on_loopback_only`](AdminBuilder::unguarded_on_loopback_only). A browser begins a session with the token, by a
//! form, and gets a cookie that no script and no other site can use. Actions need `POST`, JSON, and a field that a form of
//! another site cannot send. Every action is an audit event, and is logged.
//!
//! # In an application with caches
//!
//! The answers are `no-store`, and bypass the response caches of the same larder wherever the router is nested. Only the
//! first request of a process comes through a cache, which does not store it.

use std::{fmt, sync::Arc, time::Duration};

use axum::{Router, routing::any};
use http::request::Parts;
use larder_core::{Larder, kernel::Partitions};
use larder_http::own_pages::OwnPages;

use self::{
    access::{Access, Guard},
    audit::AuditLog,
    sessions::Sessions,
};

mod access;
mod actions;
mod api;
mod attempts;
mod audit;
mod live;
mod page;
mod query;
mod serve;
mod sessions;

pub use self::access::{AdminAccess, AdminRole};

#[cfg(test)]
mod tests;

/// Starts building the admin API and the dashboard of a larder.
///
/// # Examples
///
/// ```
/// use axum::{Router, body::Body, http::Request};
/// use larder_axum::admin::admin;
/// use larder_core::Larder;
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let token = "a long random string from the configuration";
/// let app: Router = Router::new().nest("/larder", admin(&larder).token(token).build()?);
///
/// let stats = || Request::get("/larder/api/stats");
/// let answer = app.clone().oneshot(stats().body(Body::empty())?).await?;
/// assert_eq!(answer.status(), 401);
/// let with_token = stats().header("authorization", format!("Bearer {token}"));
/// assert_eq!(app.oneshot(with_token.body(Body::empty())?).await?.status(), 200);
///
/// assert!(admin(&larder).build().is_err(), "without a guard");
/// # Ok(())
/// # }
/// ```
#[doc(alias("dashboard", "actuator", "management", "console"))]
pub fn admin(larder: &Larder) -> AdminBuilder {
    AdminBuilder {
        larder: larder.clone(),
        guards: Vec::new(),
        short_token: None,
        audit_events: 256,
        partitions: Partitions::Hashed,
        session_lifetime: Duration::from_secs(12 * 3600),
        has_secure_cookie: true,
    }
}

/// Builds the router of the admin API. [`admin`] begins it, and [`build`](Self::build) ends it.
#[must_use = "a builder does nothing until `build` is called"]
pub struct AdminBuilder {
    larder: Larder,
    guards: Vec<Guard>,
    short_token: Option<usize>,
    audit_events: usize,
    partitions: Partitions,
    session_lifetime: Duration,
    has_secure_cookie: bool,
}

impl AdminBuilder {
    /// Lets requests with this token do everything: programs send it as `Authorization: Bearer TOKEN`, and browsers enter it
    /// into a form. It is never part of a URL. After 10 wrong tokens from an address within a minute, larder refuses
    /// further ones from there for the rest of the minute.
    pub fn token(self, token: impl Into<String>) -> Self {
        self.with_token(token.into(), AdminRole::Full)
    }

    /// Lets requests with this token read, and invalidate nothing.
    pub fn read_only_token(self, token: impl Into<String>) -> Self {
        self.with_token(token.into(), AdminRole::ReadOnly)
    }

    fn with_token(mut self, token: String, role: AdminRole) -> Self {
        if token.len() < SHORTEST_TOKEN {
            self.short_token = Some(token.len());
        }
        self.guards.push(Guard::Token { token, role });
        self
    }

    /// Lets requests in for which a closure returns [`AdminAccess`]. It sees the head of each request, with the extensions
    /// that the application's own layers have left.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_axum::admin::{AdminAccess, admin};
    /// # use larder_core::Larder;
    ///
    /// #[derive(Clone)]
    /// struct User { name: String, is_operator: bool }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let router = admin(&larder)
    ///     .guard(|head| {
    ///         let user = head.extensions.get::<User>()?;
    ///         user.is_operator.then(|| AdminAccess::full(&user.name))
    ///     })
    ///     .build()?;
    /// # drop(router);
    /// # Ok(())
    /// # }
    /// ```
    pub fn guard(
        mut self,
        guard: impl Fn(&Parts) -> Option<AdminAccess> + Send + Sync + 'static,
    ) -> Self {
        self.guards.push(Guard::Closure(Arc::new(guard)));
        self
    }

    /// Lets every request in that comes from this machine, for development. The server has to run with
    /// `into_make_service_with_connect_info::<SocketAddr>()`, since a request without an address is refused; so is one that
    /// a proxy has forwarded, and one whose `Host` is no loopback name, which a page of another site can have sent.
    pub fn unguarded_on_loopback_only(mut self) -> Self {
        self.guards.push(Guard::Loopback);
        self
    }

    /// Sets how many actions are remembered for `GET /api/audit`; 256 by default.
    pub fn audit_events(mut self, events: usize) -> Self {
        self.audit_events = events;
        self
    }

    /// Shows partitions, which name users or tenants, as they are. By default they are shown as hashes.
    pub fn show_partitions(mut self) -> Self {
        self.partitions = Partitions::Shown;
        self
    }

    /// Sets the lifetime of the session of a browser; 12 hours by default.
    pub fn session_lifetime(mut self, lifetime: Duration) -> Self {
        self.session_lifetime = lifetime;
        self
    }

    /// Lets browsers send the cookie of a session over plain HTTP too. By default they do that for loopback names only.
    pub fn insecure_cookie(mut self) -> Self {
        self.has_secure_cookie = false;
        self
    }

    /// Builds the router, to be nested: by `Router::nest`, or by `Router::nest_service`, which also serves the path with a
    /// slash at its end.
    ///
    /// # Errors
    ///
    /// If there is no guard, or if a token has less than 16 bytes.
    pub fn build(self) -> Result<Router, AdminError> {
        if let Some(given) = self.short_token {
            return Err(AdminError(format!(
                "the token has {given} bytes, allowed is {SHORTEST_TOKEN} or more"
            )));
        }
        if self.guards.is_empty() {
            return Err(AdminError(
                "there is no guard, allowed is `token`, `read_only_token`, `guard` or \
                 `unguarded_on_loopback_only`"
                    .to_owned(),
            ));
        }
        let admin = Arc::new(Admin {
            own_pages: OwnPages::announce(self.larder.kernel()),
            larder: self.larder,
            access: Access::new(self.guards),
            sessions: Sessions::new(self.session_lifetime),
            audit: AuditLog::new(self.audit_events),
            partitions: self.partitions,
            has_secure_cookie: self.has_secure_cookie,
        });
        let serve = move |request| serve::serve(Arc::clone(&admin), request);
        Ok(Router::new().route("/", any(serve.clone())).route("/{*path}", any(serve)))
    }
}

impl fmt::Debug for AdminBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The guards hold tokens.
        f.debug_struct("AdminBuilder").field("guards", &self.guards.len()).finish_non_exhaustive()
    }
}

/// The state of the admin API.
struct Admin {
    larder: Larder,
    own_pages: Arc<OwnPages>,
    access: Access,
    sessions: Sessions,
    audit: AuditLog,
    partitions: Partitions,
    has_secure_cookie: bool,
}

/// The error of [`AdminBuilder::build`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminError(String);

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AdminError {}

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// How long a scan of the first level takes at most.
const LONGEST_SCAN: Duration = Duration::from_millis(100);
