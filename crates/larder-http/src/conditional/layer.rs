//! The layer and its options.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use larder_core::{Larder, kernel::Kernel, kernel::Meter};
use larder_semantics::validation::Validators;
use tower_layer::Layer;

use super::service::ConditionalService;
use crate::address::Head;

/// Adds validators and answers conditional requests. See the [module](super).
#[doc(alias("ETag", "browser cache", "304 Not Modified", "If-None-Match", "optimistic locking"))]
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct ConditionalLayer {
    options: Options,
}

pub(super) type Validate =
    Arc<dyn Fn(Head<'_>) -> Pin<Box<dyn Future<Output = Option<Validators>> + Send>> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) version: Arc<str>,
    pub(super) meter: Arc<Meter>,
    pub(super) kernel: Kernel,
    pub(super) validate: Option<Validate>,
    pub(super) refuse_unchecked: bool,
    pub(super) require: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("version", &self.version).finish_non_exhaustive()
    }
}

impl ConditionalLayer {
    /// Creates a layer whose entity tags include the version of this larder.
    pub fn new(larder: &Larder) -> Self {
        let options = Options {
            version: larder.kernel().version().into(),
            meter: larder.kernel().meter("conditional"),
            kernel: larder.kernel().clone(),
            validate: None,
            refuse_unchecked: false,
            require: false,
        };
        Self { options }
    }

    /// Calls this function for the current validators of a conditional request before the handler runs, and answers 304
    /// or 412 without the handler where they suffice. Return [`Validators::absent`] where the resource does not exist,
    /// and `None` for a request that the function does not know.
    pub fn validate_with<F, Fut>(mut self, current: F) -> Self
    where
        F: Fn(Head<'_>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<Validators>> + Send + 'static,
    {
        self.options.validate = Some(Arc::new(move |head| Box::pin(current(head))));
        self
    }

    /// Refuses a change that is guarded by `If-Match`, `If-Unmodified-Since` or `If-None-Match` with 412 where the
    /// layer itself cannot check it: without [`validate_with`](Self::validate_with), or where that returns `None`. By
    /// default the handler runs, and a precondition that the handler did not check either is counted.
    pub fn refuse_unchecked(mut self) -> Self {
        self.options.refuse_unchecked = true;
        self
    }

    /// Refuses a change without a precondition with 428.
    ///
    /// # Source
    ///
    /// [RFC 6585, section 3](https://www.rfc-editor.org/rfc/rfc6585#section-3)
    pub fn require_preconditions(mut self) -> Self {
        self.options.require = true;
        self
    }
}

impl<S> Layer<S> for ConditionalLayer {
    type Service = ConditionalService<S>;

    fn layer(&self, inner: S) -> ConditionalService<S> {
        ConditionalService::new(inner, Arc::new(self.options.clone()))
    }
}
