//! Stores the response to a POST that is the representation of its own address, for later GETs.
//!
//! The write first invalidates that address. So larder stores the response only after that invalidation, with its
//! stamp, and only if nothing else was invalidated since the write began.
//! [`InvalidationLayer`](crate::InvalidationLayer) does this, and without that layer nothing is stored. Nothing is
//! stored either if the length of the content is not announced, because larder reads all of the content before the
//! response leaves.
//!
//! # Source
//!
//! [RFC 9110, section 9.3.3](https://www.rfc-editor.org/rfc/rfc9110#section-9.3.3)

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::Body;
use larder_core::{
    Key, Tag,
    kernel::{Audience, EntryDraft, Moment, Scope},
};
use larder_semantics::{
    cache_control::CacheControl,
    date, fields,
    freshness::{self, Freshness},
    groups,
    storing::RequestIdentity,
    vary,
};

use crate::{
    address::{Address, Head},
    body::{BoxError, CacheBody, announced_length},
    body_key::is_read,
    final_head::{FinalHead, HeadVerdict},
    invalidation::PendingInvalidations,
    response_cache::{
        answer::{cache_status::X_CACHE, downstream},
        context::CacheContext,
        fill::{
            storage_decision::{self, ResponseTimes},
            store::response_tags,
        },
        overrides::ResponseOverrides,
        stored::{StoredResponse, Traits, record::CacheRecord},
    },
};

/// A POST whose response may be stored for a GET of its address.
pub(in crate::response_cache) struct FromPost {
    context: Arc<CacheContext>,
    requested: PendingInvalidations,
    overrides: ResponseOverrides,
    /// The scope in which the POST was answered.
    scope: Scope,
    key: Key,
    tags: Vec<Tag>,
    uri: String,
    origin: String,
    began: Moment,
    /// Reports the final head of the response, if there is a [`FinalHeadLayer`](crate::FinalHeadLayer).
    final_head: Option<FinalHead>,
}

impl FromPost {
    /// Returns `Some` for a POST that is a write, has no credentials, cache directives or unkeyed inputs and is inside of an
    /// invalidation layer of the same larder, if the key of this layer has no inputs other than the address.
    pub(in crate::response_cache) fn of<B>(
        context: &Arc<CacheContext>,
        request: &Request<B>,
        scope: &Scope,
    ) -> Option<Box<Self>> {
        if *request.method() != Method::POST || context.options.off || is_read(request) {
            return None;
        }
        let requested = request.extensions().get::<PendingInvalidations>()?.clone();
        let overrides = request.extensions().get::<ResponseOverrides>()?.clone();
        let head = Head::from(request);
        let facts = context.facts(head.headers);
        let forbidden = facts.identified
            || facts.directives
            || context.has_more_key_inputs
            || context.bypasses_by_choice(&head)
            || context.options.has_unkeyed_input(&head);
        if forbidden || !requested.is_of(&context.kernel) {
            return None;
        }
        let address = Address::of(&head, context.options.scheme).ok()?;
        let key = context.keys.key_of_address(&head, &address).finish().ok()?;
        let (origin, tags) = context.address_tags(&head);
        let query = address.query.map(|query| format!("?{query}")).unwrap_or_default();
        Some(Box::new(Self {
            context: Arc::clone(context),
            requested,
            overrides,
            scope: scope.clone(),
            key,
            tags,
            uri: format!("{origin}{}{query}", address.path),
            origin,
            began: context.kernel.now(),
            final_head: request.extensions().get().cloned(),
        }))
    }

