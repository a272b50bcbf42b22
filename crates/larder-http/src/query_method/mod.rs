//! Makes responses to QUERY storable: the layer reads the content of the request and adds a digest of it to the key.

mod future;
mod layer;
mod service;

pub(crate) use self::service::PostContent;
pub use self::{future::QueryMethodFuture, layer::QueryMethodLayer, service::QueryMethod};

#[cfg(test)]
mod tests;
