//! Cache-aside for values: a call looks the value up, and otherwise loads it once and stores it.

use std::{borrow::Cow, future::Future, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    batch::Missing,
    error::LoadError,
    fill::LoadHandle,
    format::{Codec, CodecError, Json},
    read_point::{ReadPoint, SetOutcome},
    read_through::ReadThrough,
    values::Values,
    write_through::{WriteError, WriteHandle, WriteOutcome},
};
use self::{
    call::{Call, CallContext, NamedKey},
    value::{Answer, ValueSpec},
};
use crate::{
    kernel::Kernel,
    key::{IntoName, Kind},
    metrics::Event,
    policy::Policy,
};

mod adaptive;
mod batch;
mod call;
#[cfg_attr(not(feature = "second-level"), path = "encode_absent.rs")]
mod encode;
mod error;
mod fill;
mod format;
mod read_point;
mod read_through;
mod request;
mod value;
mod values;
mod write_through;

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
        let named = NamedKey::new(self, kind, name);
        let policy = Cow::Owned(policy.into());
        get_or_fill(self, named, policy, ValueSpec::message_pack(), load).await
    }

    /// Does the same as [`Kernel::get_or_fill`] for values that never leave the process, of a type that serde does not have
    /// to know. `weigh` returns the bytes that a value takes in memory.
    ///
    /// # Errors
    ///
    /// See [`LoadError`].
    ///
    /// # Panics
    ///
    /// As [`Larder::get_or_load`](crate::Larder::get_or_load).
    pub async fn get_or_fill_local<T, E, F, Fut>(
        &self,
        kind: Kind,
        name: impl IntoName,
        policy: impl Into<Policy>,
        weigh: fn(&T) -> usize,
        load: F,
    ) -> Result<Arc<T>, LoadError<E>>
    where
        T: Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: FnOnce(LoadHandle) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let named = NamedKey::new(self, kind, name);
        let policy = Cow::Owned(policy.into());
        let spec = ValueSpec { weigh: Some(weigh), ..ValueSpec::local() };
        get_or_fill(self, named, policy, spec, load).await
    }
}

async fn get_or_fill<A, E, F, Fut>(
    kernel: &Kernel,
    named: NamedKey,
    policy: Cow<'_, Policy>,
    spec: ValueSpec<A::Value>,
    load: F,
) -> Result<A, LoadError<E>>
where
    A: Answer,
    E: Send + Sync + 'static,
    F: FnOnce(LoadHandle) -> Fut + Send + 'static,
    Fut: Future<Output = Result<A::Loaded, E>> + Send + 'static,
{
    let context = CallContext::new(kernel, policy.consistency).await;
    let (mut call, bypass) = Call::new(kernel, named, policy, spec, context);
    match bypass {
        Some(why) => {
            call.record(Event::Bypass(why), call.began);
            call.alone(None, load).await
        }
        None => call.answer(load).await,
    }
}
