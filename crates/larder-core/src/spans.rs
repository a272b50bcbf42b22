//! The `tracing` spans of larder, with attributes by the conventions of OpenTelemetry.
//!
//! | span | level | attributes |
//! |---|---|---|
//! | `larder.fill` | info | `larder.cache`, `larder.refresh`, `larder.outcome`, `larder.reason`, `http.route` |
//! | `larder.invalidate` | info | `larder.targets`, `larder.mode`, `larder.outcome` |
//! | `larder.second_level.read` | debug | `larder.keys` |
//! | `larder.second_level.write` | debug | |
//!
//! No attribute has a key, a tag or a path, since these can contain personal data.

#[cfg(feature = "second-level")]
use tracing::debug_span;
use tracing::{Span, field::Empty, info_span};

use crate::{metrics::Event, target::Mode};

/// Returns the span of a fill, within the span of the request that leads it.
pub(crate) fn fill(cache: &str, is_refresh: bool) -> Span {
    info_span!(
        target: "larder",
        "larder.fill",
        larder.cache = cache,
        larder.refresh = is_refresh,
        larder.outcome = Empty,
        larder.reason = Empty,
        http.route = Empty,
    )
}

/// Returns the span of an invalidation, from its effect in this process to the confirmation of the log.
pub(crate) fn invalidation(targets: usize, mode: Mode) -> Span {
    info_span!(
        target: "larder",
        "larder.invalidate",
        larder.targets = targets,
        larder.mode = if mode == Mode::Hard { "hard" } else { "soft" },
        larder.outcome = Empty,
    )
}

/// Returns the span of a read of the second level.
#[cfg(feature = "second-level")]
pub(crate) fn second_level_read(keys: usize) -> Span {
    debug_span!(target: "larder", "larder.second_level.read", larder.keys = keys)
}

/// Returns the span of a write to the second level.
#[cfg(feature = "second-level")]
pub(crate) fn second_level_write() -> Span {
    debug_span!(target: "larder", "larder.second_level.write")
}

impl Event {
    /// Notes the event as the outcome of the current span, which is that of a fill.
    pub fn note_in_span(self) {
        let span = Span::current();
        span.record("larder.outcome", self.name());
        if let Some(reason) = self.reason() {
            span.record("larder.reason", reason.as_str());
        }
    }
}

/// Notes the route of a fill in the current span.
pub fn note_route_in_span(template: &str) {
    Span::current().record("http.route", template);
}
