//! The service, which passes safe requests through and invalidates after unsafe requests.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use larder_core::{Invalidated, Target, kernel::Scope, store::Position};
use larder_semantics::{groups, uri_reference::same_origin_path};
use tower_service::Service;

use super::{
    future::InvalidationFuture,
    layer::Options,
    read_your_writes::ReadYourWrites,
    requested::{PendingGuard, PendingInvalidations},
};
use crate::{
    address::{Address, Head, Scheme, original_uri},
    ready::take_ready,
};

/// The service that invalidates after writes. Made by [`InvalidationLayer`](super::InvalidationLayer).
pub struct InvalidationService<S> {
    inner: S,
    options: Arc<Options>,
}

impl<S> InvalidationService<S> {
    pub(super) fn new(inner: S, options: Arc<Options>) -> Self {
        Self { inner, options }
    }

    /// Serves a request that carries a log position once this process has applied the log up to that position, or else
    /// without stored entries.
    fn after<B, R>(
        &mut self,
        position: Position,
        request: Request<B>,
    ) -> InvalidationFuture<S::Future, R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Send + 'static,
        R: Send + 'static,
    {
        let (options, mut inner) = (Arc::clone(&self.options), take_ready(&mut self.inner));
        let waiting = async move {
            let reached = options.reach(position).await;
            // The scope is taken after the wait, so that the stamp of a new scope includes the position. Inside of
            // another layer, this is the scope of that layer.
            let scope = options.kernel.scope();
            let scope = if reached { scope } else { scope.distrusting() };
            scope.scoped(async move { inner.call(request).await }).await
        };
        InvalidationFuture::waiting(waiting, Arc::clone(&self.options))
    }
}

impl<S, B, R> Service<Request<B>> for InvalidationService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = InvalidationFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let positions = self.options.positions.as_ref();
        let carried = positions.and_then(|positions| {
            positions.taken_from(request.headers_mut(), &self.options.kernel)
        });
        if request.method().is_safe() {
            if let Some(position) = carried {
                return self.after(position, request);
            }
            let mut around = Some(Arc::clone(&self.options));
            let entered = PendingGuard::new(&mut around);
            let future = self.inner.call(request);
            drop(entered);
            return InvalidationFuture::safe(future, around);
        }
        let kernel = &self.options.kernel;
        kernel.tick();
        let around = request.extensions().get::<PendingInvalidations>();
        let requested = PendingInvalidations::open(kernel, around.cloned());
        let write = Write::of(&self.options, &request, requested.clone());
        request.extensions_mut().insert(requested);
        let scope = write.scope.clone();
        let mut inner = take_ready(&mut self.inner);
        let options = Arc::clone(&self.options);
        // `call` runs inside of the future, so that the invalidation follows a panic in `call`, too.
        let called = async move {
            let reached = match carried {
                Some(position) => options.reach(position).await,
                None => true,
            };
            let scope = if reached { scope } else { scope.distrusting() };
            scope.scoped(async move { inner.call(request).await }).await
        };
        InvalidationFuture::write(write.follow(called), Arc::clone(&self.options))
    }
}

impl Options {
    /// Waits, for at most the configured time, until this process has applied the log up to a position.
    async fn reach(&self, position: Position) -> bool {
        let patience = self.positions.as_ref().map(ReadYourWrites::patience);
        self.kernel.reach(position, patience.unwrap_or_default()).await
    }
}

/// A write in progress, with the targets to invalidate when it is done.
struct Write {
    options: Arc<Options>,
    requested: PendingInvalidations,
    scope: Scope,
    on_success: Vec<Target>,
    /// The number of targets in `on_success` that come from the options of the layer; the others are implicit.
    configured: usize,
    /// The origins of the target URI, one for each scheme. The scheme in keys is an option of the response cache, and
    /// an invalidation must not miss an entry because this layer is configured differently.
    origins: Vec<String>,
    path: String,
    /// The log position of this process's newest invalidation before the write.
    before: Option<Position>,
    is_https: bool,
}

