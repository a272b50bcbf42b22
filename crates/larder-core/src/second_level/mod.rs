//! The second level: a store that several processes share, read on a miss and written behind a fill.
//!
//! The code for it needs encoders, compression and encryption that a single process never runs. So it is compiled only
//! with the feature `second-level`; without it [`SecondLevel`] has no values, and no engine has one.

use crate::{key::Key, schema::Schema, tiers::Tiers};

#[cfg_attr(not(feature = "second-level"), path = "absent.rs")]
mod store_level;

pub(crate) use self::store_level::{SecondLevel, SecondLevelOptions};

/// A lookup in the second level.
#[derive(Clone, Copy, Debug)]
pub struct StoreLookup<'a> {
    /// The key of the entry.
    pub key: &'a Key,
    /// The schema that its value must have.
    pub schema: Schema,
    /// The levels that store it once it is found.
    pub tiers: Tiers,
}

/// The longest wait for a read of a store that has no deadline of its own.
pub(crate) const READ_DEADLINE: std::time::Duration = std::time::Duration::from_millis(50);
