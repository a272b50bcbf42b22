//! Stores the response of a fill: as an entry, in the lists of its address, or as a hit-for-miss record.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use larder_core::{
    Key, Reason, Tag,
    kernel::{AnyEntry, EntryDraft, EntryState, Event, FlightResult},
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
    pub(in crate::response_cache) landing: FlightResult,
    pub(in crate::response_cache) stored: bool,
    pub(in crate::response_cache) why: Option<Reason>,
}

impl StoreOutcome {
    /// The response will be stored once its head has left.
    pub(in crate::response_cache) const TO_BE: Self =
        Self { landing: FlightResult::Abandoned, stored: true, why: None };
    pub(in crate::response_cache) const NOT: Self =
        Self { landing: FlightResult::Abandoned, stored: false, why: None };
}

impl Fill {
    pub(in crate::response_cache) fn keep(
        &self,
        heard: &ReceivedHead,
        whole: &Bytes,
    ) -> StoreOutcome {
        let now = self.plan.kernel.now();
        self.plan.meter.record_fill_time(now.since(self.began));
        match self.entry(heard, whole) {
            Ok(entry) => {
                let is_stored = heard.judged.is_stored;
                let stored = is_stored && self.plan.kernel.keep(&entry);
                if !is_stored {
                    self.record(Event::Refused(Reason::Stale));
                } else if stored {
                    self.note_rule(heard);
                    self.list_variant(heard);
                    self.record(Event::Stored);
                } else {
                    self.record(Event::Refused(Reason::Overtaken));
                }
                let landing = if heard.part.is_none() && heard.judged.is_of_use_to_others() {
                    FlightResult::Filled(entry)
                } else {
                    FlightResult::NotShared(Reason::Unconfirmed)
                };
                let why = (!is_stored).then_some(Reason::Stale);
                StoreOutcome { landing, stored, why }
            }
            Err(why) => {
                self.remember_refusal(why);
                self.record(Event::Refused(why));
                StoreOutcome {
                    landing: FlightResult::NotShared(why),
                    stored: false,
                    why: Some(why),
                }
            }
        }
    }

    /// Whether an error would replace a good stored response: a fresh one, or, if it is a server error, one
    /// that may still be served stale. Only the input of one client can have caused such a fill.
    fn would_hide_a_good_one(&self, heard: &ReceivedHead) -> bool {
        let status = heard.head.status;
        let kernel = &self.plan.kernel;
        let is_good = |entry: &AnyEntry| {
            let of_use = match kernel.entry_state(entry, kernel.now()) {
                EntryState::Fresh => true,
                EntryState::WhileRevalidating | EntryState::OnError => status.is_server_error(),
                _ => false,
            };
            of_use && stored::of(entry).is_some_and(|stored| stored.status().is_success())
        };
        let hides_one = || kernel.find(heard.key.as_bytes()).as_ref().is_some_and(is_good);
        // An error without `Vary` would take the key of the list of all variants.
        let hides_variants = || {
            let list = kernel.find(heard.base.as_bytes()).filter(|_| heard.names.is_empty());
            let Some(CacheRecord::Variants(variants)) =
                list.as_ref().and_then(|list| CacheRecord::of(list))
            else {
                return false;
            };
            let mut kept =
                variants.kept().into_iter().filter_map(|key| kernel.find(key.as_bytes()));
            kept.any(|entry| is_good(&entry))
        };
        self.plan.options.profile == Profile::Careful
            && (status.is_client_error() || status.is_server_error())
            && (hides_one() || hides_variants())
    }

    fn entry(&self, heard: &ReceivedHead, whole: &Bytes) -> Result<AnyEntry, Reason> {
        if self.scope.gathered().private && !self.asker.partitioned {
            return Err(Reason::PrivatePart);
        }
        // Choices that the handler made while it produced the body count too.
        let chosen = self.choices.chosen();
        if let Some(why) = chosen.no_store {
            return Err(why);
        }
        if self.is_written() {
            return Err(Reason::SessionWritten);
        }
        if self.would_hide_a_good_one(heard) {
            return Err(Reason::Error);
        }
        let mut headers = heard.head.headers.clone();
        downstream::remove_unkept(&self.plan.options, &mut headers);
        self.plan.remove_own_fields(&mut headers);
        let (key, status, part, whole) = self.pieced_together(heard, &mut headers, whole)?;
        let mut stored = StoredResponse::new(
            status,
            headers,
            whole,
            self.traits(heard),
            self.plan.extras,
            &self.plan.alike,
        );
        stored.part = part.map(Box::new);
        let mut tags = self.tags.clone();
        tags.extend(chosen.tags);
        let groups = groups::names(&heard.head.headers, &groups::CACHE_GROUPS);
        tags.extend(groups.iter().map(|group| Tag::of_group(&self.origin, group)));
        let draft = EntryDraft {
            key,
            tags,
            lifetime: heard.judged.lifetime,
            age: heard.judged.age,
            filled: heard.received,
            cost: heard.received.since(self.began),
            tiers: self.plan.options.tiers,
        };
        self.plan.kernel.entry(draft, &self.scope, CacheRecord::Response(stored))
    }

