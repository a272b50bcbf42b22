//! Cached queries of larder over the connection pools of sqlx, versions 0.8 and 0.9.
//!
//! Applications depend on `larder`, which re-exports the two versions as `larder::sqlx` and `larder::sqlx_08`.

// The two versions of sqlx have the same interface, but for a few types, so one source serves both.
#![allow(clippy::duplicate_mod)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod rows;
#[cfg(any(feature = "sqlite-08", feature = "postgres-08"))]
pub mod v0_8;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod v0_9;

#[cfg(test)]
mod tests;
