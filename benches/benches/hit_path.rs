//! The cost of a hit, compared with a handler that returns a constant.

use benches::{
    Keys, Row,
    allocations::{self, Counting},
    app, baseline, fill, report, request, send, take_turns_for,
};
use bytes::Bytes;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEYS: u64 = 10_000;
const ROUNDS: usize = 61;
const REQUESTS: usize = 8_000;

fn main() {
    let body = Bytes::from(vec![b'x'; 1024]);
    // Skewed traffic, as applications have it.
    let zipf = Keys::zipf(42, KEYS);
    report(
        "Hits, 10,000 keys by Zipf's law (1.0)",
        &hits(&body, KEYS, &zipf, Budgets { alone: 1.55, stack: 1.7, floor: 1.15 }),
    );
    // The worst case for the caches of the processor: all keys are equally popular.
    report(
        "The same, each key as likely as every other",
        &hits(&body, KEYS, &Keys::new(42), Budgets { alone: 2.0, stack: 2.2, floor: 1.3 }),
    );
    // All pages stay in the caches of the processor: the work of larder alone.
    report(
        "The same with 16 keys",
        &hits(&body, 16, &Keys::new(42), Budgets { alone: 1.45, stack: 1.6, floor: 1.3 }),
    );
    report("Hits by Zipf's law, with traffic watched and without", &watched(&body, &zipf));
    report("Allocations (the ratio is the difference)", &allocations());
}

/// The budgets of a hit, as multiples of LIMIT and of the cheapest keyed look-up.
struct Budgets {
    alone: f64,
    stack: f64,
    floor: f64,
}

fn hits(body: &Bytes, count: u64, keys: &Keys, budgets: Budgets) -> Vec<Row> {
    let larders = [(); 4].map(|()| baseline::larder());
    let layer = baseline::one_layer(&larders[0], body, 4);
    let stack = baseline::stack(&larders[1], body);
    let around = baseline::around(&larders[2], body);
    let by_layer = baseline::by_layer(&larders[3], body);
    // Warm up: the eviction policy records the first hits of an entry more often than later ones.
    for _ in 0..17 {
        fill(&layer, count);
        fill(&stack, count);
        fill(&around, count);
        fill(&by_layer, count);
    }
    let (limit, bare) = (baseline::limit(body), baseline::bare(body));
    let floor = baseline::floor(body, count);
    let mut apps =
        [app(limit), app(bare), app(floor), app(layer), app(stack), app(around), app(by_layer)];
    let figures = take_turns_for(&mut apps, keys, count, ROUNDS, REQUESTS);
    let row = |name: &str, at: usize, budget: Option<f64>| Row {
        case: format!("hit, 1 KiB: {name}"),
        ours: figures[at].0,
        baseline: figures[0].0,
        ratio: figures[at].1,
        budget,
        unit: "ns",
    };
    vec![
        row("LIMIT", 0, None),
        row("BARE LAYER", 1, None),
        row("the cheapest keyed look-up", 2, None),
        row("one layer", 3, Some(budgets.alone)),
        row("whole stack", 4, Some(budgets.stack)),
        row("around the Router", 5, None),
        row("one layer, lifetime of the layer", 6, None),
        Row {
            case: "one layer beside the cheapest keyed look-up".into(),
            baseline: figures[2].0,
            ratio: figures[3].2,
            ..row("", 3, Some(budgets.floor))
        },
    ]
}

/// What `watch_traffic`, which the dashboard begins, adds to a hit of one layer.
fn watched(body: &Bytes, keys: &Keys) -> Vec<Row> {
    let larders = [(); 2].map(|()| baseline::larder());
    larders[1].watch_traffic();
    let layers = larders.each_ref().map(|larder| baseline::one_layer(larder, body, 4));
    for _ in 0..17 {
        layers.iter().for_each(|layer| fill(layer, KEYS));
    }
    let [plain, watched] = layers.map(app);
    let mut apps = [app(baseline::limit(body)), watched, plain];
    let figures = take_turns_for(&mut apps, keys, KEYS, ROUNDS, REQUESTS);
    vec![Row {
        case: "hit, 1 KiB: one layer, watched, beside one that is not".into(),
        ours: figures[1].0,
        baseline: figures[2].0,
        ratio: figures[1].2,
        budget: Some(1.05),
        unit: "ns",
    }]
}

fn allocations() -> Vec<Row> {
    let mut rows = Vec::new();
    for kib in [1, 64] {
        let body = Bytes::from(vec![b'x'; kib * 1024]);
        let larder = baseline::larder();
        let mut bare = baseline::bare(&body);
        let mut layer = baseline::one_layer(&larder, &body, 4);
        fill(&layer, 16);
        let count = |app: &mut axum::Router| {
            // The header lines of this second are built once; the third hit reuses them.
            (0..3).for_each(|_| drop(send(app, request("/products/7"))));
            let ask = request("/products/7");
            allocations::count(|| drop(send(app, ask))) as f64
        };
        let (ours, baseline) = (count(&mut layer), count(&mut bare));
        rows.push(Row {
            case: format!("allocations of a hit beyond BARE LAYER, {kib} KiB"),
            ours,
            baseline,
            ratio: ours - baseline,
            budget: Some(4.0),
            unit: "",
        });
    }
    rows
}
