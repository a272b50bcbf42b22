//! The alerts and the dashboard of `examples/observability`: they name metrics that larder publishes, and each alert
//! fires on the series that larder publishes while that failure lasts, and on no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use larder::{
    ByteSize, Larder, Lifetime, LoadHandle, Policy,
    store::{BoxFuture, SecondLevel, ServerReport, ServerState, ServerUsage, StoreError},
    write_behind::{Add, MapSink, Memory, SinkError, WriteBehind},
};
use larder_core::kernel::{Instrument, METRICS};
use larder_testkit::{MemoryStore, SeededRng, SharedLog, SimulatedCluster};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// The interval between two scrapes.
const SCRAPE: Duration = Duration::from_secs(15);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/observability")
}

/// The names that an exporter for Prometheus gives to larder's metrics.
fn prometheus_names() -> BTreeSet<String> {
    let names = METRICS.iter().flat_map(|metric| {
        let unit = match metric.unit {
            "s" => "_seconds",
            "us" => "_microseconds",
            "By" => "_bytes",
            _ => "",
        };
        let name = format!("{}{unit}", metric.name.replace('.', "_"));
        match metric.instrument {
            Instrument::Counter => vec![format!("{name}_total")],
            Instrument::Histogram => {
                ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).to_vec()
            }
            _ => vec![name],
        }
    });
    names.collect()
}

/// The names in a text that begin like a metric of larder.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let labels = [
        "larder_cache",
        "larder_outcome",
        "larder_level",
        "larder_cause",
        "larder_reason",
        "larder_role",
        "larder_queue",
        "larder_operation",
    ];
    words.filter(|word| word.starts_with("larder_") && !labels.contains(word)).collect()
}

#[test]
fn alerts_and_dashboard_name_only_metrics_that_larder_publishes() {
    let known = prometheus_names();
    for file in ["alerts.yml", "dashboard.json"] {
        let text = std::fs::read_to_string(folder().join(file)).unwrap();
        let unknown: Vec<_> =
            named(&text).into_iter().filter(|name| !known.contains(*name)).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
        assert!(named(&text).len() >= 10, "{file}");
    }
}

/// The series of one process, with a value for each scrape.
struct Recording {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    series: BTreeMap<String, Vec<Option<String>>>,
    scrapes: usize,
}

impl Recording {
    fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .with_recommended_naming(true)
            .set_buckets_for_metric(Matcher::Suffix("duration".into()), &[0.01, 0.1, 0.5, 1.0, 5.0])
            .unwrap()
            .build_recorder();
        let handle = recorder.handle();
        Self { recorder, handle, series: BTreeMap::new(), scrapes: 0 }
    }

    /// Runs `act` before each scrape.
    async fn run(
        mut self,
        larder: &Larder,
        minutes: usize,
        mut act: impl AsyncFnMut(usize),
    ) -> Self {
        for _ in 0..minutes * 4 {
            act(self.scrapes).await;
            tokio::time::sleep(SCRAPE).await;
            {
                let _installed = metrics::set_default_local_recorder(&self.recorder);
                larder.publish_metrics().await;
            }
            self.handle.run_upkeep();
            self.scrape();
        }
        self
    }

    fn scrape(&mut self) {
        for line in self.handle.render().lines().filter(|line| line.starts_with("larder_")) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let values = self.series.entry(series.to_owned()).or_default();
            values.resize(self.scrapes, None);
            values.push(Some(value.to_owned()));
        }
        self.scrapes += 1;
    }

    /// The test of promtool that exactly these alerts fire at the end.
    fn expecting(&self, name: &str, alerts: &[&str]) -> serde_json::Value {
        let input: Vec<_> = self
            .series
            .iter()
            .map(|(series, values)| {
                let values: Vec<_> =
                    values.iter().map(|value| value.as_deref().unwrap_or("_")).collect();
                json!({ "series": series, "values": values.join(" ") })
            })
            .collect();
        let firing: Vec<_> = alerts
            .iter()
            .map(|alert| json!({ "labels": format!("{{alertname=\"{alert}\"}}"), "value": 1 }))
            .collect();
        json!({
            "name": name,
            "interval": "15s",
            "input_series": input,
            "promql_expr_test": [{
                "expr": "group by (alertname) (ALERTS{alertstate=\"firing\"})",
                "eval_time": format!("{}s", (self.scrapes - 1) * 15),
                "exp_samples": firing,
            }],
        })
    }
}

