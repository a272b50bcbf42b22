//! A feed of the invalidations that act in this process, for the application.

use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    bus::{Record, WriterId},
    record_note::RecordNote,
    target::{Mode, Selector},
};

/// An invalidation as the feed reports it, in the order of the log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InvalidationEvent {
    /// Hard or soft.
    pub mode: Mode,
    /// The invalidated targets, including targets that rules added.
    pub what: Vec<Selector>,
    /// Whether this larder appended it.
    pub own: bool,
    /// Whether this stands for invalidations that the feed could not report individually. It names at least their
    /// targets, and any process may have appended them, including this process.
    pub missed: bool,
    /// Its reason and its actor, if it has any.
    pub note: RecordNote,
}

/// A record for the feeds, and whether it stands for missed records.
#[derive(Clone, Debug)]
pub(crate) struct FeedMessage {
    pub(crate) record: Record,
    pub(crate) missed: bool,
}

/// A receiver of invalidations, which [`Larder::invalidations`](crate::Larder::invalidations) returns.
#[derive(Debug)]
pub struct InvalidationFeed {
    records: broadcast::Receiver<FeedMessage>,
    origin: WriterId,
}

impl InvalidationFeed {
    pub(crate) fn new(records: broadcast::Receiver<FeedMessage>, origin: WriterId) -> Self {
        Self { records, origin }
    }

    /// Waits for the next invalidation. `None` once the larder was dropped.
    ///
    /// A receiver that lags more than 1,024 invalidations behind misses some of them, and then gets one event that
    /// invalidates everything.
    pub async fn next(&mut self) -> Option<InvalidationEvent> {
        match self.records.recv().await {
            Ok(FeedMessage { record, missed }) => Some(InvalidationEvent {
                mode: record.mode,
                what: record.what,
                own: record.origin == self.origin,
                missed,
                note: record.note,
            }),
            Err(RecvError::Lagged(_)) => {
                let what = vec![Selector::Everything];
                Some(InvalidationEvent {
                    mode: Mode::Hard,
                    what,
                    own: false,
                    missed: true,
                    note: RecordNote::default(),
                })
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// How many invalidations a receiver may lag behind.
pub(crate) const FEED_LENGTH: usize = 1024;
