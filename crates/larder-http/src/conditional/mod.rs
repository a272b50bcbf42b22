//! Adds validators to responses that have none, and answers conditional requests.

mod answer;
mod conditions;
mod future;
mod layer;
mod service;

pub(crate) use self::{answer::not_modified, conditions::is_around};
pub use self::{
    conditions::{Conditions, FailedPrecondition},
    future::ConditionalFuture,
    layer::ConditionalLayer,
    service::ConditionalService,
};

#[cfg(test)]
mod tests;
