//! Queries against a real PostgreSQL, and writes by other clients.
#![cfg_attr(not(has_postgres), allow(dead_code))]

mod drivers;
mod elsewhere;
mod queries;
