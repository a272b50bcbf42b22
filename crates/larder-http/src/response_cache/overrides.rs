//! The choices of a handler for its own response, made by the `CachePolicy` extractor.

use std::sync::Arc;

use http::HeaderValue;
use larder_core::{
    Lifetime, Reason, Tag,
    kernel::{Kernel, Scope},
};
use larder_semantics::fields;
use parking_lot::Mutex;

/// The choices of a handler for the response to one request. The response cache puts it into the extensions of
/// every request that it forwards; without a response cache, choices have no effect.
#[derive(Clone, Debug)]
pub struct ResponseOverrides(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kernel: Kernel,
    scope: Scope,
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
    pub(super) fn new(kernel: &Kernel, scope: &Scope) -> Self {
        let (kernel, scope) = (kernel.clone(), scope.clone());
        Self(Arc::new(Inner { kernel, scope, override_values: Mutex::default() }))
    }

    /// The larder of the response cache.
    pub fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// The scope of the request: values that are read in it become part of the response.
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// Sets the lifetime of the response, in place of that of the layer or of `Cache-Control`. An error does
    /// not take it, and [`override_ttl`](super::ResponseCacheLayer::override_ttl) prevails over it.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) -> &Self {
        self.0.override_values.lock().lifetime = Some(lifetime.into());
        self
    }

    /// Adds a tag to the stored response.
    pub fn tag(&self, tag: impl Into<Tag>) -> &Self {
        self.0.override_values.lock().tags.push(tag.into());
        self
    }

    /// Excludes the response from storing.
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
    /// For a text that is not a valid field value (a line break, a letter outside ASCII) larder logs a warning
    /// and sends `no-store` in its place.
    pub fn browser_cache_control(&self, cache_control: &str) -> &Self {
        self.set_browser(field_value("Cache-Control", cache_control));
        self
    }

    /// Sets the `CDN-Cache-Control` that content delivery networks get. A text that is not a valid field value
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

/// Returns the text as a field value, or `no-store` if it is not a valid one. A handler runs too late to refuse
/// the text, and without the field downstream caches would guess.
fn field_value(name: &str, text: &str) -> HeaderValue {
    fields::value(text).unwrap_or_else(|| {
        tracing::warn!(target: "larder", name, text, "not a valid field value (use visible ASCII, spaces and tabs only): sending no-store in its place");
        HeaderValue::from_static("no-store")
    })
}
