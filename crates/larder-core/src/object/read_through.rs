//! Read-through: a loader that is registered once for all values of a type.

use std::{fmt, future::Future, sync::Arc};

use futures_util::FutureExt as _;

use super::{
    batch::{BatchLoader, Missing, batch_loader},
    error::LoadError,
    values::Values,
};
use crate::{
    key::IntoName,
    target::{Invalidated, Target},
};

/// A view of values with its loader, so that all callers load a value by the same loader. Cheap to clone.
///
/// `N` is the name of a value ([`IntoName`]), `T` the value, `E` the error of the loader. The loader returns `None` for
/// a name whose source has no value, which is stored as a negative result
/// ([`Policy::negative_ttl`](crate::Policy::negative_ttl)).
///
/// # Examples
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use larder_core::{Larder, values::ReadThrough};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// let names = larder.values::<String>(Duration::from_secs(60));
/// // SELECT name FROM users WHERE id = $1
/// let select = |(_, id): (&'static str, u64)| async move {
///     Ok::<_, Infallible>((id == 7).then(|| "Ada".to_owned()))
/// };
/// let users = ReadThrough::new(names, select);
///
/// assert_eq!(users.get(("user", 7)).await?.as_deref().map(String::as_str), Some("Ada"));
/// assert_eq!(users.get(("user", 8)).await?, None);
///
/// let _logged = users.invalidate(("user", 7)).await;
/// # Ok(())
/// # }
/// ```
#[doc(alias("read-through", "loading cache", "cache loader", "repository"))]
pub struct ReadThrough<N, T: 'static, E> {
    values: Values<T>,
    load: BatchLoader<N, T, E>,
}

impl<N, T, E> ReadThrough<N, T, E>
where
    N: IntoName + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Registers a loader of one value. [`get_many`](Self::get_many) runs it for all missing names concurrently; a
    /// source that can return several values at once is better served by [`batch`](Self::batch).
    pub fn new<F, Fut>(values: Values<T>, load: F) -> Self
    where
        F: Fn(N) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let load: BatchLoader<N, T, E> = Arc::new(move |missing: Missing<N>| {
            let load_one = |name: N| {
                let key = name.clone().into_name();
                load(name).map(|loaded| loaded.transpose().map(|loaded| (key, loaded)))
            };
            let loading = missing.into_names().into_iter().map(load_one);
            let loading = futures_util::future::join_all(loading.collect::<Vec<_>>());
            Box::pin(async move { Ok(loading.await.into_iter().flatten().collect()) })
        });
        Self { values, load }
    }

    /// Registers a loader of several values, as for [`Values::get_or_load_many`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::Duration};
    /// use larder_core::{Larder, values::{Missing, ReadThrough}};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let load = |missing: Missing<u64>| async move {
    ///     // SELECT id, name FROM users WHERE id = ANY($1)
    ///     Ok::<_, Infallible>(missing.into_names().into_iter().map(|id| (id, id * id)).collect::<Vec<_>>())
    /// };
    /// let squares = ReadThrough::batch(larder.values(Duration::from_secs(60)), load);
    /// let found = squares.get_many([2, 3]).await?;
    /// assert_eq!(found.iter().map(|value| value.as_deref().copied()).collect::<Vec<_>>(), [Some(4), Some(9)]);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("dataloader", "bulk loader"))]
    pub fn batch<F, Fut, L>(values: Values<T>, load: F) -> Self
    where
        F: Fn(Missing<N>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<L, E>> + Send + 'static,
        L: IntoIterator<Item = (N, T)>,
    {
        Self { values, load: batch_loader(load) }
    }

    /// Returns the value of a name: from the cache, or from the loader.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    pub async fn get(&self, name: N) -> Result<Option<Arc<T>>, LoadError<E>> {
        let (load, loaded) = (Arc::clone(&self.load), name.clone());
        let load = move |handle| async move { Missing::one(loaded, handle).load(&load).await };
        self.values.get_or_load_optional(name, load).await
    }

    /// Returns the values of several names, in their order, as [`Values::get_or_load_many`] does.
    ///
    /// # Errors
    ///
    /// See [`Values::get_or_load_many`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    pub async fn get_many(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Vec<Option<Arc<T>>>, LoadError<E>> {
        self.values.get_or_load_batch(names.into_iter().collect(), Arc::clone(&self.load)).await
    }

    /// Loads the value of a name now, whether or not it is stored, and stores the new value. Concurrent refreshes of a
    /// name each load. Use it for a value that has changed at its source without an invalidation; it does not reach the
    /// pages and values that were built around the old value.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    #[doc(alias("reload", "force refresh"))]
    pub async fn refresh(&self, name: N) -> Result<Option<Arc<T>>, LoadError<E>> {
        let (load, loaded) = (Arc::clone(&self.load), name.clone());
        let load = move |handle| async move { Missing::one(loaded, handle).load(&load).await };
        self.values.reload(name, load).await
    }

    /// Invalidates the value of a name for all users and in all processes, with the pages and values that depend on it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, if the log is shared with other processes.
    pub async fn invalidate(&self, name: N) -> Invalidated {
        self.values.kernel().invalidate(Target::name(name)).await
    }

    /// Returns the view of the values, for reads and sets without the loader.
    pub fn values(&self) -> &Values<T> {
        &self.values
    }
}

impl<N, T, E> Clone for ReadThrough<N, T, E> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), load: Arc::clone(&self.load) }
    }
}

impl<N, T, E> fmt::Debug for ReadThrough<N, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadThrough").field("values", &self.values).finish_non_exhaustive()
    }
}