async fn load(larder: &Larder, name: (&'static str, usize), policy: Policy) {
    let load = move |_: LoadHandle| async move { Ok::<_, Infallible>([7_u8; 400].to_vec()) };
    larder.get_or_load(name, policy, load).await.unwrap();
}

fn hour() -> Policy {
    Policy::ttl(60 * MINUTE)
}

fn larder() -> Larder {
    Larder::builder().tag_table_slots(1 << 10).build().unwrap()
}

/// Servers in a state that the test sets.
#[derive(Debug)]
struct Servers {
    open: usize,
    bytes: u64,
}

impl ServerReport for Servers {
    fn servers(&self) -> Vec<ServerState> {
        vec![ServerState::new("store", "redis.example:6379").circuits(1, self.open)]
    }

    fn usage(&self) -> BoxFuture<'_, Result<ServerUsage, StoreError>> {
        let usage = ServerUsage::new(10, self.bytes).capacity_bytes(1000);
        Box::pin(std::future::ready(Ok(usage)))
    }
}

async fn with_servers(servers: Servers) -> Recording {
    let line = SharedLog::new().line(SeededRng::new(7), 0, Duration::from_micros(10));
    let level = SecondLevel::new(MemoryStore::new()).bus(line).report(servers);
    let larder = Larder::builder().tag_table_slots(1 << 10).second_level(level).build().unwrap();
    larder.synced().await;
    Recording::new().run(&larder, 40, async |_| load(&larder, ("a", 0), hour()).await).await
}

async fn healthy() -> Recording {
    let larder = larder();
    let sink = MapSink::<String, Add>::default();
    let queue = WriteBehind::builder("q", &larder, sink, Memory::lost_on_crash());
    let queue = queue.open().await.unwrap();
    Recording::new()
        .run(&larder, 45, async |scrape| {
            for number in 0..20 {
                load(&larder, ("key", number), Policy::ttl(5 * MINUTE)).await;
            }
            let _logged = queue.write(format!("key {scrape}"), Add(1)).await.unwrap();
            let _logged = larder.invalidate(("key", scrape % 20)).await;
        })
        .await
}

async fn misses() -> Recording {
    let larder = larder();
    Recording::new()
        .run(&larder, 40, async |scrape| {
            for number in 0..10 {
                load(&larder, ("key", scrape * 10 + number), hour()).await;
                load(&larder, ("hot", 0), hour()).await;
                load(&larder, ("cold", scrape * 10 + number), hour()).await;
            }
        })
        .await
}

async fn evictions() -> Recording {
    let larder = Larder::builder().memory(ByteSize::kib(64)).build().unwrap();
    Recording::new()
        .run(&larder, 40, async |scrape| {
            for number in 0..20 {
                // The keys are requested often enough to be hits, if there were memory for them.
                for _ in 0..3 {
                    load(&larder, ("key", scrape * 20 + number), hour()).await;
                }
            }
        })
        .await
}

async fn slow_fills() -> Recording {
    let larder = larder();
    Recording::new()
        .run(&larder, 30, async |scrape| {
            let slow = |_| async {
                tokio::time::sleep(3 * SECOND).await;
                Ok::<_, Infallible>(7_u64)
            };
            for _ in 0..3 {
                larder.get_or_load(("slow", scrape), hour(), slow).await.unwrap();
            }
        })
        .await
}

async fn failing_fills() -> Recording {
    let larder = larder();
    let lifetime = Lifetime::fresh_for(SECOND).stale_if_error(120 * MINUTE);
    let policy = || Policy::from(lifetime);
    load(&larder, ("page", 0), policy()).await;
    Recording::new()
        .run(&larder, 20, async |_| {
            let fails = |_| async { Err::<Vec<u8>, _>("the database is down") };
            larder.get_or_load(("page", 0_usize), policy(), fails).await.unwrap();
            for _ in 0..5 {
                load(&larder, ("hot", 0), hour()).await;
            }
        })
        .await
}

