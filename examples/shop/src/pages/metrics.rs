//! `/metrics` for Prometheus.

use std::sync::{Arc, LazyLock};

use axum::{extract::State, response::IntoResponse};
use http::header;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::App;

/// The metrics of larder in the text format of Prometheus.
pub(crate) async fn show(State(app): State<Arc<App>>) -> impl IntoResponse {
    // Before the first scrape there is no recorder, and nothing is published.
    let recorder = &*RECORDER;
    app.larder().publish_metrics().await;
    recorder.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], recorder.render())
}

/// The recorder of this process. The `metrics` facade has one for all shops that run in it.
static RECORDER: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    let recorder = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .set_buckets_for_metric(Matcher::Suffix("duration".to_owned()), &BUCKETS)
        .expect("there are buckets")
        .build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another recorder is installed, so /metrics is empty");
    }
    handle
});

/// In seconds: hits take some hundred nanoseconds, fills some milliseconds.
const BUCKETS: [f64; 14] =
    [2.5e-7, 5e-7, 1e-6, 2.5e-6, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 0.5, 2.5, 10.0];
