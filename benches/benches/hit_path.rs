//! The hit, beside a handler that returns a constant.

use benches::{
    Row,
    allocations::{self, Counting},
    app, baseline, fill, report, request, send, take_turns,
};
use bytes::Bytes;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEYS: u64 = 10_000;
const ROUNDS: usize = 61;
const REQUESTS: usize = 8_000;

fn main() {
    let body = Bytes::from(vec![b'x'; 1024]);
    let larder = baseline::larder();
    let (stack_larder, around_larder) = (baseline::larder(), baseline::larder());
    let layer = baseline::one_layer(&larder, &body, 4);
    let stack = baseline::stack(&stack_larder, &body);
    let around = baseline::around(&around_larder, &body);
    fill(&layer, KEYS);
    fill(&stack, KEYS);
    fill(&around, KEYS);
    // As after a while: the policy of the memory tier hears of the first hits of an entry more often.
    for service in [&layer, &stack] {
        (0..16).for_each(|_| fill(service, KEYS));
    }
    (0..16).for_each(|_| fill(&around, KEYS));
    let (limit, bare) = (baseline::limit(&body), baseline::bare(&body));
    let mut apps = [app(limit), app(bare), app(layer), app(stack), app(around)];

    let names = ["LIMIT", "BARE LAYER", "one layer", "whole stack", "around the Router"];
    let budgets = [None, None, Some(1.45), Some(1.6), Some(0.8)];
    let figures = take_turns(&mut apps, KEYS, ROUNDS, REQUESTS);
    let rows: Vec<Row> = (0..apps.len())
        .map(|at| Row {
            case: format!("hit, 1 KiB, 10,000 keys: {}", names[at]),
            ours: figures[at].0,
            baseline: figures[0].0,
            ratio: figures[at].1,
            budget: budgets[at],
            unit: "ns",
        })
        .collect();
    report("Hits against LIMIT", &rows);

    let mut rows = Vec::new();
    for kib in [1, 64] {
        let body = Bytes::from(vec![b'x'; kib * 1024]);
        let larder = baseline::larder();
        let mut bare = baseline::bare(&body);
        let mut layer = baseline::one_layer(&larder, &body, 4);
        fill(&layer, 16);
        let count = |app: &mut axum::Router| {
            // The lines of this second are made once; the third hit finds them.
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
    report("Allocations (the ratio is the difference)", &rows);
}
