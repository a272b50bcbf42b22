//! Queries of a real PostgreSQL, and writes of others.
#![cfg_attr(not(has_postgres), allow(dead_code))]

mod elsewhere;
mod queries;
