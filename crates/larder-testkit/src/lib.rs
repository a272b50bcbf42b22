//! Test tools for larder and for code that is built on it.
//!
//! - [`SimulatedCluster`] simulates several processes that share a cache (its documentation has an example);
//! - [`Source`] counts the reads of an origin, and [`assert_fresh!`] compares a served value with it;
//! - [`MemoryStore`] is a shared store in memory, [`FaultyStore`] makes any store fail, stall and reorder;
//! - [`SharedLog`] is an invalidation log that several larders share, with delays, losses and cut connections;
//! - [`conformance`] tests [`Store`](larder_core::store::Store), [`FillLocks`](larder_core::store::FillLocks),
//!   [`Bus`](larder_core::store::Bus) and, with the feature `sql`, drivers of databases;
//! - [`assert_no_leak`] sends requests to an application as several users, and finds data of one in a response to another;
//! - [`History`] checks reads against the history of writes;
//! - [`invariants`] checks the semantics for any request and response;
//! - [`SeededRng`] draws random numbers from a seed, so that a failure can be replayed.
//!
//! All of these follow the clock of tokio, so a simulated minute takes no time if time is paused.

pub use self::{
    cluster::{NetworkConditions, SimulatedCluster, Source},
    history::{History, OperationStart, Violation},
    leaks::{TestUser, assert_no_leak, cookies_of},
    log::{LogLine, SharedLog},
    seeded_rng::SeededRng,
    store::{FaultyStore, MemoryStore},
};

pub mod conformance;
pub mod invariants;

mod cluster;
#[cfg(feature = "sql")]
mod driver_conformance;
mod history;
mod leaks;
mod log;
mod seeded_rng;
mod store;
