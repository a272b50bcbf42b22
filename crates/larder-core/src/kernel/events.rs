//! Emits domain events: runs their handlers, and invalidates what these return.

use std::{any::TypeId, sync::Arc};

use futures_util::future::join_all;

use super::Kernel;
use crate::{
    events::{Decoder, EmitError, ErasedEvent, Handler, HandlerError, Invalidations, StoredEvent},
    target::{Invalidated, Invalidation},
};

impl Kernel {
    /// Emits an event, as [`Larder::emit`](crate::Larder::emit) does.
    ///
    /// # Errors
    ///
    /// As [`Larder::emit`](crate::Larder::emit).
    pub(crate) async fn emit(
        &self,
        event: TypeId,
        name: &'static str,
        value: ErasedEvent,
    ) -> Result<Invalidated, EmitError> {
        if self.is_in_shadow() {
            return Ok(Invalidated::Logged);
        }
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

    /// Lets the handlers of `E` receive stored events, as
    /// [`Larder::receive_stored`](crate::Larder::receive_stored) does.
    pub fn receive_stored<E: StoredEvent>(&self) {
        let decode: Decoder = Arc::new(|body| {
            let event: E = serde_json::from_slice(body)?;
            Ok(Arc::new(event) as ErasedEvent)
        });
        self.engine().events.stored.lock().insert(E::NAME, (TypeId::of::<E>(), decode));
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
    /// As [`Larder::emit`](crate::Larder::emit), and if the body cannot be read.
    pub async fn emit_stored(
        &self,
        name: &str,
        body: &[u8],
    ) -> Option<Result<Invalidated, EmitError>> {
        let found = {
            let stored = self.engine().events.stored.lock();
            stored.get_key_value(name).map(|(known, stored)| (*known, stored.clone()))
        };
        let has_handlers = |event| !self.engine().events.of(event).is_empty();
        let Some((known, (event, decode))) = found.filter(|(_, (event, _))| has_handlers(*event))
        else {
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
