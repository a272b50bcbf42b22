#![allow(unused)]

use larder::{Larder, cached};

#[derive(Clone)]
struct Filter;

#[cached(ttl = "5m")]
async fn users(larder: &Larder, filter: Filter) -> u64 { let _ = filter; 1 }

fn main() {}
