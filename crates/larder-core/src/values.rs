//! Values by name: the typed view [`Values`] with its batches and codecs, and [`ReadPoint`] to store a value that the
//! application has read itself.

pub use crate::{
    object::{
        Codec, CodecError, Json, Missing, ReadPoint, ReadThrough, SetOutcome, Values, WriteError,
        WriteHandle, WriteOutcome,
    },
    schema::Schema,
};
