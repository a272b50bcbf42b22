//! The synchronisation primitives of the registry and the first level. With `shuttle` they are replaced, to explore
//! schedules.
//!
//! In tests with `--cfg larder_shuttle` each atomic and lock is a point at which the explorer may switch threads.

#[cfg(not(all(test, larder_shuttle)))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
#[cfg(not(all(test, larder_shuttle)))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(all(test, larder_shuttle))]
pub(crate) use explored::{AtomicU64, Mutex, MutexGuard, Ordering, RwLock};

/// Returns a boxed slice of zeros. The allocator returns untouched pages, so only pages that were written are resident.
#[cfg(not(all(test, larder_shuttle)))]
pub(crate) fn zeros(length: usize) -> Box<[AtomicU64]> {
    bytemuck::zeroed_slice_box(length)
}

#[cfg(all(test, larder_shuttle))]
pub(crate) fn zeros(length: usize) -> Box<[AtomicU64]> {
    (0..length).map(|_| AtomicU64::new(0)).collect()
}

#[cfg(all(test, larder_shuttle))]
mod explored {
    pub(crate) use shuttle::sync::{
        MutexGuard,
        atomic::{AtomicU64, Ordering},
    };

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no test panics while it holds a lock")
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> shuttle::sync::RwLockReadGuard<'_, T> {
            self.0.read().expect("no test panics while it holds a lock")
        }

        pub(crate) fn write(&self) -> shuttle::sync::RwLockWriteGuard<'_, T> {
            self.0.write().expect("no test panics while it holds a lock")
        }
    }
}
