//! larder over real Redis servers.

mod memory_pressure;
mod one_cache;
mod replicas;
mod server;
mod settings;
mod tls;
mod under_fire;
