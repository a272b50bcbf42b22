//! Write-through: a write to the source, the invalidation of what it changed, and the new value in the cache.
//!
//! Two writers of one name may commit in one order and reach the cache in the other. So a value is stored under the
//! number of the write's own record in the log, and only if no other record since the beginning of the write reaches it:
//!
//! 1. The call takes a stamp before anything is read that the value is made of.
//! 2. The write runs in a task that the caller cannot stop.
//! 3. Larder appends the record even if the write fails, because a write that failed may still have been committed.
//! 4. Once this process has applied the log up to that record, the registry examines the records since the stamp one by
//!    one. If one of them reaches the value, another write may be newer, and nothing is stored. Invalidations that the
//!    write makes itself, as cached queries do after an `UPDATE`, are not those of another write.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    call::{Call, FillOutcome},
    fill::LoadHandle,
    read_point::SetOutcome,
    value::Answer,
    values::Values,
};
use crate::{
    bus::Position,
    entry::AnyEntry,
    key::IntoName,
    lifetime::Lifetime,
    metrics::Event,
    reason::Reason,
    registry::recent_records::OwnRecord,
    scope::{OwnRecords, Scope},
    tag::Tag,
    target::{Invalidated, Target},
};

/// The options of a write: the tags of the new value, and what else the write invalidates. Larder passes it to the write;
/// it is cheap to clone.
#[derive(Clone, Debug)]
pub struct WriteHandle {
    fill: LoadHandle,
    targets: Arc<Mutex<Vec<Target>>>,
}

impl WriteHandle {
    /// Adds a tag to the value. The write invalidates it too.
    pub fn tag(&self, tag: impl Into<Tag>) {
        self.fill.tag(tag);
    }

    /// Adds a target that the write invalidates, such as the tag of the category that a product has left.
    pub fn invalidate(&self, target: impl Into<Target>) {
        self.targets.lock().push(target.into());
    }

    /// Sets the lifetime of this value, in place of the lifetime of the policy.
    pub fn ttl(&self, lifetime: impl Into<Lifetime>) {
        self.fill.ttl(lifetime);
    }

    /// Prevents storing the value. The write still invalidates.
    pub fn no_store(&self) {
        self.fill.no_store();
    }
}

/// The outcome of a write that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOutcome<V> {
    /// The value that the source returned.
    pub value: V,
    /// Whether the log has the invalidation of the write.
    pub invalidated: Invalidated,
    /// Whether the value is stored. If not, the next read loads it.
    pub stored: SetOutcome,
}

/// The error of a write.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError<E> {
    /// The write returned this error. Its invalidation was appended nevertheless, because an error does not prove that
    /// nothing was committed.
    Failed(E),
    /// The runtime that ran the write was shut down.
    Cancelled,
}

impl<E: fmt::Display> fmt::Display for WriteError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "the write failed: {error}"),
            Self::Cancelled => f.write_str("the runtime was shut down while the write ran"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for WriteError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Cancelled => None,
        }
    }
}

impl<T: Send + Sync + 'static> Values<T> {
    /// Writes to the source, invalidates the name, the tags of the policy and those that the write adds, and stores the new
    /// value in the levels of the policy. A tag of the policy that many values have is invalidated by each write, so leave
    /// it out of this view. There is no time limit on the write.
    ///
    /// `write` begins its own transaction and commits it. It returns the value as the source has it now (`RETURNING`),
    /// not the argument of the caller. It runs in a task that dropping this future does not stop. If it fails or panics,
    /// larder invalidates all the same, since the source may have committed.
    ///
    /// The value is stored only if it is the newest: if another write or invalidation reaches it between the beginning of
    /// this write and its own invalidation, the next read loads it ([`WriteOutcome::stored`]). In a request, this also
    /// counts from the beginning of the request, because the value may be made of anything that the request has read.
    /// A write whose process dies between its commit and its invalidation is a task for the outbox of the database.
    ///
    /// # Errors
    ///
    /// [`WriteError::Failed`] with the error of the write; [`WriteError::Cancelled`] if the runtime was shut down.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime. A panic of the write resumes after its invalidation.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::{Larder, values::{SetOutcome, WriteHandle}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let stock = larder.values::<u32>(Duration::from_secs(60));
    ///
    /// let sell = |write: WriteHandle| async move {
    ///     write.tag(("product", 42));
    ///     // UPDATE stock SET n = n - 1 WHERE product = 42 RETURNING n
    ///     Ok::<u32, Infallible>(7)
    /// };
    /// let sold = stock.write_through(("stock", 42), sell).await?;
    /// assert_eq!((*sold.value, sold.stored), (7, SetOutcome::Stored));
    /// assert_eq!(stock.get(("stock", 42)).await.as_deref(), Some(&7), "without a load");
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("write-through", "update", "put", "save"))]
    pub async fn write_through<E, F, Fut>(
        &self,
        name: impl IntoName,
        write: F,
    ) -> Result<WriteOutcome<Arc<T>>, WriteError<E>>
    where
        E: Send + 'static,
        F: FnOnce(WriteHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.write(name, write).await
    }

    /// Writes as [`write_through`](Self::write_through) does, for a write after which the source may have no value: a
    /// deletion, or an update that finds no row. `None` is stored as a negative result.
    ///
    /// # Errors
    ///
    /// See [`write_through`](Self::write_through).
    ///
    /// # Panics
    ///
    /// As [`write_through`](Self::write_through).
    #[doc(alias("delete", "remove"))]
    pub async fn write_through_optional<E, F, Fut>(
        &self,
        name: impl IntoName,
        write: F,
    ) -> Result<WriteOutcome<Option<Arc<T>>>, WriteError<E>>
    where
        E: Send + 'static,
        F: FnOnce(WriteHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        self.write(name, write).await
    }

    async fn write<A, E, F, Fut>(
        &self,
        name: impl IntoName,
        write: F,
    ) -> Result<WriteOutcome<A>, WriteError<E>>
    where
        A: Answer<Value = T>,
        E: Send + 'static,
        F: FnOnce(WriteHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
    {
        let kernel = self.kernel();
        kernel.engine().registry.remember_records();
        let (call, bypass) = self.call(name).await;
        let writing = call.detached().write::<A, E, F, Fut>(bypass, write);
        let cache = call.policy.cache_name(call.kind);
        match kernel.spawn_fill(cache, false, writing).await {
            Ok(Ok(written)) => {
                let Written { outcome, invalidated, stored } = *written;
                Ok(WriteOutcome { value: call.taken(outcome), invalidated, stored })
            }
            Ok(Err((error, failed))) => {
                call.taken(*failed);
                Err(WriteError::Failed(error))
            }
            Err(failed) => {
                let _cancelled = call.resume::<E>(failed);
                Err(WriteError::Cancelled)
            }
        }
    }
}

