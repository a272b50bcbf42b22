//! Refresh-ahead: which fresh entries are due for a refresh before they expire.

use crate::{
    clock::{Moment, random_share},
    entry::AnyEntry,
};

/// The rule by which a fresh entry is refreshed before it expires.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RefreshAhead {
    /// While less than this share of its freshness lifetime is left.
    Share(f64),
    /// At random, the likelier the sooner the entry expires and the longer its fill took, times this factor: XFetch.
    ///
    /// # Source
    ///
    /// A. Vattani, F. Chierichetti, K. Lowenstein: Optimal Probabilistic Cache Stampede Prevention. VLDB 2015.
    Early(f64),
}

impl RefreshAhead {
    /// Creates the rule of a share.
    ///
    /// # Panics
    ///
    /// If the share is not more than 0 and less than 1.
    pub fn share(share: f64) -> Self {
        assert!(
            share > 0.0 && share < 1.0,
            "refresh_ahead is {share}, allowed is more than 0 and less than 1"
        );
        Self::Share(share)
    }

    /// Creates the rule of XFetch.
    ///
    /// # Panics
    ///
    /// If the factor is not a positive number.
    pub fn early(factor: f64) -> Self {
        assert!(
            factor > 0.0 && factor.is_finite(),
            "refresh_early is {factor}, allowed is a positive number"
        );
        Self::Early(factor)
    }

    /// Returns whether a fresh entry is due for a refresh.
    pub fn is_due(self, entry: &AnyEntry, now: Moment) -> bool {
        let ends = entry.ends();
        let left = ends.fresh_until().since(now);
        match self {
            Self::Share(share) => left < ends.fresh_until().since(ends.filled()).mul_f64(share),
            Self::Early(factor) => {
                // Between 0, exclusive, and infinity, with a mean of 1.
                let chance = -(1.0 - random_share()).ln();
                left.as_secs_f64() < entry.cost().as_secs_f64() * factor * chance
            }
        }
    }
}
