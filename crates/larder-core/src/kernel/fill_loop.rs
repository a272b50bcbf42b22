//! The fill loop: a call or request that found nothing leads a fill, waits for a fill in flight, or continues alone.
//!
//! Values and responses take part in single flight by the same rules:
//!
//! 1. Join. A leader fills; a request that would wait for itself continues alone.
//! 2. A waiter may read a response while it streams only if its fill began after the request arrived.
//! 3. The waiter takes the result of a fill without a further check only if the request arrived before the fill began.
//!    Any other result must be as fresh and valid as a hit.
//! 4. After each wait the loop checks again that the process is close enough to the end of the log.
//! 5. A waiter whose patience ends joins again, and one of these waiters leads a fill in parallel to the slow fill.
//! 6. Before a waiter joins again for another reason, it looks the entry up, and takes a new stamp if it has read
//!    nothing yet, so that one new fill can serve all waiters.
//! 7. After four results that it could not use, it continues alone; after four failures it returns the last failure,
//!    rather than send one more request to an origin in trouble.

use std::{any::Any, future::Future, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::Kernel;
use crate::{
    engine::EntryState,
    entry::AnyEntry,
    flight::{FlightResult, FlightRole, Leader, Progress, Waiter},
    reason::Reason,
    scope::Scope,
};

/// A call or request that takes part in single flight.
///
/// It has twelve methods, of which two have defaults. Six are one-line accessors and checks, and the four methods that
/// end the loop consume the request.
pub trait FillRequest: Sized + Send {
    /// The answer to the request, or its error.
    type Output: Send;
    /// The error of a fill, as waiters get it.
    type Failure: Send;

    /// The kernel of the cache.
    fn kernel(&self) -> &Kernel;

    /// The scope whose stamp a fill takes.
    fn scope(&self) -> &Scope;

    /// Takes a new stamp, if nothing was read under the present stamp.
    fn restamp(&mut self);

    /// Joins the fill of the key, as its leader or as a waiter. [`FlightRole::Alone`] for a request that may not wait.
    fn join(&self) -> FlightRole;

    /// Returns the answer from the entry of another fill, if the entry is fit for this request (variant, audience,
    /// type).
    fn take(&mut self, entry: &AnyEntry) -> Option<Self::Output>;

    /// Returns the answer from a response in flight, if this request may read it while it streams.
    fn read_along(&mut self, _: Arc<dyn Any + Send + Sync>) -> Option<Self::Output> {
        None
    }

    /// Looks the entry up again after a wait.
    fn look_again(&mut self) -> Option<Self::Output>;

    /// Returns a stale answer in place of the failure of another request's fill. `failure` is `None` if the leader
    /// panicked or was dropped.
    ///
    /// # Errors
    ///
    /// The failure, if there is no stale answer.
    fn fall_back(
        &mut self,
        failure: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self::Output, Self::Failure>;

    /// Leads a fill.
    fn lead(self, leader: Leader) -> impl Future<Output = Self::Output> + Send;

    /// Continues without single flight, for this reason.
    fn alone(self, reason: Reason) -> impl Future<Output = Self::Output> + Send;

    /// Refuses to wait in a circle of fills with these names, the outermost first. Continues alone by default.
    fn circle(self, _: Vec<String>) -> impl Future<Output = Self::Output> + Send {
        self.alone(Reason::SelfWaiting)
    }

    /// Returns the last failure after the maximum number of failed fills.
    fn fail(self, failure: Self::Failure) -> Self::Output;
}

/// Runs the fill loop for a request that found nothing.
pub async fn fill_or_wait<R: FillRequest>(mut request: R) -> R::Output {
    let mut failure = None;
    let mut looks = 0;
    while looks < MAX_LOOKS {
        if looks > 0 {
            request.restamp();
        }
        let waiter = match request.join() {
            FlightRole::Leader(leader) => return request.lead(leader).await,
            FlightRole::Waiter(waiter) => waiter,
            FlightRole::Alone => return request.alone(Reason::SelfWaiting).await,
            FlightRole::Circle(names) => return request.circle(names).await,
        };
        match wait(&mut request, waiter).await {
            WaitOutcome::Answer(answer) => return answer,
            // The fill is slow, so the next `join` leads a second fill in parallel, or waits for one that another
            // request leads.
            WaitOutcome::Long => continue,
            WaitOutcome::Again => failure = None,
            WaitOutcome::Failed(error) => failure = Some(error),
            WaitOutcome::Alone(reason) => return request.alone(reason).await,
        }
        looks += 1;
        if let Some(answer) = request.look_again() {
            return answer;
        }
    }
    match failure {
        Some(failure) => request.fail(failure),
        None => request.alone(Reason::Overtaken).await,
    }
}

async fn wait<R: FillRequest>(
    request: &mut R,
    mut waiter: Waiter,
) -> WaitOutcome<R::Output, R::Failure> {
    let until = Instant::now() + waiter.patience().min(LONGEST_WAIT);
    let result = match timeout_at(until, waiter.progress()).await {
        Ok(Progress::Done(result)) => result,
        Ok(Progress::Streaming(_)) if !is_trusted(request) => {
            return WaitOutcome::Alone(Reason::Unsynchronised);
        }
        Ok(Progress::Streaming(stream)) => match request.read_along(stream) {
            Some(answer) => return WaitOutcome::Answer(answer),
            None => match timeout_at(until, waiter.result()).await {
                Ok(result) => result,
                Err(_) => return WaitOutcome::Long,
            },
        },
        Err(_) => return WaitOutcome::Long,
    };
    match result {
        _ if !is_trusted(request) => WaitOutcome::Alone(Reason::Unsynchronised),
        FlightResult::Filled(entry)
            if waiter.arrived_before_fill() || is_fresh(request, &entry) =>
        {
            request.take(&entry).map_or(WaitOutcome::Again, WaitOutcome::Answer)
        }
        FlightResult::Filled(_) | FlightResult::Withdrawn => WaitOutcome::Again,
        FlightResult::NotShared(reason) => WaitOutcome::Alone(reason),
        FlightResult::Abandoned => fallen_back(request.fall_back(None)),
        FlightResult::Failed(failure) => fallen_back(request.fall_back(Some(failure))),
    }
}

fn fallen_back<O, F>(outcome: Result<O, F>) -> WaitOutcome<O, F> {
    outcome.map_or_else(WaitOutcome::Failed, WaitOutcome::Answer)
}

fn is_trusted<R: FillRequest>(request: &R) -> bool {
    request.kernel().is_within_bound_of(request.scope())
}

fn is_fresh<R: FillRequest>(request: &R, entry: &AnyEntry) -> bool {
    let kernel = request.kernel();
    kernel.entry_state(entry, kernel.now()) == EntryState::Fresh
}

/// The outcome of waiting for the fill of another request.
enum WaitOutcome<O, F> {
    Answer(O),
    /// The fill ended without a usable result.
    Again,
    /// The fill is not done within the patience of this request.
    Long,
    Failed(F),
    Alone(Reason),
}

/// Maximum number of results of other fills that a request looks at before it continues alone.
const MAX_LOOKS: usize = 4;
/// A longer patience is treated as endless.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
pub(crate) mod row_request;
#[cfg(test)]
mod tests;
