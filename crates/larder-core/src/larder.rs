//! The handle that everything else holds.

use std::{future::Future, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    builder::LarderBuilder,
    kernel::Kernel,
    key::{IntoName, Kind},
    object::{LoadError, Loading},
    observe::{MemoryStats, Stats},
    policy::Policy,
    scope::Scoped,
    target::{Invalidated, Invalidation},
};

/// A cache: the tiers, the log of invalidations and the background work. Cheap to clone; a clone is the
/// same cache.
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use larder_core::{Larder, Policy};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let larder = Larder::builder().build().expect("the defaults are valid");
/// let policy = || Policy::ttl(Duration::from_secs(60)).tag(("user", 7));
/// let load = |_| async { Ok::<_, Infallible>("Ada".to_owned()) };
/// let name = larder.get_or_load(("user", 7), policy(), load).await.unwrap();
/// assert_eq!(*name, "Ada");
///
/// // From here on nothing that was read before is served.
/// let _ = larder.invalidate(("user", 7)).await;
/// let load = |_| async { Ok::<_, Infallible>("Countess of Lovelace".to_owned()) };
/// assert_eq!(*larder.get_or_load(("user", 7), policy(), load).await.unwrap(), "Countess of Lovelace");
/// # }
/// ```
#[doc(alias("cache", "L1", "L2", "cache manager"))]
#[derive(Clone, Debug)]
pub struct Larder(Kernel);

impl Larder {
    /// Starts building a larder.
    pub fn builder() -> LarderBuilder {
        LarderBuilder::default()
    }

    pub(crate) fn of(kernel: Kernel) -> Self {
        Self(kernel)
    }

    /// The engine below this handle, for authors of layers.
    pub fn kernel(&self) -> &Kernel {
        &self.0
    }

    /// The value of this name: from memory, from the shared store, from a fill that runs, or from `load`.
    ///
    /// Of all who ask at once, in this process, one loads. The loader runs in a task of its own: dropping
    /// this future does not stop it. A panic of the loader goes on here; an error is handed out as it is
    /// and never kept.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, and with the panic of the loader.
    #[doc(alias(
        "cache-aside",
        "lazy loading",
        "read-through",
        "object cache",
        "single flight",
        "stampede",
        "thundering herd",
        "dogpile",
        "get_or_insert_with",
        "memoize"
    ))]
    pub async fn get_or_load<T, E, F, Fut>(
        &self,
        name: impl IntoName,
        policy: impl Into<Policy>,
        load: F,
    ) -> Result<Arc<T>, LoadError<E>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: FnOnce(Loading) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.0.get_or_fill(Kind::Object, name, policy, load).await
    }

    /// Invalidates: when this returns, nothing that was read before is served in this process any more,
    /// not even by a fill that was under way. Call it after the write is committed.
    ///
    /// Costs the same for one entry and a million: one append to the log, one more for each 5,000 targets beyond
    /// the first 5,000. Once polled, dropping the future stops nothing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, where the log is shared with other processes.
    #[doc(alias("purge", "evict", "expire", "event invalidation", "tag invalidation"))]
    pub async fn invalidate(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        self.0.invalidate(invalidation).await
    }

    /// Invalidates everything, of this namespace if this is a view of one.
    ///
    /// Costs as little as invalidating a tag.
    #[doc(alias("flush", "remove_all"))]
    pub async fn clear(&self) -> Invalidated {
        self.invalidate(crate::Target::everything()).await
    }

    /// A view with keys and tags of its own, such as one for each tenant. A view of a view is below it.
    ///
    /// Any text names one, also an empty one: no name reaches another view, nor this larder itself.
    #[must_use]
    #[doc(alias("partition", "named cache", "region", "tenant"))]
    pub fn namespace(&self, name: &str) -> Self {
        Self(self.0.namespaced(name))
    }

    /// Everything that is counted, as of now.
    #[doc(alias("metrics", "hit ratio"))]
    pub fn stats(&self) -> Stats {
        let engine = self.0.engine();
        let (invalidations, invalidations_queued) = engine.observer.invalidations();
        let (invalidations_pending, invalidations_scheduled) = engine.registry.waiting();
        Stats {
            memory: MemoryStats {
                entries: engine.memory.entries(),
                bytes: engine.memory.bytes(),
                capacity_bytes: engine.memory.capacity(),
                evictions: engine.memory.evictions(),
            },
            shared: engine.shared.as_ref().map(|shared| shared.stats()).unwrap_or_default(),
            log: self.0.log(),
            invalidations,
            invalidations_queued,
            invalidations_pending,
            invalidations_scheduled,
            fills_running: engine.flights.running(),
            values_outside_scopes: engine.unscoped.count(),
            caches: engine.observer.stats(engine.clock.now()),
        }
    }

    /// Takes the scope of the current request along into a task of its own.
    ///
    /// Inside a request larder knows for whom a value is loaded, and what a page is made of. A task that is
    /// spawned leaves that behind: its values would be everybody's, and the page would not have their tags. Such
    /// calls are counted ([`Stats::values_outside_scopes`]) and warned of once. A task that has nothing to
    /// do with a request says so in the same way, where it is begun outside of any: then it has a scope of its
    /// own, and what it reads is as old as that.
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Larder;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let larder = Larder::builder().build().expect("the defaults are valid");
    /// let own = larder.clone();
    /// let task = larder.scoped(async move {
    ///     let load = |_| async { Ok::<_, Infallible>(7) };
    ///     own.get_or_load("answer", Duration::from_secs(60), load).await
    /// });
    /// assert_eq!(*tokio::spawn(task).await.unwrap().unwrap(), 7);
    /// # }
    /// ```
    pub fn scoped<F: Future>(&self, future: F) -> Scoped<F> {
        self.0.current_or_new_scope().scoped(future)
    }

    /// Waits until this process has a view of the log; at once for a log of this process alone.
    ///
    /// For start-up and tests: until then larder serves from memory only.
    pub async fn synced(&self) {
        self.0.tick();
        let mut synced = self.0.engine().synced.subscribe();
        // The engine holds the sender for as long as this handle lives.
        drop(synced.wait_for(|synced| *synced).await);
    }

    /// How long ago it was proved that this process has seen every invalidation; zero when the log is its
    /// own.
    pub fn lag(&self) -> Duration {
        self.0.engine().lag()
    }

    /// Waits for what runs in the background, invalidations that wait for the log first, for at most
    /// `deadline`. `false` when something was still under way then.
    ///
    /// What is scheduled for later is not waited for. A shared log keeps what it has taken
    /// ([`Invalidated::Scheduled`]); without one it is lost when the process ends.
    ///
    /// Afterwards the larder goes on to answer; whoever closes it stops using it.
    pub async fn close(&self, deadline: Duration) -> bool {
        let engine = self.0.engine();
        engine.send_unsent();
        engine.tasks.close();
        let drained = tokio::time::timeout(deadline, engine.tasks.wait()).await.is_ok();
        engine.tasks.reopen();
        drained && engine.registry.waiting().0 == 0
    }
}
