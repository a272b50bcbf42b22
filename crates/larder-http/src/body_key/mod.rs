//! Makes responses to requests with content storable (QUERY, and POST where it reads): the layer reads the content and
//! adds a digest of it to the key.

mod future;
#[cfg(feature = "graphql")]
mod graphql;
mod key;
mod layer;
mod service;

pub(crate) use self::key::{BodyKey, is_read};
pub use self::{future::BodyKeyFuture, layer::BodyKeyLayer, service::BodyKeyService};

#[cfg(test)]
mod tests;
