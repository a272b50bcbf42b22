//! Visitors and price changes for `--traffic`, so that the dashboard has something to show.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body};
use http::{Method, Request, header};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tower::ServiceExt as _;

use crate::seed::{CATEGORIES, MATERIALS};

/// What was sent, and how it was answered.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<Mutex<BTreeMap<String, u64>>>);

impl Sent {
    fn count(&self, what: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    /// Returns the number of answers, by the route and the outcome in `Cache-Status`: `/products/{id} hit`.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The traffic of `--traffic`.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    pub(crate) per_second: u32,
    pub(crate) products: u32,
    pub(crate) sent: Sent,
    pub(crate) switch: TrafficSwitch,
}

/// Stops the traffic.
#[derive(Clone, Debug)]
pub struct TrafficSwitch(Arc<watch::Sender<Phase>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Runs,
    Stops,
    Ended,
}

impl Default for TrafficSwitch {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Runs)))
    }
}

impl TrafficSwitch {
    /// Stops the traffic, and waits until all of its requests are answered.
    pub async fn stop(&self) {
        self.0.send_if_modified(|phase| std::mem::replace(phase, Phase::Stops) == Phase::Runs);
        let mut phase = self.0.subscribe();
        drop(phase.wait_for(|phase| *phase == Phase::Ended).await);
    }
}

/// Sends this many requests in each second, until it is switched off: products by Zipf's law, categories, searches and the first
/// page. One in a hundred changes a price.
pub(crate) async fn run(shop: Router, token: String, traffic: Traffic) {
    let Traffic { per_second, products, sent, switch } = traffic;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let in_flight = Arc::new(Semaphore::new(MOST_IN_FLIGHT));
    let mut tasks = JoinSet::new();
    let (mut number, mut due) = (0_u64, 0.0);
    let mut random = fastrand::Rng::with_seed(1);
    while !traffic_ends(&switch) {
        ticks.tick().await;
        due += f64::from(per_second) * TICK.as_secs_f64();
        while due >= 1.0 {
            due -= 1.0;
            number += 1;
            let Ok(permit) = Arc::clone(&in_flight).try_acquire_owned() else { break };
            let (route, request) = request(number, products, &token, &mut random);
            let (shop, sent) = (shop.clone(), sent.clone());
            tasks.spawn(async move {
                let _permit = permit;
                let Ok(response) = shop.oneshot(request).await;
                let status = response.headers().get("cache-status");
                let status = status.and_then(|value| value.to_str().ok()).unwrap_or_default();
                // Also a request that waited for the page of another one.
                let is_hit = status.contains("; hit") || status.contains("; collapsed");
                let outcome = if is_hit { "hit" } else { "other" };
                // A visitor reads the page.
                drop(axum::body::to_bytes(response.into_body(), 1 << 20).await);
                sent.count(format!("{route} {outcome}"));
            });
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    switch.0.send_replace(Phase::Ended);
}

fn traffic_ends(switch: &TrafficSwitch) -> bool {
    *switch.0.borrow() != Phase::Runs
}

fn request(
    number: u64,
    products: u32,
    token: &str,
    random: &mut fastrand::Rng,
) -> (&'static str, Request<Body>) {
    // By Zipf's law with the exponent 1, the logarithm of a rank is spread evenly.
    let rank = f64::from(products).powf(random.f64()) as u64;
    if number.is_multiple_of(100) {
        let change = format!("{{\"price_cents\":{}}}", random.u32(100..20_000));
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("/api/products/{rank}"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json");
        return ("PUT /api/products/{id}", finished(request, change.into()));
    }
    let (route, path) = match random.u8(0..20) {
        0 => ("/", "/".to_owned()),
        1 | 2 => (
            "/category/{slug}",
            format!("/category/{}", random.choice(CATEGORIES).unwrap_or_default().to_lowercase()),
        ),
        3 => ("/search", format!("/search?q={}", random.choice(MATERIALS).unwrap_or_default())),
        4 | 5 => ("/api/products/{id}", format!("/api/products/{rank}")),
        _ => ("/products/{id}", format!("/products/{rank}")),
    };
    (route, finished(Request::builder().uri(path), Body::empty()))
}

fn finished(request: http::request::Builder, body: Body) -> Request<Body> {
    let request = request.header(header::HOST, "localhost:3000");
    request.body(body).expect("the path and the fields are valid")
}

const TICK: Duration = Duration::from_millis(10);
const MOST_IN_FLIGHT: usize = 256;
