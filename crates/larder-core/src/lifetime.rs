//! The lifetime of an entry: how long it is fresh, and how it may be served when stale.

use std::time::{Duration, SystemTime};

use crate::clock::Moment;

/// The lifetime of an entry: fresh, then stale but usable, then gone.
///
/// Freshness begins with the fill, and the stale windows begin when freshness ends.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use larder_core::Lifetime;
///
/// let lifetime = Lifetime::fresh_for(Duration::from_secs(60))
///     .stale_while_revalidate(Duration::from_secs(30));
/// assert_eq!(lifetime.total(), Duration::from_secs(90));
/// ```
///
/// # Source
///
/// [RFC 5861](https://www.rfc-editor.org/rfc/rfc5861) for the two windows.
#[doc(alias("ttl", "time to live", "expiration"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    fresh: Duration,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    revalidatable: Duration,
    jitter_percent: u8,
    expires_at: Option<SystemTime>,
}

impl Lifetime {
    /// Creates a lifetime that is fresh for `fresh`, with no stale window and no jitter.
    pub const fn fresh_for(fresh: Duration) -> Self {
        Self {
            fresh,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            revalidatable: Duration::ZERO,
            jitter_percent: 0,
            expires_at: None,
        }
    }

    /// Sets how long a stale entry may be served while one refresh runs.
    #[must_use]
    #[doc(alias("background refresh", "SWR"))]
    pub const fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.stale_while_revalidate = window;
        self
    }

    /// Sets how long a stale entry may be served if a fill fails.
    #[must_use]
    #[doc(alias("fail-safe"))]
    pub const fn stale_if_error(mut self, window: Duration) -> Self {
        self.stale_if_error = window;
        self
    }

    /// Sets how long a stale entry is stored for revalidation only. It may be served after its origin has confirmed it.
    #[must_use]
    pub const fn keep_for_revalidation(mut self, window: Duration) -> Self {
        self.revalidatable = window;
        self
    }

    /// Shortens freshness by a random share of up to this many percent, so that entries filled together do not
    /// expire together. 0 by default.
    ///
    /// # Panics
    ///
    /// If `percent` is more than 100.
    #[must_use]
    #[doc(alias("avalanche", "randomised TTL"))]
    pub const fn jitter_percent(mut self, percent: u8) -> Self {
        assert!(percent <= 100, "jitter_percent is above 100, allowed is 0 to 100");
        self.jitter_percent = percent;
        self
    }

    /// Creates a lifetime that is fresh until this time on the wall clock of the process, with no stale window and no
    /// jitter. It ends at once for a time that has passed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{convert::Infallible, time::{Duration, SystemTime}};
    /// use larder_core::{Larder, Lifetime, LoadHandle};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let larder = Larder::builder().build()?;
    /// let offers = larder.values::<String>(Duration::from_secs(3600));
    /// let load = |fill: LoadHandle| async move {
    ///     let ends = SystemTime::now() + Duration::from_secs(600); // a column of the row
    ///     fill.ttl(Lifetime::until(ends));
    ///     Ok::<_, Infallible>("ten per cent off".to_owned())
    /// };
    /// offers.get_or_load("offer", load).await?;
    /// let left = offers.remaining_ttl("offer").await;
    /// assert!(left > Some(Duration::from_secs(590)) && left <= Some(Duration::from_secs(600)));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("absolute expiration", "expires at"))]
    pub const fn until(expires_at: SystemTime) -> Self {
        Self::fresh_for(Duration::MAX).expires_at(expires_at)
    }

    /// Ends freshness at this time on the wall clock of the process at the latest; the stale windows begin there.
    #[must_use]
    pub const fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(time);
        self
    }

    /// Returns this lifetime with another freshness lifetime.
    #[must_use]
    pub(crate) const fn with_fresh(mut self, fresh: Duration) -> Self {
        self.fresh = fresh;
        self
    }

    /// Returns the time of [`Lifetime::until`] or [`Lifetime::expires_at`].
    pub const fn expiry(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Returns how long it is fresh.
    pub const fn fresh(&self) -> Duration {
        self.fresh
    }

    /// Returns the window of [`Lifetime::stale_while_revalidate`].
    pub const fn window_while_revalidating(&self) -> Duration {
        self.stale_while_revalidate
    }

    /// Returns the window of [`Lifetime::stale_if_error`].
    pub const fn window_on_error(&self) -> Duration {
        self.stale_if_error
    }

    /// Returns the window of [`Lifetime::keep_for_revalidation`].
    pub const fn window_to_revalidate(&self) -> Duration {
        self.revalidatable
    }

    /// Returns the time from the fill to the end of the last window.
    pub fn total(&self) -> Duration {
        let windows = [self.stale_while_revalidate, self.stale_if_error, self.revalidatable];
        self.fresh.saturating_add(windows.into_iter().max().unwrap_or_default())
    }

    /// Computes when the phases of this lifetime end for an entry that was filled at `filled` and may live for
    /// `longest`.
    ///
    /// `chance` is a random number that decides the jitter.
    pub fn ends(&self, filled: Moment, longest: Duration, chance: u64) -> Ends {
        let limit = filled.after(longest);
        let taken = self.fresh.as_nanos().min(u128::from(u64::MAX)) as u64 / 100
            * u64::from(self.jitter_percent);
        let early = if taken == 0 { 0 } else { chance % (taken + 1) };
        let fresh = filled.after(self.fresh - Duration::from_nanos(early)).min(limit);
        Ends {
            filled,
            fresh,
            revalidate: fresh.after(self.stale_while_revalidate).min(limit),
            on_error: fresh.after(self.stale_if_error).min(limit),
            held: fresh.after(self.revalidatable).min(limit),
            leaves: Moment::NEVER,
        }
    }
}

