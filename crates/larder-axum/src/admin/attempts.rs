//! Limits how many wrong tokens an address may try.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The wrong tokens of each address in the last minute. Requests whose address is unknown count together.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<Option<IpAddr>, (Instant, u32)>>);

impl Attempts {
    /// Whether an address has tried too many wrong tokens.
    pub(super) fn are_used_up(&self, address: Option<IpAddr>) -> bool {
        let attempts = self.0.lock();
        let counted = attempts.get(&address);
        counted.is_some_and(|(since, count)| since.elapsed() < MINUTE && *count >= MOST_ATTEMPTS)
    }

    /// Counts a wrong token.
    pub(super) fn note(&self, address: Option<IpAddr>) {
        let mut attempts = self.0.lock();
        if attempts.len() >= MOST_ADDRESSES && !attempts.contains_key(&address) {
            attempts.retain(|_, (since, _)| since.elapsed() < MINUTE);
            if attempts.len() >= MOST_ADDRESSES {
                // Tokens are tried from many addresses: all new ones count together.
                let (_, count) = attempts.entry(None).or_insert_with(|| (Instant::now(), 0));
                *count += 1;
                return;
            }
        }
        let (since, count) = attempts.entry(address).or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() >= MINUTE {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const MOST_ATTEMPTS: u32 = 10;
const MOST_ADDRESSES: usize = 1024;
