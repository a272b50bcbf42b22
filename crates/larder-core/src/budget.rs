//! A budget of bytes that all running fills share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The budget itself. [`ReservedBytes`] takes bytes from it and gives them back when dropped.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    left: AtomicUsize,
}

impl ByteBudget {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self
            .left
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.is_ok()
    }
}

/// The bytes that one fill has reserved. Gives them back to the budget when dropped.
#[derive(Debug)]
pub struct ReservedBytes {
    budget: Arc<ByteBudget>,
    bytes: usize,
}

impl ReservedBytes {
    pub(crate) fn none(budget: &Arc<ByteBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Reserves `bytes` more. Returns `false`, and reserves nothing, if the budget has fewer left.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_fill_gives_its_bytes_back_to_the_budget() {
        let budget = ByteBudget::new(10);
        let mut first = ReservedBytes::none(&budget);
        assert!(first.take(6));
        let mut second = ReservedBytes::none(&budget);
        assert!(!second.take(5));
        assert!(second.take(4));
        drop(first);
        assert!(second.take(6));
    }
}
