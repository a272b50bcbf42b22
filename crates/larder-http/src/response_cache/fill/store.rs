//! Stores the response of a fill as an entry and adds it to the lists of its address, or stores a hit-for-miss record.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use larder_core::{
    Key, Reason, Tag,
    kernel::{AnyEntry, EntryDraft, EntryState, Event, FlightResult, SourcedTags, TagSource},
};
use larder_semantics::{groups, storing::Profile};

use crate::response_cache::{
    answer::downstream,
    fill::{Fill, ReceivedHead, partial},
    stored::{
        self, Part, StoredResponse, Traits, no_vary_search::SearchRules, record::CacheRecord,
        variants::Variants,
    },
};

/// The outcome of storing a response.
#[derive(Debug)]
pub(in crate::response_cache) struct StoreOutcome {
    pub(in crate::response_cache) flight_result: FlightResult,
    pub(in crate::response_cache) stored: bool,
    pub(in crate::response_cache) why: Option<Reason>,
}

impl StoreOutcome {
    /// The response will be stored once its head has left.
    pub(in crate::response_cache) const TO_BE: Self =
        Self { flight_result: FlightResult::Abandoned, stored: true, why: None };
    pub(in crate::response_cache) const NOT: Self =
        Self { flight_result: FlightResult::Abandoned, stored: false, why: None };
}

/// Returns the tags of a response: those of its address, those of its handler, and its cache groups.
pub(in crate::response_cache) fn response_tags(
    of_address: &[Tag],
    of_handler: Vec<Tag>,
    origin: &str,
    groups: &[String],
) -> SourcedTags {
    let mut tags = SourcedTags::of(TagSource::Route, of_address.iter().cloned());
    tags.extend(of_handler.into_iter().map(|tag| (tag, TagSource::Handler)));
    let groups = groups.iter().map(|group| (Tag::of_group(origin, group), TagSource::Response));
    tags.extend(groups);
    tags
}

impl Fill {
    pub(in crate::response_cache) fn store(
        &self,
        received: &ReceivedHead,
        whole: &Bytes,
    ) -> StoreOutcome {
        let now = self.context.kernel.now();
        let route = self.overrides.route().id();
        self.context.meter.record_fill_time(now.since(self.began), Some(route));
        match self.entry(received, whole) {
            Ok(entry) => {
                let is_stored = received.decision.is_stored;
                let stored = is_stored && self.context.kernel.store(&entry);
                if !is_stored {
                    self.record(Event::Refused(Reason::Stale));
                } else if stored {
                    self.store_search_rule(received);
                    self.list_variant(received);
                    self.record(Event::Stored);
                } else {
                    self.record(Event::Refused(Reason::Overtaken));
                }
                let flight_result =
                    if received.part.is_none() && received.decision.is_of_use_to_others() {
                        FlightResult::Filled(entry)
                    } else {
                        FlightResult::NotShared(Reason::Unconfirmed)
                    };
                let why = (!is_stored).then_some(Reason::Stale);
                StoreOutcome { flight_result, stored, why }
            }
            Err(why) => {
                self.remember_refusal(why);
                self.record(Event::Refused(why));
                StoreOutcome {
                    flight_result: FlightResult::NotShared(why),
                    stored: false,
                    why: Some(why),
                }
            }
        }
    }

    /// Whether an error would replace a good stored response, which is fresh or, in the case of a server error, may
    /// still be served stale. Only the input of one client can have caused such a fill.
    fn would_hide_a_good_one(&self, received: &ReceivedHead) -> bool {
        let status = received.head.status;
        let kernel = &self.context.kernel;
        let is_good = |entry: &AnyEntry| {
            let of_use = match kernel.entry_state(entry, kernel.now()) {
                EntryState::Fresh => true,
                EntryState::WhileRevalidating | EntryState::OnError => status.is_server_error(),
                _ => false,
            };
            of_use && stored::of(entry).is_some_and(|stored| stored.status().is_success())
        };
        let hides_one = || kernel.find(received.key.as_bytes()).as_ref().is_some_and(is_good);
        // An error without `Vary` would take the key of the list of all variants.
        let hides_variants = || {
            let list = kernel.find(received.base.as_bytes()).filter(|_| received.names.is_empty());
            let Some(CacheRecord::Variants(variants)) =
                list.as_ref().and_then(|list| CacheRecord::of(list))
            else {
                return false;
            };
            let mut entries =
                variants.stored().into_iter().filter_map(|key| kernel.find(key.as_bytes()));
            entries.any(|entry| is_good(&entry))
        };
        self.context.options.profile == Profile::Careful
            && (status.is_client_error() || status.is_server_error())
            && (hides_one() || hides_variants())
    }

