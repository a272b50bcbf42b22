#![allow(unused)]

use larder::{Larder, cached};

#[cached(ttl = "5m", tag = "user:{uid}")]
async fn user(larder: &Larder, id: u64) -> u64 { id }

fn main() {}
