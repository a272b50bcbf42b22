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
    report(
        "Hits against LIMIT, 10,000 keys",
        &hits(&body, KEYS, [Some(1.45), Some(1.6), Some(0.8)]),
    );
    // What a hit does, without what it waits for: all of it lies in the caches of the processor.
    report("The same with 16 keys", &hits(&body, 16, [None; 3]));
    report("Allocations (the ratio is the difference)", &allocations());
}

fn hits(body: &Bytes, keys: u64, budgets: [Option<f64>; 3]) -> Vec<Row> {
    let larders = [(); 3].map(|()| baseline::larder());
    let layer = baseline::one_layer(&larders[0], body, 4);
    let stack = baseline::stack(&larders[1], body);
    let around = baseline::around(&larders[2], body);
    // As after a while: the policy of the memory tier hears of the first hits of an entry more often.
    for _ in 0..17 {
        fill(&layer, keys);
        fill(&stack, keys);
        fill(&around, keys);
    }
    let (limit, bare) = (baseline::limit(body), baseline::bare(body));
    let mut apps = [app(limit), app(bare), app(layer), app(stack), app(around)];
    let figures = take_turns(&mut apps, keys, ROUNDS, REQUESTS);
    let names = ["LIMIT", "BARE LAYER", "one layer", "whole stack", "around the Router"];
    let budgets = [None, None].into_iter().chain(budgets);
    let cases = names.into_iter().zip(budgets).zip(&figures);
    cases
        .map(|((name, budget), &(ours, ratio))| Row {
            case: format!("hit, 1 KiB: {name}"),
            ours,
            baseline: figures[0].0,
            ratio,
            budget,
            unit: "ns",
        })
        .collect()
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
    rows
}
