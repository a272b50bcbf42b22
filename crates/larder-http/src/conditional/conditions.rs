//! The preconditions of one request, and whether they were checked.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use larder_semantics::{
    date,
    validation::{self, CACHE_VALIDATION, Condition, Validators, WRITE_PRECONDITIONS},
};

/// The preconditions of a request. [`ConditionalLayer`](super::ConditionalLayer) puts them into the extensions of the
/// request; a request without preconditions does not have this extension.
#[derive(Clone, Debug)]
pub struct Conditions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    method: Method,
    fields: HeaderMap,
    checked: AtomicBool,
}

/// The answer to a request whose preconditions are not met.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailedPrecondition {
    /// 304: the client has the current representation.
    NotModified(Validators),
    /// 412: the current state does not meet a precondition.
    PreconditionFailed,
}

impl FailedPrecondition {
    /// Returns the status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotModified(_) => StatusCode::NOT_MODIFIED,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        }
    }

    /// Adds the known validators, `ETag` and `Last-Modified`, to a 304, for the next request of the client.
    ///
    /// # Source
    ///
    /// [RFC 9110, section 15.4.5](https://www.rfc-editor.org/rfc/rfc9110#section-15.4.5)
    pub fn add_fields(&self, headers: &mut HeaderMap) {
        let Self::NotModified(current) = self else { return };
        if let Some(etag) = &current.etag {
            headers.insert(header::ETAG, etag.to_value());
        }
        if let Some(changed) = current.last_modified
            && let Ok(date) = HeaderValue::from_str(&date::format(changed))
        {
            headers.insert(header::LAST_MODIFIED, date);
        }
    }
}

impl Conditions {
    /// Reads the preconditions of a request.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        let mut fields = HeaderMap::new();
        for name in WRITE_PRECONDITIONS.iter().chain(&CACHE_VALIDATION) {
            for value in headers.get_all(name) {
                fields.append(name, value.clone());
            }
        }
        let checked = AtomicBool::new(false);
        Self(Arc::new(Inner { method: method.clone(), fields, checked }))
    }

    /// Creates an empty set, against which every check passes. A fill whose response is served to many clients has this
    /// set.
    pub fn none() -> Self {
        Self::of(&Method::GET, &HeaderMap::new())
    }

    /// Returns whether a conditional layer encloses this task. This distinguishes a request without preconditions from
    /// a route without the layer.
    pub fn layer_is_around() -> bool {
        is_around()
    }

    /// Checks all preconditions against the current validators, before the handler does its work.
    ///
    /// # Errors
    ///
    /// Returns the answer to send: 304 if the client has the current representation, 412 if the current state does not
    /// meet a precondition.
    ///
    /// # Source
    ///
    /// [RFC 9110, section 13.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-13.2.2)
    pub fn check(&self, current: impl Into<Validators>) -> Result<(), FailedPrecondition> {
        self.0.checked.store(true, Ordering::Release);
        let current = current.into();
        match validation::evaluate(&self.0.method, &self.0.fields, &current) {
            Condition::Proceed => Ok(()),
            Condition::NotModified => Err(FailedPrecondition::NotModified(current)),
            Condition::Failed => Err(FailedPrecondition::PreconditionFailed),
        }
    }

    /// Returns whether there are preconditions that guard a change. With an unsafe method, `If-None-Match` is such a
    /// precondition, because `*` forbids overwriting an existing resource.
    ///
    /// # Source
    ///
    /// [RFC 9110, section 13.1.2](https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2)
    pub fn has_guards(&self) -> bool {
        let guards = |name: &HeaderName| self.0.fields.contains_key(name);
        WRITE_PRECONDITIONS.iter().any(guards)
            || (!self.0.method.is_safe() && guards(&header::IF_NONE_MATCH))
    }

    pub(super) fn were_checked(&self) -> bool {
        self.0.checked.load(Ordering::Acquire)
    }

    pub(super) fn evaluate_not_modified(&self, current: &Validators) -> Condition {
        validation::evaluate_not_modified(&self.0.method, &self.0.fields, current)
    }
}

/// Whether a conditional layer encloses the future that this thread is polling.
pub(crate) fn is_around() -> bool {
    AROUND.get()
}

/// A guard that marks this thread as inside a conditional layer until it is dropped.
pub(super) struct InsideConditional(bool);

impl InsideConditional {
    pub(super) fn enter() -> Self {
        Self(AROUND.replace(true))
    }
}

impl Drop for InsideConditional {
    fn drop(&mut self) {
        AROUND.set(self.0);
    }
}

thread_local! {
    static AROUND: Cell<bool> = const { Cell::new(false) };
}
