//! The warmer: sends requests that fill the cache.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use larder_core::Larder;
use larder_http::{BoxError, WarmRequest};
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    app_handle::AppHandle,
    progress::Progress,
    target::{Source, WarmTarget},
};

/// Sends requests that fill the cache, and that count neither as traffic nor as hits. It is cheap to clone.
///
/// # Examples
///
/// ```
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use larder_http::ResponseCacheLayer;
/// # use tower::{ServiceBuilder, service_fn};
/// use larder_core::Larder;
/// use larder_warming::{AppHandle, Warmer};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let larder = Larder::builder().build()?;
/// # let handler = service_fn(|_: Request<Full<bytes::Bytes>>| async {
/// #     Response::builder().header("cache-control", "public, max-age=60").body(Full::from("page"))
/// # });
/// # let app = ServiceBuilder::new().layer(ResponseCacheLayer::new(&larder)).service(handler);
/// // `app` is the outermost service, such as an axum `Router` with all its layers.
/// let warmer = Warmer::new(&larder, AppHandle::new(app)).host("shop.example").concurrency(4);
/// let report = warmer.warm(["/", "/products/42"]).await;
/// assert_eq!((report.filled, report.failed), (2, 0));
/// let report = warmer.warm(["/"]).await;
/// assert_eq!((report.fresh, report.filled), (1, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias("cache warming", "warm-up", "preload", "prefetch"))]
pub struct Warmer {
    pub(crate) larder: Larder,
    app: AppHandle,
    options: Arc<Options>,
}

type Extend = Arc<dyn Fn(&mut http::Extensions) + Send + Sync>;

#[derive(Clone)]
struct Options {
    host: String,
    /// Each target is requested with each combination of one value of each field.
    headers: Vec<(HeaderName, Vec<HeaderValue>)>,
    extensions: Vec<Extend>,
    routes: matchit::Router<()>,
    links: matchit::Router<Vec<String>>,
    concurrency: usize,
    per_second: Option<u32>,
    deadline: Duration,
    shows_progress: Option<String>,
}

impl Warmer {
    /// Creates a warmer for an application.
    pub fn new(larder: &Larder, app: AppHandle) -> Self {
        let options = Options {
            host: "localhost".to_owned(),
            headers: Vec::new(),
            extensions: Vec::new(),
            routes: matchit::Router::new(),
            links: matchit::Router::new(),
            concurrency: 8,
            per_second: None,
            deadline: Duration::from_secs(30),
            shows_progress: None,
        };
        Self { larder: larder.clone(), app, options: Arc::new(options) }
    }

    fn options(&mut self) -> &mut Options {
        Arc::make_mut(&mut self.options)
    }

