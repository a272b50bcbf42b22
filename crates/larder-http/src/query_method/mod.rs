//! Makes responses to QUERY storable: reads the content of the request and adds it to the key.

mod future;
mod layer;
mod service;

pub(crate) use self::service::PostContent;
pub use self::{future::QueryMethodFuture, layer::QueryMethodLayer, service::QueryMethod};

#[cfg(test)]
mod tests;
