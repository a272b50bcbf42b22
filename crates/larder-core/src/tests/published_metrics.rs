//! The metrics that a recorder of the `metrics` facade receives.

use std::collections::BTreeMap;

use metrics_util::{
    MetricKind,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};

use super::*;
use crate::kernel::{Instrument, METRICS};

/// The series of a snapshot, such as `larder.hits{larder.cache=objects,larder.level=first}`, with their values.
fn taken(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let series = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
        let (_, key) = key.into_parts();
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(durations) => durations.len() as f64,
        };
        (format!("{}{{{}}}", key.name(), labels.join(",")), value)
    });
    series.collect()
}

async fn load(larder: &Larder, name: &str) {
    let load = |_| async { Ok::<_, Infallible>(7_u64) };
    larder.get_or_load(name, MINUTE, load).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn counters_are_published_as_differences_and_larders_add_up() {
    let (one, other) = (larder(), larder());
    for _ in 0..3 {
        load(&one, "a").await;
        load(&other, "a").await;
    }
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    // The recorder is installed after the larders have counted.
    let _installed = metrics::set_default_local_recorder(&recorder);
    one.publish_metrics().await;
    one.publish_metrics().await;
    other.publish_metrics().await;
    let all = taken(&snapshotter);
    let of = |series: &str| all.get(series).copied();
    assert_eq!(of("larder.requests{larder.cache=objects,larder.outcome=hit}"), Some(4.0));
    assert_eq!(of("larder.requests{larder.cache=objects,larder.outcome=miss}"), Some(2.0));
    assert_eq!(of("larder.hits{larder.cache=objects,larder.level=first}"), Some(4.0));
    assert_eq!(of("larder.fill.duration{larder.cache=objects}"), Some(2.0));
    assert_eq!(of("larder.entries{larder.level=first}"), Some(1.0));
    assert_eq!(of("larder.log.synchronised{}"), Some(1.0));
    load(&one, "b").await;
    one.publish_metrics().await;
    let next = taken(&snapshotter);
    // A snapshot takes the counters.
    assert_eq!(next["larder.requests{larder.cache=objects,larder.outcome=miss}"], 1.0);
    assert_eq!(next["larder.requests{larder.cache=objects,larder.outcome=hit}"], 0.0);
}

#[tokio::test(start_paused = true)]
async fn each_published_series_is_one_of_the_table() {
    let larder = larder();
    load(&larder, "a").await;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    larder.publish_metrics().await;
    for (key, unit, description, _) in snapshotter.snapshot().into_vec() {
        let (kind, key) = key.into_parts();
        let known = METRICS.iter().find(|metric| metric.name == key.name());
        let metric = known.unwrap_or_else(|| panic!("{} is not in the table", key.name()));
        let instrument = match kind {
            MetricKind::Counter => Instrument::Counter,
            MetricKind::Gauge => Instrument::Gauge,
            MetricKind::Histogram => Instrument::Histogram,
        };
        assert_eq!(metric.instrument, instrument, "{}", metric.name);
        assert!(unit.is_some() && description.is_some(), "{} is described", metric.name);
        let labels = key.labels().map(metrics::Label::key);
        assert!(labels.clone().all(|label| metric.attributes.contains(&label)), "{}", metric.name);
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_are_published_at_the_interval_from_the_first_request_on() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let second = Duration::from_secs(1);
    let larder = Larder::builder().publish_metrics(second).build().unwrap();
    load(&larder, "a").await;
    let misses = "larder.requests{larder.cache=objects,larder.outcome=miss}";
    tokio::time::sleep(second / 2).await;
    // The publisher may have run before or after the outcome of the first request was counted.
    let first = taken(&snapshotter).get(misses).copied().unwrap_or_default();
    load(&larder, "b").await;
    load(&larder, "c").await;
    tokio::time::sleep(second).await;
    assert_eq!(first + taken(&snapshotter)[misses], 3.0);
    let refused = Larder::builder().publish_metrics(Duration::ZERO).build();
    assert!(refused.is_err_and(|error| error.option() == "publish_metrics"));
}
