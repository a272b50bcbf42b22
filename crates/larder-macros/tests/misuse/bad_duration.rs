#![allow(unused)]

use larder::{Larder, cached};

#[cached(ttl = "5 minutes")]
async fn user(larder: &Larder, id: u64) -> u64 { id }

fn main() {}