    /// Sets the host of paths, which is part of the cache key. It is `localhost` by default.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.options().host = host.into();
        self
    }

    /// Sends a request for each of these values of a field, such as the languages and encodings of browsers. With several
    /// fields, each combination is a request.
    ///
    /// # Panics
    ///
    /// If there is no value, a value is not a valid field value, or the field carries credentials.
    #[must_use]
    pub fn header<'a>(
        mut self,
        name: HeaderName,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        assert!(
            !WarmRequest::refuses(&name),
            "{name} carries credentials, which are never sent to warm the cache"
        );
        let value = |value| HeaderValue::from_str(value).expect("a valid field value");
        let values: Vec<HeaderValue> = values.into_iter().map(value).collect();
        assert!(!values.is_empty(), "the field {name} has no value");
        self.options().headers.push((name, values));
        self
    }

    /// Adds an extension to each request, such as the `ConnectInfo` that a handler extracts.
    #[must_use]
    pub fn extension<T: Clone + Send + Sync + 'static>(mut self, extension: T) -> Self {
        let extend: Extend = Arc::new(move |extensions| drop(extensions.insert(extension.clone())));
        self.options().extensions.push(extend);
        self
    }

    /// Allows the paths of an access log that match one of these routes, in the syntax of axum: `/products/{id}`.
    ///
    /// # Panics
    ///
    /// If a route is not valid, or two of them conflict.
    #[must_use]
    pub fn routes<'a>(mut self, routes: impl IntoIterator<Item = &'a str>) -> Self {
        for route in routes {
            let inserted = self.options().routes.insert(route, ());
            inserted.unwrap_or_else(|error| panic!("the route {route}: {error}"));
        }
        self
    }

    /// Warms the pages that a page links to along with it: `link("/products/{id}", ["/products/{id}/reviews"])`.
    ///
    /// # Panics
    ///
    /// If a route is not valid, or conflicts with another.
    #[must_use]
    pub fn link<'a>(mut self, route: &str, next: impl IntoIterator<Item = &'a str>) -> Self {
        let next = next.into_iter().map(str::to_owned).collect();
        let inserted = self.options().links.insert(route, next);
        inserted.unwrap_or_else(|error| panic!("the route {route}: {error}"));
        self
    }

    /// Sets how many requests of one run are in flight at a time. The default is 8. A fill goes on after the
    /// [`deadline`](Self::deadline) of its request.
    #[must_use]
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.options().concurrency = requests.max(1);
        self
    }

    /// Sets how many requests of one run start in a second at most. There is no bound by default.
    #[must_use]
    pub fn per_second(mut self, requests: u32) -> Self {
        self.options().per_second = Some(requests.clamp(1, MOST_PER_SECOND));
        self
    }

    /// Sets how long a request may take before it counts as failed. The default is 30 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options().deadline = deadline;
        self
    }

    /// Shows the progress under a title: as a bar on a terminal (feature `progress-bar`), otherwise as events of `tracing`
    /// every ten percent.
    #[must_use]
    pub fn show_progress(mut self, title: impl Into<String>) -> Self {
        self.options().shows_progress = Some(title.into());
        self
    }

    /// Requests these targets, in order as far as the concurrency allows. An entry that is fresh answers and is skipped; a
    /// target that fails is logged, counted and stops nothing. If the future is dropped, no further request begins.
    pub async fn warm<T: Into<WarmTarget>>(
        &self,
        targets: impl IntoIterator<Item = T, IntoIter: Send>,
    ) -> WarmReport {
        let targets: Vec<WarmTarget> = targets.into_iter().map(Into::into).collect();
        let count = targets.len();
        self.run(stream::iter(targets), Some(count), None).await
    }

    /// Requests the targets of a stream, such as the rows of a query, as [`warm`](Self::warm) does.
    pub async fn warm_stream(
        &self,
        targets: impl Stream<Item: Into<WarmTarget>> + Send,
    ) -> WarmReport {
        self.run(targets.map(Into::into), None, None).await
    }

    /// Requests targets for one principal, such as a user or a tenant: each request has it as an extension, as the
    /// authentication layer would leave it for [`partition_by`](larder_http::ResponseCacheLayer::partition_by). A request
    /// that does not land in a partition is refused, so that no response of the principal is stored for all.
    pub async fn warm_for<P, T>(
        &self,
        principal: P,
        targets: impl IntoIterator<Item = T, IntoIter: Send>,
    ) -> WarmReport
    where
        P: Clone + Send + Sync + 'static,
        T: Into<WarmTarget>,
    {
        let targets: Vec<WarmTarget> = targets.into_iter().map(Into::into).collect();
        let count = targets.len();
        let extend: Extend = Arc::new(move |extensions| {
            extensions.insert(principal.clone());
            extensions.insert(WarmRequest::of_partition());
        });
        self.run(stream::iter(targets), Some(count), Some(extend)).await
    }

    /// Runs a load for each item, such as a value of a [`ReadThrough`](larder_core::values::ReadThrough), with the
    /// concurrency, rate and deadline of this warmer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{convert::Infallible, time::Duration};
    /// # use larder_core::Larder;
    /// # use larder_warming::{AppHandle, Warmer};
    /// # async fn example(larder: Larder, warmer: Warmer) {
    /// let rates = larder.values::<f64>(Duration::from_secs(60));
    /// let report = warmer
    ///     .each(["EUR", "USD"], async |currency| {
    ///         rates.get_or_load(("rate", currency), |_| async { Ok::<_, Infallible>(1.0) }).await.map(|_| ())
    ///     })
    ///     .await;
    /// assert_eq!(report.filled, 2);
    /// # }
    /// ```
    pub async fn each<T, E: fmt::Display>(
        &self,
        items: impl IntoIterator<Item = T>,
        load: impl AsyncFn(T) -> Result<(), E>,
    ) -> WarmReport
    where
        T: fmt::Debug,
    {
        let began = Instant::now();
        let counts = Counts::default();
        let pace = self.pace();
        let loads = stream::iter(items).map(|item| async {
            pace.wait().await;
            let what = format!("{item:?}");
            let load = AssertUnwindSafe(load(item)).catch_unwind();
            match tokio::time::timeout(self.options.deadline, load).await {
                Ok(Ok(Ok(()))) => counts.add(Outcome::Filled),
                Ok(Ok(Err(error))) => counts.fail(&what, &error),
                Ok(Err(_)) => counts.fail(&what, &"the load has panicked"),
                Err(_) => counts.fail(&what, &"it took longer than the deadline"),
            }
        });
        loads.buffer_unordered(self.options.concurrency).for_each(|()| async {}).await;
        counts.report(began)
    }

    /// Warms targets in a task of its own, for the start of a process.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start<T: Into<WarmTarget>>(
        &self,
        targets: impl IntoIterator<Item = T, IntoIter: Send>,
    ) -> Warming {
        let targets: Vec<WarmTarget> = targets.into_iter().map(Into::into).collect();
        let warmer = self.clone();
        let task = tokio::spawn(async move { warmer.warm(targets).await });
        Warming { task, report: None }
    }

    async fn run(
        &self,
        targets: impl Stream<Item = WarmTarget> + Send,
        count: Option<usize>,
        principal: Option<Extend>,
    ) -> WarmReport {
        let began = Instant::now();
        // Before that, the second level is neither read nor written.
        drop(tokio::time::timeout(LONGEST_SYNC, self.larder.synced()).await);
        let counts = Counts::default();
        let progress = Progress::new(self.options.shows_progress.as_deref(), count);
        let pace = self.pace();
        let (counts, progress, pace, principal) = (&counts, &progress, &pace, principal.as_ref());
        let requests = targets.map(|target| async move {
            self.request_all(&target, principal, pace, counts).await;
            progress.advance();
        });
        requests.buffer_unordered(self.options.concurrency).for_each(|()| async {}).await;
        let report = counts.report(began);
        progress.finish(&report);
        report
    }

    fn pace(&self) -> Pace {
        Pace::new(self.options.per_second)
    }

    /// Requests a target with each combination of fields, and then the pages that it links to.
    async fn request_all(
        &self,
        target: &WarmTarget,
        principal: Option<&Extend>,
        pace: &Pace,
        counts: &Counts,
    ) {
        let is_allowed =
            target.source == Source::Known || self.options.routes.at(target.path_alone()).is_ok();
        if !is_allowed {
            return counts.add(Outcome::Skipped);
        }
        if let Some(why) = target.refusal() {
            return counts.fail(&target.path, &why);
        }
        let linked = self.linked(target).into_iter();
        for target in std::iter::once(target.clone()).chain(linked) {
            for headers in self.combinations(&target) {
                pace.wait().await;
                match self.request(&target, headers, principal).await {
                    Ok(outcome) => counts.add(outcome),
                    Err(error) => counts.fail(&target.path, &error),
                }
            }
        }
    }

    /// Returns the pages that a page links to, with the parameters of its route filled in.
    fn linked(&self, target: &WarmTarget) -> Vec<WarmTarget> {
        let Ok(found) = self.options.links.at(target.path_alone()) else { return Vec::new() };
        let fill = |next: &String| {
            let fill = |path: String, (name, value): (&str, &str)| {
                path.replace(&format!("{{{name}}}"), value)
            };
            let path = found.params.iter().fold(next.clone(), fill);
            WarmTarget { path, ..target.clone() }
        };
        found.value.iter().map(fill).collect()
    }

    fn combinations(&self, target: &WarmTarget) -> Vec<HeaderMap> {
        let with = |before: Vec<HeaderMap>, (name, values): &(HeaderName, Vec<HeaderValue>)| {
            let each = |headers: &HeaderMap| {
                let set = |value: &HeaderValue| {
                    let mut headers = headers.clone();
                    headers.insert(name.clone(), value.clone());
                    headers
                };
                values.iter().map(set).collect::<Vec<_>>()
            };
            before.iter().flat_map(each).collect()
        };
        self.options.headers.iter().fold(vec![target.headers.clone()], with)
    }

    async fn request(
        &self,
        target: &WarmTarget,
        headers: HeaderMap,
        principal: Option<&Extend>,
    ) -> Result<Outcome, BoxError> {
        let mut request = Request::builder().method(Method::GET).uri(&target.path).body(())?;
        *request.headers_mut() = headers;
        let host = target.host.as_ref().unwrap_or(&self.options.host);
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(host)?);
        request.extensions_mut().insert(WarmRequest::default());
        for extend in self.options.extensions.iter().chain(principal) {
            extend(request.extensions_mut());
        }
        let call = AssertUnwindSafe(self.app.call(request)).catch_unwind();
        let answered = tokio::time::timeout(self.options.deadline, call).await;
        let answered = answered.map_err(|_| "it took longer than the deadline")?;
        let response = answered.map_err(|_| "the handler has panicked")??;
        let status = response.status();
        if status.is_server_error() || status.is_client_error() && status != StatusCode::NOT_FOUND {
            return Err(format!("the response is {status}").into());
        }
        Ok(if is_hit(response.headers()) { Outcome::Fresh } else { Outcome::Filled })
    }
}

