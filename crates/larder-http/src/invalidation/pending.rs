//! What a handler asks to be invalidated.

use std::{
    cell::RefCell,
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use futures_util::FutureExt as _;
use larder_core::{
    Invalidated, Invalidation, Target,
    kernel::{Kernel, Scope},
};
use parking_lot::Mutex;

use super::layer::Options;

/// Where a handler says what its write has made untrue. [`InvalidationLayer`](super::InvalidationLayer)
/// puts it into the extensions of a request.
#[derive(Clone)]
pub struct PendingInvalidations {
    kernel: Kernel,
    targets: Arc<Mutex<Option<Vec<Target>>>>,
    afterwards: Arc<Mutex<Option<AfterCommit>>>,
    /// The partition of the request, where a response cache inside knows it.
    partition: Arc<OnceLock<Bytes>>,
}

/// What is to be done once a write has been invalidated and nothing else has.
type AfterCommit = Box<dyn FnOnce(Scope) + Send>;

impl PendingInvalidations {
    /// Collects until it is closed.
    pub(super) fn open(kernel: &Kernel) -> Self {
        Self {
            kernel: kernel.clone(),
            targets: Arc::new(Mutex::new(Some(Vec::new()))),
            afterwards: Arc::default(),
            partition: Arc::default(),
        }
    }

    /// Invalidates at once: for a request that nobody waits for to collect from.
    fn closed(kernel: &Kernel) -> Self {
        Self {
            kernel: kernel.clone(),
            targets: Arc::default(),
            afterwards: Arc::default(),
            partition: Arc::default(),
        }
    }

    /// The one that is around this task, if the layer is.
    pub fn current() -> Option<Self> {
        AROUND.with_borrow(|options| options.as_ref().map(|options| Self::closed(&options.kernel)))
    }

    /// Invalidates this with the response. Once the head of the response has left, and where no response is waited
    /// for (a request that changes nothing), at once: when this returns it acts in this process.
    ///
    /// # Panics
    ///
    /// At once, where the log is shared with other processes: outside a tokio runtime.
    pub fn add(&self, target: impl Into<Target>) {
        let target = target.into();
        let late = match &mut *self.targets.lock() {
            Some(targets) => {
                targets.push(target);
                return;
            }
            None => target,
        };
        // It acts when it is first polled, and what is left of it runs on by itself.
        let _acting = self.kernel.invalidate(late).now_or_never();
    }

    /// Invalidates now, and returns when it has acted here.
    pub async fn now(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        self.kernel.invalidate(invalidation).await
    }

    pub(crate) fn is_of(&self, kernel: &Kernel) -> bool {
        self.kernel.is_same_as(kernel)
    }

    /// Does this once the write has been invalidated, if nothing else was meanwhile.
    pub(crate) fn afterwards(&self, act: impl FnOnce(Scope) + Send + 'static) {
        *self.afterwards.lock() = Some(Box::new(act));
    }

    /// Notes the partition of the request.
    pub(crate) fn note_partition(&self, partition: Bytes) {
        drop(self.partition.set(partition));
    }

    pub(super) fn partition(&self) -> Option<Bytes> {
        self.partition.get().cloned()
    }

    pub(super) fn take_afterwards(&self) -> Option<AfterCommit> {
        self.afterwards.lock().take()
    }

    /// What was asked for. What is asked for from now on is invalidated at once.
    pub(super) fn close(&self) -> Vec<Target> {
        self.targets.lock().take().unwrap_or_default()
    }
}

impl fmt::Debug for PendingInvalidations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingInvalidations")
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

/// The layer that is around what this thread polls, until it is dropped: then the one around that is again.
///
/// It swaps places with the other one. A clone for each poll would cost every hit four locked instructions.
pub(super) struct PendingGuard<'a>(&'a mut Option<Arc<Options>>);

impl<'a> PendingGuard<'a> {
    pub(super) fn new(options: &'a mut Option<Arc<Options>>) -> Self {
        AROUND.with_borrow_mut(|around| std::mem::swap(around, options));
        Self(options)
    }
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        AROUND.with_borrow_mut(|around| std::mem::swap(around, self.0));
    }
}

thread_local! {
    static AROUND: RefCell<Option<Arc<Options>>> = const { RefCell::new(None) };
}
