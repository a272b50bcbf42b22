//! The values of `Age` and `Cache-Status` that hits share. Each is built once for each number of seconds.
//!
//! The strings are leaked on purpose, because a clone of a static value does not touch a reference count, on which all
//! threads would contend. There are at most 2 × 3,601 strings (about 200 KiB), and each is built when it is first used.

use std::sync::OnceLock;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use larder_semantics::cache_status::{CacheStatus, Handling};

pub(in crate::response_cache) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// Values for up to an hour are shared; most responses do not need other values.
const SECONDS: usize = 3_601;

/// The name of this cache in `Cache-Status`.
const CACHE_NAME: &str = "larder";

/// Which fields report the outcome of a lookup. The options of the layer set these flags.
#[derive(Clone, Copy, Debug)]
pub(in crate::response_cache) struct Extras {
    pub(in crate::response_cache) cache_status: bool,
    pub(in crate::response_cache) x_cache: bool,
}

/// Returns an `Age` value.
pub(in crate::response_cache) fn age(seconds: u64) -> HeaderValue {
    static AGES: [OnceLock<HeaderValue>; SECONDS] = [const { OnceLock::new() }; SECONDS];
    made_once(&AGES, seconds, |seconds| seconds.to_string())
}

/// Returns the `Cache-Status` value of a fresh hit.
pub(in crate::response_cache) fn hit(ttl_seconds: u64) -> HeaderValue {
    static HITS: [OnceLock<HeaderValue>; SECONDS] = [const { OnceLock::new() }; SECONDS];
    made_once(&HITS, ttl_seconds, |ttl| {
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        CacheStatus { ttl: Some(ttl), ..own_status(Handling::Hit) }.to_string()
    })
}

/// Returns the `Cache-Status` of this cache, without optional parameters.
pub(in crate::response_cache) const fn own_status(handling: Handling) -> CacheStatus<'static> {
    CacheStatus::new(CACHE_NAME, handling)
}

/// Returns a `Cache-Status` value.
pub(in crate::response_cache) fn status_value(status: &CacheStatus<'_>) -> HeaderValue {
    value(&status.to_string())
}

/// Adds the outcome to the fields of a response: `Cache-Status` and `X-Cache`, as configured.
pub(in crate::response_cache) fn add_status(
    extras: Extras,
    headers: &mut HeaderMap,
    status: CacheStatus<'_>,
    plain: &'static str,
) {
    if extras.cache_status {
        headers.append(header::CACHE_STATUS, status_value(&status));
    }
    if extras.x_cache {
        headers.insert(X_CACHE, HeaderValue::from_static(plain));
    }
}

fn made_once(
    made: &'static [OnceLock<HeaderValue>; SECONDS],
    seconds: u64,
    text: impl Fn(u64) -> String,
) -> HeaderValue {
    let place = usize::try_from(seconds).ok().and_then(|seconds| made.get(seconds));
    match place {
        Some(place) => place.get_or_init(|| HeaderValue::from_static(text(seconds).leak())).clone(),
        None => value(&text(seconds)),
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("numbers and tokens are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_and_hit_values_contain_their_seconds() {
        for seconds in [0, 7, 3600, 3601, u64::MAX] {
            assert_eq!(age(seconds), seconds.to_string());
        }
        assert_eq!(hit(42), "larder; hit; ttl=42");
        assert_eq!(hit(9_000), "larder; hit; ttl=9000");
    }
}
