//! Cache-aside for values: a call looks the value up, and otherwise loads it once and stores it.

use std::{future::Future, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use self::call::Call;
pub(crate) use self::value::CacheValue;
pub use self::{
    error::LoadError,
    fill::LoadHandle,
    read_point::{ReadPoint, SetOutcome},
    values::Values,
};
use crate::{
    kernel::Kernel,
    key::{IntoName, Kind},
    metrics::Event,
    policy::Policy,
};

mod call;
#[cfg_attr(not(feature = "second-level"), path = "encode_absent.rs")]
mod encode;
mod error;
mod fill;
mod read_point;
mod request;
mod value;
mod values;

impl Kernel {
    /// Returns a value of another kind, as [`Larder::get_or_load`](crate::Larder::get_or_load) does. Names of two kinds
    /// never collide.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    pub async fn get_or_fill<T, E, F, Fut>(
        &self,
        kind: Kind,
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
        get_or_fill(self, kind, name.into_name(), policy.into(), load).await
    }
}

async fn get_or_fill<T, E, F, Fut>(
    kernel: &Kernel,
    kind: Kind,
    name: String,
    policy: Policy,
    load: F,
) -> Result<Arc<T>, LoadError<E>>
where
    T: CacheValue,
    E: Send + Sync + 'static,
    F: FnOnce(LoadHandle) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    let (mut call, bypass) = Call::begin(kernel, kind, name, policy).await;
    match bypass {
        Some(why) => {
            call.record(Event::Bypass(why), call.began);
            call.alone(None, load).await
        }
        None => call.answer(load).await,
    }
}
