//! Helpers shared by tests and benches: real servers, and polling. The tests are in `tests/`.

use std::time::{Duration, Instant};

pub mod browser;
pub mod postgres;

/// An event that a process under test leaves in the outbox.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Changed {
    /// The new value.
    pub v: i64,
}

impl larder::events::StoredEvent for Changed {
    const NAME: &'static str = "changed-1";
}

/// The time limit of `until`. A cluster on a busy machine may have to repeat its elections.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until the condition holds, and returns how long that took.
///
/// # Panics
///
/// When the condition does not hold within `PATIENCE`.
pub async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) -> Duration {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}
