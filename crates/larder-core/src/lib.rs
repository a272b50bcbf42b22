//! The engine of larder: what is kept, how long, and whether it is still true.
//!
//! Every invalidation is appended to a log and so gets a number. Every fill notes where the log stood
//! before anything was read for it. An entry is valid while no matching invalidation is later than that.
//! The rest of this crate is in service of that comparison:
//!
//! - [`Larder`] is the handle: [`get_or_load`](Larder::get_or_load), [`invalidate`](Larder::invalidate),
//!   [`stats`](Larder::stats);
//! - [`Key`], [`Tag`], [`Lifetime`] and [`Target`] name and bound what is kept;
//! - [`Scope`] gathers what a page, a fragment or a value was made of;
//! - [`Store`] and [`Bus`] are what a second level and a log of several processes implement.
//!
//! Most people want the `larder` crate, which brings the layers and extractors along.

pub use self::{
    builder::{BuildError, ByteSize, LarderBuilder},
    consistency::Consistency,
    invalidation_feed::{InvalidationEvent, InvalidationFeed},
    key::{IntoName, Key, Kind},
    larder::Larder,
    lifetime::Lifetime,
    memory::{Eviction, Evictions},
    object::{LoadError, Loading},
    observe::{CacheCounters, CacheStats, Latency, LogStats, MemoryStats, SecondLevelStats, Stats},
    policy::Policy,
    scope::Scoped,
    sealing::SealingKeys,
    tag::{MAX_TAG_BYTES, Tag},
    target::{Invalidated, Invalidation, Mode, Selector, Target},
    tiers::Tiers,
};

pub mod kernel;
pub mod store;

mod budget;
mod builder;
mod bus;
mod clock;
mod consistency;
mod engine;
mod entry;
mod envelope;
mod fill_lock;
mod flight;
mod invalidation_feed;
mod key;
mod larder;
mod lifetime;
mod log_follower;
mod memory;
mod object;
mod observe;
mod policy;
mod registry;
mod schema;
mod scope;
mod sealing;
mod second_level;
mod settings;
mod sync;
mod tag;
mod target;
mod tiers;
mod unscoped;
mod weight;

#[cfg(all(test, larder_shuttle))]
mod shuttle_tests;
#[cfg(test)]
mod tests;
