//! The layer and its options.

use larder_core::ByteSize;
use tower_layer::Layer;

use super::service::QueryMethod;

/// Makes responses to QUERY storable for a response cache inside. See the [module](super).
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct QueryMethodLayer {
    limit: usize,
}

impl QueryMethodLayer {
    /// Creates a layer that reads up to 64 KiB of content.
    pub const fn new() -> Self {
        Self { limit: 64 * 1024 }
    }

    /// Limits the content that is read; 64 KiB by default. A request with more is refused with 413.
    pub const fn limit(mut self, limit: ByteSize) -> Self {
        self.limit = limit.as_bytes();
        self
    }
}

impl Default for QueryMethodLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for QueryMethodLayer {
    type Service = QueryMethod<S>;

    fn layer(&self, inner: S) -> QueryMethod<S> {
        QueryMethod::new(inner, self.limit)
    }
}
