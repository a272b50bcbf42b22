//! `Invalidate`: adds the targets that a write invalidates.

use axum_core::extract::FromRequestParts;
use http::request::Parts;
use larder_core::{IntoName, Invalidated, Invalidation, Tag, Target};
use larder_http::PendingInvalidations;

use crate::missing::MissingLayer;

/// Adds the targets that this request invalidates. This extractor needs an
/// [`InvalidationLayer`](crate::InvalidationLayer).
///
/// Targets that are added before the response of a write leaves are invalidated before the client gets the response,
/// for any status and even if the handler panics. Later targets, and the targets of a safe request, are invalidated at
/// once. Add targets after the commit.
#[doc(alias("purge", "cache busting", "event invalidation"))]
#[derive(Clone, Debug)]
pub struct Invalidate(PendingInvalidations);

impl Invalidate {
    /// Invalidates all entries that have this tag.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::{Router, body::Body, extract::Path, http::{Request, StatusCode}, routing::get};
    /// # use larder_axum::*;
    /// # use larder_core::{Invalidation, Larder, Lifetime, Policy};
    /// # use tower::ServiceExt as _;
    /// async fn list(policy: CachePolicy) -> &'static str {
    ///     policy.ttl(Duration::from_secs(60)).tag("products");
    ///     "all products"
    /// }
    ///
    /// async fn update(invalidate: Invalidate, Path(id): Path<u64>) {
    ///     // After the commit. `prefix`, `name` and `path` add other targets.
    ///     invalidate.tag("products").tag(("product", id));
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let routes: Router = Router::new().route("/", get(list)).route("/{id}", get(list).put(update));
    /// let app = routes.layer(HttpCache::new(&larder));
    /// # let status = async |request: axum::http::request::Builder| -> Result<String, Box<dyn std::error::Error>> {
    /// #     let response = app.clone().oneshot(request.body(Body::empty())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=uri-miss; stored");
    /// status(Request::put("/42")).await?;
    /// assert_eq!(status(Request::get("/")).await?, "larder; fwd=stale; stored");
    /// # Ok(())
    /// # }
    /// ```
    pub fn tag(&self, tag: impl Into<Tag>) -> &Self {
        self.target(Target::tag(tag))
    }

    /// Invalidates all entries that have this tag or a tag below it.
    pub fn prefix(&self, tag: impl Into<Tag>) -> &Self {
        self.target(Target::prefix(tag))
    }

    /// Invalidates the object or fragment with this name.
    pub fn name(&self, name: impl IntoName) -> &Self {
        self.target(Target::name(name))
    }

    /// Invalidates every response with this path.
    pub fn path(&self, path: impl AsRef<str>) -> &Self {
        self.target(Target::path(path))
    }

    /// Invalidates any target.
    pub fn target(&self, target: impl Into<Target>) -> &Self {
        self.0.add(target);
        self
    }

    /// Invalidates without waiting for the response. When this method returns, the invalidation has acted in this
    /// process. Only this method can make entries merely stale, or invalidate after a delay.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::{Router, body::Body, extract::Path, http::{Request, StatusCode}, routing::get};
    /// # use larder_axum::*;
    /// # use larder_core::{Invalidation, Larder, Lifetime, Policy};
    /// # use tower::ServiceExt as _;
    /// # const MINUTE: Duration = Duration::from_secs(60);
    /// async fn list(policy: CachePolicy) -> &'static str {
    ///     policy.ttl(Lifetime::fresh_for(MINUTE).stale_while_revalidate(MINUTE)).tag("products");
    ///     "all products"
    /// }
    ///
    /// async fn update(invalidate: Invalidate) {
    ///     // The list may be served stale for 30 s, while it is refreshed.
    ///     let soft = Invalidation::of(["products"]).soft(Duration::from_secs(30));
    ///     let _logged = invalidate.now(soft).await;
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let routes: Router = Router::new().route("/", get(list)).route("/{id}", get(list).put(update));
    /// let app = routes.layer(HttpCache::new(&larder));
    /// # let status = async |request: axum::http::request::Builder| -> Result<String, Box<dyn std::error::Error>> {
    /// #     let response = app.clone().oneshot(request.body(Body::empty())?).await?;
    /// #     Ok(response.headers()["cache-status"].to_str()?.to_owned())
    /// # };
    /// status(Request::get("/")).await?;
    /// status(Request::put("/42")).await?;
    /// status(Request::get("/")).await?;
    /// assert_eq!(larder.stats().cache("responses").map(|pages| pages.total.stale_hits), Some(1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn now(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        self.0.now(invalidation).await
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Invalidate {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
        let requested = parts.extensions.get().cloned().or_else(PendingInvalidations::current);
        requested
            .map(Self)
            .ok_or(MissingLayer { extractor: "Invalidate", layer: "InvalidationLayer" })
    }
}
