#![allow(unused)]

use larder::{Larder, cached};

#[derive(Clone)]
struct Users { larder: Larder }

impl Users {
    #[cached(ttl = "5m")]
    async fn user(&self, id: u64) -> u64 { id }
}

fn main() {}
