#![allow(unused)]

use larder::{Larder, cached};

#[cached(tag = "user:{id}")]
async fn user(larder: &Larder, id: u64) -> u64 { id }

fn main() {}
