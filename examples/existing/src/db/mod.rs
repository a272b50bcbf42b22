//! The queries of the application. Each helper takes a connection, so that it also runs in a transaction.

pub(crate) mod comments;
pub(crate) mod items;
pub(crate) mod lists;
pub(crate) mod stars;
pub(crate) mod users;
