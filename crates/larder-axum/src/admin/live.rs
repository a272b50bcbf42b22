//! Server-sent events: the counters of each second, for the dashboard and for `larder top`.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::stream;
use larder_core::{Stats, kernel::PastInvalidation};
use serde::Serialize;

use super::Admin;

/// What changed in a second.
#[derive(Debug, Serialize)]
struct LiveEvent {
    stats: Stats,
    /// The invalidations since the last event.
    invalidations: Vec<PastInvalidation>,
}

/// Returns the body of a stream that ends when its client disconnects.
pub(super) fn body(admin: Arc<Admin>) -> Body {
    let state = (admin, None::<tokio::time::Interval>, 0);
    Body::from_stream(stream::unfold(state, async |(admin, interval, last)| {
        let mut interval = interval.unwrap_or_else(|| tokio::time::interval(SECOND));
        interval.tick().await;
        let kernel = admin.larder.kernel();
        kernel.ask_for_usage().await;
        let invalidations = kernel.past_invalidations(last);
        let last = invalidations.last().map_or(last, |latest| latest.number);
        let event = LiveEvent { stats: admin.larder.stats(), invalidations };
        let json = serde_json::to_string(&event).expect("counters are JSON");
        let event = Bytes::from(format!("data: {json}\n\n"));
        Some((Ok::<_, std::convert::Infallible>(event), (admin, Some(interval), last)))
    }))
}

const SECOND: Duration = Duration::from_secs(1);
