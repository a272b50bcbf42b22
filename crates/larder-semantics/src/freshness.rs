//! The lifetime and the age of a response.
//!
//! larder-http decides between these lifetimes and those of options and handlers in `response_cache/fill/lifetime.rs`.
//!
//! # Source
//!
//! [RFC 9111, section 4.2](https://www.rfc-editor.org/rfc/rfc9111#section-4.2)

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use crate::{
    cache_control::{CacheControl, Seconds},
    storing::Role,
};

/// The source of a lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freshness {
    /// The response specifies it.
    Explicit(Duration),
    /// The response does not specify a lifetime.
    Unknown,
}

/// Returns the lifetime of a response in a cache of this role, counted from the time when it was generated.
///
/// `s-maxage`, which a private cache ignores, takes precedence over `max-age`, and `max-age` over `Expires`, which does
/// not apply if there is a targeted field. A response with an invalid value is stale.
///
/// # Source
///
/// [RFC 9111, section 4.2.1](https://www.rfc-editor.org/rfc/rfc9111#section-4.2.1)
pub fn lifetime(
    headers: &HeaderMap,
    control: &CacheControl,
    received: SystemTime,
    role: Role,
) -> Freshness {
    let explicit = |seconds: Seconds| Freshness::Explicit(Duration::from_secs(seconds.or_stale()));
    if control.is_malformed {
        // A malformed member may have been the limit.
        return Freshness::Explicit(Duration::ZERO);
    }
    let s_maxage = control.s_maxage.filter(|_| role == Role::Shared);
    if let Some(seconds) = s_maxage.or(control.max_age) {
        return explicit(seconds);
    }
    if control.is_targeted {
        return Freshness::Unknown;
    }
    let mut expires = headers.get_all(header::EXPIRES).iter();
    match (expires.next(), expires.next()) {
        (None, _) => Freshness::Unknown,
        (Some(expires), None) => {
            let generated = date(headers).unwrap_or(received);
            let expires = expires.to_str().ok().and_then(crate::date::parse);
            let left = expires.and_then(|expires| expires.duration_since(generated).ok());
            Freshness::Explicit(left.unwrap_or_default())
        }
        // If a field that allows one value has two lines, neither of them can be trusted.
        (Some(_), Some(_)) => Freshness::Explicit(Duration::ZERO),
    }
}

/// The way in which a cache guesses the lifetime of a response that does not specify one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heuristics {
    /// The cache does not guess, and such a response is not stored.
    Off,
    /// A percentage of the time from the last change of the response to its `Date`, at most `longest`.
    SinceLastModified {
        /// The percentage of that time.
        percent: u8,
        /// The maximum lifetime that is guessed.
        longest: Duration,
    },
}

impl Heuristics {
    /// A tenth of the time from `Last-Modified` to `Date`, at most one day.
    ///
    /// # Source
    ///
    /// [RFC 9111, section 4.2.2](https://www.rfc-editor.org/rfc/rfc9111#section-4.2.2)
    pub const TENTH: Self =
        Self::SinceLastModified { percent: 10, longest: Duration::from_secs(86_400) };

    /// Returns the lifetime of a response without an explicit lifetime, if its status is heuristically cacheable or if
    /// it has `public`.
    ///
    /// # Source
    ///
    /// [RFC 9111, section 4.2.2](https://www.rfc-editor.org/rfc/rfc9111#section-4.2.2)
    pub fn lifetime(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        control: &CacheControl,
        received: SystemTime,
    ) -> Option<Duration> {
        let Self::SinceLastModified { percent, longest } = self else { return None };
        if !is_heuristically_cacheable(status) && !control.public {
            return None;
        }
        let changed = headers.get(header::LAST_MODIFIED)?.to_str().ok();
        let changed = changed.and_then(crate::date::parse)?;
        let since = date(headers).unwrap_or(received).duration_since(changed).ok()?;
        Some((since / 100).saturating_mul(u32::from(percent)).min(longest))
    }
}

/// Returns whether a response of this status may be stored with a guessed lifetime.
///
/// # Source
///
/// [RFC 9110, section 15.1](https://www.rfc-editor.org/rfc/rfc9110#section-15.1)
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Returns the age of a response at the time when it was received.
///
/// # Source
///
/// [RFC 9111, section 4.2.3](https://www.rfc-editor.org/rfc/rfc9111#section-4.2.3)
pub fn age_on_receipt(headers: &HeaderMap, asked: SystemTime, received: SystemTime) -> Duration {
    // A date has whole seconds, so the fraction of a second that had passed when it was written is unknown.
    let since =
        |date: SystemTime| Duration::from_secs(seconds(received).saturating_sub(seconds(date)));
    let apparent = date(headers).map(since).unwrap_or_default();
    let delay = received.duration_since(asked).unwrap_or_default();
    let corrected = age_field(headers).unwrap_or_default() + delay;
    apparent.max(corrected)
}

