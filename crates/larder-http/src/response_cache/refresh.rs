//! Stale-while-revalidate: refreshes a stale response in the background, while requests get the stale one.
//!
//! # Source
//!
//! [RFC 5861, section 3](https://www.rfc-editor.org/rfc/rfc5861#section-3)

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::Response;
use http_body::Body;
use larder_core::{
    Reason,
    kernel::{AnyEntry, Event, FlightResult, FlightRole},
};
use larder_semantics::cache_status::Forward;
use tokio::sync::oneshot;
use tower_service::Service;
use tracing::Instrument as _;

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
    /// Starts one background refresh, unless one is in flight or the refresh budget is used up.
    pub(super) fn refresh(&mut self, stale: AnyEntry) {
        let Some(permit) = self.asked.plan.kernel.refresh_permit() else {
            self.asked.record(Event::Failed(Reason::RefreshBudget));
            return;
        };
        let FlightRole::Leader(mut lead) = self.asked.join() else { return };
        // No enclosing fill waits for it.
        self.asked.scope = self.asked.scope.in_background();
        // Its response goes to no client.
        self.asked.final_head = None;
        let plan = Arc::clone(&self.asked.plan);
        let kernel = plan.kernel.clone();
        let (key, scope) = (stale.key().clone(), self.asked.scope.clone());
        let known = self.asked.to_confirm(Some(&stale));
        let filling = self.fill(Forward::Stale, (Some(stale), known));
        let refreshing = async move {
            if plan.options.lease.is_some() {
                // Another process may have refreshed it.
                let fetch = || plan.fetch(&scope, &key);
                if let Some(entry) =
                    plan.kernel.fetch_in_turn(&scope, &mut lead, plan.options.lease, fetch).await
                {
                    return lead.land(FlightResult::Filled(entry));
                }
            }
            let (client, _) = oneshot::channel();
            let (fill, inner, request) = filling;
            fill.run(lead, inner, request, client).await;
            drop(permit);
        };
        drop(kernel.spawn(refreshing.in_current_span()));
    }
}
