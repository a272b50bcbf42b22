//! Takes the service instance that was polled ready.

/// Returns the service that was polled ready, and leaves a clone in its place that may not be ready.
pub(crate) fn take_ready<S: Clone>(inner: &mut S) -> S {
    let clone = inner.clone();
    std::mem::replace(inner, clone)
}