/// Whether a cache of this application answered with a fresh response. Its item comes last, after those of caches that are
/// closer to the origin. A stale response has no time left.
///
/// Source: [RFC 9211, section 2](https://www.rfc-editor.org/rfc/rfc9211#section-2)
fn is_hit(headers: &HeaderMap) -> bool {
    let status = headers.get_all("cache-status").iter().next_back();
    let own = status.and_then(|status| status.to_str().ok()?.split(',').next_back());
    let parameters = || own.into_iter().flat_map(|own| own.split(';').skip(1).map(str::trim));
    parameters().any(|parameter| parameter == "hit")
        && !parameters().any(|parameter| parameter.starts_with("ttl=-"))
}

/// Requests that run in a task of their own. They stop when this is dropped.
#[derive(Debug)]
#[must_use = "the requests stop when it is dropped"]
pub struct Warming {
    task: JoinHandle<WarmReport>,
    report: Option<WarmReport>,
}

impl Warming {
    /// Waits until all requests have ended, for at most `deadline`. `None` if some are left: they go on, and the process can
    /// serve meanwhile.
    pub async fn warmed(&mut self, deadline: Duration) -> Option<WarmReport> {
        if self.report.is_none() {
            // Only a task that was stopped has no report.
            self.report = tokio::time::timeout(deadline, &mut self.task).await.ok()?.ok();
        }
        self.report
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        // No further request begins, and fills in flight end by themselves.
        self.task.abort();
    }
}

