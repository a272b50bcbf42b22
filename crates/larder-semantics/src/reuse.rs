//! Whether what a client demands of a stored response is met by it.
//!
//! # Source
//!
//! [RFC 9111, section 5.2.1](https://www.rfc-editor.org/rfc/rfc9111#section-5.2.1)

use std::time::Duration;

use http::HeaderMap;

use crate::cache_control::{CacheControl, Seconds};

/// What a request demands of a stored response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// A new answer, whatever is stored.
    pub no_cache: bool,
    /// The answer may not be stored.
    pub no_store: bool,
    /// Only a stored answer, or none.
    pub only_if_cached: bool,
    /// The answer may not be older.
    pub max_age: Option<Duration>,
    /// The answer has to stay fresh for this long.
    pub min_fresh: Option<Duration>,
    /// A stale answer is welcome, if it has been stale for no longer.
    pub max_stale: Option<Duration>,
}

/// A stored response, in the two numbers that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged {
    /// How old it is.
    pub age: Duration,
    /// For how much longer it is fresh, zero when it is stale.
    pub fresh_for: Duration,
}

impl Demands {
    /// Reads the demands of a request. An invalid number is no demand, except that `max-age` is read as 0.
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
        }
    }

    /// Whether a fresh response meets them.
    ///
    /// An answer of the very second in which it was asked for meets `max-age=0` no more than one of a
    /// minute ago: the client wants it validated.
    pub fn are_met_by(&self, stored: Aged) -> bool {
        !self.no_cache
            && self.max_age.is_none_or(|most| stored.age < most)
            && self.min_fresh.is_none_or(|least| stored.fresh_for >= least)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn demands_are_met_or_not() {
        // Cache-Control of the request, age, fresh for, met?
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
            let met = Demands::of(&headers).are_met_by(Aged { age, fresh_for });
            assert_eq!(met, expected, "{control}");
        }
    }
}
