//! A call that found nothing, as the fill loop drives it.

use std::{any::Any, future::Future, marker::PhantomData, sync::Arc};

use super::{
    call::{Call, LookupResult},
    error::{Failure, LoadError},
    fill::LoadHandle,
    value::Answer,
};
use crate::{
    entry::AnyEntry,
    flight::{FlightRole, Leader},
    kernel::{FillRequest, Kernel},
    metrics::Event,
    reason::Reason,
    scope::{Scope, ScopeContents, ScopeOwner},
};

/// A call with its loader, as the fill loop drives it.
pub(super) struct ValueRequest<'c, 'k, A: Answer, E, F> {
    pub(super) call: &'c mut Call<'k, A::Value>,
    load: Option<F>,
    /// The sequence number of this process when the call arrived.
    arrived: u64,
    stale: Option<AnyEntry>,
    typed: PhantomData<fn() -> (A, E)>,
}

impl<'c, 'k, A, E, F, Fut> ValueRequest<'c, 'k, A, E, F>
where
    A: Answer,
    E: Send + Sync + 'static,
    F: FnOnce(LoadHandle) -> Fut + Send + 'static,
    Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
{
    pub(super) fn new(call: &'c mut Call<'k, A::Value>, load: F) -> Self {
        let arrived = call.kernel.sequence();
        Self { call, load: Some(load), arrived, stale: None, typed: PhantomData }
    }

    pub(super) fn look(&mut self, is_first: bool) -> Option<Result<A, LoadError<E>>> {
        let call = &*self.call;
        match call.look() {
            Err(error) => return Some(Err(error)),
            Ok(LookupResult::Fresh(entry, value)) => {
                if is_first && call.is_due(&entry) {
                    let load = self.load.take().expect("a loader is taken once, at the end");
                    call.refresh::<A, E, F, Fut>(&entry, load);
                }
                return Some(Ok(call.hit(&entry, value)));
            }
            Ok(LookupResult::Stale(entry, value)) => {
                call.add_to_whole(&entry, true);
                call.record_served(Event::StaleHit, &entry, call.began);
                let load = self.load.take().expect("a loader is taken once, at the end");
                call.refresh::<A, E, F, Fut>(&entry, load);
                return Some(Ok(value));
            }
            Ok(LookupResult::OnError(entry)) => self.stale = Some(entry),
            Ok(LookupResult::Gone(event)) if is_first => call.record(event, call.began),
            Ok(LookupResult::Gone(_) | LookupResult::Nothing) => {}
        }
        let (note, failure) = call.failed_lately::<E>()?;
        call.record(Event::Miss, call.began);
        if let Some(value) = call.fall_back(self.stale.as_ref()) {
            return Some(Ok(value));
        }
        call.add_failure(&note);
        Some(Err(failure.into()))
    }
}

impl<A, E, F, Fut> FillRequest for ValueRequest<'_, '_, A, E, F>
where
    A: Answer,
    E: Send + Sync + 'static,
    F: FnOnce(LoadHandle) -> Fut + Send + 'static,
    Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
{
    type Output = Result<A, LoadError<E>>;
    type Failure = Failure<E>;

    fn kernel(&self) -> &Kernel {
        &self.call.kernel
    }

    fn scope(&self) -> &Scope {
        &self.call.scope
    }

    fn restamp(&mut self) {
        if self.call.opened == ScopeOwner::ThisCall {
            // This call has read nothing yet.
            self.call.scope = self.call.kernel.open_scope().bounded_as(&self.call.scope);
        }
    }

    fn join(&self) -> FlightRole {
        let Call { kernel, hash, key, scope, policy, .. } = &*self.call;
        kernel.join((*hash, key), scope, self.arrived, policy.coalesce_timeout)
    }

    fn take(&mut self, entry: &AnyEntry) -> Option<Self::Output> {
        if !self.call.is_young(entry) {
            return None;
        }
        let value = match self.call.value(entry) {
            Ok(value) => value?,
            Err(error) => return Some(Err(error)),
        };
        self.call.add_to_whole(entry, false);
        self.call.record_served(Event::Collapsed, entry, self.call.kernel.now());
        Some(Ok(value))
    }

    fn look_again(&mut self) -> Option<Self::Output> {
        self.look(false)
    }

    fn fall_back(
        &mut self,
        failure: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self::Output, Failure<E>> {
        if let Some(value) = self.call.fall_back(self.stale.as_ref()) {
            self.call.record(Event::Miss, self.call.began);
            return Ok(Ok(value));
        }
        let Some(failure) = failure else { return Err(Failure::Panic) };
        Err(failure.downcast_ref::<Failure<E>>().cloned().unwrap_or(Failure::Elsewhere))
    }

    async fn lead(self, leader: Leader) -> Self::Output {
        let load = self.load.expect("a loader is taken once, at the end");
        self.call.lead(leader, self.stale, load).await
    }

    async fn alone(self, reason: Reason) -> Self::Output {
        let event = match reason {
            Reason::SelfWaiting | Reason::Overtaken | Reason::Unsynchronised => {
                Event::Bypass(reason)
            }
            _ => Event::Miss,
        };
        self.call.record(event, self.call.began);
        let load = self.load.expect("a loader is taken once, at the end");
        self.call.alone(self.stale, load).await
    }

    async fn circle(self, names: Vec<String>) -> Self::Output {
        Err(LoadError::Circle { names })
    }

    fn fail(self, failure: Failure<E>) -> Self::Output {
        self.call.record(Event::Miss, self.call.began);
        self.call.record(Event::Failed(Reason::Anothers), self.call.began);
        self.call.scope.add_unstored(ScopeContents::default(), Reason::FailedPart);
        Err(failure.into())
    }
}
