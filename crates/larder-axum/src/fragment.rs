//! `FragmentCache`: caches fragments of a page.

use std::{convert::Infallible, future::Future, sync::Arc};

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use http::request::Parts;
use larder_core::{IntoName, Kind, LoadError, Policy};
use larder_http::ResponseOverrides;

use crate::missing::MissingLayer;

/// Caches rendered fragments of pages. This extractor needs a [`ResponseCacheLayer`](crate::ResponseCacheLayer), but
/// `Option<FragmentCache>` does not.
///
/// A fragment becomes part of the page that it is rendered into: the page gets its tags, expires no later than the
/// fragment, and is private if the fragment is private. Fragments may contain fragments.
///
/// # Examples
///
/// ```
/// use std::{convert::Infallible, sync::Arc, time::Duration};
/// use larder_axum::FragmentCache;
/// use larder_core::Policy;
///
/// async fn page(fragments: FragmentCache) -> String {
///     let policy = Policy::ttl(Duration::from_secs(600)).tag(("product", 42)).shared();
///     let render = || async { Ok::<_, Infallible>("<b>product 42</b>".to_owned()) };
///     match fragments.get_or_render(("card", 42), policy, render).await {
///         Ok(card) => format!("<main>{card}</main>"),
///         Err(_) => "<main></main>".to_owned(),
///     }
/// }
/// ```
#[doc(alias("fragment cache", "partial caching", "donut caching", "russian doll caching", "ESI"))]
#[derive(Clone, Debug)]
pub struct FragmentCache(ResponseOverrides);

impl FragmentCache {
    /// Returns the fragment with this name. Renders it if it is not stored.
    ///
    /// Inside of a partition, the fragment belongs to the partition. For an authenticated request without a partition,
    /// larder renders the fragment each time, unless the policy declares that it is [shared](Policy::shared).
    ///
    /// # Errors
    ///
    /// Returns [`LoadError::Failed`] if `render` fails. For the other errors see [`LoadError`].
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime, and if `render` panics.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::{Router, body::Body, extract::Path, http::{Request, StatusCode}, routing::get};
    /// # use larder_axum::*;
    /// # use larder_core::{Invalidation, Larder, Lifetime, Policy};
    /// # use tower::ServiceExt as _;
    /// # use std::convert::Infallible;
    /// async fn page(fragments: FragmentCache, Path(_): Path<u64>) -> Result<String, StatusCode> {
    ///     let policy = Policy::ttl(Duration::from_secs(60)).tag(("product", 42)).shared();
    ///     let render = || async { Ok::<_, Infallible>("<b>product 42</b>".to_owned()) };
    ///     let card = fragments.get_or_render(("card", 42), policy, render).await;
    ///     Ok(format!("<main>{}</main>", card.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let app: Router = Router::new().route("/{id}", get(page)).layer(HttpCache::new(&larder));
    /// app.clone().oneshot(Request::get("/1").body(Body::empty())?).await?;
    /// app.oneshot(Request::get("/2").body(Body::empty())?).await?;
    /// let stats = larder.stats();
    /// let fragments = stats.cache("fragments").ok_or("no fragment was requested")?;
    /// assert_eq!((fragments.total.misses, fragments.total.hits), (1, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_render<E, F, Fut>(
        &self,
        name: impl IntoName,
        policy: impl Into<Policy>,
        render: F,
    ) -> Result<Arc<String>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
    {
        let kernel = self.0.kernel();
        let filled = kernel.get_or_fill(Kind::Fragment, name, policy, |_| render());
        // Inside of another fragment, the current scope is the scope of that fragment. In a task that the handler
        // spawned there is no current scope, and the fragment belongs to the page.
        let scope = kernel.current_scope().unwrap_or_else(|| self.0.scope().clone());
        scope.scoped(filled).await
    }
}

impl<S: Send + Sync> FromRequestParts<S> for FragmentCache {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
        ResponseOverrides::note_matched_path(&parts.extensions);
        parts
            .extensions
            .get()
            .cloned()
            .map(Self)
            .ok_or(MissingLayer { extractor: "FragmentCache", layer: "ResponseCacheLayer" })
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for FragmentCache {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        ResponseOverrides::note_matched_path(&parts.extensions);
        Ok(parts.extensions.get().cloned().map(Self))
    }
}
