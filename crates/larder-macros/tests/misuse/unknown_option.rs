#![allow(unused)]

use larder::{Larder, cached};

#[cached(ttl = "5m", expires = "1h")]
async fn user(larder: &Larder, id: u64) -> u64 { id }

fn main() {}
