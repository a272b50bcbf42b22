#![allow(unused)]

use larder::{Larder, cached};

#[cached(ttl = "1m")]
fn user(larder: &Larder, id: u64) -> u64 { id }

fn main() {}
