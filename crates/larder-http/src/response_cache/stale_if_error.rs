//! Stale-if-error: larder serves a stale response in place of an error, within its stale window.
//!
//! # Source
//!
//! [RFC 5861, section 4](https://www.rfc-editor.org/rfc/rfc5861#section-4)

use http::{Response, StatusCode};
use larder_core::{
    Reason,
    kernel::{AnyEntry, EntryState, Event},
};
use larder_semantics::cache_status::{CacheStatus, Forward, Handling};

use super::{
    answer::cache_status::own_status,
    context::aged_for,
    fill::{Answer, shared_error::SharedFailure, storage_decision::is_error},
    lookup::Lookup,
    stored,
};
use crate::body::CacheBody;

impl Lookup {
    /// Returns a stale response in place of the failure of another request's fill, or else that failure.
    pub(super) fn fall_back<R>(
        &self,
        failure: Option<&SharedFailure>,
        fallback: Option<&AnyEntry>,
    ) -> Result<Response<CacheBody<R>>, SharedFailure> {
        match self.usable(fallback) {
            Some(entry) => {
                self.record(Event::Miss);
                Ok(self.stale(&entry, Event::StaleOnError, Some(Reason::Origin.as_str())))
            }
            None => Err(failure.cloned().unwrap_or(SharedFailure::with_status(PANICKED))),
        }
    }

    /// Replaces an error by the stale response, if that response may still be served.
    pub(super) fn or_stale<R, E>(
        &self,
        answer: Answer<R, E>,
        fallback: Option<&AnyEntry>,
    ) -> Answer<R, E> {
        let failed = match &answer {
            Ok(response) => is_error(response.status()),
            Err(_) => true,
        };
        let status = answer.as_ref().ok().map(|response| response.status().as_u16());
        match self.usable(fallback) {
            Some(entry) if failed => {
                self.record(Event::StaleOnError);
                let handling =
                    Handling::Forward { why: Forward::Stale, stored: false, collapsed: false };
                let status = CacheStatus {
                    fwd_status: status,
                    detail: Some(Reason::Origin.as_str()),
                    ..own_status(handling)
                };
                Ok(self.noted(&entry, status, "stale"))
            }
            _ => answer,
        }
    }

    /// Returns the stale response, if it may replace an error. It may not if it was invalidated during the fill.
    fn usable(&self, fallback: Option<&AnyEntry>) -> Option<AnyEntry> {
        let entry = fallback.filter(|_| self.is_trusted())?;
        let kernel = &self.context.kernel;
        let now = kernel.now();
        let welcome = || {
            let stale_for = aged_for(entry, now).stale_for;
            let may = stored::of(entry).is_some_and(|stored| stored.traits.may_go_stale);
            may && self.directives.stale_if_error.is_some_and(|most| stale_for <= most)
        };
        let usable = match kernel.entry_state(entry, now) {
            EntryState::WhileRevalidating => entry.ends().on_error_until() > now || welcome(),
            EntryState::OnError => true,
            EntryState::ToRevalidate => welcome(),
            _ => false,
        };
        usable.then(|| entry.clone())
    }
}

/// The status for waiters of a fill that panicked or was dropped.
const PANICKED: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;