async fn cut_off() -> Recording {
    let cluster = SimulatedCluster::new(2);
    cluster.synced().await;
    let larder = cluster.process(0);
    cluster.cut_off(0);
    Recording::new()
        .run(larder, 10, async |scrape| {
            load(larder, ("a", 0), hour()).await;
            if scrape == 0 {
                let _queued = larder.invalidate(("a", 0_usize)).await;
            }
        })
        .await
}

async fn queue_with(failing: impl Fn() -> SinkError + Send + 'static, minutes: usize) -> Recording {
    let larder = larder();
    let sink = MapSink::<String, Add>::default();
    sink.fail(move |_| Some(failing()));
    let queue = WriteBehind::builder("q", &larder, sink, Memory::lost_on_crash());
    let queue = queue.open().await.unwrap();
    let _logged = queue.write("key".to_owned(), Add(1)).await.unwrap();
    Recording::new().run(&larder, minutes, async |_| ()).await
}

/// Nothing is slow here: each minute of a series is simulated.
#[tokio::test(start_paused = true)]
#[cfg_attr(not(has_promtool), ignore = "promtool is missing")]
async fn each_alert_fires_on_the_series_of_its_failure_and_on_no_other() {
    let unavailable = || SinkError::unavailable("the database is down");
    let rejected = || SinkError::rejected("a constraint is violated");
    let tests = [
        healthy().await.expecting("healthy", &[]),
        misses().await.expecting("misses", &["LarderHitRatioLow"]),
        // What is evicted too early is also missed.
        evictions().await.expecting("evictions", &["LarderEvictsTooMuch", "LarderHitRatioLow"]),
        slow_fills().await.expecting("slow fills", &["LarderFillsSlow"]),
        failing_fills().await.expecting("failing fills", &["LarderFillsFail"]),
        with_servers(Servers { open: 0, bytes: 950 })
            .await
            .expecting("full servers", &["LarderSecondLevelFull"]),
        with_servers(Servers { open: 1, bytes: 500 })
            .await
            .expecting("a silent server", &["LarderBreakerOpen"]),
        cut_off()
            .await
            .expecting("no log", &["LarderInvalidationsPending", "LarderLogUnsynchronised"]),
        queue_with(unavailable, 12).await.expecting("no database", &["LarderWriteBehindOld"]),
        queue_with(rejected, 2).await.expecting("rejected", &["LarderDeadLetters"]),
    ];
    let file = std::env::temp_dir().join(format!("larder-alerts-{}.yml", std::process::id()));
    let rules = folder().join("alerts.yml").canonicalize().unwrap();
    let all = json!({ "rule_files": [rules], "evaluation_interval": "15s", "tests": tests });
    std::fs::write(&file, all.to_string()).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    std::fs::remove_file(&file).unwrap();
}

/// Grafana is not there to try them, so the expressions become rules, which promtool parses.
#[test]
#[cfg_attr(not(has_promtool), ignore = "promtool is missing")]
fn each_expression_of_the_dashboard_is_valid() {
    let text = std::fs::read_to_string(folder().join("dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let rules: Vec<_> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .map(|expr| expr.replace("$job", ".*").replace("$instance", ".*"))
        .map(|expr| expr.replace("$__rate_interval", "5m"))
        .enumerate()
        .map(|(number, expr)| json!({ "record": format!("panel:{number}"), "expr": expr }))
        .collect();
    assert!(rules.len() > 20);
    let file = std::env::temp_dir().join(format!("larder-panels-{}.yml", std::process::id()));
    let all = json!({ "groups": [{ "name": "panels", "rules": rules }] });
    std::fs::write(&file, all.to_string()).unwrap();
    let output = Command::new("promtool").args(["check", "rules"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_file(&file).unwrap();
}

#[test]
#[cfg_attr(not(has_promtool), ignore = "promtool is missing")]
fn the_configuration_of_prometheus_is_valid() {
    let config = folder().join("prometheus.yml");
    let output = Command::new("promtool").args(["check", "config"]).arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