    /// Returns the key, status, range and bytes to store. A partial response is combined with a stored one, if
    /// possible.
    fn pieced_together(
        &self,
        heard: &ReceivedHead,
        headers: &mut HeaderMap,
        whole: &Bytes,
    ) -> Result<(Key, StatusCode, Option<Part>, Bytes), Reason> {
        let Some(part) = heard.part else {
            return Ok((heard.key.clone(), heard.head.status, None, whole.clone()));
        };
        if whole.len() as u64 != part.range.len() {
            return Err(Reason::Length);
        }
        let (part, bytes) = self.joined(headers, part, whole);
        headers.remove(header::CONTENT_RANGE);
        if part.range.len() == part.total {
            return Ok((heard.key.clone(), StatusCode::OK, None, bytes));
        }
        let key = partial::part_key(&heard.key).map_err(|_| Reason::KeyTooLong)?;
        Ok((key, StatusCode::PARTIAL_CONTENT, Some(part), bytes))
    }

    fn traits(&self, heard: &ReceivedHead) -> Traits {
        let private = self.is_private();
        let options = &self.plan.options;
        let by_choice = heard.chosen.browser.is_some() || heard.chosen.cdn.is_some();
        Traits {
            open: heard.judged.open,
            told_by_us: heard.judged.by_us || by_choice || private || options.strip_targeted_fields,
            validated: heard.judged.validated,
            may_go_stale: heard.judged.may_go_stale,
            opted_in: heard.judged.opted_in,
        }
    }

    /// Notes the `No-Vary-Search` rule of a response.
    fn note_rule(&self, heard: &ReceivedHead) {
        let Some(search) = &self.search else { return };
        let Some((variance, _)) = search.told(&heard.head.headers) else { return };
        let Ok(key) = search.rules_key() else { return };
        let kernel = &self.plan.kernel;
        // An entry under the full query is older, and would hide the shared one.
        if let Some(older) = kernel.find(self.key.as_bytes()) {
            kernel.remove(&older);
        }
        let known = kernel.find(key.as_bytes());
        if let Some(CacheRecord::SearchRules(rules)) =
            known.as_ref().and_then(|known| CacheRecord::of(known))
        {
            return rules.note(variance);
        }
        let rules = SearchRules::default();
        rules.note(variance);
        let entry = self.plan.bookkeeping(
            key,
            Duration::MAX,
            heard.received,
            CacheRecord::SearchRules(rules),
        );
        if let Some(entry) = entry {
            kernel.keep(&entry);
        }
    }

    /// Adds a variant to the list of its address.
    fn list_variant(&self, heard: &ReceivedHead) {
        if heard.key == heard.base {
            return;
        }
        let kernel = &self.plan.kernel;
        let list = kernel
            .find(heard.base.as_bytes())
            .filter(|entry| {
                // A list that a reset of the log has invalidated is not written to the second level any more.
                matches!(CacheRecord::of(entry), Some(CacheRecord::Variants(_)))
                    && kernel.entry_state(entry, kernel.now()) == EntryState::Fresh
            })
            .or_else(|| self.new_list(heard));
        let Some(list) = list else { return };
        let Some(CacheRecord::Variants(variants)) = CacheRecord::of(&list) else { return };
        let most = self.plan.options.variants;
        for surplus in variants.add(&heard.names, &heard.key, most) {
            if let Some(entry) = kernel.find(surplus.as_bytes()) {
                kernel.remove(&entry);
            }
        }
        if kernel.has_store() {
            // The list changed: write it to the second level again.
            kernel.keep(&list);
        }
    }

    fn new_list(&self, heard: &ReceivedHead) -> Option<AnyEntry> {
        let kept = CacheRecord::Variants(Variants::new());
        let entry =
            self.plan.bookkeeping(heard.base.clone(), Duration::MAX, heard.received, kept)?;
        self.plan.kernel.keep(&entry).then_some(entry)
    }
}
