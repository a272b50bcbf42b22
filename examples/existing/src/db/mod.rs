//! The queries of the application. Each helper takes a connection, so that it also runs in a transaction.

use larder::sqlx_08::DatabaseHandle;
use sqlx::Postgres;

/// A pool, whose reads are cached, or a transaction.
pub(crate) type Handle<'a> = DatabaseHandle<'a, Postgres>;

pub(crate) mod comments;
pub(crate) mod items;
pub(crate) mod lists;
pub(crate) mod stars;
pub(crate) mod users;
