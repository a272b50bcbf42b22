//! The decision on a response: whether this cache stores it, and for how long.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use larder_core::{Lifetime, Reason, kernel::LifetimeSource};
use larder_semantics::{
    cache_control::CacheControl,
    freshness::{self, Freshness},
    list,
    storing::{self, NotStorable, Profile, RequestIdentity},
    targeted,
    validation::Validators,
};

use super::lifetime::{self, FoundLifetime};
use crate::response_cache::{options::Options, overrides::OverrideValues};

/// The decision on storing a response, made from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::response_cache) struct StorageDecision {
    pub(in crate::response_cache) lifetime: Lifetime,
    /// The age of the response on receipt.
    pub(in crate::response_cache) age: Duration,
    /// The age of the response at the time of its request.
    pub(in crate::response_cache) age_at_request: Duration,
    /// Whether the response is stored. It is not stored if it took longer than its lifetime to arrive.
    pub(in crate::response_cache) is_stored: bool,
    /// Where its lifetime comes from.
    pub(in crate::response_cache) source: LifetimeSource,
    /// Whether its lifetime comes from larder alone.
    pub(in crate::response_cache) by_larder: bool,
    /// Whether authenticated requests may get it too.
    pub(in crate::response_cache) open: bool,
    /// Whether clients that accept stale responses (`max-stale`) may get it stale.
    pub(in crate::response_cache) may_go_stale: bool,
    /// Whether it has a validator, so that its origin can confirm it.
    pub(in crate::response_cache) validated: bool,
    /// Whether the handler opted the response in, by a lifetime of its own, `public` or `no-cache`.
    pub(in crate::response_cache) opted_in: bool,
}

impl StorageDecision {
    /// Whether waiters may get the response. They may not get it if it must be revalidated for each request. They may
    /// get a response that took longer than its lifetime to arrive, because it was fresh at the time of the request.
    ///
    /// Source: [RFC 9111, section 4](https://www.rfc-editor.org/rfc/rfc9111#section-4), on collapsed requests
    pub(in crate::response_cache) fn is_of_use_to_others(&self) -> bool {
        let revalidating = self.lifetime.window_while_revalidating();
        self.lifetime.fresh().saturating_add(revalidating) > self.age_at_request
    }
}

/// The times of a request and of its response.
#[derive(Clone, Copy, Debug)]
pub(in crate::response_cache) struct ResponseTimes {
    pub(in crate::response_cache) lookup: SystemTime,
    pub(in crate::response_cache) received_at: SystemTime,
}

/// Decides whether a response is stored, and for how long.
pub(in crate::response_cache) fn decide(
    options: &Options,
    override_values: &OverrideValues,
    identity: RequestIdentity,
    status: StatusCode,
    headers: &HeaderMap,
    times: ResponseTimes,
) -> Result<StorageDecision, Reason> {
    if let Some(why) = override_values.no_store {
        return Err(why);
    }
    if is_unkeepable_error(options, status) {
        return Err(Reason::Error);
    }
    let control = control(options, override_values, headers);
    storing::check(identity, status, headers, &control, options.rules()).map_err(not_storable)?;
    let validated = !Validators::of(headers).is_empty();
    let explicit = freshness::lifetime(headers, &control, times.received_at, options.role);
    let opted_in = explicit != Freshness::Unknown
        || override_values.lifetime.is_some()
        || control.public
        || control.no_cache;
    let FoundLifetime { lifetime, source, by_larder } = if control.no_cache {
        if !validated {
            return Err(Reason::NoCache);
        }
        let lifetime = Lifetime::fresh_for(Duration::ZERO);
        FoundLifetime { lifetime, source: LifetimeSource::NoCache, by_larder: false }
    } else {
        let guessed = || options.guesses().lifetime(status, headers, &control, times.received_at);
        lifetime::lifetime(options, override_values, status, (explicit, &control), guessed)?
    };
    let mut lifetime = lifetime::with_windows(lifetime, options, override_values, &control);
    if validated {
        lifetime = lifetime.keep_for_revalidation(options.revalidatable);
    }
    let age_at = |received_at| match by_larder {
        true => Duration::ZERO,
        false => freshness::age_on_receipt(headers, times.lookup, received_at),
    };
    let (age, age_at_request) = (age_at(times.received_at), age_at(times.lookup));
    let is_stored = lifetime.total() > age;
    if !is_stored && lifetime.fresh() <= age_at_request {
        return Err(Reason::Stale);
    }
    Ok(StorageDecision {
        lifetime,
        age,
        age_at_request,
        is_stored,
        source,
        by_larder,
        open: storing::may_answer_identified(&control, options.profile),
        may_go_stale: !control.forbids_stale(options.role),
        validated,
        opted_in,
    })
}

/// Whether this is an error that no option allows larder to store. Under `Profile::Careful`, larder ignores the
/// lifetime that a handler gives to an error, because many handlers give all their responses the same lifetime, and
/// other clients must not get an error that one client provoked.
fn is_unkeepable_error(options: &Options, status: StatusCode) -> bool {
    options.profile == Profile::Careful
        && (status.is_client_error() || status.is_server_error())
        && !is_gone(status)
        && !options.negative.iter().any(|(of, _)| *of == status)
}