/// Returns the first member of `Age`, if it is a number.
///
/// # Source
///
/// [RFC 9111, section 5.1](https://www.rfc-editor.org/rfc/rfc9111#section-5.1)
pub fn age_field(headers: &HeaderMap) -> Option<Duration> {
    let age = crate::list::members(headers, &header::AGE).next()?;
    let digits = !age.is_empty() && age.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_secs(age.parse().unwrap_or(MOST_SECONDS).min(MOST_SECONDS)))
}

/// Returns the `Date` of a message, if it is present and valid.
pub fn date(headers: &HeaderMap) -> Option<SystemTime> {
    headers.get(header::DATE)?.to_str().ok().and_then(crate::date::parse)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

const MOST_SECONDS: u64 = 1 << 31;

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::date::format as format_date;

    const SECOND: Duration = Duration::from_secs(1);

    fn headers(lines: &[(&'static str, String)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_static(name);
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn explicit(seconds: u64) -> Freshness {
        Freshness::Explicit(Duration::from_secs(seconds))
    }

    #[test]
    fn lifetimes_follow_the_precedence_of_directives() {
        let date = |seconds| format_date(at(seconds));
        // The columns are the fields, the lifetime and the section.
        type Lines = Vec<(&'static str, String)>;
        let rows: Vec<(Lines, Freshness, &str)> = vec![
            (vec![("cache-control", "s-maxage=5, max-age=9".into())], explicit(5), "5.2.2.10"),
            (
                vec![("cache-control", "max-age=9".into()), ("expires", date(99))],
                explicit(9),
                "5.3: max-age before Expires",
            ),
            (vec![("date", date(10)), ("expires", date(40))], explicit(30), "4.2.1"),
            (vec![("expires", date(40))], explicit(40), "4.2.1: without Date, receipt"),
            (vec![("date", date(10)), ("expires", date(10))], explicit(0), "5.3: equal is stale"),
            (vec![("expires", "0".into())], explicit(0), "5.3: invalid is the past"),
            (vec![("expires", date(9)), ("expires", date(99))], explicit(0), "4.2.1: two lines"),
            (vec![], Freshness::Unknown, "4.2.2"),
            (vec![("cache-control", "max-age=9, x y".into())], explicit(0), "5.2: malformed"),
            (
                vec![("cache-control", "public; x".into()), ("expires", date(99))],
                explicit(0),
                "5.2: malformed, before Expires",
            ),
        ];
        for (lines, expected, section) in rows {
            let headers = headers(&lines);
            let found = lifetime(&headers, &CacheControl::of(&headers), at(0), Role::Shared);
            assert_eq!(found, expected, "{lines:?} (RFC 9111 {section})");
        }
    }

    #[test]
    fn age_is_the_larger_of_date_and_age() {
        let rows: &[(&[(&'static str, String)], u64)] = &[
            (&[("date", format_date(at(0)))], 10),
            (&[("age", "30".into())], 32),
            (&[("age", "30, 99".into())], 32),
            (&[("age", "x".into()), ("date", format_date(at(4)))], 6),
            (&[("date", format_date(at(60)))], 2),
        ];
        for (lines, expected) in rows {
            let age = age_on_receipt(&headers(lines), at(8), at(10));
            assert_eq!(age, *expected as u32 * SECOND, "{lines:?}");
        }
    }

    #[test]
    fn a_lifetime_is_guessed_only_if_the_status_or_public_allows_it() {
        let date = |seconds| format_date(at(seconds));
        let changed = |seconds| vec![("date", date(100_000)), ("last-modified", date(seconds))];
        let public = [vec![("cache-control", "public".into())], changed(0)].concat();
        let rows = [
            (200, changed(0), Some(10_000), "4.2.2: a tenth"),
            (404, changed(0), Some(10_000), "RFC 9110 15.1"),
            (302, changed(0), None, "4.2.2: not heuristically cacheable"),
            (302, public.clone(), Some(10_000), "5.2.2.9: public"),
            (599, public, Some(10_000), "5.2.2.9: public"),
            (200, changed(200_000), None, "4.2.2: changed in the future"),
            (200, vec![("date", date(0))], None, "4.2.2: nothing to guess from"),
        ];
        for (status, lines, expected, section) in rows {
            let headers = headers(&lines);
            let status = StatusCode::from_u16(status).unwrap();
            let control = CacheControl::of(&headers);
            let found = Heuristics::TENTH.lifetime(status, &headers, &control, at(0));
            assert_eq!(found, expected.map(Duration::from_secs), "{status} (RFC 9111 {section})");
            assert_eq!(Heuristics::Off.lifetime(status, &headers, &control, at(0)), None);
        }
    }

    #[test]
    fn a_private_cache_ignores_s_maxage() {
        let headers = headers(&[("cache-control", "s-maxage=5, max-age=9".into())]);
        let found = lifetime(&headers, &CacheControl::of(&headers), at(0), Role::Private);
        assert_eq!(found, explicit(9));
    }
}
