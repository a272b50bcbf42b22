//! Reports the final head of a response, which the response cache itself cannot see.

use larder_core::Reason;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use larder_semantics::{cache_control::CacheControl, fields};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tower_layer::Layer;
use tower_service::Service;

/// Reports the final head of each response to the response caches inside of this layer. It must be the outermost layer.
///
/// The layer costs one allocation per request.
///
/// Session and authentication layers are outside of the cache and change a response after the cache has copied it. A
/// session layer, for example, then adds its cookie. A handler that puts session data into a page has built a response
/// for one client, and inside of the cache nothing shows that. [`FinalHeadLayer`] is therefore the outermost layer,
/// around all layers that change responses, and reports the final head. The cache finds the handle of this layer in the
/// request. Until the report, it neither stores the response nor serves it to a waiter. It does not store the response
/// at all if
///
/// 1. an outer layer has added `Set-Cookie`, or `no-store` or `private` in `Cache-Control` (`detail=final-set-cookie`,
///    `final-no-store`, `final-private`);
/// 2. an outer layer has replaced the response by an error (`detail=final-status`);
/// 3. the client disconnects before the head leaves, so that there is no report. The next request then fills again.
///
/// A background refresh has no final head. For a refresh,
/// [`ResponseCacheLayer::refuse_if`](crate::ResponseCacheLayer::refuse_if) detects a handler that writes to a session.
///
/// ```
/// # use std::{convert::Infallible, time::Duration};
/// # use http::{HeaderValue, Request, Response, header};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # use larder_core::Larder;
/// # use larder_http::{FinalHeadLayer, ResponseCacheLayer};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let larder = Larder::builder().build()?;
/// # let page = service_fn(|_: Request<Full<Bytes>>| async {
/// #     Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("a token of this session")))
/// # });
/// let service = ServiceBuilder::new()
///     .layer(FinalHeadLayer::new())
///     // In place of a session layer.
///     .map_response(|mut response: Response<_>| {
///         response.headers_mut().insert(header::SET_COOKIE, HeaderValue::from_static("session=1"));
///         response
///     })
///     .layer(ResponseCacheLayer::new(&larder).ttl(Duration::from_secs(60)))
///     .service(page);
/// # let ask = || service.clone().oneshot(Request::get("/").body(Full::<Bytes>::default()).expect("valid"));
/// ask().await?;
/// let next = ask().await?;
/// assert_eq!(next.headers()["cache-status"], "larder; fwd=uri-miss; detail=final-set-cookie");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "a layer does nothing until it is given to a router or a ServiceBuilder"]
pub struct FinalHeadLayer {}

impl FinalHeadLayer {
    /// Creates the layer. It does not need a larder, because the caches inside of it find its handle in their requests.
    pub fn new() -> Self {
        Self {}
    }
}

impl<S> Layer<S> for FinalHeadLayer {
    type Service = FinalHeadService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FinalHeadService { inner }
    }
}

/// The service of [`FinalHeadLayer`].
#[derive(Clone, Debug)]
pub struct FinalHeadService<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for FinalHeadService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = FinalHeadFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let report = HeadReport(FinalHead::default());
        // Only the outermost layer sees every change, so an inner layer does not replace its handle.
        if request.extensions().get::<FinalHead>().is_none() {
            request.extensions_mut().insert(report.0.clone());
        }
        FinalHeadFuture { future: self.inner.call(request), report }
    }
}

pin_project! {
    /// The response future of [`FinalHeadService`].
    pub struct FinalHeadFuture<F> {
        #[pin]
        future: F,
        report: HeadReport,
    }
}

impl<F, R, E> Future for FinalHeadFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let left = Head::of(response.status(), response.headers());
        let mut refused = None;
        for (sent, act) in this.report.0.close() {
            let verdict = HeadVerdict::on(sent, left);
            if let HeadVerdict::NotStorable(why) = verdict {
                refused = Some(why);
            }
            act(verdict);
        }
        if let Some(why) = refused {
            correct_cache_status(response.headers_mut(), why);
        }
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for FinalHeadFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinalHeadFuture").finish_non_exhaustive()
    }
}