/// Whether a stale response may replace a response with this status.
///
/// Source: [RFC 5861, section 4](https://www.rfc-editor.org/rfc/rfc5861#section-4)
pub(in crate::response_cache) fn is_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Whether a status says that the resource does not exist, and not that this one request is wrong.
pub(in crate::response_cache) fn is_gone(status: StatusCode) -> bool {
    [StatusCode::NOT_FOUND, StatusCode::GONE].contains(&status)
}

/// Returns the directives of a response for this cache, with the choices of the handler and the options
/// applied.
pub(in crate::response_cache) fn control(
    options: &Options,
    override_values: &OverrideValues,
    headers: &HeaderMap,
) -> CacheControl {
    let mut control = targeted::control_of(headers, &options.targets);
    control.public |= override_values.public;
    // Under `Profile::Careful`, `no-cache` with field names applies to the whole response.
    control.no_cache |= options.profile == Profile::Careful && !control.no_cache_fields.is_empty();
    // RFC 9111 does not define `Pragma` in responses; browsers and authors read it as `no-cache`.
    control.no_cache |= options.profile == Profile::Careful
        && !control.is_present
        && list::members(headers, &header::PRAGMA).any(|it| it.eq_ignore_ascii_case("no-cache"));
    // A lifetime that was set explicitly for this response takes precedence over `no-cache`.
    control.no_cache &= override_values.lifetime.is_none() && options.override_lifetime.is_none();
    control
}

fn not_storable(why: NotStorable) -> Reason {
    match why {
        NotStorable::NoStore => Reason::NoStore,
        NotStorable::Private => Reason::Private,
        NotStorable::SetCookie => Reason::SetCookie,
        NotStorable::VaryStar => Reason::VaryStar,
        NotStorable::Authorization => Reason::Authorization,
        NotStorable::Identified => Reason::Identified,
        NotStorable::NoLifetime => Reason::NoLifetime,
        NotStorable::Stale => Reason::Stale,
        NotStorable::Streaming => Reason::Endless,
        NotStorable::Status | _ => Reason::Status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::response_cache::answer::downstream::tests::headers;

    const SECOND: Duration = Duration::from_secs(1);

    fn options() -> Options {
        Options {
            lifetime: Some(Lifetime::fresh_for(60 * SECOND)),
            while_revalidating: Some(5 * SECOND),
            negative: vec![(StatusCode::NOT_FOUND, Lifetime::fresh_for(2 * SECOND))],
            ..Options::default()
        }
    }

    fn decision(
        override_values: &OverrideValues,
        status: u16,
        control: &'static str,
    ) -> Result<StorageDecision, Reason> {
        let now = SystemTime::now();
        let times = ResponseTimes { lookup: now, received_at: now };
        let status = StatusCode::from_u16(status).unwrap();
        decide(
            &options(),
            override_values,
            RequestIdentity::default(),
            status,
            &headers(control),
            times,
        )
    }

    #[test]
    fn the_lifetime_comes_from_the_first_source_that_has_one() {
        let ttl = Some(Lifetime::fresh_for(7 * SECOND));
        let override_values = OverrideValues { lifetime: ttl, ..OverrideValues::default() };
        let none = OverrideValues::default();
        let rows = [
            (&none, 200, "", Ok((60, true))),
            (&none, 200, "max-age=9", Ok((9, false))),
            (&none, 404, "", Ok((2, true))),
            (&none, 404, "max-age=9", Ok((9, false))),
            (&none, 500, "", Err("error")),
            (&none, 400, "max-age=9", Err("error")),
            (&none, 410, "max-age=9", Ok((9, false))),
            (&none, 200, "max-age=0", Err("stale")),
            (&none, 200, "max-age=0, stale-while-revalidate=9", Ok((0, false))),
            (&none, 200, "max-age=0, must-revalidate", Err("stale")),
            (&none, 200, "no-cache", Err("no-cache")),
            (&none, 200, "no-store", Err("no-store")),
            (&override_values, 200, "", Ok((7, true))),
            (&override_values, 200, "max-age=9", Ok((7, false))),
            (&override_values, 500, "max-age=9", Err("error")),
            (&override_values, 410, "", Err("no-lifetime")),
            (&override_values, 404, "", Ok((2, true))),
        ];
        for (override_values, status, control, expected) in rows {
            let found = decision(override_values, status, control);
            let found =
                found.map(|decision| (decision.lifetime.fresh().as_secs(), decision.by_larder));
            assert_eq!(found.map_err(Reason::as_str), expected, "{status} {control}");
        }
    }

    #[test]
    fn a_response_that_forbids_serving_stale_has_no_stale_window() {
        let window = |control| {
            let decision = decision(&OverrideValues::default(), 200, control).unwrap();
            decision.lifetime.window_while_revalidating().as_secs()
        };
        assert_eq!(window("max-age=9"), 5);
        assert_eq!(window("max-age=9, stale-while-revalidate=3"), 3);
        assert_eq!(window("max-age=9, must-revalidate"), 0);
        assert_eq!(window("s-maxage=9"), 0);
    }
}