/// The outcome of a write with the new value, for the scope of the caller.
struct Written<A> {
    outcome: FillOutcome<A>,
    invalidated: Invalidated,
    stored: SetOutcome,
}

impl<T: Send + Sync + 'static> Call<'static, T> {
    /// Runs a write, appends its record, and stores its value.
    async fn write<A, E, F, Fut>(
        self,
        bypass: Option<Reason>,
        write: F,
    ) -> Result<Box<Written<A>>, (E, Box<FillOutcome<()>>)>
    where
        A: Answer<Value = T>,
        F: FnOnce(WriteHandle) -> Fut,
        Fut: Future<Output = Result<A::Loaded, E>>,
    {
        let fill = LoadHandle::new(&self.policy, None);
        let handle = WriteHandle { fill: fill.clone(), targets: Arc::default() };
        let own = Arc::new(OwnRecords::default());
        let scope = self.scope.filling(self.key.clone()).writing(Arc::clone(&own));
        let invalidation = InvalidateOnDrop { call: &self, handle: &handle, is_armed: true };
        let written = scope.clone().scoped(write(handle.clone())).await;
        let (invalidated, logged) = self.kernel.invalidate_write(invalidation.disarm()).await;
        let content = match written {
            Ok(loaded) => A::loaded(loaded),
            Err(error) => {
                let unstored = self.unstored(&fill, &scope, Reason::FailedPart);
                return Err((error, Box::new(FillOutcome::Unstored((), unstored))));
            }
        };
        let object = self.spec.object(content);
        let value = A::of(&object).expect("a write returns what its caller can use");
        let stored = match (bypass, logged) {
            (Some(why), _) => Err(why),
            (None, None) => Err(Reason::Unlogged),
            (None, Some(logged)) => {
                own.add(logged.own());
                self.store_written(object, &fill, &scope, &own.all(), logged.at).await
            }
        };
        let (outcome, stored) = match stored {
            Ok(entry) => (FillOutcome::Stored(value, entry), SetOutcome::Stored),
            Err(why) => {
                self.record(Event::Refused(why), self.kernel.now());
                let unstored = self.unstored(&fill, &scope, Reason::UnstoredPart);
                (FillOutcome::Unstored(value, unstored), SetOutcome::NotStored(why))
            }
        };
        Ok(Box::new(Written { outcome, invalidated, stored }))
    }

    /// Stores the value of a write under the number of its last own record, which the log has at `at`.
    async fn store_written(
        &self,
        object: super::value::Object<T>,
        fill: &LoadHandle,
        scope: &Scope,
        own: &[OwnRecord],
        at: Position,
    ) -> Result<AnyEntry, Reason> {
        if !self.kernel.reach(at, LONGEST_WAIT).await {
            return Err(Reason::Unsynchronised);
        }
        let registry = &self.kernel.engine().registry;
        let restamp = |key: &_, tags: &[Tag], since: crate::registry::Stamp| {
            let stamp = registry.stamp_of_write(since.number(), own, at, key, tags);
            stamp.ok_or(Reason::Overtaken)
        };
        match self.store_under(object, &fill.options(), scope, self.began, restamp)? {
            (entry, true) => Ok(entry),
            (_, false) => Err(Reason::Overtaken),
        }
    }
}

/// Invalidates in the background when it is dropped: the write panicked, or its runtime is shutting down.
struct InvalidateOnDrop<'a, T: Send + Sync + 'static> {
    call: &'a Call<'static, T>,
    handle: &'a WriteHandle,
    is_armed: bool,
}

impl<T: Send + Sync + 'static> InvalidateOnDrop<'_, T> {
    fn targets(&self) -> Vec<Target> {
        let own = self.call.tags(&self.handle.fill.options()).into_iter();
        let own = own.map(|(tag, _)| Target::tag(tag));
        own.chain(self.handle.targets.lock().iter().cloned()).collect()
    }

    /// Returns the targets for the caller, which invalidates them itself.
    fn disarm(mut self) -> Vec<Target> {
        self.is_armed = false;
        self.targets()
    }
}

impl<T: Send + Sync + 'static> Drop for InvalidateOnDrop<'_, T> {
    fn drop(&mut self) {
        if self.is_armed {
            self.call.kernel.invalidate_in_background(self.targets());
        }
    }
}

/// How long a write waits until this process has applied its own record. After this time the write stores nothing.
const LONGEST_WAIT: Duration = Duration::from_millis(200);
