//! What it takes to test larder, and what is built on it.
//!
//! - [`SimulatedCluster`] is several processes as one cache, with an example to begin with;
//! - [`Source`] counts what reaches an origin, and [`assert_fresh!`] compares with it;
//! - [`MemoryStore`] is a shared store in memory, [`FaultyStore`] makes any store fail, stall and reorder;
//! - [`SharedLog`] is an invalidation log that several larders share, with delays, losses and cut lines;
//! - [`conformance`] is what every [`Store`](larder_core::store::Store), [`FillLocks`](larder_core::store::FillLocks) and
//!   [`Bus`](larder_core::store::Bus) owes;
//! - [`History`] checks reads against the history of writes;
//! - [`invariants`] is what holds of the semantics for any request and response;
//! - [`SeededRng`] is chance from a seed, so that a failure replays.
//!
//! All of it follows tokio's clock: with paused time a simulated minute takes no time.

pub use self::{
    cluster::{NetworkConditions, SimulatedCluster, Source},
    history::{History, OperationStart, Violation},
    log::{LogLine, SharedLog},
    seeded_rng::SeededRng,
    store::{FaultyStore, MemoryStore},
};

pub mod conformance;
pub mod invariants;

mod cluster;
mod history;
mod log;
mod seeded_rng;
mod store;
