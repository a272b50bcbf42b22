//! Domain events: what happened in the application, and the handlers that say what it invalidates.

use std::{
    any::{Any, TypeId, type_name},
    collections::{HashMap, HashSet},
    error::Error,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures_util::{FutureExt as _, future::join_all};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    bus::BoxFuture,
    kernel::Kernel,
    larder::Larder,
    target::{Invalidated, Invalidation},
};

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
    /// name. An event whose name no handler of a process knows invalidates everything there.
    const NAME: &'static str;
}

/// The invalidations that a handler returns: a target, several targets, an [`Invalidation`], or several of them.
#[derive(Clone, Debug, Default)]
pub struct Invalidations(Vec<Invalidation>);

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
    event: &'static str,
    failures: Vec<HandlerError>,
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

type ErasedEvent = Arc<dyn Any + Send + Sync>;
type Handler = Arc<
    dyn Fn(ErasedEvent) -> BoxFuture<'static, Result<Invalidations, HandlerError>> + Send + Sync,
>;
type Decoder = Arc<dyn Fn(&[u8]) -> Result<ErasedEvent, HandlerError> + Send + Sync>;

/// The handlers of a larder, by the types of their events.
#[derive(Default)]
pub(crate) struct EventHandlers {
    handlers: Mutex<HashMap<TypeId, Vec<Handler>>>,
    /// The stored events that have handlers, by their names.
    stored: Mutex<HashMap<&'static str, (TypeId, Decoder)>>,
    /// The events without a handler that were reported.
    reported: Mutex<HashSet<String>>,
}

impl fmt::Debug for EventHandlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventHandlers").finish_non_exhaustive()
    }
}

impl EventHandlers {
    fn add(&self, event: TypeId, handler: Handler) {
        self.handlers.lock().entry(event).or_default().push(handler);
    }

    fn of(&self, event: TypeId) -> Vec<Handler> {
        self.handlers.lock().get(&event).cloned().unwrap_or_default()
    }

    fn report(&self, event: &str) {
        if self.reported.lock().insert(event.to_owned()) {
            tracing::warn!(target: "larder", event, "the event has no handler, so it invalidates nothing (logged once)");
        }
    }
}

