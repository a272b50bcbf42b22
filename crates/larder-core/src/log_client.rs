//! A client of a shared log that is not part of an application, such as the `larder` command.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    bus::{Bus, BusError, BusErrorKind, Position, Record, WriterId},
    invalidation_history::{PastInvalidation, PastTarget},
    record_note::RecordNote,
    rules::Rules,
    target::Invalidation,
};

/// Invalidates through a shared log, and follows it, without a cache.
///
/// An invalidation has the same effect as one of the application, since the processes of the application publish their
/// dependency rules beside the log.
#[derive(Clone, Debug)]
pub struct LogClient {
    bus: Arc<dyn Bus>,
    origin: WriterId,
}

/// Why a [`LogClient`] did not invalidate.
#[derive(Debug)]
#[non_exhaustive]
pub enum LogClientError {
    /// No process of the application has published its rules within the last hour, so entries that depend on the targets
    /// would stay.
    NoRules,
    /// The invalidation has a delay, which only a process of an application can keep.
    Delayed,
    /// The log did not answer, or refused.
    Bus(BusError),
}

impl fmt::Display for LogClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules => f.write_str(
                "no process has published its dependency rules at this log within the last hour, so entries that depend \
                 on the targets would stay",
            ),
            Self::Delayed => f.write_str("an invalidation by a client has no delay"),
            Self::Bus(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LogClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bus(error) => Some(error),
            Self::NoRules | Self::Delayed => None,
        }
    }
}

impl From<BusError> for LogClientError {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

impl LogClient {
    /// Creates a client of this log.
    pub fn new(bus: impl Bus) -> Self {
        bus.keep_for(Duration::ZERO);
        Self { bus: Arc::new(bus), origin: WriterId::random() }
    }

    /// Returns the targets of an invalidation, with those that the rules of the application add.
    ///
    /// # Errors
    ///
    /// If no process has published its rules, or the log does not answer.
    pub async fn targets(
        &self,
        namespace: &str,
        invalidation: Invalidation,
    ) -> Result<Vec<PastTarget>, LogClientError> {
        let records = self.records(namespace, invalidation).await?;
        Ok(records.iter().flat_map(|record| &record.what).map(PastTarget::of).collect())
    }

    /// Appends an invalidation to the log. All processes apply it within their `max_lag`.
    ///
    /// # Errors
    ///
    /// If no process has published its rules, if the invalidation has a delay, or if the log does not answer. Then a part of
    /// an invalidation of more than 5,000 selectors may be in the log.
    pub async fn invalidate(
        &self,
        namespace: &str,
        invalidation: Invalidation,
    ) -> Result<Vec<PastTarget>, LogClientError> {
        let records = self.records(namespace, invalidation).await?;
        for record in &records {
            match self.bus.append(record).await {
                Err(error) if error.appended_at().is_none() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(records.iter().flat_map(|record| &record.what).map(PastTarget::of).collect())
    }

    /// Begins to follow the log at its end.
    ///
    /// # Errors
    ///
    /// If the log does not answer.
    pub async fn follow(&self) -> Result<LogTail, LogClientError> {
        let at = self.bus.end(None).await?;
        Ok(LogTail { bus: Arc::clone(&self.bus), at, origin: self.origin })
    }

    async fn records(
        &self,
        namespace: &str,
        invalidation: Invalidation,
    ) -> Result<Vec<Record>, LogClientError> {
        if !invalidation.after.is_zero() {
            return Err(LogClientError::Delayed);
        }
        let rules: Rules = self.bus.published_rules().await?.ok_or(LogClientError::NoRules)?;
        let note = RecordNote::new(invalidation.because.as_deref(), invalidation.by.as_deref());
        let selectors = rules.selectors(invalidation.targets, namespace);
        let mut records = Record::of(&selectors, invalidation.mode, self.origin);
        records.iter_mut().for_each(|record| record.note = note.clone());
        Ok(records)
    }
}

/// A position in a log that is followed.
#[derive(Debug)]
pub struct LogTail {
    bus: Arc<dyn Bus>,
    at: Position,
    origin: WriterId,
}

impl LogTail {
    /// Waits for the next records, and returns them with their numbers in the log. After a log has lost records, it goes on
    /// at the end of the new one, and returns an invalidation of everything.
    ///
    /// # Errors
    ///
    /// If the log does not answer. A further call tries again.
    pub async fn next(&mut self) -> Result<Vec<PastInvalidation>, LogClientError> {
        loop {
            match self.bus.read(self.at, LONGEST_WAIT).await {
                Ok(records) if records.is_empty() => {}
                Ok(records) => {
                    self.at.number = records.last().map_or(self.at.number, |(number, _)| *number);
                    let now = std::time::SystemTime::now();
                    let past = records.iter().map(|(number, record)| {
                        PastInvalidation::of(record, *number, self.origin, now)
                    });
                    return Ok(past.collect());
                }
                Err(error) if error.kind() == BusErrorKind::Gone => {
                    self.at = self.bus.end(None).await?;
                    let everything = Record::of(
                        &[crate::target::Selector::Everything],
                        crate::target::Mode::Hard,
                        self.origin,
                    );
                    let now = std::time::SystemTime::now();
                    let past = everything.iter().map(|record| {
                        PastInvalidation::of(record, self.at.number, WriterId::random(), now)
                    });
                    return Ok(past.collect());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

const LONGEST_WAIT: Duration = Duration::from_secs(5);
