//! A circuit breaker: after five failures in a row commands fail at once instead of waiting for a server that does not
//! answer.
//!
//! While the circuit is *closed*, commands are sent. While it is *open*, they fail at once. After a pause of 200 ms,
//! which doubles with each failed probe up to 2 s, one command is sent as a probe (*half-open*). If it succeeds, the
//! circuit closes; otherwise the circuit remains open.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use larder_core::kernel::jittered;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The circuit breaker of one server, or of one range of slots.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// Whether the circuit is closed and no command has failed since the last success. If so, no lock is needed.
    quiet: AtomicBool,
    /// The number of commands that the server has answered.
    answers: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open: Option<Open>,
}

/// The state of the circuit after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Closed: fewer than five failures in a row.
    Closed,
    /// This failure opened it.
    Opened,
    /// It was open, and the probe failed.
    StillOpen,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    pause: Duration,
    /// The time of the next probe.
    until: Instant,
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self { quiet: AtomicBool::new(true), answers: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Whether a command may be sent.
    pub(crate) fn allows(&self) -> bool {
        if self.quiet.load(Ordering::Relaxed) {
            return true;
        }
        let mut state = self.state.lock();
        let Some(open) = &mut state.open else { return true };
        let now = Instant::now();
        if now < open.until {
            return false;
        }
        // This command is the probe; other commands fail until its outcome is known.
        open.until = now + open.pause;
        true
    }

    /// The number of commands that the server has answered so far. While it grows, the server is available.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Notes a success. Returns whether it closed the circuit.
    pub(crate) fn succeeded(&self) -> bool {
        self.answers.fetch_add(1, Ordering::Relaxed);
        if self.quiet.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        state.failures = 0;
        self.quiet.store(true, Ordering::Relaxed);
        state.open.take().is_some()
    }

    /// Notes a failure.
    pub(crate) fn failed(&self) -> FailureKind {
        let mut state = self.state.lock();
        self.quiet.store(false, Ordering::Relaxed);
        state.failures += 1;
        if state.failures < MOST_FAILURES {
            return FailureKind::Closed;
        }
        let now = Instant::now();
        match &mut state.open {
            Some(open) => {
                open.pause = (open.pause * 2).min(LONGEST_PAUSE);
                open.until = now + jittered(open.pause);
                FailureKind::StillOpen
            }
            None => {
                let pause = FIRST_PAUSE;
                state.open = Some(Open { pause, until: now + jittered(pause) });
                FailureKind::Opened
            }
        }
    }
}

const MOST_FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_circuit_opens_after_failures_in_a_row_and_allows_one_probe_after_a_pause() {
        let breaker = Breaker::new();
        for _ in 1..MOST_FAILURES {
            assert!(breaker.failed() == FailureKind::Closed && breaker.allows());
        }
        assert_eq!(breaker.failed(), FailureKind::Opened);
        assert!(!breaker.allows());
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(breaker.allows(), "one probe is sent");
        assert!(!breaker.allows(), "and only one");
        assert_eq!(breaker.failed(), FailureKind::StillOpen);
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(!breaker.allows(), "the pause grows");
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(breaker.allows());
        assert!(breaker.succeeded(), "this success closes it");
        assert!(breaker.allows() && breaker.allows() && !breaker.succeeded());
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_resets_the_count_of_failures() {
        let breaker = Breaker::new();
        for _ in 0..100 {
            breaker.failed();
            breaker.succeeded();
        }
        assert!(breaker.allows());
    }
}
