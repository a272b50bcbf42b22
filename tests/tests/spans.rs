//! The spans of larder: their names, their attributes, and that no key, tag or path is in them.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::Request;
use larder::{Larder, axum::HttpCache};
use larder_testkit::{MemoryStore, SharedLog};
use tower::ServiceExt as _;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};

use crate::second_level::{process, settled};

const MINUTE: Duration = Duration::from_secs(60);

/// The attributes of a span, and the name of the span around it.
type Attrs = BTreeMap<String, String>;

/// Collects the spans of larder when they end.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Attrs)>>>);

struct Fields<'a>(&'a mut Attrs);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").replace('"', ""));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> tracing_subscriber::Layer<S> for Collector {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut attrs = Attrs::new();
        attributes.record(&mut Fields(&mut attrs));
        if let Some(parent) = span.parent() {
            attrs.insert("parent".to_owned(), parent.name().to_owned());
        }
        span.extensions_mut().insert(attrs);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        if let Some(attrs) = span.extensions_mut().get_mut::<Attrs>() {
            values.record(&mut Fields(attrs));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        if span.name().starts_with("larder.") {
            let attrs = span.extensions().get::<Attrs>().cloned().unwrap_or_default();
            self.0.lock().unwrap().push((span.name().to_owned(), attrs));
        }
    }
}

impl Collector {
    /// Returns the attributes of the spans with this name.
    fn named(&self, name: &str) -> Vec<Attrs> {
        let spans = self.0.lock().unwrap();
        spans.iter().filter(|(of, _)| of == name).map(|(_, attrs)| attrs.clone()).collect()
    }
}

async fn traced(larder: &Larder) {
    let router = Router::new()
        .route("/products/{id}", get(async || "a product"))
        .route("/own/{id}", get(async || ([("set-cookie", "a=b")], "own")));
    let app = router.layer(HttpCache::new(larder).ttl(MINUTE));
    for path in ["/products/secret", "/products/secret", "/own/secret"] {
        let request =
            Request::get(path).header("host", "shop.example").body(Body::empty()).unwrap();
        let requesting = tracing::info_span!("request");
        let response = app.clone().oneshot(request);
        let response = tracing::Instrument::instrument(response, requesting).await.unwrap();
        axum::body::to_bytes(Body::new(response.into_body()), usize::MAX).await.unwrap();
    }
    let load = |_| async { Err::<u64, _>("it fails") };
    larder.get_or_load("secret-name", MINUTE, load).await.unwrap_err();
    let _logged = larder.invalidate(("secret-tag", 7)).await;
    settled(&[larder]).await;
}

#[tokio::test(start_paused = true)]
async fn fills_invalidations_and_reads_of_the_second_level_have_spans_without_personal_data() {
    // While there is one subscriber, tracing asks that of the thread that first reaches a span whether the span is wanted, and
    // remembers the answer for all threads. Tests on other threads have none, so a second subscriber exists during this test.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let collector = Collector::default();
    let subscriber = tracing_subscriber::registry().with(collector.clone());
    let _installed = tracing::subscriber::set_default(subscriber);
    let larder = process(&SharedLog::new(), &MemoryStore::new(), |builder| builder);
    larder.synced().await;
    traced(&larder).await;

    let fills = collector.named("larder.fill");
    let of = |outcome: &str| {
        let found =
            fills.iter().find(|attrs| attrs.get("larder.outcome").is_some_and(|of| of == outcome));
        found.cloned().unwrap_or_else(|| panic!("{outcome} is not in {fills:?}"))
    };
    assert_eq!(fills.len(), 3, "the hit has none: {fills:?}");
    let stored = of("stored");
    assert_eq!((&*stored["larder.cache"], &*stored["http.route"]), ("responses", "/products/{id}"));
    assert_eq!((&*stored["parent"], &*stored["larder.refresh"]), ("request", "false"));
    let refused = of("refused");
    assert_eq!((&*refused["larder.reason"], &*refused["http.route"]), ("set-cookie", "/own/{id}"));
    let failed = of("failed");
    assert_eq!((&*failed["larder.cache"], &*failed["larder.reason"]), ("objects", "loader"));

    let invalidations = collector.named("larder.invalidate");
    let [invalidation] = &invalidations[..] else { panic!("{invalidations:?}") };
    assert_eq!((&*invalidation["larder.targets"], &*invalidation["larder.mode"]), ("1", "hard"));
    assert_eq!(invalidation["larder.outcome"], "logged");
    assert!(!collector.named("larder.second_level.read").is_empty());
    assert!(!collector.named("larder.second_level.write").is_empty());
    assert!(!format!("{:?}", collector.0.lock().unwrap()).contains("secret"));
}