/// What became of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WarmReport {
    /// The requests that an entry answered. A layer without `Cache-Status` counts them as filled.
    pub fresh: usize,
    /// The other requests that were answered. Whether their responses were stored is in the counters of the cache named
    /// `warming`.
    pub filled: usize,
    /// The requests that failed, with an error, a status from 400 on except 404, or no response before the deadline.
    pub failed: usize,
    /// The paths of an access log that no route allows.
    pub skipped: usize,
    /// How long all of them took.
    pub took: Duration,
}

impl fmt::Display for WarmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fresh, filled, failed, skipped, took } = self;
        write!(
            f,
            "{filled} filled, {fresh} fresh, {failed} failed and {skipped} skipped in {took:.1?}"
        )
    }
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Fresh,
    Filled,
    Skipped,
}

#[derive(Debug, Default)]
struct Counts {
    fresh: AtomicUsize,
    filled: AtomicUsize,
    failed: AtomicUsize,
    skipped: AtomicUsize,
}

impl Counts {
    fn add(&self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Fresh => &self.fresh,
            Outcome::Filled => &self.filled,
            Outcome::Skipped => &self.skipped,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn fail(&self, what: &str, error: &dyn fmt::Display) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(target: "larder", what, %error, "a request that warms the cache failed");
    }

    fn report(&self, began: Instant) -> WarmReport {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        WarmReport {
            fresh: count(&self.fresh),
            filled: count(&self.filled),
            failed: count(&self.failed),
            skipped: count(&self.skipped),
            took: began.elapsed(),
        }
    }
}

/// The rate at which requests begin.
#[derive(Debug)]
struct Pace(Option<tokio::sync::Mutex<tokio::time::Interval>>);

impl Pace {
    fn new(per_second: Option<u32>) -> Self {
        Self(per_second.map(|rate| {
            let mut interval = tokio::time::interval(Duration::from_secs(1) / rate);
            // After a slow request the rate stays what it is.
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            tokio::sync::Mutex::new(interval)
        }))
    }

    async fn wait(&self) {
        if let Some(interval) = &self.0 {
            interval.lock().await.tick().await;
        }
    }
}

impl fmt::Debug for Warmer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warmer").field("host", &self.options.host).finish_non_exhaustive()
    }
}

/// A shorter pause than a microsecond is none.
const MOST_PER_SECOND: u32 = 1_000_000;
/// How long a run waits for the view of the log.
const LONGEST_SYNC: Duration = Duration::from_secs(5);
