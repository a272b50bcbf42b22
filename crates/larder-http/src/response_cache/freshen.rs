//! What is kept is confirmed by its origin: a 304, or the answer to a HEAD.
//!
//! What is confirmed is kept anew: the old bytes, the fields with the update in them, the tags of both, and
//! the stamp that was taken before anything was looked up. It is judged once more by its own stamp when the
//! confirmation comes, since what an invalidation has reached meanwhile is gone, whatever its origin says.
//!
//! # Source
//!
//! [RFC 9111, section 4.3.4](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.4) and
//! [section 4.3.5](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.5)

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use larder_core::{AnyEntry, Event, Lead, Standing};
use larder_semantics::{
    storing::Profile,
    validation::{self, Validators},
    vary,
};
use tokio::sync::oneshot;

use super::{
    asked::Asked,
    fill::{Answer, Fill, Heard, is_of_the_asker},
    miss::refusal,
    stored,
};
use crate::body::CacheBody;

impl Asked {
    /// What may be confirmed instead of being fetched again: the entry that was selected, if its origin gave
    /// it a validator, and the other variants of its address.
    pub(super) fn to_confirm(&self, selected: Option<&AnyEntry>) -> Vec<AnyEntry> {
        let validated =
            |entry: &AnyEntry| stored::of(entry).is_some_and(|stored| stored.traits.validated);
        let mut known: Vec<AnyEntry> = selected.cloned().into_iter().collect();
        known.retain(validated);
        // Of others only a strong tag says which of them is meant.
        known.extend(self.other_variants(selected).into_iter().filter(|other| {
            validated(other) && validators(other).etag.is_some_and(|tag| tag.is_strongly(&tag))
        }));
        known
    }

    /// The conditions by which the origin may confirm what is known.
    pub(super) fn add_conditions<B>(
        request: &mut Request<B>,
        known: &[AnyEntry],
        selected: Option<&AnyEntry>,
    ) {
        let tags = known.iter().filter_map(|known| Some(validators(known).etag?.to_string()));
        let mut tags: Vec<String> = tags.collect();
        tags.dedup();
        let headers = request.headers_mut();
        if !tags.is_empty()
            && let Ok(tags) = tags.join(", ").parse()
        {
            headers.insert(header::IF_NONE_MATCH, tags);
        }
        if let [only] = known
            && is_same(selected, only)
            && let Some(date) = stored::of(only)
                .and_then(|stored| stored.fields().get(header::LAST_MODIFIED).cloned())
        {
            headers.insert(header::IF_MODIFIED_SINCE, date);
        }
    }

    /// A HEAD has been answered for itself: by a validator it confirms what is kept for GET, or shows that it is no
    /// more. Without one it says nothing: a handler that has none would confirm whatever is kept.
    pub(super) fn note_head<R>(&self, fill: &Fill, response: &Response<R>, kept: &AnyEntry) {
        let larder = &self.plan.larder;
        let Some(stored) = stored::of(kept) else { return };
        let whole = [response.status(), stored.status()] == [StatusCode::OK; 2];
        let proven = self.plan.options.profile == Profile::Conformance
            || !Validators::of(response.headers()).is_empty();
        if !whole || stored.part.is_some() || !proven {
            return;
        }
        let length = stored.body().len() as u64;
        if !validation::head_confirms(response.headers(), &stored.fields(), length) {
            larder.remove(kept);
            return;
        }
        if larder.standing(kept, larder.now()) == Standing::Invalid {
            return;
        }
        match fill.confirmed(kept, response.headers()) {
            Ok((heard, whole)) => drop(fill.keep(&heard, &whole)),
            Err(why) if !is_of_the_asker(why) => larder.remove(kept),
            Err(_) => {}
        }
    }
}

