//! What tests and benches share: real servers, and waiting for them. The tests are in `tests/`.

use std::time::{Duration, Instant};

pub mod postgres;

/// Elections of a cluster may have to be held again on a machine with other things to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it holds, and says for how long.
///
/// # Panics
///
/// When it took too long.
pub async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) -> Duration {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}