/// Reports [`HeadVerdict::Unknown`] to the caches inside if it is dropped before the head has left.
struct HeadReport(FinalHead);

impl Drop for HeadReport {
    fn drop(&mut self) {
        for (_, act) in self.0.close() {
            act(HeadVerdict::Unknown);
        }
    }
}

/// The callbacks of response caches, which run once the final head of their response is known. Each request inside of
/// [`FinalHeadLayer`] has them in its extensions.
#[derive(Clone, Default)]
pub(crate) struct FinalHead(Arc<Mutex<HeadWaiters>>);

/// A callback that runs once the final head is known, before the client gets the response.
type Act = Box<dyn FnOnce(HeadVerdict) + Send>;

#[derive(Default)]
struct HeadWaiters {
    acts: Vec<(Head, Act)>,
    is_over: bool,
}

/// The properties of a head that decide whether its response belongs to one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    status: StatusCode,
    cookies: usize,
    no_store: bool,
    private: bool,
}

impl Head {
    fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        let control = CacheControl::of(headers);
        Self {
            status,
            cookies: headers.get_all(header::SET_COOKIE).iter().count(),
            no_store: control.no_store,
            private: control.private || !control.private_fields.is_empty(),
        }
    }
}

/// The effect of the outer layers on whether a response may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadVerdict {
    /// The outer layers changed nothing that matters for storing.
    Storable,
    /// The outer layers made the response specific to its client, for this reason.
    NotStorable(Reason),
    /// The response was dropped before its head left.
    Unknown,
}

impl HeadVerdict {
    fn on(sent: Head, left: Head) -> Self {
        if left.cookies > sent.cookies {
            Self::NotStorable(Reason::FinalSetCookie)
        } else if left.no_store && !sent.no_store {
            Self::NotStorable(Reason::FinalNoStore)
        } else if left.private && !sent.private {
            Self::NotStorable(Reason::FinalPrivate)
        } else if is_error(left.status) && !is_error(sent.status) {
            Self::NotStorable(Reason::FinalStatus)
        } else {
            Self::Storable
        }
    }
}

impl FinalHead {
    /// Runs `act` once the final head of the response that the cache is about to send with this head is known. `act`
    /// runs in the task of the client, before the client gets the response. If the response future has already ended,
    /// `act` runs at once, with [`HeadVerdict::Unknown`].
    pub(crate) fn once_left(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        act: impl FnOnce(HeadVerdict) + Send + 'static,
    ) {
        let mut waiting = self.0.lock();
        if waiting.is_over {
            drop(waiting);
            return act(HeadVerdict::Unknown);
        }
        waiting.acts.push((Head::of(status, headers), Box::new(act)));
    }

    /// Returns the verdict of [`once_left`](Self::once_left) as a future.
    pub(crate) fn verdict(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> impl Future<Output = HeadVerdict> + Send + use<> {
        let (tell, told) = oneshot::channel();
        self.once_left(status, headers, |verdict| {
            // The receiver may have been dropped.
            let _told = tell.send(verdict);
        });
        async { told.await.unwrap_or(HeadVerdict::Unknown) }
    }

    fn close(&self) -> Vec<(Head, Act)> {
        let mut waiting = self.0.lock();
        waiting.is_over = true;
        std::mem::take(&mut waiting.acts)
    }
}

/// Replaces `stored` by the reason in the `Cache-Status` line that the cache wrote before the verdict.
fn correct_cache_status(headers: &mut HeaderMap, why: Reason) {
    let mut lines = headers.get_all(header::CACHE_STATUS).iter();
    let Some(last) = lines.next_back().and_then(|line| line.to_str().ok()) else { return };
    let corrected = last.replace("; stored", &format!("; detail={why}"));
    if let Ok(corrected) = HeaderValue::from_str(&corrected) {
        fields::remove_last_line(headers, &header::CACHE_STATUS);
        headers.append(header::CACHE_STATUS, corrected);
    }
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}
