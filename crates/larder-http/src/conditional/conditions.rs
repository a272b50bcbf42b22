//! The conditions of one request, and whether anybody checked them.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, Method, StatusCode};
use larder_semantics::validation::{self, Condition, GUARDS, SAVERS, Validators};

/// The conditions of a request. [`ConditionalLayer`](super::ConditionalLayer) puts them into its
/// extensions; a request without conditions has none.
#[derive(Clone, Debug)]
pub struct Conditions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    method: Method,
    fields: HeaderMap,
    checked: AtomicBool,
}

/// The answer to a request whose conditions are not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// 304: the client has what is current.
    NotModified(Validators),
    /// 412: the client acts on something that is no longer so.
    PreconditionFailed,
}

impl Unmet {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotModified(_) => StatusCode::NOT_MODIFIED,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        }
    }
}

impl Conditions {
    /// The conditions of a request.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        let mut fields = HeaderMap::new();
        for name in GUARDS.iter().chain(&SAVERS) {
            for value in headers.get_all(name) {
                fields.append(name, value.clone());
            }
        }
        let checked = AtomicBool::new(false);
        Self(Arc::new(Inner { method: method.clone(), fields, checked }))
    }

    /// No conditions: every check says to go on. For a request whose answer many will get.
    pub fn none() -> Self {
        Self::of(&Method::GET, &HeaderMap::new())
    }

    /// Whether the layer is around this task, so that a request without conditions can be told from a
    /// missing layer.
    pub fn layer_is_around() -> bool {
        is_around()
    }

    /// Checks all conditions against what is current, before the work is done.
    ///
    /// # Errors
    ///
    /// The answer, where the client has what is current (304) or acts on something that is no longer so
    /// (412).
    ///
    /// # Source
    ///
    /// [RFC 9110, section 13.2.2](https://www.rfc-editor.org/rfc/rfc9110#section-13.2.2)
    pub fn check(&self, current: impl Into<Validators>) -> Result<(), Unmet> {
        self.0.checked.store(true, Ordering::Release);
        let current = current.into();
        match validation::evaluate(&self.0.method, &self.0.fields, &current) {
            Condition::Proceed => Ok(()),
            Condition::NotModified => Err(Unmet::NotModified(current)),
            Condition::Failed => Err(Unmet::PreconditionFailed),
        }
    }

    /// Whether there are conditions that guard a change.
    pub fn has_guards(&self) -> bool {
        GUARDS.iter().any(|name| self.0.fields.contains_key(name))
    }

    pub(super) fn were_checked(&self) -> bool {
        self.0.checked.load(Ordering::Acquire)
    }

    pub(super) fn evaluate_savers(&self, current: &Validators) -> Condition {
        validation::evaluate_savers(&self.0.method, &self.0.fields, current)
    }
}

/// Whether a conditional layer is around what this thread polls now.
pub(crate) fn is_around() -> bool {
    AROUND.get()
}

/// Says so until it is dropped.
pub(super) struct Around(bool);

impl Around {
    pub(super) fn enter() -> Self {
        Self(AROUND.replace(true))
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        AROUND.set(self.0);
    }
}

thread_local! {
    static AROUND: Cell<bool> = const { Cell::new(false) };
}
