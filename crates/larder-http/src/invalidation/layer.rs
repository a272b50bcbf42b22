//! The layer and its options.

use std::{fmt, sync::Arc};

use larder_core::{Larder, Target, kernel::Kernel};
use tower_layer::Layer;

use super::{read_your_writes::ReadYourWrites, service::InvalidationService};
use crate::address::{Head, Scheme};

/// Invalidates after a write, before the client gets the response. See the [module](super).
#[doc(alias("write-through invalidation", "purge on write", "write-around"))]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct InvalidationLayer {
    options: Options,
}

type Targets = Arc<dyn Fn(&Head<'_>) -> Vec<Target> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) kernel: Kernel,
    pub(super) targets: Option<Targets>,
    pub(super) scheme: Scheme,
    pub(super) implicit: bool,
    pub(super) cancel_on_drop: bool,
    pub(super) positions: Option<ReadYourWrites>,
    pub(super) redirects_reach_partitions: bool,
}

impl InvalidationLayer {
    /// Creates a layer over this larder.
    pub fn new(larder: &Larder) -> Self {
        let options = Options {
            kernel: larder.kernel().clone(),
            targets: None,
            scheme: Scheme::default(),
            implicit: true,
            cancel_on_drop: false,
            positions: None,
            redirects_reach_partitions: false,
        };
        Self { options }
    }

    /// Also invalidates these targets after a successful write (2xx or 3xx) on these routes.
    pub fn targets<I>(mut self, targets: impl Fn(&Head<'_>) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: Into<Target>>,
    {
        self.options.targets =
            Some(Arc::new(move |head| targets(head).into_iter().map(Into::into).collect()));
        self
    }

    /// Invalidates only the targets of the handler and of [`targets`](Self::targets), not the target URI and the URIs
    /// and groups that the response names. For routes whose writes change no stored response.
    pub fn explicit_only(mut self) -> Self {
        self.options.implicit = false;
        self
    }

    /// Cancels a write whose client disconnects. The handler itself must then never stop between its commit and its
    /// end, or the invalidation is lost.
    pub fn cancel_on_drop(mut self) -> Self {
        self.options.cancel_on_drop = true;
        self
    }

    /// Makes a client see its own writes, no matter which process serves its next request. Off by default: other
    /// processes follow within milliseconds, and each request that carries a position waits for it.
    #[doc(alias("session consistency"))]
    #[cfg(feature = "read-your-writes")]
    pub fn read_your_writes(mut self, positions: ReadYourWrites) -> Self {
        self.options.positions = Some(positions);
        self
    }

    /// Invalidates the target of a redirect after a write in all partitions, as the target URI. Off by default: it is
    /// invalidated outside partitions and in the partition of the request, so that a user's sign-in that redirects to
    /// `/` does not remove the page of every other user.
    ///
    /// # Source
    ///
    /// [RFC 9111, section 4.4](https://www.rfc-editor.org/rfc/rfc9111#section-4.4), which leaves it to the cache
    #[doc(alias("post redirect get"))]
    pub fn redirects_reach_partitions(mut self) -> Self {
        self.options.redirects_reach_partitions = true;
        self
    }

    /// Sets the scheme of requests: with `https` the cookie of [`ReadYourWrites`] is `Secure`. The invalidated targets
    /// do not depend on it.
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.options.scheme = scheme;
        self
    }
}

impl<S> Layer<S> for InvalidationLayer {
    type Service = InvalidationService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        if self.options.positions.is_some() {
            // The scheme decides about its cookie alone.
            self.options.kernel.note_setting("scheme", &self.options.scheme, "InvalidationLayer");
        }
        InvalidationService::new(inner, Arc::new(self.options.clone()))
    }
}

impl Clone for InvalidationLayer {
    fn clone(&self) -> Self {
        Self { options: self.options.clone() }
    }
}

impl fmt::Debug for InvalidationLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidationLayer").finish_non_exhaustive()
    }
}
