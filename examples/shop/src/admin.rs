//! Authorisation of product changes.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header, request::Parts};

use crate::{App, secret};

/// The token that authorises product changes.
#[derive(Clone, Debug)]
pub(crate) struct AdminToken(Arc<str>);

impl AdminToken {
    pub(crate) fn new(given: Option<&str>) -> Self {
        let random = || format!("{:032x}", secret());
        Self(given.map_or_else(random, str::to_owned).into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Compares in constant time for tokens of the right length.
    fn is(&self, given: &str) -> bool {
        let differences = self.0.bytes().zip(given.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
        self.0.len() == given.len() && differences == 0
    }
}

/// Proof that the request has the token.
#[derive(Debug)]
pub(crate) struct Admin;

/// The request has no token, or the wrong one.
#[derive(Debug)]
pub(crate) struct NotAllowed;

impl IntoResponse for NotAllowed {
    fn into_response(self) -> Response {
        let text = "changing a product needs the header Authorization: Bearer TOKEN, \
                    with the token that the shop prints at its start\n";
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
    }
}

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = NotAllowed;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, NotAllowed> {
        let given = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = given.and_then(|given| {
            let (scheme, token) = given.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
        });
        token.filter(|token| app.admin.is(token)).map(|_| Self).ok_or(NotAllowed)
    }
}