    fn entry(&self, received: &ReceivedHead, whole: &Bytes) -> Result<AnyEntry, Reason> {
        if self.scope.gathered().private && !self.identity.partitioned {
            return Err(Reason::PrivatePart);
        }
        // The choices that the handler made while it produced the body apply, too.
        let override_values = self.overrides.override_values();
        if let Some(why) = override_values.no_store {
            return Err(why);
        }
        if self.is_written() {
            return Err(Reason::SessionWritten);
        }
        if self.would_hide_a_good_one(received) {
            return Err(Reason::Error);
        }
        let mut headers = received.head.headers.clone();
        downstream::remove_unkept(&self.context.options, &mut headers);
        self.context.remove_own_fields(&mut headers);
        let (key, status, part, whole) = self.pieced_together(received, &mut headers, whole)?;
        let mut stored = StoredResponse::new(
            status,
            headers,
            whole,
            self.traits(received),
            self.context.extras,
            &self.context.header_interner,
        );
        stored.part = part.map(Box::new);
        stored.route = self.overrides.route().route();
        let groups = groups::names(&received.head.headers, &groups::CACHE_GROUPS);
        let draft = EntryDraft {
            key,
            tags: response_tags(&self.tags, override_values.tags, &self.origin, &groups),
            lifetime: received.decision.lifetime,
            lifetime_source: received.decision.source,
            age: received.decision.age,
            filled: received.received_at,
            cost: received.received_at.since(self.began),
            tiers: self.context.options.tiers,
            idle: None,
        };
        self.context.kernel.entry(draft, &self.scope, CacheRecord::Response(stored))
    }

    /// Returns the key, status, range and bytes to store. A partial response is combined with a stored partial
    /// response, if possible.
    fn pieced_together(
        &self,
        received: &ReceivedHead,
        headers: &mut HeaderMap,
        whole: &Bytes,
    ) -> Result<(Key, StatusCode, Option<Part>, Bytes), Reason> {
        let Some(part) = received.part else {
            return Ok((received.key.clone(), received.head.status, None, whole.clone()));
        };
        if whole.len() as u64 != part.range.len() {
            return Err(Reason::Length);
        }
        let (part, bytes) = self.joined(headers, part, whole);
        headers.remove(header::CONTENT_RANGE);
        if part.range.len() == part.total {
            return Ok((received.key.clone(), StatusCode::OK, None, bytes));
        }
        let key = partial::part_key(&received.key).map_err(|_| Reason::KeyTooLong)?;
        Ok((key, StatusCode::PARTIAL_CONTENT, Some(part), bytes))
    }

    fn traits(&self, received: &ReceivedHead) -> Traits {
        let private = self.is_private();
        let options = &self.context.options;
        let by_choice =
            received.override_values.browser.is_some() || received.override_values.cdn.is_some();
        Traits {
            open: received.decision.open,
            has_own_fields: received.decision.by_larder
                || by_choice
                || private
                || options.strip_targeted_fields,
            validated: received.decision.validated,
            may_go_stale: received.decision.may_go_stale,
            opted_in: received.decision.opted_in,
            is_for_user: self.is_for_user,
        }
    }

    /// Records the `No-Vary-Search` rule of a response.
    fn store_search_rule(&self, received: &ReceivedHead) {
        let Some(search) = &self.search else { return };
        let Some((variance, _)) = search.variance(&received.head.headers) else { return };
        let Ok(key) = search.rules_key() else { return };
        let kernel = &self.context.kernel;
        // An entry under the full query is older, and would hide the shared entry.
        if let Some(older) = kernel.find(self.key.as_bytes()) {
            kernel.remove(&older);
        }
        let known = kernel.find(key.as_bytes());
        if let Some(CacheRecord::SearchRules(rules)) =
            known.as_ref().and_then(|known| CacheRecord::of(known))
        {
            return rules.add_status(variance);
        }
        let rules = SearchRules::default();
        rules.add_status(variance);
        let entry = self.context.bookkeeping(
            key,
            Duration::MAX,
            received.received_at,
            CacheRecord::SearchRules(rules),
        );
        if let Some(entry) = entry {
            kernel.store(&entry);
        }
    }

    /// Adds a variant to the list of its address.
    fn list_variant(&self, received: &ReceivedHead) {
        if received.key == received.base {
            return;
        }
        let kernel = &self.context.kernel;
        let list = kernel
            .find(received.base.as_bytes())
            .filter(|entry| {
                // A list that a reset of the log has invalidated is no longer written to the second level.
                matches!(CacheRecord::of(entry), Some(CacheRecord::Variants(_)))
                    && kernel.entry_state(entry, kernel.now()) == EntryState::Fresh
            })
            .or_else(|| self.new_list(received));
        let Some(list) = list else { return };
        let Some(CacheRecord::Variants(variants)) = CacheRecord::of(&list) else { return };
        let most = self.context.options.variants;
        for surplus in variants.add(&received.names, &received.key, most) {
            if let Some(entry) = kernel.find(surplus.as_bytes()) {
                kernel.remove(&entry);
            }
        }
        if kernel.has_store() {
            // The list has changed, so it is written to the second level again.
            kernel.store(&list);
        }
    }

    fn new_list(&self, received: &ReceivedHead) -> Option<AnyEntry> {
        let record = CacheRecord::Variants(Variants::new());
        let entry = self.context.bookkeeping(
            received.base.clone(),
            Duration::MAX,
            received.received_at,
            record,
        )?;
        self.context.kernel.store(&entry).then_some(entry)
    }
}
