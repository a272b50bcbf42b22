//! The admin API and the dashboard of a larder: [`admin`] returns a router to nest.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the dashboard |
//! | `GET /api/stats` | all counters ([`Stats`](larder_core::Stats)) |
//! | `GET /api/live` | counters and the last invalidations each second, as server-sent events, for half a minute |
//! | `GET /api/explain?url=…` | what the caches would do with a request, and why ([`ExplainRequest`](larder_http::ExplainRequest)); also `method`, `principal`, `anonymous`, `header` |
//! | `GET /api/entries` | entries of the first level: `kind`, `contains`, `tag` (in `namespace`), `sort` (`hits`, `bytes`, `age`, `fill`, `ends`), `limit` |
//! | `GET /api/graph?tag=…` | (in `namespace`) the queries, values, fragments and responses that carry a tag |
//! | `GET /api/keys` | hot keys of the last minutes, and cold ones |
//! | `GET /api/advice` | what other settings would do better ([`Advice`](larder_core::Advice)) |
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

use std::{fmt, net::IpAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use axum::{Router, routing::any};
use http::request::Parts;
use larder_core::{Larder, kernel::Partitions};
use larder_http::own_pages::OwnPages;
use tokio::sync::Semaphore;

use self::{
    access::{Access, ClientAddress, Guard},
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
        client_address: None,
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
    client_address: Option<ClientAddress>,
    short_token: Option<usize>,
    audit_events: usize,
    partitions: Partitions,
    session_lifetime: Duration,
    has_secure_cookie: bool,
}

impl AdminBuilder {
    /// Lets requests with this token do everything: programs send it as `Authorization: Bearer TOKEN`, and browsers enter it
    /// into a form. It is never part of a URL.
    ///
    /// After 10 wrong tokens from an IPv4 address or an IPv6 /64 within a minute, larder refuses all tokens from there for
    /// the rest of the minute. That needs the address of the client: serve with
    /// `into_make_service_with_connect_info::<SocketAddr>()`, and behind a proxy tell larder the
    /// [`client_address`](Self::client_address), since otherwise all clients have the address of the proxy, and one of them
    /// can lock out the others. Without addresses, wrong tokens are not limited; a long random token is not guessed.
    ///
    /// A request with another bearer token, such as a JWT, is let in if a [closure](Self::guard) does so.
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

    /// Lets requests in for which a closure returns [`AdminAccess`]. It sees the head of each request as the client sent it,
    /// with the extensions that the application's own layers have left.
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

    /// Sets the closure that returns the address of the client of a request, which limits wrong tokens. By default it is the
    /// address of the connection. Behind a proxy, read it from a field that this proxy always overwrites.
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_axum::admin::admin;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = larder_core::Larder::builder().build()?;
    /// let router = admin(&larder)
    ///     .token("a long random string from the configuration")
    ///     .client_address(|head| head.headers.get("x-real-ip")?.to_str().ok()?.parse().ok())
    ///     .build()?;
    /// # drop(router);
    /// # Ok(())
    /// # }
    /// ```
    pub fn client_address(
        mut self,
        client_address: impl Fn(&Parts) -> Option<IpAddr> + Send + Sync + 'static,
    ) -> Self {
        self.client_address = Some(Box::new(client_address));
        self
    }

    /// Lets every request in that comes from this machine, for development. The server has to run with
    /// `into_make_service_with_connect_info::<SocketAddr>()`, since a request without an address is refused. So is a request
    /// that a proxy has forwarded, one by HTTP/1.0, as some proxies send it, and one whose `Host`, `Origin` or `Referer` is
    /// no loopback name, which a page of another site can have sent.
    ///
    /// Do not use it in production: a proxy on this machine that adds no field, keeps HTTP/1.1 and sets `Host: localhost`
    /// looks like a browser on this machine.
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

    /// Sets the lifetime of the session of a browser, from a second to 400 days, which is the longest that browsers keep a
    /// cookie; 12 hours by default.
    pub fn session_lifetime(mut self, lifetime: Duration) -> Self {
        self.session_lifetime = lifetime;
        self
    }

    /// Lets browsers send the cookie of a session over plain HTTP too. By default they do that for loopback names only.
    pub fn insecure_cookie(mut self) -> Self {
        self.has_secure_cookie = false;
        self
    }

    /// Builds the router, and begins to [watch the traffic](Larder::watch_traffic). The router is to be nested: by `Router::nest`, or by `Router::nest_service`, which also serves the path with a
    /// slash at its end.
    ///
    /// # Errors
    ///
    /// If there is no guard, if a token has less than 16 bytes, if the lifetime of a session is out of its bounds, or if the
    /// larder is the view of a [namespace](Larder::namespace): counters and invalidations are those of all namespaces.
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
        if !SESSION_LIFETIMES.contains(&self.session_lifetime) {
            return Err(AdminError(format!(
                "the lifetime of a session is {:?}, allowed is 1 second to 400 days",
                self.session_lifetime
            )));
        }
        if let Some(namespace) = self.larder.kernel().namespace() {
            return Err(AdminError(format!(
                "the larder is the view of the namespace {namespace:?}, allowed is the larder itself"
            )));
        }
        self.larder.watch_traffic();
        let admin = Arc::new(Admin {
            own_pages: OwnPages::announce(self.larder.kernel()),
            larder: self.larder,
            access: Access::new(self.guards, self.client_address),
            sessions: Sessions::new(self.session_lifetime),
            audit: AuditLog::new(self.audit_events),
            partitions: self.partitions,
            has_secure_cookie: self.has_secure_cookie,
            live_streams: Arc::new(Semaphore::new(live::MOST_STREAMS)),
            scans: Semaphore::new(1),
            instance: sessions::random(),
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
    live_streams: Arc<Semaphore>,
    /// One scan of the first level takes place at a time.
    scans: Semaphore,
    /// Differs between processes, whose invalidations have numbers of their own.
    instance: String,
}

impl Admin {
    /// Scans the first level on a thread on which no request waits, after the scans of other requests.
    async fn scan<T: Send + 'static>(&self, scan: impl FnOnce() -> T + Send + 'static) -> T {
        let _permit = self.scans.acquire().await;
        let task = tokio::task::spawn_blocking(scan);
        task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// Returns the number of the last invalidation that a client has from this process, by the identifier of an event.
    fn last_number(&self, event_id: &str) -> u64 {
        let number = event_id.split_once('-').filter(|(instance, _)| *instance == self.instance);
        number.and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
    }
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
const SESSION_LIFETIMES: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(400 * 24 * 3600);
/// How long a scan of the first level takes at most.
const LONGEST_SCAN: Duration = Duration::from_millis(100);
