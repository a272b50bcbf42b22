//! Limits how many wrong tokens a network may try.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The wrong tokens of each network in a minute: of an IPv4 address, or of the /64 of an IPv6 address, in which one client
/// has as many addresses as it wants.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<Networks>);

#[derive(Debug, Default)]
struct Networks {
    listed: HashMap<IpAddr, Minute>,
    /// All networks for which the list has no place.
    unlisted: Minute,
}

/// A minute, and the wrong tokens in it.
#[derive(Clone, Copy, Debug, Default)]
struct Minute {
    began: Option<Instant>,
    wrong: u32,
}

impl Attempts {
    /// Whether the network of an address has tried too many wrong tokens.
    pub(super) fn are_used_up(&self, address: IpAddr) -> bool {
        let networks = self.0.lock();
        let network = network(address);
        let is_full = networks.listed.len() >= MOST_NETWORKS;
        let minute = match networks.listed.get(&network) {
            None if is_full => networks.unlisted,
            listed => listed.copied().unwrap_or_default(),
        };
        minute.is_now() && minute.wrong >= MOST_ATTEMPTS
    }

    /// Counts a wrong token.
    pub(super) fn note(&self, address: IpAddr) {
        let mut networks = self.0.lock();
        let network = network(address);
        if networks.listed.len() >= MOST_NETWORKS && !networks.listed.contains_key(&network) {
            networks.listed.retain(|_, minute| minute.is_now());
        }
        let is_full = networks.listed.len() >= MOST_NETWORKS;
        let minute = match networks.listed.contains_key(&network) {
            false if is_full => &mut networks.unlisted,
            _ => networks.listed.entry(network).or_default(),
        };
        if !minute.is_now() {
            *minute = Minute { began: Some(Instant::now()), wrong: 0 };
        }
        minute.wrong += 1;
    }
}

impl Minute {
    fn is_now(self) -> bool {
        self.began.is_some_and(|began| began.elapsed() < MINUTE)
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const MOST_ATTEMPTS: u32 = 10;
const MOST_NETWORKS: usize = 1024;
