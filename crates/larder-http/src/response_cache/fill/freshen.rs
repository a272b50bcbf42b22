//! Freshens stored responses by a 304 or by the response to a HEAD.
//!
//! larder stores a freshened response as a new entry, with the old bytes, the updated fields, the tags of both, and the
//! stamp that was taken before the lookup. When the confirmation arrives, larder checks the old stamp again. If the
//! entry was invalidated in the meantime, larder removes it, even though its origin confirms it.
//!
//! # Source
//!
//! [RFC 9111, section 4.3.4](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.4) and
//! [section 4.3.5](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.5)

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use larder_core::{
    Reason,
    kernel::{AnyEntry, EntryState, Event, Leader},
};
use larder_semantics::{
    storing::Profile,
    validation::{self, Validators},
};
use tokio::sync::oneshot;

use crate::{
    body::CacheBody,
    response_cache::{
        fill::{Answer, Fill, ReceivedHead},
        lookup::Lookup,
        stored,
    },
};

impl Lookup {
    /// Returns the stored response that the origin may confirm instead of sending it again. This is the selected
    /// response, if its origin gave it a validator. If the request selects no response, it is the most recently used
    /// variant of this address with a strong `ETag` from its origin.
    ///
    /// The request has the validators of only one response, so that a 304 is unambiguous. With several, a 304 without
    /// `ETag` would be ambiguous, and larder would have no response to answer with.
    pub(in crate::response_cache) fn to_confirm(
        &self,
        selected: Option<&AnyEntry>,
    ) -> Option<AnyEntry> {
        if self.request_key.is_by_content {
            // A condition of a POST or QUERY may mean 412 to its origin, and not 304.
            return None;
        }
        let is_validated =
            |entry: &AnyEntry| stored::of(entry).is_some_and(|stored| stored.traits.validated);
        let has_strong_tag =
            |entry: &AnyEntry| validators(entry).etag.is_some_and(|tag| tag.is_strongly(&tag));
        match selected {
            Some(selected) => Some(selected).filter(|entry| is_validated(entry)).cloned(),
            None => {
                let mut others = self.other_variants().into_iter();
                others.find(|other| is_validated(other) && has_strong_tag(other))
            }
        }
    }

    /// Adds the conditions by which the origin may confirm a stored response. The `Last-Modified` of a variant that was
    /// not selected says nothing about the requested variant, so it is left out.
    pub(in crate::response_cache) fn add_conditions<B>(
        request: &mut Request<B>,
        known: Option<&AnyEntry>,
        selected: Option<&AnyEntry>,
    ) {
        let Some(known) = known else { return };
        let headers = request.headers_mut();
        if let Some(tag) = validators(known).etag {
            headers.insert(header::IF_NONE_MATCH, tag.to_value());
        }
        if is_same(selected, known)
            && let Some(date) = stored::of(known)
                .and_then(|stored| stored.fields().get(header::LAST_MODIFIED).cloned())
        {
            headers.insert(header::IF_MODIFIED_SINCE, date);
        }
    }

    /// Applies the response to a HEAD to the stored response to GET. If its validators and length agree with the stored
    /// response, it freshens that response; otherwise larder removes the stored response. A response without a
    /// validator has no effect (except under `Profile::Conformance`), because it would confirm any stored response.
    pub(in crate::response_cache) fn note_head<R>(
        &self,
        fill: &Fill,
        response: &Response<R>,
        entry: &AnyEntry,
    ) {
        let kernel = &self.context.kernel;
        let Some(stored) = stored::of(entry) else { return };
        let whole = [response.status(), stored.status()] == [StatusCode::OK; 2];
        let proven = self.context.options.profile == Profile::Conformance
            || !Validators::of(response.headers()).is_empty();
        if !whole || stored.part.is_some() || !proven {
            return;
        }
        let length = stored.body().len() as u64;
        if !validation::head_confirms(response.headers(), &stored.fields(), length) {
            kernel.remove(entry);
            return;
        }
        if kernel.entry_state(entry, kernel.now()) == EntryState::Invalid {
            return;
        }
        match fill.confirmed(entry, response.headers()) {
            Ok((received, whole)) => drop(fill.store(&received, &whole)),
            Err(why) if !why.is_of_the_user() => kernel.remove(entry),
            Err(_) => {}
        }
    }
}

