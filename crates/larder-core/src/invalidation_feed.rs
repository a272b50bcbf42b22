//! The invalidations as they act in this process, for the application.

use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    bus::{Record, WriterId},
    larder::Larder,
    target::{Mode, Selector},
};

/// What was invalidated, by whom, in the order of the log.
#[derive(Clone, Debug)]
pub struct InvalidationEvent {
    /// Hard or soft.
    pub mode: Mode,
    /// What was named, with what the rules added.
    pub what: Vec<Selector>,
    /// Whether this process said so.
    pub own: bool,
    /// Whether this stands for what was not heard one by one: it names at least as much, and anybody may have said
    /// it, this process too.
    pub missed: bool,
}

/// What is told, and whether it stands for more than one.
#[derive(Clone, Debug)]
pub(crate) struct FeedMessage {
    pub(crate) record: Record,
    pub(crate) missed: bool,
}

/// The invalidations from now on.
#[derive(Debug)]
pub struct InvalidationFeed {
    records: broadcast::Receiver<FeedMessage>,
    origin: WriterId,
}

impl Larder {
    /// The invalidations of all processes that share the log, from now on, as they act here: to drop what the
    /// application keeps elsewhere, or to tell a delivery network.
    #[doc(alias("subscribe", "invalidation events", "change feed"))]
    pub fn invalidations(&self) -> InvalidationFeed {
        let engine = self.kernel().engine();
        InvalidationFeed { records: engine.feed.subscribe(), origin: engine.origin }
    }
}

impl InvalidationFeed {
    /// The next one. `None` once the larder is gone.
    ///
    /// Whoever is more than a thousand behind has missed some, and is told that everything was invalidated.
    pub async fn next(&mut self) -> Option<InvalidationEvent> {
        match self.records.recv().await {
            Ok(FeedMessage { record, missed }) => Some(InvalidationEvent {
                mode: record.mode,
                what: record.what,
                own: record.origin == self.origin,
                missed,
            }),
            Err(RecvError::Lagged(_)) => {
                let what = vec![Selector::Everything];
                Some(InvalidationEvent { mode: Mode::Hard, what, own: false, missed: true })
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// How far behind a reader may be.
pub(crate) const FEED_LENGTH: usize = 1024;
