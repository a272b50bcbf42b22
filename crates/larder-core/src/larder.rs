//! The handle of a cache: [`Larder`].

use std::{
    any::{Any, TypeId, type_name},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    advice::Advice,
    builder::LarderBuilder,
    events::{EmitError, Handler, HandlerError, Invalidations, StoredEvent},
    invalidation_feed::InvalidationFeed,
    kernel::Kernel,
    key::{IntoName, Kind},
    metrics::{MemoryStats, SecondLevelStats, Stats},
    object::{Codec, LoadError, LoadHandle, ReadPoint, Values},
    policy::Policy,
    scope::Scoped,
    target::{Invalidated, Invalidation},
};

/// A cache: its levels, the log of invalidations and the background work. It is cheap to clone, and a clone is the same
/// cache.
///
/// # Examples
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use larder_core::{Larder, Policy};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let policy = || Policy::ttl(Duration::from_secs(60)).tag(("user", 7));
/// let load = |_| async { Ok::<_, Infallible>("Ada".to_owned()) };
/// let name = larder.get_or_load(("user", 7), policy(), load).await?;
/// assert_eq!(*name, "Ada");
///
/// // From here on nothing that was read before is served.
/// let _ = larder.invalidate(("user", 7)).await;
/// let load = |_| async { Ok::<_, Infallible>("Countess of Lovelace".to_owned()) };
/// assert_eq!(*larder.get_or_load(("user", 7), policy(), load).await?, "Countess of Lovelace");
/// # Ok(())
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

    /// Returns the engine below this handle, for authors of layers.
    pub fn kernel(&self) -> &Kernel {
        &self.0
    }

    /// Returns the value of this name: from the first level, the second level, a fill in flight, or `load`.
    ///
    /// Concurrent calls for a name in this process are coalesced, so that only one of them loads. A coalesced loader
    /// runs in a task of its own, which dropping this future does not stop; on a bypass the loader runs in the task of
    /// the caller.
    ///
    /// # Errors
    ///
    /// [`LoadError::Failed`] with the error of the loader if the loader fails. Errors are never stored. For the other
    /// errors see [`LoadError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime. A panic of the loader resumes in the call that leads. Its waiters try again; a waiter
    /// that has seen four fills fail, the last by a panic, gets [`LoadError::Panicked`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::{Larder, LoadError, LoadHandle};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let minute = Duration::from_secs(60);
    ///
    /// let failed = larder.get_or_load("rate", minute, |_| async { Err::<f64, _>("the bank is closed") }).await;
    /// assert!(matches!(failed, Err(LoadError::Failed(_))));
    ///
    /// // The error was not stored, so this call loads. Its loader adds a tag that it knows only now.
    /// let load = |fill: LoadHandle| async move {
    ///     fill.tag(("currency", "EUR"));
    ///     Ok::<_, Infallible>(1.08)
    /// };
    /// assert_eq!(*larder.get_or_load("rate", minute, load).await?, 1.08);
    /// # Ok(())
    /// # }
    /// ```
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
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.0.get_or_fill(Kind::Object, name, policy, load).await
    }

    /// Invalidates targets. After this has returned, this process does not serve any data of the targets that was read
    /// before, not even from a fill in flight. Call it after the write is committed.
    ///
    /// The cost does not depend on the number of entries: one append to the log, and one more for each 5,000 tags and
    /// patterns beyond the first 5,000 (a target has one or two of them; rules add more). Once the future was polled,
    /// dropping it does not stop the invalidation.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use larder_core::{Invalidated, Invalidation, Larder, Target};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// // A tag, or the name of a value; any target; several of them in one append; with a mode or a delay.
    /// assert_eq!(larder.invalidate(("user", 7)).await, Invalidated::Logged);
    /// assert_eq!(larder.invalidate(Target::path("/users/7")).await, Invalidated::Logged);
    /// assert_eq!(larder.invalidate([Target::prefix("user"), Target::tag("team")]).await, Invalidated::Logged);
    ///
    /// let sale_ends = Invalidation::of(["sale"]).after(Duration::from_secs(3600));
    /// assert_eq!(larder.invalidate(sale_ends).await, Invalidated::Scheduled);
    /// assert_eq!(larder.stats().invalidations_scheduled, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("purge", "evict", "expire", "event invalidation", "tag invalidation"))]
    pub async fn invalidate(&self, invalidation: impl Into<Invalidation>) -> Invalidated {
        self.0.invalidate(invalidation).await
    }

    /// Invalidates all entries; in a view of a namespace, all entries of that namespace.
    ///
    /// This costs as little as the invalidation of one tag.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    #[doc(alias("flush", "remove_all"))]
    pub async fn clear(&self) -> Invalidated {
        self.invalidate(crate::Target::everything()).await
    }

    /// Returns the view of the values of type `T` under a policy: reads, loads, sets and removals by name, also of
    /// several names at once.
    #[doc(alias("typed cache", "cache.get", "region"))]
    pub fn values<T>(&self, policy: impl Into<Policy>) -> Values<T>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        Values::message_pack(&self.0, policy.into())
    }

    /// Takes a read point, under which a value that the application reads from now on is stored:
    /// [`ReadPoint::set`].
    #[doc(alias("set", "put", "insert"))]
    pub fn read_point(&self) -> ReadPoint {
        ReadPoint::new(&self.0)
    }

    /// Returns a view with keys and tags of its own, for example for each tenant. A view of a view is nested in it.
    ///
    /// Any string is a valid name, including the empty string. No name collides with another view or with this larder
    /// itself.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Larder;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let users = async |tenant: &Larder, loaded: u32| {
    ///     let load = move |_| async move { Ok::<_, Infallible>(loaded) };
    ///     tenant.get_or_load("users", Duration::from_secs(60), load).await
    /// };
    /// let (acme, globex) = (larder.namespace("acme"), larder.namespace("globex"));
    /// assert_eq!(*users(&acme, 10).await?, 10);
    /// assert_eq!(*users(&globex, 20).await?, 20, "the same name, another entry");
    ///
    /// let _logged = acme.clear().await;
    /// assert_eq!(*users(&acme, 11).await?, 11);
    /// assert_eq!(*users(&globex, 21).await?, 20, "the other namespace was not cleared");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    #[doc(alias("partition", "named cache", "region", "tenant"))]
    pub fn namespace(&self, name: &str) -> Self {
        Self(self.0.namespaced(name))
    }

    /// Begins to watch the requests of the first level, which [`advice`](Self::advice) and the list of hot keys in the
    /// dashboard need. The dashboard calls it when it is built. Watching takes less than 8 MiB, and on average less than 50 ns
    /// for each request.
    pub fn watch_traffic(&self) {
        self.0.watch_traffic();
    }

    /// Begins to record a trace of all requests, fills and invalidations of the first level, for [`Trace::replay`](crate::Trace)
    /// and `larder replay`, until [`finish_trace`](Self::finish_trace). Keys and tags are keyed hashes, so the file has no
    /// names. While it is recorded, requests take turns, each for about a microsecond, and the file grows by 25 bytes for each.
    ///
    /// # Errors
    ///
    /// If the file cannot be created. A file that cannot be written later ends the trace, with a warning.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::{ByteSize, Larder, ReplaySettings, Trace};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = std::env::temp_dir().join(format!("larder-trace-{}", std::process::id()));
    /// let larder = Larder::builder().build()?;
    /// larder.record_trace(&file)?;
    /// for user in [1, 2, 1, 1] {
    ///     let load = |_| async { Ok::<_, Infallible>("Ada".to_owned()) };
    ///     larder.get_or_load(("user", user), Duration::from_secs(60), load).await?;
    /// }
    /// larder.finish_trace()?;
    ///
    /// let trace = Trace::read(&file)?;
    /// let counts = trace.replay(&ReplaySettings::new(ByteSize::mib(64)));
    /// assert_eq!((counts.requests, counts.hits), (4, 2));
    /// # std::fs::remove_file(file)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn record_trace(&self, file: impl AsRef<std::path::Path>) -> std::io::Result<()> {
        let memory = &self.0.engine().memory;
        memory.traffic.record(file.as_ref(), memory.capacity())
    }

    /// Ends a trace that [`record_trace`](Self::record_trace) has begun.
    ///
    /// # Errors
    ///
    /// If the rest of the file cannot be written.
    pub fn finish_trace(&self) -> std::io::Result<()> {
        self.0.engine().memory.traffic.finish_trace()
    }

    /// Returns what this larder would do better with other settings, from the traffic since
    /// [`watch_traffic`](Self::watch_traffic): lifetimes, memory, keys, `Vary`, refresh-ahead, warming, and routes that are not
    /// worth caching. Most of it needs some thousand requests.
    ///
    /// It looks at stored responses for at most 100 ms.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = larder_core::Larder::builder().build()?;
    /// larder.watch_traffic();
    /// // And some hours later:
    /// for advice in larder.advice() {
    ///     println!("{} {}: {}", advice.cache, advice.route.unwrap_or_default(), advice.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("tuning", "recommendations"))]
    pub fn advice(&self) -> Vec<Advice> {
        self.0.advice(&self.stats())
    }

    /// Returns the current values of all counters.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Larder;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let load = |_| async { Ok::<_, Infallible>(1.08) };
    /// for _ in 0..4 {
    ///     larder.get_or_load(("rate", "EUR"), Duration::from_secs(60), load).await?;
    /// }
    /// let stats = larder.stats();
    /// let objects = stats.cache("objects").ok_or("a cache that was not used has no counters")?;
    /// assert_eq!((objects.total.hits, objects.total.misses), (3, 1));
    /// assert_eq!(objects.total.hit_ratio, 0.75);
    /// assert_eq!(stats.memory.entries, 1);
    /// # Ok(())
    /// # }
    /// ```
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
                evictions_last_minute: engine.memory.evictions_last_minute(),
            },
            shared: SecondLevelStats {
                usage: engine.reports.usage(),
                ..engine.shared.as_ref().map(|shared| shared.stats()).unwrap_or_default()
            },
            log: self.0.log(),
            invalidations,
            invalidations_queued,
            invalidations_pending,
            invalidations_scheduled,
            fills_running: engine.flights.running(),
            values_outside_scopes: engine.unscoped.count(),
            caches: engine.observer.stats(engine.clock.now()),
            servers: engine.reports.servers(),
            queues: engine.reports.queues(),
        }
    }

    /// Publishes larder's metrics through the [`metrics`](https://docs.rs/metrics) facade now, for example before the
    /// application renders them for a scrape. See [`LarderBuilder::publish_metrics`](crate::LarderBuilder::publish_metrics)
    /// for an interval.
    ///
    /// If there is a second level, larder asks its servers how much they store, at most every 10 s, and waits for the
    /// answer for at most a second.
    #[cfg(feature = "metrics")]
    pub async fn publish_metrics(&self) {
        let engine = self.0.engine();
        engine.reports.ask_for_usage().await;
        engine.publisher.publish(engine);
    }

    /// Subscribes to the invalidations of all processes that share the log, from now on, in the order in which they act
    /// in this process. Use it to drop values that the application caches elsewhere, or to purge a content delivery
    /// network.
    #[doc(alias("subscribe", "invalidation events", "change feed"))]
    pub fn invalidations(&self) -> InvalidationFeed {
        let engine = self.0.engine();
        InvalidationFeed::new(engine.feed.subscribe(), engine.origin)
    }

    /// Carries the scope of the current request into a task of its own.
    ///
    /// Inside a request, larder knows the audience of a loaded value and gathers the tags of the page. A spawned task
    /// does not inherit the scope, so its values would be shared by all users, and the page would lack their tags.
    /// Larder counts such calls ([`Stats::values_outside_scopes`]) and logs them once. Outside of any request, this
    /// method opens a new scope with a new stamp, for tasks that do not belong to a request.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Larder;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let larder = Larder::builder().build()?;
    /// let own = larder.clone();
    /// let task = larder.scoped(async move {
    ///     let load = |_| async { Ok::<_, Infallible>(7) };
    ///     own.get_or_load("answer", Duration::from_secs(60), load).await
    /// });
    /// assert_eq!(*tokio::spawn(task).await??, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn scoped<F: Future>(&self, future: F) -> Scoped<F> {
        self.0.current_or_new_scope().scoped(future)
    }

    /// Waits until this process has a view of the log; returns at once with a local log.
    ///
    /// This is useful at start-up and in tests, because until then larder serves from the first level only.
    pub async fn synced(&self) {
        self.0.tick();
        let mut synced = self.0.engine().synced.subscribe();
        // The engine holds the sender for as long as this handle lives.
        drop(synced.wait_for(|synced| *synced).await);
    }

    /// Returns the time since larder last verified that this process had applied every invalidation; zero with a local
    /// log.
    pub fn lag(&self) -> Duration {
        self.0.engine().lag()
    }

    /// Appends the invalidations that are not in the log yet, and waits for all background work, for at most
    /// `deadline`. Returns `false` if some of the work was still running at the deadline.
    ///
    /// This does not wait for scheduled invalidations. A shared log stores the scheduled invalidations that it has
    /// accepted ([`Invalidated::Scheduled`]); without a shared log they are lost when the process ends.
    ///
    /// The larder still works afterwards, but the caller should stop using it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn close(&self, deadline: Duration) -> bool {
        let engine = self.0.engine();
        engine.send_unsent();
        engine.tasks.close();
        let drained = tokio::time::timeout(deadline, engine.tasks.wait()).await.is_ok();
        engine.tasks.reopen();
        drained && engine.registry.waiting().0 == 0
    }

    /// Registers a handler for events of type `E`, which returns the targets that an event invalidates. Register all handlers at the
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
        let handler = Arc::new(handler);
        let handler: Handler = Arc::new(move |event| {
            let event = event.downcast::<E>().expect("handlers are found by the type of the event");
            let handler = Arc::clone(&handler);
            // It is called inside of the future, so that a panic is one of the future.
            let handling = async move { handler(E::clone(&event)).await };
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
    pub fn receive_stored<E: StoredEvent>(&self) {
        self.kernel().receive_stored::<E>();
    }

    /// Runs the handlers of an event, and then invalidates everything that they return, in one append for each mode and
    /// delay. After this method has returned `Ok`, this process serves no data of these targets that was
    /// read before, as after [`invalidate`](Self::invalidate). Call it after the write is committed.
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

impl<T: Send + Sync + 'static> Values<T> {
    /// Returns the view of values that a codec encodes for the second level, in place of MessagePack. The first level
    /// stores values as they are, so every view of the type shares those.
    pub fn with_codec<C: Codec<T>>(larder: &Larder, policy: impl Into<Policy>) -> Self {
        Self::of_codec::<C>(larder.kernel(), policy.into())
    }

    /// Returns the view of values that never leave the process, of a type that serde does not have to know: no level but
    /// the first stores them.
    ///
    /// A value counts as the size of its type, without what it holds on the heap, unless
    /// [`weigh_by`](Self::weigh_by) gives its weight.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering}, time::Duration};
    /// use larder_core::{Larder, values::Values};
    ///
    /// /// A compiled template, which cannot be serialised.
    /// struct Template { source: String, renders: AtomicU32 }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let templates = Values::local(&larder, Duration::from_secs(3600))
    ///     .weigh_by(|template: &Template| size_of::<Template>() + template.source.capacity());
    /// let compile = |_| async {
    ///     Ok::<_, Infallible>(Template { source: "Hello {name}".into(), renders: AtomicU32::new(0) })
    /// };
    /// let template = templates.get_or_load("hello", compile).await?;
    /// template.renders.fetch_add(1, Ordering::Relaxed);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("no serde", "in-process", "L1 only"))]
    pub fn local(larder: &Larder, policy: impl Into<Policy>) -> Self {
        Self::in_process(larder.kernel(), policy.into())
    }
}
