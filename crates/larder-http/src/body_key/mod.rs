//! Makes responses to QUERY storable: the layer reads the content of the request and adds a digest of it to the key.

mod future;
mod layer;
mod service;

pub(crate) use self::service::BodyKey;
pub use self::{future::BodyKeyFuture, layer::BodyKeyLayer, service::BodyKeyService};

#[cfg(test)]
mod tests;
