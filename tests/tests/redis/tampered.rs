//! Entries that an attacker has written into Redis: counted misses for any bytes, and never a response.

use std::convert::Infallible;

use larder::{Larder, LoadHandle, Policy, SealingKeys, Tiers};
use redis::AsyncCommands as _;
use xxhash_rust::xxh3::xxh3_64;

use super::server::{MINUTE, PATIENCE, Server, larder, synced};

/// The text of a page, long enough to be compressed.
fn page(number: u64) -> String {
    format!("the page of {number}. ").repeat(200)
}

async fn ask(larder: &Larder, name: u64, loads: &str) -> String {
    let page = page(name) + loads;
    let load = move |fill: LoadHandle| async move {
        if loads_by_force(&page) {
            fill.no_store();
        }
        Ok::<_, Infallible>(page)
    };
    let policy = Policy::ttl(MINUTE).tiers(Tiers::SHARED);
    larder.get_or_load(name, policy, load).await.unwrap().to_string()
}

/// Loads in place of a tampered entry are not stored, so that the test can see whether that entry was removed.
fn loads_by_force(page: &str) -> bool {
    page.ends_with('!')
}

/// Returns the envelope with a checksum that matches its changed bytes.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = xxh3_64(&bytes[13..]).to_le_bytes();
    bytes[5..13].copy_from_slice(&checksum);
    bytes
}

type Tampering = fn(&[u8], &[u8]) -> Vec<u8>;

/// Name, change to the bytes of an entry, given those of another entry; and whether larder removes the entry.
const TAMPERINGS: [(&str, Tampering, bool); 10] = [
    ("garbage", |_, _| b"not ours at all".to_vec(), true),
    ("nothing", |_, _| Vec::new(), true),
    ("cut off", |own, _| own[..own.len() / 2].to_vec(), true),
    ("a bit", |own, _| with(own, 40, |byte| byte ^ 1), true),
    ("that of another key", |_, other| other.to_vec(), true),
    ("cut off, with a checksum", |own, _| with_checksum(own[..own.len() - 9].to_vec()), true),
    (
        "a header without end",
        |own, _| with_checksum(with(&with(own, 16, |_| 0xFF), 17, |_| 0xFF)),
        true,
    ),
    (
        "a bomb",
        |own, _| {
            // The decompressed length precedes the block, behind the header.
            let length = u32::from_le_bytes(own[14..18].try_into().unwrap()) as usize;
            let claim = u32::to_le_bytes(60 << 20);
            let at = (18 + length).min(own.len() - 4);
            with_checksum([&own[..at], &claim[..], &own[at + 4..]].concat())
        },
        true,
    ),
    ("an older version", |own, _| with(own, 4, |_| 3), false),
    ("a form of tomorrow", |own, _| with_checksum(with(own, 13, |_| 64)), false),
];

fn with(bytes: &[u8], at: usize, change: impl Fn(u8) -> u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] = change(bytes[at]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(has_redis), ignore = "redis-server is missing")]
async fn a_tampered_entry_is_a_counted_miss() {
    for sealed in [false, true] {
        let server = Server::start(&[]).await;
        // A read past its deadline would be a miss as well, and hide the effect of tampering.
        let redis = server.redis().deadline(PATIENCE);
        let larder = if sealed {
            let builder =
                Larder::builder().tag_table_slots(1 << 12).seal_with(SealingKeys::new([7; 32]));
            builder.second_level(redis).build().unwrap()
        } else {
            larder(redis)
        };
        synced(&larder).await;
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
        let mut attacker = client.get_multiplexed_async_connection().await.unwrap();
        for (at, (name, tamper, removed)) in TAMPERINGS.iter().enumerate() {
            let (own, other) = (2 * at as u64, 2 * at as u64 + 1);
            for number in [own, other] {
                ask(&larder, number, ".").await;
            }
            assert!(larder.close(PATIENCE).await);
            let key = async |number: u64| {
                let pattern = format!("larder:larder:o:*:{number}:*");
                let keys: Vec<String> = attacker.clone().keys(pattern).await.unwrap();
                assert_eq!(keys.len(), 1, "{keys:?}");
                keys[0].clone()
            };
            let (key, other_key) = (key(own).await, key(other).await);
            let [bytes, others]: [Vec<u8>; 2] =
                [attacker.get(&key).await.unwrap(), attacker.get(&other_key).await.unwrap()];
            let _: () = attacker.set(&key, tamper(&bytes, &others)).await.unwrap();
            let before = larder.stats().shared;
            let answer = ask(&larder, own, "!").await;
            assert!(answer.ends_with('!'), "{name}, sealed: {sealed}");
            let stats = larder.stats().shared;
            assert_eq!(stats.misses - before.misses, 1, "{name}, sealed: {sealed}");
            assert_eq!(
                stats.corrupt - before.corrupt,
                u64::from(*removed),
                "{name}, sealed: {sealed}"
            );
            let there: bool = attacker.exists(&key).await.unwrap();
            assert_eq!(there, !removed, "{name}, sealed: {sealed}");
            assert!(ask(&larder, other, "!").await.ends_with('.'), "others are not harmed");
        }
    }
}
