//! The engine of larder, which stores entries and decides how long they are fresh and whether they are valid.
//!
//! Every invalidation gets a number when it is appended to a log. Every fill notes the log position before it reads
//! anything. An entry is valid while no matching invalidation is newer than that position. The main types of this crate
//! are:
//!
//! - [`Larder`] is the handle: [`get_or_load`](Larder::get_or_load), [`invalidate`](Larder::invalidate),
//!   [`stats`](Larder::stats);
//! - [`Key`], [`Tag`], [`Lifetime`] and [`Target`] name entries, bound their lifetimes and invalidate them;
//! - [`Scope`](kernel::Scope) gathers the tags, lifetimes and audience of a page, a fragment or a value;
//! - [`Store`](store::Store) and [`Bus`](store::Bus) are the traits of a second level and of a log that processes
//!   share.
//!
//! Most applications use the `larder` crate, which adds the layers and extractors.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(feature = "second-level"), allow(dead_code, reason = "the second level uses it"))]

pub use self::{
    advice::{Advice, AdviceKind},
    builder::{BuildError, ByteSize, LarderBuilder},
    consistency::Consistency,
    invalidation_feed::{InvalidationEvent, InvalidationFeed},
    key::{IntoName, Key, Kind},
    larder::Larder,
    lifetime::Lifetime,
    memory::{Eviction, Evictions},
    metrics::{
        CacheCounters, CacheStats, Latency, LogStats, MemoryStats, ObservedHits, RouteStats, Saved,
        SecondLevelStats, Stats,
    },
    object::{LoadError, LoadHandle},
    policy::Policy,
    reason::Reason,
    replay::{ReplayCounts, ReplaySettings, Trace, TraceError},
    reports::WriteBehindStats,
    scope::Scoped,
    tag::{MAX_TAG_BYTES, Tag},
    target::{Invalidated, Invalidation, Mode, Selector, Target},
    tiers::Tiers,
};

#[cfg(feature = "sealing")]
pub use self::sealing::SealingKeys;

pub mod events;
pub mod kernel;
pub mod store;
pub mod values;

mod advice;
mod audience;
mod background;
mod budget;
mod builder;
mod bus;
mod clock;
mod consistency;
mod engine;
mod entry;
#[cfg(feature = "second-level")]
mod envelope;
mod explain;
mod fill_lock;
mod flight;
mod inspect;
mod invalidation_feed;
mod invalidation_history;
mod key;
mod larder;
mod lifetime;
mod log_client;
mod log_follower;
mod memory;
mod metrics;
mod object;
mod policy;
mod provenance;
mod reason;
mod record_note;
mod refresh;
mod refresh_ahead;
mod registry;
mod replay;
mod reports;
mod rules;
mod running_tasks;
mod schema;
mod scope;
#[cfg(feature = "sealing")]
mod sealing;
mod second_level;
mod settings;
mod spans;
mod states;
mod sync;
mod tag;
mod target;
mod tiers;
mod traffic;
mod unscoped;
mod weight;

#[cfg(all(test, larder_shuttle))]
mod shuttle_tests;
#[cfg(test)]
mod tests;
