//! The choices of a handler for its own response, which the handler makes with the `CachePolicy` extractor.

use std::sync::Arc;

use http::HeaderValue;
use larder_core::{
    Lifetime, Reason, Tag,
    kernel::{Kernel, Scope},
};
use larder_semantics::fields;
use parking_lot::Mutex;

use super::route_note::RouteNote;

/// The choices of a handler for the response to one request. The response cache puts this value into the extensions of
/// every request that it forwards; without a response cache, the choices have no effect.
#[derive(Clone, Debug)]
pub struct ResponseOverrides(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kernel: Kernel,
    scope: Scope,
    route: RouteNote,
    override_values: Mutex<OverrideValues>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct OverrideValues {
    pub(super) lifetime: Option<Lifetime>,
    /// The lifetime that a nested layer adds, if the response has none.
    pub(super) added: Option<Lifetime>,
    pub(super) tags: Vec<Tag>,
    pub(super) no_store: Option<Reason>,
    pub(super) public: bool,
    pub(super) browser: Option<HeaderValue>,
    pub(super) cdn: Option<HeaderValue>,
}

impl ResponseOverrides {
    pub(super) fn new(kernel: &Kernel, scope: &Scope, route: RouteNote) -> Self {
        let (kernel, scope) = (kernel.clone(), scope.clone());
        Self(Arc::new(Inner { kernel, scope, route, override_values: Mutex::default() }))
    }

    /// Notes the route that a router inside of the cache has matched, by its template such as `/products/{id}`. Metrics
    /// count the request for this route, and the stored response carries it, so that they count its hits too.
    pub fn note_route(&self, template: &str) {
        self.0.route.note(&self.0.kernel, template);
    }

    /// Notes the route that axum has matched, if these are the extensions of a request inside of a cache and of a router.
    #[cfg(feature = "axum")]
    pub fn note_matched_path(extensions: &http::Extensions) {
        let around = extensions.get::<Self>();
        if let Some((around, template)) = around.zip(crate::address::matched_route(extensions)) {
            around.note_route(template);
        }
    }

    pub(super) fn route(&self) -> &RouteNote {
        &self.0.route
    }

    /// Returns the kernel of the larder that the response cache uses.
    pub fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// Returns the scope of the request. Values that are read in it become part of the response.
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// Sets the lifetime of the response, in place of the lifetime from the layer or from `Cache-Control`. It does not
    /// apply to an error, and [`override_ttl`](super::ResponseCacheLayer::override_ttl) takes precedence over it.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) -> &Self {
        self.0.override_values.lock().lifetime = Some(lifetime.into());
        self
    }

    /// Adds a tag to the stored response.
    pub fn tag(&self, tag: impl Into<Tag>) -> &Self {
        self.0.override_values.lock().tags.push(tag.into());
        self
    }

    /// Makes the response not storable.
    pub fn no_store(&self) -> &Self {
        self.refuse(Reason::Policy)
    }

    /// Declares that the response is the same for all clients, authenticated or not.
    pub fn public(&self) -> &Self {
        self.0.override_values.lock().public = true;
        self
    }

    /// Sets the `Cache-Control` that browsers get.
    ///
    /// If the string is not a valid field value (for example, because it has a line break or a non-ASCII character),
    /// larder logs a warning and sends `no-store` instead.
    pub fn browser_cache_control(&self, cache_control: &str) -> &Self {
        self.set_browser(field_value("Cache-Control", cache_control));
        self
    }

    /// Sets the `CDN-Cache-Control` that content delivery networks get. A string that is not a valid field value
    /// becomes `no-store`, as for [`browser_cache_control`](Self::browser_cache_control).
    pub fn cdn_cache_control(&self, cache_control: &str) -> &Self {
        self.set_cdn(field_value("CDN-Cache-Control", cache_control));
        self
    }

    pub(super) fn set_browser(&self, cache_control: HeaderValue) {
        self.0.override_values.lock().browser = Some(cache_control);
    }

    pub(super) fn set_cdn(&self, cache_control: HeaderValue) {
        self.0.override_values.lock().cdn = Some(cache_control);
    }

    /// Adds the lifetime of a nested layer.
    pub(super) fn add(&self, lifetime: Lifetime) {
        self.0.override_values.lock().added = Some(lifetime);
    }

    pub(super) fn refuse(&self, why: Reason) -> &Self {
        self.0.override_values.lock().no_store = Some(why);
        self
    }

    pub(super) fn override_values(&self) -> OverrideValues {
        self.0.override_values.lock().clone()
    }
}

/// Returns the string as a field value, or `no-store` if it is not a valid field value. It is too late to reject the
/// string when the handler runs, and without the field downstream caches would guess a lifetime.
fn field_value(name: &str, text: &str) -> HeaderValue {
    fields::value(text).unwrap_or_else(|| {
        tracing::warn!(target: "larder", name, text, "the handler set a string that is not a valid field value, so larder sends no-store instead; use only visible ASCII, spaces and tabs");
        HeaderValue::from_static("no-store")
    })
}
