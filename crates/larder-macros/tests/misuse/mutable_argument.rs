#![allow(unused)]

use larder::{Larder, cached};

#[cached(ttl = "5m")]
async fn user(larder: &Larder, ids: &mut Vec<u64>) -> u64 { ids.len() as u64 }

fn main() {}
