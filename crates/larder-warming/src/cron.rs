//! Warming by the clock, in a time zone.

use std::{fmt, future::Future, time::Duration};

use croner::{Cron, parser::CronParser};
use jiff::{Timestamp, Zoned, tz::TimeZone};

use crate::{repeat::Repeated, target::WarmTarget, warmer::Warmer};

impl Warmer {
    /// Warms at the times of a cron pattern (minute, hour, day of the month, month, day of the week) in a time zone of the
    /// IANA database, such as `Europe/Berlin`. `targets` is called each time.
    ///
    /// A time that a change of the clocks skips is that of the next valid moment; one that occurs twice is used once.
    ///
    /// # Errors
    ///
    /// If the pattern or the name of the time zone is not valid.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn example(warmer: larder_warming::Warmer) -> Result<(), larder_warming::ScheduleError> {
    /// // Every working day before the office opens.
    /// let _warming = warmer.at("45 7 * * 1-5", "Europe/Berlin", || async { ["/", "/reports"] })?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("cron", "schedule"))]
    pub fn at<F, Fut, I>(
        &self,
        pattern: &str,
        time_zone: &str,
        targets: F,
    ) -> Result<Repeated, ScheduleError>
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = I> + Send,
        I: IntoIterator<Item: Into<WarmTarget>, IntoIter: Send> + Send,
    {
        let schedule = Schedule::new(pattern, time_zone)?;
        let warmer = self.clone();
        Ok(Repeated::spawn(async move {
            let mut after = Timestamp::now();
            while let Some(next) = schedule.next(after) {
                // The clock may be set while it sleeps, so it sleeps for an hour at most.
                while let Some(left) = until(next) {
                    tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
                }
                // Times that passed while it was warming, or while the machine slept, are not made up for.
                warmer.warm(targets().await).await;
                after = next.max(Timestamp::now());
            }
        }))
    }
}

fn until(next: Timestamp) -> Option<Duration> {
    Duration::try_from(next.duration_since(Timestamp::now())).ok().filter(|left| !left.is_zero())
}

struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

impl Schedule {
    fn new(pattern: &str, time_zone: &str) -> Result<Self, ScheduleError> {
        let cron = CronParser::new().parse(pattern);
        let cron =
            cron.map_err(|error| ScheduleError(format!("the pattern {pattern:?}: {error}")))?;
        let zone = TimeZone::get(time_zone);
        let zone =
            zone.map_err(|error| ScheduleError(format!("the time zone {time_zone:?}: {error}")))?;
        Ok(Self { cron, zone })
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after: Zoned = after.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&after, false).ok().map(|next| next.timestamp())
    }
}

/// A schedule that is not valid: what was given, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleError(String);

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ScheduleError {}

const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_that_of_the_time_zone_also_when_the_clocks_change() {
        let schedule = Schedule::new("30 2 * * *", "Europe/Berlin").unwrap();
        let next = |after: &str| schedule.next(after.parse().unwrap()).unwrap().to_string();
        assert_eq!(next("2026-11-30T00:00:00Z"), "2026-11-30T01:30:00Z");
        assert_eq!(next("2026-11-30T01:30:00Z"), "2026-12-01T01:30:00Z");
        assert_eq!(next("2026-07-01T12:00:00Z"), "2026-07-02T00:30:00Z", "in summer");
        // 2:30 does not exist on 29 March 2026, and exists twice on 25 October.
        assert_eq!(next("2026-03-29T00:00:00Z"), "2026-03-29T01:00:00Z");
        assert_eq!(next("2026-10-25T00:00:00Z"), "2026-10-25T00:30:00Z");
    }

    #[test]
    fn what_is_not_valid_is_named() {
        let error = |pattern, zone| Schedule::new(pattern, zone).err().unwrap().to_string();
        assert!(error("61 * * * *", "UTC").contains("\"61 * * * *\""));
        assert!(error("* * * * *", "Mars/Olympus").contains("\"Mars/Olympus\""));
    }
}
