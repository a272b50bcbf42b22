#![allow(unused)]

use larder::{Larder, cached};

#[cached(ttl = "5m", policy = larder::Policy::ttl(std::time::Duration::from_secs(1)))]
async fn user(larder: &Larder, id: u64) -> u64 { id }

fn main() {}
