//! Stale-while-revalidate and refresh-ahead: larder refreshes a response in the background, while requests get the stored
//! response.
//!
//! # Source
//!
//! [RFC 5861, section 3](https://www.rfc-editor.org/rfc/rfc5861#section-3)

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http::Response;
use http_body::Body;
use larder_core::kernel::{AnyEntry, Event, FlightResult, FlightRole};
use larder_semantics::cache_status::Forward;
use tokio::sync::oneshot;
use tower_service::Service;

use super::miss::CacheMiss;
use crate::body::BoxError;

impl<S, B, R> CacheMiss<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    /// Starts a background refresh, unless a fill of the same key is in flight or the refresh budget is used up.
    pub(super) fn refresh(&mut self, stale: AnyEntry) {
        let permit = match self.lookup.context.kernel.refresh_permit(&stale) {
            Ok(permit) => permit,
            Err(why) => return self.lookup.record(Event::Failed(why)),
        };
        let FlightRole::Leader(mut leader) = self.lookup.join() else { return };
        let permit = permit.leading();
        // No enclosing fill waits for the refresh.
        self.lookup.scope = self.lookup.scope.in_background();
        // The response of the refresh is not sent to any client.
        self.lookup.final_head = None;
        let context = Arc::clone(&self.lookup.context);
        let (kernel, name) = (context.kernel.clone(), Arc::clone(&context.options.name));
        let (key, scope) = (stale.key().clone(), self.lookup.scope.clone());
        let filled = stale.ends().filled();
        let known = self.lookup.to_confirm(Some(&stale));
        let filling = self.fill(Forward::Stale, (Some(stale), known));
        let refreshing = async move {
            if context.kernel.shares(context.options.tiers) {
                // Another process may have refreshed the response.
                let is_newer = |entry: &AnyEntry| {
                    entry.ends().filled() > filled.after(CLOCK_ERROR)
                        && !context.options.is_due(entry, context.kernel.now())
                };
                let fetch = || async { context.fetch(&scope, &key).await.filter(is_newer) };
                if let Some(entry) = context
                    .kernel
                    .fetch_in_turn(&scope, &mut leader, context.options.lease, fetch, || false)
                    .await
                {
                    return leader.finish(FlightResult::Filled(entry));
                }
            }
            let (client, _) = oneshot::channel();
            let (fill, inner, request) = filling;
            fill.run(leader, inner, request, client).await;
            drop(permit);
        };
        drop(kernel.spawn_fill(&name, true, refreshing));
    }
}

/// Two readings of the time of one fill, in two processes, differ by less than this.
const CLOCK_ERROR: Duration = Duration::from_millis(10);
