//! Server-sent events: the counters of each second, for the dashboard and for `larder top`.
//!
//! A stream ends after half a minute, and its client begins the next where it ended. So a server that shuts down gracefully
//! does not wait for it longer, and an actor whose access ended reads no further.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::stream;
use http::StatusCode;
use larder_core::{Stats, kernel::PastInvalidation};
use serde::Serialize;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{Admin, query::ClientError, sessions::Session};

/// What changed in a second.
#[derive(Debug, Serialize)]
struct LiveEvent {
    stats: Stats,
    /// The invalidations since the last event.
    invalidations: Vec<PastInvalidation>,
}

/// A stream of events.
struct LiveStream {
    admin: Arc<Admin>,
    /// The session of its actor, if that is a browser.
    session: Option<Session>,
    interval: Interval,
    /// The number of events that may still be sent.
    events_left: u32,
    /// The number of the last invalidation that was sent.
    last: u64,
    _permit: OwnedSemaphorePermit,
}

/// Returns the body of a stream that begins after the invalidation with this number.
pub(super) fn body(
    admin: &Arc<Admin>,
    session: Option<Session>,
    last: u64,
) -> Result<Body, ClientError> {
    let permit = Arc::clone(&admin.live_streams).try_acquire_owned().map_err(|_| {
        let text = format!("there are {MOST_STREAMS} streams, which is the most that is allowed");
        ClientError::new(StatusCode::SERVICE_UNAVAILABLE, text)
    })?;
    let mut interval = interval(SECOND);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let admin = Arc::clone(admin);
    let events_left = MOST_EVENTS;
    let stream = LiveStream { admin, session, interval, events_left, last, _permit: permit };
    Ok(Body::from_stream(stream::unfold(stream, async |mut stream| {
        let event = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), stream))
    })))
}

impl LiveStream {
    async fn next(&mut self) -> Option<Bytes> {
        self.events_left = self.events_left.checked_sub(1)?;
        self.interval.tick().await;
        let admin = &self.admin;
        if self.session.as_ref().is_some_and(|session| !admin.sessions.has(session)) {
            return None;
        }
        let kernel = admin.larder.kernel();
        kernel.ask_for_usage().await;
        let invalidations = kernel.past_invalidations(self.last, admin.partitions);
        self.last = invalidations.last().map_or(self.last, |latest| latest.number);
        let event = LiveEvent { stats: admin.larder.stats(), invalidations };
        let json = serde_json::to_string(&event).expect("counters are JSON");
        // With this identifier the client begins the next stream, a second after the last event.
        let id = format!("{}-{}", admin.instance, self.last);
        Some(format!("id: {id}\nretry: 1000\ndata: {json}\n\n").into())
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// The number of events of a stream, of which there is one each second.
const MOST_EVENTS: u32 = 30;
/// The number of streams at once.
pub(super) const MOST_STREAMS: usize = 32;
