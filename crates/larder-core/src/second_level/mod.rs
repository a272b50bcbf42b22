//! The second level: a store that several processes share. Larder reads it on a miss, and writes to it in the
//! background after a fill.
//!
//! Its code needs encoders, compression and encryption that a single process never runs, so it is compiled only with
//! the feature `second-level`. Without the feature, [`SecondLevel`] is a type without values.

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
    /// The levels that store the entry once it is found.
    pub tiers: Tiers,
}

/// The maximum wait for a read of a store that does not have its own deadline.
pub(crate) const READ_DEADLINE: std::time::Duration = std::time::Duration::from_millis(50);