impl From<Duration> for Lifetime {
    fn from(fresh: Duration) -> Self {
        Self::fresh_for(fresh)
    }
}

/// The moments at which the phases of an entry end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub(crate) filled: Moment,
    pub(crate) fresh: Moment,
    pub(crate) revalidate: Moment,
    pub(crate) on_error: Moment,
    pub(crate) held: Moment,
    /// When it leaves the first level, although it may stay in the second level.
    pub(crate) leaves: Moment,
}

impl Ends {
    /// Returns when the entry was filled.
    pub fn filled(&self) -> Moment {
        self.filled
    }

    /// Returns when freshness ends.
    pub fn fresh_until(&self) -> Moment {
        self.fresh
    }

    /// Returns when the entry may no longer be served in place of an error.
    pub fn on_error_until(&self) -> Moment {
        self.on_error
    }

    /// Returns when the entry may no longer be served at once, fresh or while it is refreshed.
    pub fn refreshed_until(&self) -> Moment {
        self.fresh.max(self.revalidate)
    }

    /// Returns when the entry may no longer be served without revalidation by its origin.
    pub fn served_until(&self) -> Moment {
        self.revalidate.max(self.on_error)
    }

    /// Returns when the entry can be dropped, because all windows are over or because it leaves the first level.
    pub fn gone_at(&self) -> Moment {
        self.served_until().max(self.held).min(self.leaves)
    }

    /// Returns these ends for an entry that leaves the first level `longest` after `now`, regardless of its lifetime.
    pub(crate) fn leaving(self, now: Moment, longest: Duration) -> Self {
        Self { leaves: now.after(longest), ..self }
    }

    /// Returns these ends with freshness that ends at `fresh`, but no more than `longest` after the fill. The stale windows
    /// move with it.
    pub(crate) fn extended(self, fresh: Moment, longest: Duration) -> Self {
        let limit = self.filled.after(longest);
        let fresh = fresh.min(limit);
        let moved = |end: Moment| fresh.after(end.since(self.fresh)).min(limit);
        Self {
            fresh,
            revalidate: moved(self.revalidate),
            on_error: moved(self.on_error),
            held: moved(self.held),
            ..self
        }
    }

