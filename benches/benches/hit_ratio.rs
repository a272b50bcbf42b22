//! Hit ratios on a synthetic trace: Zipf, interrupted by a scan of a million URLs.
//!
//! The trace is drawn from a fixed seed, since public traces cannot be shipped. *Optimum* is Belady's algorithm, which
//! knows the whole trace beforehand.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    time::Duration,
};

use benches::{Keys, now};
use larder::{ByteSize, Eviction, Larder, LoadHandle, Policy};

const HOT: usize = 100_000;
const REQUESTS: usize = 600_000;
const SCAN: usize = 1_000_000;
const SLOTS: usize = 10_000;

fn main() {
    let calm = trace(false);
    let scanned = trace(true);
    println!(
        "\n| {REQUESTS} Zipf requests over {HOT} keys, room for about {SLOTS} | calm | with a scan of {SCAN} | points lost |"
    );
    println!("|---|---|---|---|");
    for (name, eviction) in [("TinyLFU", Eviction::TinyLfu), ("LRU", Eviction::Lru)] {
        line(name, larder_ratio(&calm, eviction), larder_ratio(&scanned, eviction));
    }
    line("optimum", optimum(&calm), optimum(&scanned));
}

fn line(name: &str, calm: f64, scanned: f64) {
    println!(
        "| {name} | {:.1} % | {:.1} % | {:.1} |",
        100.0 * calm,
        100.0 * scanned,
        100.0 * (calm - scanned)
    );
}

/// Draws a trace. Keys below `HOT` follow Zipf's law; the scan requests all others once each.
fn trace(with_scan: bool) -> Vec<u32> {
    let weights: Vec<f64> = (1..=HOT).map(|rank| 1.0 / (rank as f64).powf(0.9)).collect();
    let mut sums = Vec::with_capacity(HOT);
    let mut sum = 0.0;
    for weight in weights {
        sum += weight;
        sums.push(sum);
    }
    let mut keys = Keys::new(7);
    let mut trace = Vec::new();
    let mut scanned = 0;
    for _ in 0..REQUESTS {
        let at = keys.next(1 << 30) as f64 / f64::from(1 << 30) * sum;
        trace.push(sums.partition_point(|upto| *upto < at) as u32);
        while with_scan && scanned * REQUESTS < trace.len() * SCAN && scanned < SCAN {
            trace.push((HOT + scanned) as u32);
            scanned += 1;
            if trace.len() % 3 == 0 {
                break;
            }
        }
    }
    trace
}

/// The hit ratio of the Zipf part.
fn larder_ratio(trace: &[u32], eviction: Eviction) -> f64 {
    // An entry with an empty value weighs about 850 bytes.
    let memory = ByteSize::bytes(SLOTS * 850);
    let larder = Larder::builder().memory(memory).eviction(eviction).build().expect("valid");
    let hot = || Policy::ttl(Duration::from_secs(3_600)).name("hot");
    let cold = || Policy::ttl(Duration::from_secs(3_600)).name("scan");
    now(async {
        for &key in trace {
            let policy = if (key as usize) < HOT { hot() } else { cold() };
            let load = |_: LoadHandle| async { Ok::<_, Infallible>(()) };
            larder.get_or_load(key, policy, load).await.expect("it cannot fail");
        }
    });
    let held = larder.stats().memory.entries;
    eprintln!("{eviction:?}: {held} entries held");
    larder.stats().cache("hot").map_or(0.0, |cache| cache.total.hit_ratio)
}

/// Belady's algorithm: evicts the entry whose next request is furthest away. Keys of the scan are never requested
/// again.
fn optimum(trace: &[u32]) -> f64 {
    let mut next = vec![usize::MAX; trace.len()];
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for (at, key) in trace.iter().enumerate().rev() {
        next[at] = seen.insert(*key, at).unwrap_or(usize::MAX);
    }
    let mut held: HashMap<u32, usize> = HashMap::new();
    let mut by_next: BTreeSet<(usize, u32)> = BTreeSet::new();
    let (mut hits, mut asked) = (0, 0);
    for (at, &key) in trace.iter().enumerate() {
        asked += usize::from((key as usize) < HOT);
        if let Some(before) = held.remove(&key) {
            hits += 1;
            by_next.remove(&(before, key));
        }
        held.insert(key, next[at]);
        by_next.insert((next[at], key));
        if held.len() > SLOTS
            && let Some((_, latest)) = by_next.pop_last()
        {
            held.remove(&latest);
        }
    }
    f64::from(hits) / asked as f64
}
