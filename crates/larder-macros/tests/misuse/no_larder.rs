#![allow(unused)]

use larder::{Larder, cached};

#[cached(ttl = "5m")]
async fn user(id: u64) -> u64 { id }

fn main() {}
