//! Invariants of `larder-semantics` for any request and any response, for fuzzing and property tests.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use larder_semantics::{
    cache_control::CacheControl,
    date, fields,
    freshness::{self, Freshness, Heuristics},
    groups,
    ranges::{self, Selection},
    reuse::RequestDirectives,
    storing::{self, Profile, RequestIdentity, Role},
    targeted,
    validation::{self, Condition, EntityTag, Validators},
    vary,
};

/// A request and a response with arbitrary fields.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The fields of the request.
    pub request: HeaderMap,
    /// The status of the response.
    pub status: StatusCode,
    /// The fields of the response.
    pub response: HeaderMap,
}

impl Exchange {
    /// Reads lines of `name: value`. The lines before the first empty line belong to the request. Lines that are not
    /// fields are skipped.
    pub fn read(status: u16, bytes: &[u8]) -> Self {
        let mut exchange = Self {
            request: HeaderMap::new(),
            status: StatusCode::from_u16(status % 900 + 100).unwrap_or(StatusCode::OK),
            response: HeaderMap::new(),
        };
        let mut of_request = true;
        for line in bytes.split(|byte| *byte == b'\n') {
            of_request &= !line.is_empty();
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let name = HeaderName::from_bytes(&line[..colon]);
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
            if let (Ok(name), Ok(value)) = (name, value) {
                let side = if of_request { &mut exchange.request } else { &mut exchange.response };
                side.append(name, value);
            }
        }
        exchange
    }
}

/// Runs every parser on these bytes. No parser may panic.
pub fn parsers_do_not_panic(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    date::parse(&text);
    EntityTag::parse(&text);
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut headers = HeaderMap::new();
    for name in [
        header::CACHE_CONTROL,
        header::PRAGMA,
        header::VARY,
        header::ACCEPT_LANGUAGE,
        header::RANGE,
        header::IF_RANGE,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::CONTENT_RANGE,
        header::EXPIRES,
        header::AGE,
        header::CONNECTION,
        groups::CACHE_GROUPS,
        targeted::CDN_CACHE_CONTROL,
    ] {
        headers.append(name.clone(), value.clone());
        headers.append(name, value.clone());
    }
    let control = targeted::control_of(&headers, &[targeted::CDN_CACHE_CONTROL]);
    freshness::lifetime(&headers, &control, SystemTime::UNIX_EPOCH, Role::Shared);
    freshness::age_field(&headers);
    RequestDirectives::of(&headers);
    vary::names(&headers);
    vary::selecting_value(&headers, &header::ACCEPT_LANGUAGE);
    groups::names(&headers, &groups::CACHE_GROUPS);
    ranges::content_range(&headers);
    ranges::if_range_holds(&headers, &headers);
    validation::evaluate(&Method::GET, &headers, &Validators::of(&headers));
    fields::remove_not_stored(&mut headers);
}

/// Checks the decisions on an exchange.
///
/// # Panics
///
/// If an invariant does not hold. The message contains the fields of the exchange.
pub fn decisions_hold(exchange: &Exchange) {
    storing_holds(exchange);
    freshness_holds(exchange);
    reuse_holds(exchange);
}

fn storing_holds(Exchange { request, status, response }: &Exchange) {
    let control = CacheControl::of(response);
    let asker = RequestIdentity {
        authorized: request.contains_key(header::AUTHORIZATION),
        identified: request.contains_key(header::AUTHORIZATION)
            || request.contains_key(header::COOKIE),
        partitioned: false,
    };
    let storable = |control: &CacheControl, profile| {
        storing::check(asker, *status, response, control, (profile, Role::Shared)).is_ok()
    };
    let [careful, conformance] =
        [Profile::Careful, Profile::Conformance].map(|profile| storable(&control, profile));
    assert!(
        !careful || conformance,
        "Profile::Careful stores, but RFC 9111 forbids it: {response:?}"
    );
    if control.private || (control.no_store && !control.must_understand) {
        assert!(!conformance, "stored despite private or no-store: {response:?}");
    }
    if response.contains_key(header::SET_COOKIE) {
        assert!(!careful, "Profile::Careful stores a Set-Cookie: {response:?}");
    }
    if asker.authorized && !storing::may_answer_authorized(&control) {
        assert!(!conformance, "stored despite Authorization in the request: {response:?}");
    }
    let mut stricter = control;
    (stricter.no_store, stricter.must_understand) = (true, false);
    assert!(
        !storable(&stricter, Profile::Conformance),
        "stored despite an added no-store: {response:?}"
    );
}

fn freshness_holds(Exchange { status, response, .. }: &Exchange) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let told = |headers: &HeaderMap| {
        let control = CacheControl::of(headers);
        freshness::lifetime(headers, &control, now, Role::Shared)
    };
    let fresh = told(response);
    for directive in ["max-age=0", "s-maxage=0", "max-age=nonsense"] {
        let mut stricter = response.clone();
        stricter.append(header::CACHE_CONTROL, HeaderValue::from_static(directive));
        if let (Freshness::Explicit(before), Freshness::Explicit(after)) = (fresh, told(&stricter))
        {
            assert!(after <= before, "{directive} made the lifetime longer: {response:?}");
        }
    }
    let control = CacheControl::of(response);
    if let Some(guess) = Heuristics::TENTH.lifetime(*status, response, &control, now) {
        assert!(
            guess <= Duration::from_secs(86_400),
            "a heuristic lifetime beyond one day: {response:?}"
        );
    }
    let age = freshness::age_on_receipt(response, now, now);
    if let Some(told) = freshness::age_field(response) {
        assert!(age >= told, "the computed age is below the Age field: {response:?}");
    }
}

fn reuse_holds(Exchange { request, response, .. }: &Exchange) {
    for length in [0, 1, 10, 1 << 40] {
        if let Selection::Parts(parts) = ranges::select(request, length) {
            assert!(parts.len() <= ranges::MOST_RANGES);
            assert!(parts.iter().all(|part| part.first <= part.last && part.last < length));
        }
    }
    let current = Validators::of(response);
    if !validation::CACHE_VALIDATION.iter().any(|name| request.contains_key(name)) {
        let condition = validation::evaluate_not_modified(&Method::GET, request, &current);
        assert_eq!(
            condition,
            Condition::Proceed,
            "a precondition failed, but the request has none: {request:?}"
        );
    }
    let freshened = validation::freshened(response, request);
    let lengths = |headers: &HeaderMap| {
        headers.get_all(header::CONTENT_LENGTH).iter().cloned().collect::<Vec<_>>()
    };
    assert_eq!(lengths(&freshened), lengths(response), "freshening changed Content-Length");
    for name in vary::names(response) {
        let value = vary::selecting_value(request, &name);
        assert_eq!(value.is_some(), request.contains_key(&name), "absent is not empty");
    }
}