    /// Stores the response after larder has invalidated the targets of the write, if the response represents this
    /// address.
    pub(in crate::response_cache) async fn receive<R>(
        self: Box<Self>,
        response: Response<CacheBody<R>>,
    ) -> Response<CacheBody<R>>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        if response.status() != StatusCode::OK || !self.is_of_this_address(response.headers()) {
            return response;
        }
        let control = CacheControl::of(response.headers());
        let received_at = self.context.kernel.now();
        let wall = |at| self.context.kernel.clock().wall(at);
        let lifetime = freshness::lifetime(
            response.headers(),
            &control,
            wall(received_at),
            self.context.options.role,
        );
        if lifetime == Freshness::Unknown || !vary::names(response.headers()).is_empty() {
            return response;
        }
        let limit = self.context.options.body_limit as u64;
        if announced_length(&response).is_none_or(|bytes| bytes > limit) {
            return response;
        }
        let (head, body) = response.into_parts();
        let response = Response::from_parts(head, body.gathered().await);
        let Some(whole) = response.body().as_held().cloned() else { return response };
        if announced_length(&response) == Some(whole.len() as u64) {
            let status = response.status();
            let headers = without_own_fields(&self.context, response.headers().clone());
            let requested = self.requested.clone();
            let sent = response.headers().clone();
            requested.afterwards(move |scope| match self.final_head.clone() {
                None => self.store(&scope, status, headers, &whole, received_at),
                Some(final_head) => final_head.once_left(status, &sent, move |verdict| {
                    if verdict == HeadVerdict::Storable {
                        self.store(&scope, status, headers, &whole, received_at);
                    }
                }),
            });
        }
        response
    }

    fn is_of_this_address(&self, headers: &HeaderMap) -> bool {
        let mut lines = headers.get_all(header::CONTENT_LOCATION).iter();
        let named = lines.next().and_then(|named| named.to_str().ok());
        let only = lines.next().is_none();
        only && named.is_some_and(|named| {
            named == self.uri
                || (named.starts_with('/') && format!("{}{named}", self.origin) == self.uri)
        })
    }

    fn store(
        &self,
        scope: &Scope,
        status: StatusCode,
        mut headers: HeaderMap,
        whole: &Bytes,
        received_at: Moment,
    ) {
        let clock = self.context.kernel.clock();
        let times =
            ResponseTimes { lookup: clock.wall(self.began), received_at: clock.wall(received_at) };
        let gathered = self.scope.gathered();
        let is_unkept = gathered.private || gathered.stale || gathered.no_store.is_some();
        if is_unkept || self.context.has_variants(&self.key) {
            return;
        }
        // All values that were read for the POST are part of its response.
        let scope = scope.gathering(Audience::Everyone);
        scope.add_sourced_tags(gathered.tags);
        scope.cut(gathered.until);
        let (options, override_values) = (&self.context.options, self.overrides.override_values());
        let identity = RequestIdentity::default();
        let decision =
            storage_decision::decide(options, &override_values, identity, status, &headers, times);
        let Some(decision) = decision.ok().filter(|decision| decision.is_stored) else { return };
        if !headers.contains_key(header::DATE)
            && let Ok(date) = date::format(times.received_at).parse()
        {
            headers.insert(header::DATE, date);
        }
        let groups = groups::names(&headers, &groups::CACHE_GROUPS);
        downstream::remove_unkept(options, &mut headers);
        self.context.remove_own_fields(&mut headers);
        let traits = Traits {
            open: decision.open,
            has_own_fields: false,
            validated: decision.validated,
            may_go_stale: decision.may_go_stale,
            opted_in: decision.opted_in,
            is_for_user: false,
        };
        // The body is copied, because it may be a slice of a larger buffer.
        let whole = Bytes::copy_from_slice(whole);
        let mut stored = StoredResponse::new(
            status,
            headers,
            whole,
            traits,
            self.context.extras,
            &self.context.header_interner,
        );
        stored.route = self.overrides.route().route();
        let draft = EntryDraft {
            key: self.key.clone(),
            tags: response_tags(&self.tags, override_values.tags, &self.origin, &groups),
            lifetime: decision.lifetime,
            lifetime_source: decision.source,
            age: decision.age,
            filled: received_at,
            cost: Duration::ZERO,
            tiers: larder_core::Tiers::MEMORY,
            idle: None,
        };
        if let Ok(entry) = self.context.kernel.entry(draft, &scope, CacheRecord::Response(stored)) {
            self.context.kernel.store(&entry);
        }
    }
}

/// Removes the fields that this cache has added to the response to the POST.
fn without_own_fields(context: &CacheContext, mut headers: HeaderMap) -> HeaderMap {
    if context.extras.cache_status {
        fields::remove_last_line(&mut headers, &header::CACHE_STATUS);
    }
    headers.remove(X_CACHE);
    headers
}

impl std::fmt::Debug for FromPost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FromPost").field("uri", &self.uri).finish_non_exhaustive()
    }
}
