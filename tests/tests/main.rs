//! One binary for all that crosses crates, so that it links once.

mod adoption;
mod attacks;
mod drawn_queries;
mod edge;
mod invariants;
mod layer_order;
mod positions;
mod postgres;
mod redis;
mod second_level;
mod shop;
mod simulation;
mod sockets;
mod store;
mod tiers;
