//! Whether a stored response meets the cache directives of a request.
//!
//! # Source
//!
//! [RFC 9111, section 5.2.1](https://www.rfc-editor.org/rfc/rfc9111#section-5.2.1)

use std::time::Duration;

use http::HeaderMap;

use crate::cache_control::{CacheControl, Seconds};

/// The cache directives of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// A stored response has to be revalidated before it is served.
    pub no_cache: bool,
    /// The response may not be stored.
    pub no_store: bool,
    /// Only a stored response may be served.
    pub only_if_cached: bool,
    /// The response has to be younger than this.
    pub max_age: Option<Duration>,
    /// The response has to stay fresh for this long.
    pub min_fresh: Option<Duration>,
    /// A stale response is acceptable, if it has been stale for no longer than this.
    pub max_stale: Option<Duration>,
    /// A stale response is acceptable in place of an error, if it has been stale for no longer than this.
    pub stale_if_error: Option<Duration>,
}

/// The age and remaining freshness of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAge {
    /// Its age.
    pub age: Duration,
    /// The time until it becomes stale; zero when it is stale.
    pub fresh_for: Duration,
    /// The time since it became stale; zero while it is fresh.
    pub stale_for: Duration,
}

impl RequestDirectives {
    /// Reads the directives of a request. An invalid number is ignored, except in `max-age`, where it is read as 0.
    pub fn of(headers: &HeaderMap) -> Self {
        let control = CacheControl::of_request(headers);
        let seconds = |found: Option<Seconds>| match found {
            Some(Seconds::Valid(seconds)) => Some(Duration::from_secs(seconds)),
            _ => None,
        };
        Self {
            no_cache: control.no_cache,
            no_store: control.no_store,
            only_if_cached: control.only_if_cached,
            max_age: control.max_age.map(|seconds| Duration::from_secs(seconds.or_stale())),
            min_fresh: seconds(control.min_fresh),
            max_stale: seconds(control.max_stale),
            stale_if_error: seconds(control.stale_if_error),
        }
    }

    /// Returns whether a fresh stored response meets the directives.
    ///
    /// Even a response of age zero does not meet `max-age=0`, because the client wants it revalidated.
    pub fn satisfied_by(&self, stored: StoredAge) -> bool {
        !self.no_cache
            && self.max_age.is_none_or(|most| stored.age < most)
            && self.min_fresh.is_none_or(|least| stored.fresh_for >= least)
    }

    /// Returns whether a stale response may be served while it is refreshed, if the response itself allows that.
    pub fn allow_refreshing(&self) -> bool {
        !self.no_cache && self.max_age.is_none() && self.min_fresh.is_none()
    }

    /// Returns whether the request accepts a stale response. The caller has to check separately whether the response
    /// allows it.
    pub fn accept_stale(&self, stored: StoredAge) -> bool {
        !self.no_cache
            && self.min_fresh.is_none()
            && self.max_age.is_none_or(|most| stored.age < most)
            && self.max_stale.is_some_and(|most| stored.stale_for <= most)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn request_directives_limit_age_and_freshness() {
        // The columns are the Cache-Control of the request, the age, the remaining freshness, and whether the
        // directives are met.
        let rows = [
            ("", 10, 50, true),
            ("no-cache", 0, 60, false),
            ("max-age=20", 10, 50, true),
            ("max-age=10", 10, 50, false),
            ("max-age=0", 0, 60, false),
            ("max-age=x", 0, 60, false),
            ("min-fresh=50", 10, 50, true),
            ("min-fresh=51", 10, 50, false),
            ("min-fresh=x", 10, 50, true),
            ("something-new=1", 10, 50, true),
        ];
        for (control, age, fresh_for, expected) in rows {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
            let [age, fresh_for] = [age, fresh_for].map(Duration::from_secs);
            let stored = StoredAge { age, fresh_for, stale_for: Duration::ZERO };
            let met = RequestDirectives::of(&headers).satisfied_by(stored);
            assert_eq!(met, expected, "{control}");
        }
    }

    #[test]
    fn max_stale_accepts_a_stale_response() {
        // The columns are the Cache-Control of the request, the age, the staleness, and whether the response is
        // accepted.
        let rows = [
            ("", 70, 10, false),
            ("max-stale", 70, 10, true),
            ("max-stale=10", 70, 10, true),
            ("max-stale=9", 70, 10, false),
            ("max-stale=x", 70, 10, false),
            ("max-stale, no-cache", 70, 10, false),
            ("max-stale, max-age=60", 70, 10, false),
            ("max-stale, min-fresh=1", 70, 10, false),
        ];
        for (control, age, stale_for, expected) in rows {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
            let [age, stale_for] = [age, stale_for].map(Duration::from_secs);
            let stored = StoredAge { age, fresh_for: Duration::ZERO, stale_for };
            let found = RequestDirectives::of(&headers).accept_stale(stored);
            assert_eq!(found, expected, "{control} (RFC 9111 5.2.1.2)");
        }
    }

    #[test]
    fn stale_responses_are_served_to_requests_that_accept_them() {
        // The columns are the Cache-Control of the request, the age, the staleness, whether the response is accepted as
        // it is, and whether it is accepted while it is refreshed.
        let rows = [
            ("", 60, 10, false, true),
            ("max-stale", 60, 10, true, true),
            ("max-stale=10", 60, 10, true, true),
            ("max-stale=9", 60, 10, false, true),
            ("max-stale, no-cache", 60, 10, false, false),
            ("max-stale, min-fresh=0", 60, 10, false, false),
            ("max-stale, max-age=61", 60, 10, true, false),
            ("max-stale, max-age=60", 60, 10, false, false),
            ("max-stale, max-age=59", 60, 10, false, false),
        ];
        for (control, age, stale_for, accepted, refreshed) in rows {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
            let [age, stale_for] = [age, stale_for].map(Duration::from_secs);
            let stored = StoredAge { age, fresh_for: Duration::ZERO, stale_for };
            let directives = RequestDirectives::of(&headers);
            assert_eq!(directives.accept_stale(stored), accepted, "{control}");
            assert_eq!(directives.allow_refreshing(), refreshed, "{control}");
        }
    }
}
