//! The answers of a conditional layer: a response with its `ETag`, 304, 412 and 428.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::Body;
use larder_core::{Reason, kernel::Event};
use larder_semantics::{
    cache_control::CacheControl,
    validation::{Condition, Validators, belongs_in_not_modified, may_become_not_modified},
};

use super::{
    conditions::{Conditions, FailedPrecondition},
    layer::Options,
};
use crate::{
    body::{BoxError, CacheBody},
    body_key::is_read,
    etag,
    own_response::own_response,
};

/// The steps that finish a response: adding a validator, replacing it by a 304, and counting an unchecked precondition.
#[derive(Debug)]
pub(super) struct ResponseFinish {
    options: Arc<Options>,
    conditions: Option<Conditions>,
    is_get: bool,
    is_safe: bool,
}

impl ResponseFinish {
    pub(super) fn new<B>(
        options: &Arc<Options>,
        request: &Request<B>,
        conditions: Option<Conditions>,
    ) -> Self {
        Self {
            options: Arc::clone(options),
            conditions,
            is_get: *request.method() == Method::GET,
            is_safe: is_read(request),
        }
    }

    pub(super) fn has_conditions(&self) -> bool {
        self.conditions.is_some()
    }

    /// Whether this is a guarded change that must not proceed unless its precondition is checked.
    pub(super) fn refuses_unchecked(&self) -> bool {
        let guarded = self.conditions.as_ref().is_some_and(Conditions::has_guards);
        self.options.refuse_unchecked && !self.is_safe && guarded
    }

    pub(super) fn check(&self, current: Validators) -> Result<(), FailedPrecondition> {
        self.conditions.as_ref().map_or(Ok(()), |conditions| conditions.check(current))
    }

    pub(super) fn finish<R>(&self, response: Response<R>) -> Response<CacheBody<R>>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        self.count_unchecked();
        let response = if self.is_get && wants_tag(&response) {
            with_tag(response, &self.options.version)
        } else {
            response.map(CacheBody::inner)
        };
        match &self.conditions {
            Some(conditions) if self.is_safe && may_become_not_modified(response.status()) => {
                let current = Validators::of(response.headers());
                match conditions.evaluate_not_modified(&current) {
                    Condition::NotModified => not_modified(response.headers()),
                    _ => response,
                }
            }
            _ => response,
        }
    }

    fn count_unchecked(&self) {
        let unchecked =
            |conditions: &Conditions| conditions.has_guards() && !conditions.were_checked();
        if !self.is_safe && self.conditions.as_ref().is_some_and(unchecked) {
            let now = self.options.kernel.now();
            self.options.meter.record(Event::Failed(Reason::UncheckedCondition), now);
        }
    }
}

fn wants_tag<R>(response: &Response<R>) -> bool {
    response.status() == StatusCode::OK
        && !response.headers().contains_key(header::ETAG)
        && !CacheControl::of(response.headers()).no_store
}

/// Adds an entity tag of the body, if the whole body is ready at once and at most [`LONGEST_TAGGED`] bytes long. larder
/// polls the body as the client would; if it is not ready, the client gets the frames that were already read before the
/// rest.
fn with_tag<R>(response: Response<R>, version: &str) -> Response<CacheBody<R>>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let (mut head, body) = response.into_parts();
    let short = body.size_hint().upper().is_some_and(|bytes| bytes <= LONGEST_TAGGED);
    if !short {
        return Response::from_parts(head, CacheBody::inner(body));
    }
    let body = CacheBody::read_ahead(body, None);
    if let Some(whole) = body.as_held() {
        etag::add(&mut head.headers, whole, version);
    }
    Response::from_parts(head, body)
}

/// Builds the 304 that replaces a 200.
pub(crate) fn not_modified<R>(fields: &HeaderMap) -> Response<CacheBody<R>> {
    let mut response = Response::new(CacheBody::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    let has_etag = fields.contains_key(header::ETAG);
    let belongs = |name| belongs_in_not_modified(name, has_etag);
    for (name, value) in fields.iter().filter(|(name, _)| belongs(name)) {
        response.headers_mut().append(name, value.clone());
    }
    response
}

/// Builds the response that refuses a change.
pub(super) fn refusal<B, R>(status: StatusCode, request: &Request<B>) -> Response<CacheBody<R>> {
    tracing::debug!(target: "larder", method = %request.method(), %status, "refused a change: its precondition is missing, or the layer cannot check it");
    let text = match status {
        StatusCode::PRECONDITION_REQUIRED => {
            "this change needs a precondition: send If-Match with the current ETag, or If-None-Match: * to create a resource\n"
        }
        _ => "this route cannot check the precondition of the request, so nothing was changed\n",
    };
    own_response(status, text)
}

/// Builds the answer to a request whose precondition is false.
pub(super) fn unmet_answer<R>(unmet: &FailedPrecondition) -> Response<CacheBody<R>> {
    let mut response = Response::new(CacheBody::empty());
    *response.status_mut() = unmet.status();
    unmet.add_fields(response.headers_mut());
    response
}

/// The length of the longest body that gets an entity tag. Hashing such a body takes about a tenth of a millisecond.
const LONGEST_TAGGED: u64 = 1 << 20;
