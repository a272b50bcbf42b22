//! One binary for all tests that span crates, so that it links once.

mod adoption;
mod attacks;
mod batches;
mod dashboard;
mod edge;
mod existing;
mod invariants;
mod layer_order;
mod metrics;
mod observability;
mod patterns;
mod postgres;
mod random_queries;
mod read_your_writes;
mod redis;
mod second_level;
mod shop;
mod simulation;
mod sliding;
mod sockets;
mod spans;
mod stale_copies;
mod store;
mod tiers;
mod write_behind;
mod write_through;
