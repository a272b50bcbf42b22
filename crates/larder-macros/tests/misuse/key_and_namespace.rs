#![allow(unused)]

use larder::{Larder, cached};

#[derive(Clone)]
struct Users { larder: Larder, tenant: String }

impl Users {
    #[cached(ttl = "5m", key = "user:{id}", namespace = self.tenant)]
    async fn user(&self, id: u64) -> u64 { id }
}

fn main() {}
