//! The cost of values: a hit of the typed view compared with a bare moka `get` of an `Arc`, and hits of entries with
//! many tags under invalidations. `redis` measures batches.

use std::{
    convert::Infallible,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use benches::{Row, allocations, baseline, now, report, turns};
use larder::{Larder, LoadHandle, Policy, values::Values};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

const HOUR: Duration = Duration::from_secs(3600);
const KEYS: u64 = 1_000;

fn main() {
    report("A hit by name, over a bare moka `get` of an `Arc`", &hits());
    report("Allocations of a hit by name", &allocated());
    report(
        "A hit with many tags under 1,000 invalidations a second, over one with 8 tags",
        &many_tags(),
    );
}

fn name(key: u64) -> String {
    format!("user:{key}")
}

/// A hit by a string, by a tuple, and of local values.
fn hits() -> Vec<Row> {
    const TIMES: usize = 20_000;
    let larder = baseline::larder();
    let (values, local) = (larder.values::<u64>(HOUR), Values::<u64>::local(&larder, HOUR));
    let bare: moka::sync::Cache<String, Arc<u64>> = moka::sync::Cache::new(100_000);
    let names: Vec<String> = (0..KEYS).map(name).collect();
    for (key, name) in (0..).zip(&names) {
        bare.insert(name.clone(), Arc::new(key));
    }
    let load = |key: u64| move |_: LoadHandle| async move { Ok::<_, Infallible>(key) };
    let figures = turns(5, 61, |at, keys| {
        now(async {
            let start = Instant::now();
            for _ in 0..TIMES {
                let key = keys.next(KEYS);
                let name = &*names[key as usize];
                let value = match at {
                    0 => bare.get(name),
                    1 => values.get_or_load(name, load(key)).await.ok(),
                    2 => values.get_or_load(("user", key), load(key)).await.ok(),
                    3 => local.get_or_load(name, load(key)).await.ok(),
                    _ => larder.get_or_load(name, HOUR, load(key)).await.ok(),
                };
                black_box(value);
            }
            start.elapsed().as_nanos() as f64 / TIMES as f64
        })
    });
    let row = |case: &str, at: usize, budget| Row {
        case: case.to_owned(),
        ours: figures[at].0,
        baseline: figures[0].0,
        ratio: figures[at].1,
        budget,
        unit: "ns",
    };
    vec![
        row("`values.get_or_load(\"user:7\", ..)`", 1, Some(4.0)),
        row("`values.get_or_load((\"user\", 7), ..)`", 2, None),
        row("the same of local values, by a string", 3, Some(2.5)),
        row("`larder.get_or_load(\"user:7\", ..)`", 4, None),
    ]
}

/// The allocations of a hit. There must be none.
fn allocated() -> Vec<Row> {
    let larder = Larder::builder().build().expect("valid options");
    let values = larder.values::<u64>(Policy::ttl(HOUR).tag("users"));
    let load = |_: LoadHandle| async { Ok::<_, Infallible>(7) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let most = |count: &dyn Fn() -> u64| {
        count();
        (0..100).map(|_| count()).max().unwrap_or(0) as f64
    };
    let text = most(&|| allocations_of(&runtime, values.get_or_load("user:7", load)));
    let tuple = most(&|| allocations_of(&runtime, values.get_or_load(("user", 7), load)));
    let row = |case: &str, ours| Row {
        case: case.to_owned(),
        ours,
        baseline: 0.0,
        ratio: ours,
        budget: Some(0.0),
        unit: "allocations",
    };
    vec![row("by a string", text), row("by a tuple", tuple)]
}

/// Counts what a call allocates while it is polled.
fn allocations_of(runtime: &tokio::runtime::Runtime, call: impl Future) -> u64 {
    runtime.block_on(async {
        let mut allocated = 0;
        let mut call = std::pin::pin!(call);
        futures_util::future::poll_fn(|context| {
            let mut polled = std::task::Poll::Pending;
            allocated = allocations::count(|| polled = call.as_mut().poll(context));
            polled.map(drop)
        })
        .await;
        allocated
    })
}

/// Hits of values with 8, 400 and 2,000 tags, one in a thousand of which lie in a block of the tag table that an
/// invalidation has changed since the last hit.
fn many_tags() -> Vec<Row> {
    const TIMES: usize = 20_000;
    const COUNTS: [u64; 3] = [8, 400, 2_000];
    let larder = baseline::larder();
    let values = larder.values::<u64>(HOUR);
    for tags in COUNTS {
        let load = move |fill: LoadHandle| async move {
            (0..tags).for_each(|tag| fill.tag(("part", tag)));
            Ok::<_, Infallible>(tags)
        };
        now(values.get_or_load(("page", tags), load)).expect("it cannot fail");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let invalidating = std::thread::spawn({
        let (stop, larder) = (stop.clone(), larder.clone());
        move || {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let _ = now(larder.invalidate(("other", number)));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let figures = turns(COUNTS.len(), 31, |at, _| {
        now(async {
            let start = Instant::now();
            for _ in 0..TIMES {
                black_box(values.get(("page", COUNTS[at])).await);
            }
            start.elapsed().as_nanos() as f64 / TIMES as f64
        })
    });
    stop.store(true, Ordering::Relaxed);
    invalidating.join().expect("it does not panic");
    let row = |at: usize| Row {
        case: format!("a hit with {} tags", COUNTS[at]),
        ours: figures[at].0,
        baseline: figures[0].0,
        ratio: figures[at].1,
        budget: None,
        unit: "ns",
    };
    vec![row(0), row(1), row(2)]
}
