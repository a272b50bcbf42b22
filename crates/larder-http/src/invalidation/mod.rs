//! Invalidates the targets of a write, before the client gets the response.

mod future;
mod layer;
#[cfg_attr(not(feature = "read-your-writes"), path = "read_your_writes_absent.rs")]
mod read_your_writes;
mod requested;
mod service;

#[cfg(feature = "read-your-writes")]
pub use self::read_your_writes::ReadYourWrites;
pub use self::{
    future::InvalidationFuture, layer::InvalidationLayer, requested::PendingInvalidations,
    service::InvalidationService,
};

#[cfg(test)]
mod tests;
