//! Shared by the benches: a table with budgets, paired rounds, a counting allocator, and the baselines.
//!
//! *LIMIT* is an axum Router whose handler returns a prebuilt body. *BARE LAYER* is a layer on it that answers without
//! reading the request. All cases of a table take turns, round by round, so that a noisy neighbour disturbs all alike;
//! the compared figure is the median over the rounds of the ratio within a round.

pub mod allocations;
pub mod baseline;

use std::{
    hint::black_box,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use axum::{body::Body, http::Request};
use http_body::Body as _;
use tower::Service;

/// One row: a figure, its baseline and its budget.
#[derive(Clone, Debug)]
pub struct Row {
    /// The measured case.
    pub case: String,
    /// The figure of larder.
    pub ours: f64,
    /// The figure it is compared with.
    pub baseline: f64,
    /// The figure that is compared with the budget.
    pub ratio: f64,
    /// The largest allowed ratio; `None` for information only.
    pub budget: Option<f64>,
    /// The unit of the figures.
    pub unit: &'static str,
}

/// Prints the table. With `--check` among the arguments, exits 1 when a row is over its budget.
pub fn report(title: &str, rows: &[Row]) {
    println!("\n{title}\n");
    println!("| case | ours | baseline | ratio | budget | |");
    println!("|---|---|---|---|---|---|");
    let mut over = false;
    for row in rows {
        let verdict = match row.budget {
            Some(budget) if row.ratio > budget => "OVER",
            Some(_) => "ok",
            None => "",
        };
        over |= verdict == "OVER";
        let budget = row.budget.map_or(String::new(), |budget| format!("{budget:.2}"));
        println!(
            "| {} | {:.1} {} | {:.1} {} | {:.3} | {budget} | {verdict} |",
            row.case, row.ours, row.unit, row.baseline, row.unit, row.ratio
        );
    }
    if over && std::env::args().any(|argument| argument == "--check") {
        std::process::exit(1);
    }
}

/// The median.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A generator of pseudorandom keys of requests.
#[derive(Clone, Debug)]
pub struct Keys {
    state: u64,
    /// The cumulative share of requests of each rank. Empty where all keys are equally likely.
    shares: Arc<[f64]>,
}

impl Keys {
    /// Uniformly distributed keys, the same in each run.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, shares: Arc::default() }
    }

    /// `count` keys by Zipf's law with the exponent 1.0, the same in each run: the second most popular key comes half
    /// as often as the first, the third a third as often.
    pub fn zipf(seed: u64, count: u64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        let sums: Vec<f64> = sums.collect();
        Self { state: seed, shares: sums.iter().map(|part| part / sum).collect() }
    }

    /// The next of `count` keys.
    pub fn next(&mut self, count: u64) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let drawn = self.state >> 33;
        if self.shares.is_empty() {
            return drawn % count;
        }
        let share = drawn as f64 / (1_u64 << 31) as f64;
        let rank = self.shares.partition_point(|below| *below <= share) as u64;
        // Popular keys are not adjacent.
        rank.min(count - 1) * 7_919 % count
    }
}

/// A minimal request with the fields that browsers send.
pub fn request(path: &str) -> Request<Body> {
    Request::get(path)
        .header("host", "shop.example")
        .header("accept", "text/html")
        .header("user-agent", "bench")
        .body(Body::empty())
        .expect("a valid request")
}

/// Sends one request that has to be answered without waiting, and reads the first frame of its body.
pub fn send<S>(service: &mut S, request: Request<Body>) -> http::Response<()>
where
    S: Service<Request<Body>, Response = http::Response<Body>>,
    S::Error: std::fmt::Debug,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut future = pin!(service.call(request));
    let Poll::Ready(response) = future.as_mut().poll(&mut cx) else {
        panic!("a hit does not wait");
    };
    let (head, body) = response.expect("it cannot fail").into_parts();
    let mut body = pin!(body);
    black_box(body.as_mut().poll_frame(&mut cx)).is_ready();
    http::Response::from_parts(head, ())
}

/// A service under measurement.
pub type App = Box<dyn FnMut(Request<Body>)>;