impl Write {
    fn of<B>(
        options: &Arc<Options>,
        request: &Request<B>,
        requested: PendingInvalidations,
    ) -> Self {
        let head = Head::from(request);
        let mut on_success: Vec<_> =
            options.targets.iter().flat_map(|targets| targets(&head)).collect();
        let configured = on_success.len();
        let (mut origins, mut path) = (Vec::new(), String::new());
        if options.implicit {
            original_uri(&head).path().clone_into(&mut path);
            let both = [Scheme::Http, Scheme::Https].map(|scheme| Address::of(&head, scheme));
            match both {
                [Ok(http), Ok(https)] => origins = vec![http.origin(), https.origin()],
                // The host is ambiguous, so the path is invalidated on all hosts.
                _ => on_success.push(Target::path(&path)),
            }
        }
        let before = options.kernel.written();
        let is_https = options.scheme.of(&head) == "https";
        let (scope, options) = (options.kernel.scope(), Arc::clone(options));
        on_success.extend(origins.iter().map(|origin| Target::path_on(origin, &path)));
        Self { options, requested, scope, on_success, configured, origins, path, before, is_https }
    }

    /// Waits for the response, invalidates, and then returns the response.
    async fn follow<R, E>(
        mut self,
        called: impl Future<Output = Result<Response<R>, E>>,
    ) -> Result<Response<R>, E> {
        let mut outcome = std::panic::AssertUnwindSafe(called).catch_unwind().await;
        let mut targets = self.requested.close();
        if let Ok(Ok(response)) = &outcome
            && !self.requested.is_read()
            && (response.status().is_success() || response.status().is_redirection())
        {
            // The path of a gRPC call names a procedure, not a resource that has changed.
            if is_grpc(response.headers()) {
                self.on_success.truncate(self.configured);
                self.origins.clear();
            }
            targets.append(&mut self.on_success);
            self.add_named(response.status(), response.headers(), &mut targets);
        }
        if !targets.is_empty() {
            // `Queued` is not a failure, because the invalidation has acted in this process and larder retries the
            // append.
            let outcome = self.options.kernel.invalidate(targets).await;
            self.go_on(outcome);
        }
        if let (Some(positions), Ok(Ok(response))) = (&self.options.positions, &mut outcome) {
            let kernel = &self.options.kernel;
            positions.give(response.headers_mut(), kernel, self.before, self.is_https);
        }
        match outcome {
            Ok(response) => response,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs the callback that stores the response of the write itself, if the log has the invalidation and nothing else
    /// was invalidated since the write began. Otherwise the handler may have read its data before the other
    /// invalidation.
    fn go_on(&self, outcome: Invalidated) {
        let Some(afterwards) = self.requested.take_afterwards() else { return };
        let since = self.scope.stamp().number();
        if outcome == Invalidated::Logged
            && let Some(scope) = self.options.kernel.scope_after_own(since, STEPS)
        {
            afterwards(scope);
        }
    }

    /// Adds the targets of the same origin that the response names.
    ///
    /// The target of a redirect is more often the next page to visit than a page that the write has changed, so it is
    /// invalidated only outside of partitions and in the partition of this request.
    fn add_named(&self, status: StatusCode, headers: &HeaderMap, targets: &mut Vec<Target>) {
        let partition = self.requested.partition();
        for origin in &self.origins {
            let path_of = |name| {
                let named = headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
                named.and_then(|named| same_origin_path(named, origin, &self.path))
            };
            let content = path_of(header::CONTENT_LOCATION);
            targets.extend(content.map(|path| Target::path_on(origin, path)));
            match path_of(header::LOCATION) {
                Some(path) if self.reaches_partitions(status) => {
                    targets.push(Target::path_on(origin, path));
                }
                Some(path) => {
                    targets.push(Target::path_outside_partitions(origin, &path));
                    let own = partition.as_ref();
                    targets.extend(own.map(|own| Target::path_in_partition(origin, &path, own)));
                }
                None => {}
            }
            let groups = groups::names(headers, &groups::CACHE_GROUP_INVALIDATION);
            targets.extend(groups.into_iter().map(|group| Target::group(origin, group)));
        }
    }

    /// Whether the `Location` of a response with this status is invalidated in all partitions.
    fn reaches_partitions(&self, status: StatusCode) -> bool {
        !status.is_redirection() || self.options.redirects_reach_partitions
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

impl<S: Clone> Clone for InvalidationService<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), options: Arc::clone(&self.options) }
    }
}

impl<S: fmt::Debug> fmt::Debug for InvalidationService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidationService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The number of steps in which an invalidation acts: at once in this process, and again when the log has it.
const STEPS: u64 = 2;