impl Fill {
    /// Handles a 304, with which the origin confirms that the stored response is current.
    pub(in crate::response_cache) fn receive_not_modified<R, E>(
        self,
        leader: Leader,
        known: &AnyEntry,
        update: &HeaderMap,
        client: oneshot::Sender<Answer<R, E>>,
    ) {
        let kernel = &self.context.kernel;
        let is_named = !validation::confirmed(update, &[validators(known)]).is_empty();
        let is_overtaken = kernel.entry_state(known, kernel.now()) == EntryState::Invalid;
        if !is_named || is_overtaken {
            return self.discard_unconfirmed(leader, known, client);
        }
        match self.confirmed(known, update) {
            Ok((received, whole)) => self.store_complete(leader, received, whole, client),
            Err(why) => {
                // The stored response is current, but it is no longer storable, or not for an authenticated request
                // like this one.
                if !why.is_of_the_user() {
                    kernel.remove(known);
                }
                self.remember_refusal(why);
                self.finish_unshared(leader, why);
                let mut response = whole(known);
                let fields = validation::freshened(response.headers(), update);
                *response.headers_mut() = fields;
                drop(client.send(Ok(self.forwarded_body(response, why))));
            }
        }
    }

    /// Handles a 304 whose stored response was invalidated after the lookup, or that names another `ETag`. Such a 304
    /// freshens nothing. larder removes the entry, so that the next request is unconditional. This client gets the
    /// stored response, because its request came before the invalidation, or because the origin has sent the 304 in
    /// reply to the `ETag` of this response.
    fn discard_unconfirmed<R, E>(
        self,
        leader: Leader,
        known: &AnyEntry,
        client: oneshot::Sender<Answer<R, E>>,
    ) {
        self.record(Event::Failed(Reason::Revalidation));
        let kernel = &self.context.kernel;
        kernel.remove(known);
        drop(leader);
        let mut response = whole(known);
        let (age, _) = stored::aged(known, kernel.now());
        response.headers_mut().insert(header::AGE, stored::age_line(age));
        drop(client.send(Ok(self.forwarded_body(response, Reason::Revalidation))));
    }

    /// Applies an update to a stored response, and decides on storing the result like a full response.
    pub(in crate::response_cache) fn confirmed(
        &self,
        entry: &AnyEntry,
        update: &HeaderMap,
    ) -> Result<(ReceivedHead, Bytes), Reason> {
        let stored = stored::of(entry).expect("only responses are confirmed");
        let mut fields = stored.fields();
        if stored.traits.has_own_fields {
            fields.remove(header::CACHE_CONTROL);
            self.context.options.targets.iter().for_each(|target| drop(fields.remove(target)));
        }
        // An update without `Date` dates from now, not from the time of the stored response.
        fields.remove(header::DATE);
        let fields = validation::freshened(&fields, update);
        let received_at = self.context.kernel.now();
        let override_values = self.overrides.override_values();
        let decision =
            self.decide_by_fields(stored.status(), &fields, &override_values, received_at)?;
        let names = self.context.selecting_names(&fields, decision.opted_in);
        let base = self.base(&fields);
        let key = self.variant(&base, &names).map_err(|_| Reason::KeyTooLong)?;
        let tags = entry.sourced_tags().map(|(tag, source)| (tag.clone(), source));
        self.scope.add_sourced_tags(tags);
        let (mut head, ()) = Response::new(()).into_parts();
        (head.status, head.headers) = (stored.status(), fields);
        let mut received = ReceivedHead {
            head,
            decision,
            override_values,
            base,
            key,
            names,
            received_at,
            part: None,
            from: StatusCode::NOT_MODIFIED,
        };
        self.prepare(&mut received);
        Ok((received, stored.body().clone()))
    }
}

fn validators(entry: &AnyEntry) -> Validators {
    stored::of(entry).map(|stored| Validators::of(&stored.fields())).unwrap_or_default()
}

fn is_same(one: Option<&AnyEntry>, other: &AnyEntry) -> bool {
    one.is_some_and(|one| Arc::ptr_eq(one, other))
}

/// Returns a stored response in full, without the fields that larder adds.
fn whole<R>(entry: &AnyEntry) -> Response<CacheBody<R>> {
    let stored = stored::of(entry).expect("only responses are confirmed");
    let mut response = Response::new(CacheBody::held(stored.body().clone()));
    *response.status_mut() = stored.status();
    *response.headers_mut() = stored.fields();
    response
}