impl Larder {
    /// Registers a handler for events of type `E`: it returns what an event invalidates. Register all handlers at the
    /// start of each process; a larder and its namespaces share them.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::{Larder, Target};
    ///
    /// #[derive(Clone)]
    /// struct ProductUpdated { id: u64, category: u64 }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// larder.on(|event: &ProductUpdated| {
    ///     [Target::tag(("product", event.id)), Target::tag(("category", event.category))]
    /// });
    ///
    /// let names = larder.values::<String>(Duration::from_secs(60));
    /// names.get_or_load(("product", 42), |_| async { Ok::<_, Infallible>("old".to_owned()) }).await?;
    /// // ... write, commit, then:
    /// larder.emit(&ProductUpdated { id: 42, category: 7 }).await?;
    /// assert_eq!(names.get(("product", 42)).await, None);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("event invalidation", "domain event", "subscribe"))]
    pub fn on<E, R>(&self, handler: impl Fn(&E) -> R + Send + Sync + 'static)
    where
        E: Any + Send + Sync,
        R: Into<Invalidations>,
    {
        let handler: Handler = Arc::new(move |event| {
            let event = event.downcast::<E>().expect("handlers are found by the type of the event");
            // It is called here, so that a panic is one of the future.
            let invalidations =
                std::panic::catch_unwind(AssertUnwindSafe(|| handler(&event).into()));
            Box::pin(async move { invalidations.map_err(|_| "the handler panicked".into()) })
        });
        self.kernel().engine().events.add(TypeId::of::<E>(), handler);
    }

    /// Registers a handler that has to look something up, such as the lists that contain a product. It runs after the
    /// commit, and may fail: then [`emit`](Self::emit) returns an error, and an event in an outbox stays there.
    ///
    /// # Examples
    ///
    /// ```
    /// use larder_core::{Larder, Target};
    ///
    /// #[derive(Clone)]
    /// struct ProductUpdated { id: u64 }
    ///
    /// # async fn categories_of(_: u64) -> std::io::Result<Vec<u64>> { Ok(vec![7]) }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// larder.on_async(|event: ProductUpdated| async move {
    ///     let categories = categories_of(event.id).await?; // SELECT
    ///     let targets = categories.into_iter().map(|id| Target::tag(("category", id)));
    ///     Ok::<_, std::io::Error>(targets.collect::<Vec<_>>())
    /// });
    /// larder.emit(&ProductUpdated { id: 42 }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_async<E, F, Fut, R, X>(&self, handler: F)
    where
        E: Any + Clone + Send + Sync,
        F: Fn(E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, X>> + Send + 'static,
        R: Into<Invalidations>,
        X: Into<HandlerError>,
    {
        let handler: Handler = Arc::new(move |event| {
            let event = event.downcast::<E>().expect("handlers are found by the type of the event");
            let handling = handler(E::clone(&event));
            Box::pin(async move {
                let handled = AssertUnwindSafe(handling).catch_unwind().await;
                let handled = handled.map_err(|_| HandlerError::from("the handler panicked"))?;
                handled.map(Into::into).map_err(Into::into)
            })
        });
        self.kernel().engine().events.add(TypeId::of::<E>(), handler);
    }

    /// Lets the handlers of `E` receive events that transactions have left in an outbox, by the name of the event. Call
    /// it once for each stored event, beside its handlers.
    pub fn receive<E: StoredEvent>(&self) {
        let decode: Decoder = Arc::new(|body| {
            let event: E = serde_json::from_slice(body)?;
            Ok(Arc::new(event) as ErasedEvent)
        });
        let stored = (TypeId::of::<E>(), decode);
        self.kernel().engine().events.stored.lock().insert(E::NAME, stored);
    }

    /// Runs the handlers of an event, and then invalidates everything that they return, in one append for each mode and
    /// delay. After it has returned `Ok`, nothing of that is served that was read before, as after
    /// [`invalidate`](Self::invalidate). Call it after the write is committed.
    ///
    /// The invalidations apply in the namespace of this view. An event without a handler is logged once.
    ///
    /// # Errors
    ///
    /// If a handler fails or panics. The invalidations of the other handlers are in effect. Emit the event again, which
    /// is harmless, or clear the cache.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    #[doc(alias("publish", "dispatch", "event invalidation"))]
    pub async fn emit<E: Any + Clone + Send + Sync>(
        &self,
        event: &E,
    ) -> Result<Invalidated, EmitError> {
        self.kernel().emit(TypeId::of::<E>(), type_name::<E>(), Arc::new(event.clone())).await
    }
}

impl Kernel {
    /// Emits an event, as [`Larder::emit`] does.
    ///
    /// # Errors
    ///
    /// As [`Larder::emit`].
    pub(crate) async fn emit(
        &self,
        event: TypeId,
        name: &'static str,
        value: ErasedEvent,
    ) -> Result<Invalidated, EmitError> {
        let handlers = self.engine().events.of(event);
        if handlers.is_empty() {
            self.engine().events.report(name);
            return Ok(Invalidated::Logged);
        }
        let kernel = self.clone();
        // A caller that is dropped does not stop its event.
        let emitting = self.spawn(async move { kernel.handle(name, &handlers, &value).await });
        let cancelled = || "the runtime was shut down while the event was handled".into();
        emitting
            .await
            .unwrap_or_else(|_| Err(EmitError { event: name, failures: vec![cancelled()] }))
    }

    async fn handle(
        &self,
        name: &'static str,
        handlers: &[Handler],
        event: &ErasedEvent,
    ) -> Result<Invalidated, EmitError> {
        let handled = join_all(handlers.iter().map(|handler| handler(Arc::clone(event)))).await;
        let (mut all, mut failures) = (Vec::<Invalidation>::new(), Vec::new());
        for handled in handled {
            match handled {
                Ok(Invalidations(invalidations)) => all.extend(invalidations),
                Err(error) => failures.push(error),
            }
        }
        let invalidated = join_all(merged(all).into_iter().map(|one| self.invalidate(one))).await;
        if failures.is_empty() {
            Ok(invalidated.into_iter().reduce(Invalidated::worse).unwrap_or(Invalidated::Logged))
        } else {
            Err(EmitError { event: name, failures })
        }
    }

    /// Returns whether this larder receives stored events.
    pub fn receives_events(&self) -> bool {
        !self.engine().events.stored.lock().is_empty()
    }

    /// Encodes an event for an outbox.
    ///
    /// # Errors
    ///
    /// If the event cannot be serialised.
    pub fn stored_event<E: StoredEvent>(&self, event: &E) -> Result<String, HandlerError> {
        Ok(serde_json::to_string(event)?)
    }

    /// Emits an event that was read from an outbox. `None` if no handler knows its name.
    ///
    /// # Errors
    ///
    /// As [`Larder::emit`], and if the body cannot be read.
    pub async fn emit_stored(
        &self,
        name: &str,
        body: &[u8],
    ) -> Option<Result<Invalidated, EmitError>> {
        let found = {
            let stored = self.engine().events.stored.lock();
            stored.get_key_value(name).map(|(known, stored)| (*known, stored.clone()))
        };
        let Some((known, (event, decode))) = found else {
            self.engine().events.report(name);
            return None;
        };
        Some(match decode(body) {
            Ok(value) => self.emit(event, known, value).await,
            Err(error) => Err(EmitError { event: known, failures: vec![error] }),
        })
    }
}

/// Merges invalidations of the same mode and delay, which take one append together.
fn merged(all: Vec<Invalidation>) -> Vec<Invalidation> {
    let mut merged: Vec<Invalidation> = Vec::new();
    for one in all {
        let like = |other: &&mut Invalidation| (other.mode, other.after) == (one.mode, one.after);
        match merged.iter_mut().find(like) {
            Some(other) => other.targets.extend(one.targets),
            None => merged.push(one),
        }
    }
    merged.retain(|one| !one.targets.is_empty());
    merged
}
