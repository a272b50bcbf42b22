//! Domain events of the application, and the handlers that return the targets which an event invalidates.

use std::{
    any::{Any, TypeId},
    collections::{HashMap, HashSet},
    error::Error,
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use crate::{bus::BoxFuture, target::Invalidation};

/// An event that a transaction can leave in its outbox, for processes that may run another version of the program.
///
/// # Examples
///
/// ```
/// use larder_core::events::StoredEvent;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Serialize, Deserialize)]
/// struct ProductUpdated { id: u64, category: u64 }
///
/// impl StoredEvent for ProductUpdated {
///     const NAME: &'static str = "product-updated-1";
/// }
/// ```
pub trait StoredEvent: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The name of the event and its version. A change after which an older program would misread the event needs a new
    /// name. A process that follows the outbox, and has not called
    /// [`Larder::receive_stored`](crate::Larder::receive_stored) for the name, invalidates everything.
    const NAME: &'static str;
}

/// The invalidations that a handler returns: a target, several targets, an [`Invalidation`], or several of them.
#[derive(Clone, Debug, Default)]
pub struct Invalidations(pub(crate) Vec<Invalidation>);

impl<I: Into<Invalidation>> From<I> for Invalidations {
    fn from(invalidation: I) -> Self {
        Self(vec![invalidation.into()])
    }
}

impl From<Vec<Invalidation>> for Invalidations {
    fn from(all: Vec<Invalidation>) -> Self {
        Self(all)
    }
}

impl<const N: usize> From<[Invalidation; N]> for Invalidations {
    fn from(all: [Invalidation; N]) -> Self {
        Self(all.into())
    }
}

/// The error of a handler, of any type.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// The error of an event: handlers failed, so that some of its invalidations are missing. Those of the other handlers
/// are in effect. Emitting the event again is harmless.
#[derive(Debug)]
pub struct EmitError {
    pub(crate) event: &'static str,
    pub(crate) failures: Vec<HandlerError>,
}

impl EmitError {
    /// Returns the errors of the handlers.
    pub fn failures(&self) -> &[HandlerError] {
        &self.failures
    }
}

impl fmt::Display for EmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, failures } = self;
        write!(f, "{} handler(s) of the event {event} failed", failures.len())?;
        failures.first().map_or(Ok(()), |first| write!(f, ": {first}"))
    }
}

impl Error for EmitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failures.first().map(|first| &**first as _)
    }
}

pub(crate) type ErasedEvent = Arc<dyn Any + Send + Sync>;
pub(crate) type Handler = Arc<
    dyn Fn(ErasedEvent) -> BoxFuture<'static, Result<Invalidations, HandlerError>> + Send + Sync,
>;
pub(crate) type Decoder = Arc<dyn Fn(&[u8]) -> Result<ErasedEvent, HandlerError> + Send + Sync>;

/// The handlers of a larder, by the types of their events.
#[derive(Default)]
pub(crate) struct EventHandlers {
    handlers: Mutex<HashMap<TypeId, Vec<Handler>>>,
    /// The stored events that have handlers, by their names.
    pub(crate) stored: Mutex<HashMap<&'static str, (TypeId, Decoder)>>,
    /// The events without a handler that were reported.
    reported: Mutex<HashSet<String>>,
}

impl fmt::Debug for EventHandlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventHandlers").finish_non_exhaustive()
    }
}

impl EventHandlers {
    pub(crate) fn add(&self, event: TypeId, handler: Handler) {
        self.handlers.lock().entry(event).or_default().push(handler);
    }

    pub(crate) fn of(&self, event: TypeId) -> Vec<Handler> {
        self.handlers.lock().get(&event).cloned().unwrap_or_default()
    }

    pub(crate) fn report(&self, event: &str) {
        if self.reported.lock().insert(event.to_owned()) {
            tracing::warn!(target: "larder", event, "the event has no handler in this process (logged once)");
        }
    }
}
