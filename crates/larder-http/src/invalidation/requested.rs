//! The targets that a handler adds for invalidation.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use futures_util::FutureExt as _;
use larder_core::{
    Invalidated, Invalidation, Target,
    kernel::{Kernel, Scope},
};
use parking_lot::Mutex;

use super::layer::Options;

/// A handle with which a handler adds the targets that its write invalidates.
/// [`InvalidationLayer`](super::InvalidationLayer) puts it into the extensions of an unsafe request.
#[derive(Clone)]
pub struct PendingInvalidations {
    kernel: Kernel,
    state: Arc<State>,
}

/// The state of a write, which the handler, the response cache and the invalidation layer share.
#[derive(Default)]
struct State {
    /// The targets of a pending write; `None` if no write is pending.
    targets: Mutex<Option<Vec<Target>>>,
    afterwards: Mutex<Option<AfterCommit>>,
    /// The partition of the request, if a response cache inside of this layer has determined it.
    partition: OnceLock<Bytes>,
    /// Whether a response cache inside has recognized the request as a read.
    is_read: AtomicBool,
    /// The handle of the next invalidation layer outside.
    around: Option<PendingInvalidations>,
}

/// A callback that runs after larder has invalidated the targets of a write, if nothing else was invalidated during the
/// write.
type AfterCommit = Box<dyn FnOnce(Scope) + Send>;

impl PendingInvalidations {
    /// Creates a handle that collects targets until it is closed, inside of another handle.
    pub(super) fn open(kernel: &Kernel, around: Option<Self>) -> Self {
        let state = State { targets: Mutex::new(Some(Vec::new())), around, ..State::default() };
        Self { kernel: kernel.clone(), state: Arc::new(state) }
    }

    /// Creates a handle whose targets are thrown away.
    pub(crate) fn discarded(kernel: &Kernel) -> Self {
        Self::open(kernel, None)
    }

    /// Creates a handle that invalidates at once, for a request that is not a pending write.
    fn closed(kernel: &Kernel) -> Self {
        Self { kernel: kernel.clone(), state: Arc::default() }
    }

    /// Returns a handle of the invalidation layer that encloses this task, if such a layer exists. The handle
    /// invalidates targets at once.
    pub fn current() -> Option<Self> {
        AROUND.with_borrow(|options| options.as_ref().map(|options| Self::closed(&options.kernel)))
    }

    /// Invalidates a target before the client gets the response. If no write is pending (in a safe request, or after
    /// the head of the response has left), it invalidates the target at once. The invalidation has then acted in this
    /// process when the method returns.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime, if it invalidates at once and the log is shared with other processes.
    pub fn add(&self, target: impl Into<Target>) {
        let target = target.into();
        let late = match &mut *self.state.targets.lock() {
            Some(targets) => {
                targets.push(target);
                return;
            }
            None => target,
        };
        self.act(late);
    }

    /// Invalidates a target in this process at once; the append to the log continues in a task.
    fn act(&self, target: Target) {
        let _acting = self.kernel.invalidate(target).now_or_never();
    }

    /// Invalidates without waiting for the response, and returns when the invalidation has acted in this process.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime, if the log is shared with other processes.
    pub async fn now(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        self.kernel.invalidate(invalidation).await
    }

    pub(crate) fn is_of(&self, kernel: &Kernel) -> bool {
        self.kernel.is_same_as(kernel)
    }

    /// Runs `act` after larder has invalidated the targets of the write, unless something else was invalidated during
    /// the write.
    pub(crate) fn afterwards(&self, act: impl FnOnce(Scope) + Send + 'static) {
        *self.state.afterwards.lock() = Some(Box::new(act));
    }

    /// Notes the partition of the request.
    pub(crate) fn note_partition(&self, partition: Bytes) {
        drop(self.state.partition.set(partition));
    }

    /// Declares that the request is a read although its method is unsafe. Then larder invalidates only the targets that
    /// its handler adds, each at once, as for a request with a safe method.
    pub(crate) fn declare_read(&self) {
        self.state.is_read.store(true, Ordering::Release);
        for target in self.close() {
            self.act(target);
        }
        if let Some(around) = &self.state.around {
            around.declare_read();
        }
    }

    pub(super) fn is_read(&self) -> bool {
        self.state.is_read.load(Ordering::Acquire)
    }

    pub(super) fn partition(&self) -> Option<Bytes> {
        self.state.partition.get().cloned()
    }

    pub(super) fn take_afterwards(&self) -> Option<AfterCommit> {
        self.state.afterwards.lock().take()
    }

    /// Closes the handle and returns its targets. Targets that are added later are invalidated at once.
    pub(super) fn close(&self) -> Vec<Target> {
        self.state.targets.lock().take().unwrap_or_default()
    }
}

impl fmt::Debug for PendingInvalidations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingInvalidations")
            .field("targets", &self.state.targets)
            .finish_non_exhaustive()
    }
}

/// A guard that makes a layer the enclosing layer of this thread for a poll, and restores the previous layer when it is
/// dropped.
///
/// It swaps the two layers, because a clone for each poll would cost every hit four locked instructions.
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