impl Fill {
    /// The origin says that what is known is current.
    pub(super) fn hear_confirmed<R, E>(
        self,
        lead: Lead,
        update: &HeaderMap,
        client: oneshot::Sender<Answer<R, E>>,
    ) {
        let larder = &self.plan.larder;
        let known: Vec<Validators> = self.known.iter().map(validators).collect();
        let named = if Validators::of(update).etag.is_some() || self.asked_for_one() {
            validation::confirmed(update, &known)
        } else {
            Vec::new()
        };
        let now = larder.now();
        let mut confirmed = named
            .iter()
            .map(|at| self.known[*at].clone())
            .filter(|entry| larder.standing(entry, now) != Standing::Invalid);
        let Some(first) = confirmed.next() else {
            let overtaken =
                named.iter().any(|at| is_same(self.replaces.as_ref(), &self.known[*at]));
            return self.hear_contradiction(lead, overtaken, client);
        };
        for other in confirmed {
            if let Ok((mut heard, whole)) = self.confirmed(&other, update) {
                heard.key = other.key().clone();
                drop(self.keep(&heard, &whole));
            }
        }
        match self.confirmed(&first, update) {
            Ok((heard, whole)) => {
                let kept = self.keep(&heard, &whole);
                let answer = self.answer(&heard, &kept, CacheBody::held(whole));
                lead.land(kept.landing);
                drop(client.send(Ok(answer)));
            }
            Err(why) => {
                // It is current, and from now on it may not be kept, or not for those who ask like this.
                if !is_of_the_asker(why) {
                    larder.remove(&first);
                }
                self.remember(why);
                self.let_go(lead, why);
                let mut response = whole(&first);
                let fields = validation::freshened(response.headers(), update);
                *response.headers_mut() = fields;
                drop(client.send(Ok(self.passed_on(response, why))));
            }
        }
    }

    /// Whether only what is kept for this very request was asked about.
    fn asked_for_one(&self) -> bool {
        matches!(&self.known[..], [only] if is_same(self.replaces.as_ref(), only))
    }

    /// What is known has been overtaken by an invalidation since it was looked up, or the origin confirms
    /// what we did not ask about. Whoever comes next asks without a condition. The client that has waited
    /// came before the invalidation and may have what is kept; what the origin did not confirm it gets only
    /// where it might have got it stale.
    fn hear_contradiction<R, E>(
        self,
        lead: Lead,
        overtaken: bool,
        client: oneshot::Sender<Answer<R, E>>,
    ) {
        self.record(Event::Failed("revalidation"));
        let larder = &self.plan.larder;
        self.known.iter().for_each(|known| larder.remove(known));
        drop(lead);
        let allowed = |entry: &&AnyEntry| {
            overtaken || stored::of(entry).is_some_and(|stored| stored.traits.may_go_stale)
        };
        let response = match self.replaces.as_ref().filter(allowed) {
            Some(entry) => {
                let mut response = whole(entry);
                let (age, _) = stored::aged(entry, larder.now());
                response.headers_mut().insert(header::AGE, stored::age_line(age));
                response
            }
            None => {
                let text = "the origin confirmed what it was not asked about\n";
                refusal(StatusCode::BAD_GATEWAY, text)
            }
        };
        drop(client.send(Ok(self.passed_on(response, "revalidation"))));
    }

    /// A kept response with an update in it, judged as if it had come whole.
    pub(super) fn confirmed(
        &self,
        entry: &AnyEntry,
        update: &HeaderMap,
    ) -> Result<(Heard, Bytes), &'static str> {
        let stored = stored::of(entry).expect("only responses are confirmed");
        let mut fields = stored.fields();
        if stored.traits.told_by_us {
            fields.remove(header::CACHE_CONTROL);
            self.plan.options.targets.iter().for_each(|target| drop(fields.remove(target)));
        }
        // Without a date the update is of now, not of when the stored one was made.
        fields.remove(header::DATE);
        let fields = validation::freshened(&fields, update);
        let received = self.plan.larder.now();
        let chosen = self.choices.chosen();
        let judged = self.judge_fields(stored.status(), &fields, &chosen, received)?;
        let names = vary::names(&fields);
        let base = self.base(&fields);
        let key = self.variant(&base, &names).map_err(|_| "key-too-long")?;
        self.scope.add_tags(entry.tags().iter().cloned());
        let (mut head, ()) = Response::new(()).into_parts();
        (head.status, head.headers) = (stored.status(), fields);
        let mut heard = Heard {
            head,
            judged,
            chosen,
            base,
            key,
            names,
            received,
            part: None,
            from: StatusCode::NOT_MODIFIED,
        };
        self.prepare(&mut heard);
        Ok((heard, stored.body().clone()))
    }
}

fn validators(entry: &AnyEntry) -> Validators {
    stored::of(entry).map(|stored| Validators::of(&stored.fields())).unwrap_or_default()
}

fn is_same(one: Option<&AnyEntry>, other: &AnyEntry) -> bool {
    one.is_some_and(|one| Arc::ptr_eq(one, other))
}

/// All of a kept response, without a word of the cache.
fn whole<R>(entry: &AnyEntry) -> Response<CacheBody<R>> {
    let stored = stored::of(entry).expect("only responses are confirmed");
    let mut response = Response::new(CacheBody::held(stored.body().clone()));
    *response.status_mut() = stored.status();
    *response.headers_mut() = stored.fields();
    response
}
