//! The clock of a larder: monotonic moments for lifetimes, and wall time for HTTP dates.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A point on the monotonic clock of one [`Larder`](crate::Larder), in nanoseconds.
///
/// It takes eight bytes instead of the sixteen of an `Instant`, so it fits an atomic, and entries stay small. Zero is a
/// hundred years before the larder was built, so that values that another process filled earlier have a moment too. The
/// moments of two larders cannot be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment at which the larder was built.
    pub const START: Self = Self(100 * 366 * 86_400 * 1_000_000_000);
    /// A moment that is never reached, 484 years after the start.
    pub const NEVER: Self = Self(u64::MAX);

    /// Returns the moment this many nanoseconds after zero.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Adds `later`; saturates at [`Moment::NEVER`].
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Subtracts `earlier`; saturates at zero.
    #[must_use]
    pub fn before(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(earlier.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Returns the time from `earlier` to this moment; zero if this moment is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The clock that a larder reads. It follows the clock of tokio, so that tests with paused time pause the cache too.
///
/// Wall time is the wall time at the start plus the time elapsed on the monotonic clock, so that a step of the system
/// clock neither revives nor expires an entry.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall: SystemTime,
}

impl Clock {
    /// Creates a clock that starts now.
    pub fn start() -> Self {
        Self::start_at(SystemTime::now())
    }

    /// Creates a clock that starts now, at this wall time.
    pub fn start_at(wall: SystemTime) -> Self {
        Self { start: Instant::now(), wall }
    }

    /// Returns the time that another clock shows at `moment`, if it showed `time` at `at`.
    pub(crate) fn elsewhere(
        &self,
        moment: Moment,
        (at, time): (Instant, SystemTime),
    ) -> SystemTime {
        let known = match at.checked_duration_since(self.start) {
            Some(later) => Moment::START.after(later),
            None => Moment::START.before(self.start.duration_since(at)),
        };
        time + moment.since(known) - known.since(moment)
    }

    /// Returns the current moment. Reads the system's monotonic clock once, which takes about 25 ns.
    pub fn now(&self) -> Moment {
        Moment::START.after(self.start.elapsed())
    }

    /// Returns the wall time at `moment`.
    pub fn wall(&self, moment: Moment) -> SystemTime {
        self.wall + moment.since(Moment::START) - Moment::START.since(moment)
    }

    /// Returns the moment at which the wall clock showed `time`.
    pub fn moment(&self, time: SystemTime) -> Moment {
        match time.duration_since(self.wall) {
            Ok(later) => Moment::START.after(later),
            Err(earlier) => Moment::START.before(earlier.duration()),
        }
    }
}

/// Shortens `pause` by a random share of up to a quarter, so that many waiters do not retry at once.
pub fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let chance = RandomState::new().hash_one(std::process::id()) % 256;
    pause - pause / 4 * u32::try_from(chance).unwrap_or_default() / 256
}

/// Returns a random number from 0 to 1, exclusive.
pub fn random_share() -> f64 {
    use std::cell::Cell;
    thread_local! {
        static STATE: Cell<u64> = Cell::new(seed());
    }
    // SplitMix64. Cryptographic quality is not needed, and each call has to be cheap.
    let state = STATE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_paused_time() {
        let clock = Clock::start();
        let start = clock.now();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(60));
        assert_eq!(clock.moment(clock.wall(clock.now())), clock.now());
        let before = start.before(Duration::from_secs(600));
        assert_eq!(clock.moment(clock.wall(before)), before, "older than this process");
    }

    #[test]
    fn moments_saturate_instead_of_wrapping() {
        assert_eq!(Moment::START.after(Duration::MAX), Moment::NEVER);
        assert_eq!(Moment::START.before(Duration::MAX), Moment::from_nanos(0));
        assert_eq!(Moment::START.since(Moment::NEVER), Duration::ZERO);
    }
}
