//! `Conditional`: answers 304 or 412 before the handler does its work.

use axum_core::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::request::Parts;
use larder_http::{Conditions, FailedPrecondition};
use larder_semantics::validation::Validators;

use crate::missing::MissingLayer;

/// The preconditions of this request. This extractor needs a [`ConditionalLayer`](larder_http::ConditionalLayer).
///
/// # Examples
///
/// ```
/// use larder_axum::{ConditionUnmet, Conditional};
/// use larder_semantics::validation::EntityTag;
///
/// async fn report(conditional: Conditional) -> Result<String, ConditionUnmet> {
///     let revision = 7; // cheap to know
///     conditional.check(EntityTag::strong(format!("r{revision}")).expect("visible ASCII"))?;
///     Ok("the report, which is not cheap".to_owned())
/// }
/// ```
#[doc(alias("ETag", "If-None-Match", "If-Match", "optimistic locking"))]
#[derive(Clone, Debug)]
pub struct Conditional(Conditions);

impl Conditional {
    /// Checks the preconditions against the current validators: an entity tag, a date, or both.
    ///
    /// In a fill for many clients there are no preconditions, so the check always passes.
    ///
    /// # Errors
    ///
    /// Returns the answer to send, which is a 304 or a 412.
    pub fn check(&self, current: impl Into<Validators>) -> Result<(), ConditionUnmet> {
        self.0.check(current).map_err(ConditionUnmet)
    }
}

/// The answer to a request whose preconditions are not met. It turns into a 304 or a 412.
#[derive(Clone, Debug)]
pub struct ConditionUnmet(FailedPrecondition);

impl IntoResponse for ConditionUnmet {
    fn into_response(self) -> Response {
        let mut response = self.0.status().into_response();
        self.0.add_fields(response.headers_mut());
        response
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Conditional {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
        let conditions = parts.extensions.get::<Conditions>().cloned();
        let none = || Conditions::layer_is_around().then(Conditions::none);
        conditions
            .or_else(none)
            .map(Self)
            .ok_or(MissingLayer { extractor: "Conditional", layer: "ConditionalLayer" })
    }
}
