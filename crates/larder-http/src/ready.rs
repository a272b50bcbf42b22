//! Calling the instance that was polled ready.

/// The service that was polled ready; a clone of it, which need not be, takes its place.
pub(crate) fn take_ready<S: Clone>(inner: &mut S) -> S {
    let clone = inner.clone();
    std::mem::replace(inner, clone)
}
