//! What a handler chooses for its own response, by the `CachePolicy` extractor.

use std::sync::Arc;

use http::HeaderValue;
use larder_core::{
    Lifetime, Tag,
    kernel::{Kernel, Scope},
};
use parking_lot::Mutex;

use super::outgoing;

/// The choices of one request's handler. The response cache puts it into the extensions of every request
/// that it passes on; without one, choices have no effect.
#[derive(Clone, Debug)]
pub struct ResponseOverrides(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kernel: Kernel,
    scope: Scope,
    chosen: Mutex<OverrideValues>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct OverrideValues {
    pub(super) lifetime: Option<Lifetime>,
    /// What a layer inside the one that keeps the response adds, where the response says nothing.
    pub(super) added: Option<Lifetime>,
    pub(super) tags: Vec<Tag>,
    pub(super) no_store: Option<&'static str>,
    pub(super) public: bool,
    pub(super) browser: Option<HeaderValue>,
    pub(super) cdn: Option<HeaderValue>,
}

impl ResponseOverrides {
    pub(super) fn new(kernel: &Kernel, scope: &Scope) -> Self {
        let (kernel, scope) = (kernel.clone(), scope.clone());
        Self(Arc::new(Inner { kernel, scope, chosen: Mutex::default() }))
    }

    /// The larder of the response cache.
    pub fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// The scope of the request: what is read in it becomes part of the response.
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// How long the response is kept, in place of what the layer or `Cache-Control` says.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) -> &Self {
        self.0.chosen.lock().lifetime = Some(lifetime.into());
        self
    }

    /// Adds a tag.
    pub fn tag(&self, tag: impl Into<Tag>) -> &Self {
        self.0.chosen.lock().tags.push(tag.into());
        self
    }

    /// The response is not kept.
    pub fn no_store(&self) -> &Self {
        self.refuse("policy")
    }

    /// The response is the same for everyone, whoever asked.
    pub fn public(&self) -> &Self {
        self.0.chosen.lock().public = true;
        self
    }

    /// What browsers are told: the text of `Cache-Control`.
    ///
    /// A text that no field may hold (a line break, a letter outside ASCII) is warned of, and browsers are told
    /// `no-store` in its place.
    pub fn browser_cache_control(&self, cache_control: &str) -> &Self {
        self.tell_browsers(field_value("Cache-Control", cache_control));
        self
    }

    /// What a content delivery network is told: the text of `CDN-Cache-Control`. What no field may hold becomes
    /// `no-store`, as for [`browser`](Self::browser).
    pub fn cdn_cache_control(&self, cache_control: &str) -> &Self {
        self.tell_cdn(field_value("CDN-Cache-Control", cache_control));
        self
    }

    pub(super) fn tell_browsers(&self, cache_control: HeaderValue) {
        self.0.chosen.lock().browser = Some(cache_control);
    }

    pub(super) fn tell_cdn(&self, cache_control: HeaderValue) {
        self.0.chosen.lock().cdn = Some(cache_control);
    }

    /// The lifetime that a layer inside adds.
    pub(super) fn add(&self, lifetime: Lifetime) {
        self.0.chosen.lock().added = Some(lifetime);
    }

    pub(super) fn refuse(&self, why: &'static str) -> &Self {
        self.0.chosen.lock().no_store = Some(why);
        self
    }

    pub(super) fn chosen(&self) -> OverrideValues {
        self.0.chosen.lock().clone()
    }
}

/// The text as a field value. A handler cannot be refused when it is built, and to leave the field out would let
/// downstream caches guess: they are told the strictest.
fn field_value(name: &str, text: &str) -> HeaderValue {
    outgoing::field_value(text).unwrap_or_else(|| {
        tracing::warn!(target: "larder", name, text, "no field may hold this text: no-store in its place");
        HeaderValue::from_static("no-store")
    })
}
