//! Values by name, without a loader: the typed view [`Values`], and [`ReadPoint`] to store a value that the application
//! has read itself.

pub use crate::object::{ReadPoint, SetOutcome, Values};
