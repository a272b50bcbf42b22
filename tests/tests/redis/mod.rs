//! larder over real Redis servers.

mod memory_pressure;
mod one_cache;
mod replicas;
pub(crate) mod server;
mod settings;
mod tampered;
mod tls;
mod under_fire;
mod write_behind;