/// Wraps a service for measurement.
pub fn app<S>(mut service: S) -> App
where
    S: Service<Request<Body>, Response = http::Response<Body>> + 'static,
    S::Error: std::fmt::Debug,
{
    Box::new(move |request| drop(black_box(send(&mut service, request))))
}

/// Measures the nanoseconds per request, over `requests` requests for keys out of `count`. The requests are built a few
/// at a time, outside the measured time, so they are as warm in the processor caches as those a server has just read.
pub fn round(app: &mut App, keys: &mut Keys, count: u64, requests: usize) -> f64 {
    const FEW: usize = 8;
    let mut nanos = 0;
    for _ in 0..requests / FEW {
        let few: [_; FEW] =
            std::array::from_fn(|_| request(&format!("/products/{}", keys.next(count))));
        let start = Instant::now();
        few.into_iter().for_each(&mut *app);
        nanos += start.elapsed().as_nanos();
    }
    nanos as f64 / (requests / FEW * FEW) as f64
}

/// Measures all apps in turn. Returns the nanoseconds of each and the ratio of each to the first.
pub fn take_turns(apps: &mut [App], count: u64, rounds: usize, requests: usize) -> Vec<(f64, f64)> {
    turns(apps.len(), rounds, |at, keys| round(&mut apps[at], keys, count, requests))
}

/// As [`take_turns`], for these keys. Also returns the ratio to the case of index 2.
pub fn take_turns_for(
    apps: &mut [App],
    keys: &Keys,
    count: u64,
    rounds: usize,
    requests: usize,
) -> Vec<(f64, f64, f64)> {
    let mut keys = keys.clone();
    let mut floor = vec![Vec::new(); apps.len()];
    let mut of_turn = vec![0.0; apps.len()];
    let mut measured = 0;
    let cases = apps.len();
    let figures = turns(cases, rounds, |at, _| {
        of_turn[at] = round(&mut apps[at], &mut keys, count, requests);
        measured += 1;
        if measured % cases == 0 && measured > cases {
            for (at, figure) in of_turn.iter().enumerate() {
                floor[at].push(figure / of_turn[FLOOR]);
            }
        }
        of_turn[at]
    });
    figures.into_iter().zip(floor).map(|((n, r), floor)| (n, r, median(floor))).collect()
}

/// The index of the case that is the cheapest keyed look-up.
const FLOOR: usize = 2;

/// Measures all cases in turn; `measure` returns the figure of one.
pub fn turns(
    cases: usize,
    rounds: usize,
    mut measure: impl FnMut(usize, &mut Keys) -> f64,
) -> Vec<(f64, f64)> {
    let mut figures = vec![Vec::new(); cases];
    let mut ratios = vec![Vec::new(); cases];
    let mut keys = Keys::new(42);
    for turn in 0..=rounds {
        let mut of_turn = vec![0.0; cases];
        // The order rotates too, so that no case always runs after the same other one.
        for step in 0..cases {
            let at = (step + turn) % cases;
            of_turn[at] = measure(at, &mut keys);
        }
        if turn == 0 {
            continue; // To warm up.
        }
        for (at, figure) in of_turn.iter().enumerate() {
            figures[at].push(*figure);
            ratios[at].push(figure / of_turn[0]);
        }
    }
    figures.into_iter().zip(ratios).map(|(n, r)| (median(n), median(r))).collect()
}

/// Runs a future that is ready at once, or nearly, on a runtime of its own.
pub fn now<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
        .block_on(future)
}

/// Requests each key once, so that all responses are stored.
pub fn fill<S>(service: &S, count: u64)
where
    S: Service<Request<Body>, Response = http::Response<Body>> + Clone,
    S::Error: std::fmt::Debug,
{
    now(async {
        for key in 0..count {
            ask(service, request(&format!("/products/{key}"))).await;
        }
    });
}

/// Sends a request to a service, and reads the response to its end.
pub async fn ask<S>(service: &S, request: Request<Body>)
where
    S: Service<Request<Body>, Response = http::Response<Body>> + Clone,
    S::Error: std::fmt::Debug,
{
    let response = service.clone().call(request).await;
    let mut body = pin!(response.expect("it cannot fail").into_body());
    while std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await.is_some() {}
}
