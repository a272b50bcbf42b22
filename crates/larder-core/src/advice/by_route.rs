//! Advice on routes that should not be cached, or not in this way.

use std::time::Duration;

use super::{Advice, AdviceKind, readable};
use crate::metrics::{CacheStats, RouteStats, Stats};

pub(super) fn advice(stats: &Stats) -> Vec<Advice> {
    let routes =
        stats.caches.iter().flat_map(|cache| cache.routes.iter().map(move |route| (cache, route)));
    let advice = routes.filter_map(|(cache, route)| {
        let worth = worth(route)?;
        (route.hit_ratio < worth).then(|| Advice {
            kind: AdviceKind::NotWorthCaching,
            cache: cache.name.clone(),
            route: Some(route.route.clone()),
            about: None,
            text: format!(
                "The hit ratio is {:.1} %, and at fills of {} caching pays from {:.1} % on: do not cache the route, or give \
                 its responses a longer lifetime and fewer keys.",
                100.0 * route.hit_ratio,
                readable(mean_fill(route)),
                100.0 * worth
            ),
        })
    });
    advice.chain(stats.caches.iter().flat_map(of_observed)).collect()
}

/// Returns advice from the hits that a cache has compared with the responses of the handler.
fn of_observed(cache: &CacheStats) -> Vec<Advice> {
    let mut advice = Vec::new();
    for (route, hits) in &cache.observed {
        let compared =
            hits.same + hits.differs_by_user + hits.stale + hits.late + hits.not_deterministic;
        let mut add = |kind, text| {
            let (cache, route) = (cache.name.clone(), Some(route.clone()));
            advice.push(Advice { kind, cache, route, about: None, text });
        };
        if hits.differs_by_user > 0 {
            let text = format!(
                "Of {compared} compared hits, {} were made for another user: give each user a partition, or do not \
                 declare the route as shared.",
                hits.differs_by_user
            );
            add(AdviceKind::DiffersByUser, text);
        }
        if hits.stale > 0 {
            let text = format!(
                "Of {compared} compared hits, {} were stale: invalidate the tags on which the response depends, or shorten its \
                 lifetime.",
                hits.stale
            );
            add(AdviceKind::StaleHits, text);
        }
        if hits.not_deterministic > 0 {
            let text = format!(
                "Of {compared} compared hits, {} differ from a response to the same request: the handler puts a time, a nonce or \
                 a random order into the response, which all clients get from the cache.",
                hits.not_deterministic
            );
            add(AdviceKind::NotDeterministic, text);
        }
    }
    advice
}

/// Returns the hit ratio at which the fills that hits save take as long as storing responses that are never used.
fn worth(route: &RouteStats) -> Option<f64> {
    (route.hits + route.stale_hits + route.collapsed + route.misses >= FEWEST_REQUESTS
        && route.misses > 0)
        .then(|| {
            let (stored, fill) = (COST_OF_STORING.as_secs_f64(), mean_fill(route).as_secs_f64());
            stored / (stored + fill)
        })
}

fn mean_fill(route: &RouteStats) -> Duration {
    Duration::from_nanos(route.fill_time_total_nanos / route.misses.max(1))
}

const FEWEST_REQUESTS: u64 = 1000;
/// What a miss costs more than a request without a cache: recording the response, storing it and evicting another one.
/// `benches/README.md` has the measurement.
const COST_OF_STORING: Duration = Duration::from_micros(20);