    /// Returns the phase at `now`.
    pub fn phase(&self, now: Moment) -> Phase {
        if now >= self.leaves {
            Phase::Gone
        } else if now < self.fresh {
            Phase::Fresh
        } else if now < self.revalidate {
            Phase::WhileRevalidating
        } else if now < self.on_error {
            Phase::OnError
        } else if now < self.held {
            Phase::ToRevalidate
        } else {
            Phase::Gone
        }
    }

    /// Shortens freshness so that it ends at `fresh` at the latest; the stale windows move with it.
    #[must_use]
    pub fn cut(self, fresh: Moment) -> Self {
        if fresh >= self.fresh {
            return self;
        }
        let fresh = fresh.max(self.filled);
        let earlier = self.fresh.since(fresh);
        Self {
            filled: self.filled,
            fresh,
            revalidate: self.revalidate.before(earlier),
            on_error: self.on_error.before(earlier),
            held: self.held.before(earlier),
            leaves: self.leaves,
        }
    }
}

/// The phase of an entry within its lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// May be served.
    Fresh,
    /// Stale; may be served while a refresh runs, and also when a fill fails if that window is open.
    WhileRevalidating,
    /// Stale; may be served when a fill fails.
    OnError,
    /// Stale; may be served after its origin has confirmed it.
    ToRevalidate,
    /// May not be served.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Moment {
        Moment::START.after(SECOND * u32::try_from(seconds).unwrap())
    }

    #[test]
    fn an_entry_goes_through_its_phases_in_order() {
        let ends = Lifetime::fresh_for(10 * SECOND)
            .stale_while_revalidate(5 * SECOND)
            .stale_if_error(20 * SECOND)
            .keep_for_revalidation(25 * SECOND)
            .ends(at(0), 100 * SECOND, 0);
        let phases = [9, 10, 14, 15, 29, 30, 34, 35].map(|seconds| ends.phase(at(seconds)));
        use Phase::{Fresh, Gone, OnError, ToRevalidate, WhileRevalidating};
        let stale = [WhileRevalidating, WhileRevalidating, OnError, OnError];
        assert_eq!(phases[0], Fresh);
        assert_eq!(phases[1..5], stale);
        assert_eq!(phases[5..], [ToRevalidate, ToRevalidate, Gone]);
        assert_eq!((ends.served_until(), ends.gone_at()), (at(30), at(35)));
    }

    #[test]
    fn nothing_outlives_the_longest_lifetime_stale_windows_included() {
        let ends = Lifetime::fresh_for(Duration::MAX).stale_if_error(Duration::MAX).ends(
            at(5),
            60 * SECOND,
            0,
        );
        assert_eq!(ends.gone_at(), at(65));
    }

    #[test]
    fn jitter_shortens_freshness_by_at_most_its_percentage() {
        let lifetime = Lifetime::fresh_for(100 * SECOND).jitter_percent(10);
        for chance in [0, 1, 7_000_000_000, u64::MAX] {
            let fresh = lifetime.ends(at(0), 1000 * SECOND, chance).fresh_until();
            assert!(fresh >= at(90) && fresh <= at(100), "{fresh:?}");
        }
    }

    #[test]
    fn a_cut_moves_the_stale_windows_along() {
        let ends = Lifetime::fresh_for(10 * SECOND)
            .stale_if_error(5 * SECOND)
            .ends(at(0), 100 * SECOND, 0)
            .cut(at(4));
        assert_eq!((ends.fresh_until(), ends.gone_at()), (at(4), at(9)));
    }

    #[test]
    #[should_panic(expected = "allowed is 0 to 100")]
    fn jitter_above_100_percent_panics() {
        let _lifetime = Lifetime::fresh_for(SECOND).jitter_percent(101);
    }
}
