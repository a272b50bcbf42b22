//! How long a response is fresh, and how old it is.
//!
//! # Source
//!
//! [RFC 9111, section 4.2](https://www.rfc-editor.org/rfc/rfc9111#section-4.2)

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::cache_control::{CacheControl, Seconds};

/// Where a lifetime came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freshness {
    /// The response says so itself.
    Explicit(Duration),
    /// The response says nothing.
    Unknown,
}

/// How long a shared cache may hold a response for fresh, counted from when it was generated.
///
/// `s-maxage` before `max-age` before `Expires`. What is invalid counts as stale.
///
/// # Source
///
/// [RFC 9111, section 4.2.1](https://www.rfc-editor.org/rfc/rfc9111#section-4.2.1)
pub fn lifetime(headers: &HeaderMap, control: &CacheControl, received: SystemTime) -> Freshness {
    let explicit = |seconds: Seconds| Freshness::Explicit(Duration::from_secs(seconds.or_stale()));
    if let Some(seconds) = control.s_maxage.or(control.max_age) {
        return explicit(seconds);
    }
    let mut expires = headers.get_all(header::EXPIRES).iter();
    match (expires.next(), expires.next()) {
        (None, _) => Freshness::Unknown,
        (Some(expires), None) => {
            let generated = date(headers).unwrap_or(received);
            let expires = expires.to_str().ok().and_then(parse_date);
            let left = expires.and_then(|expires| expires.duration_since(generated).ok());
            Freshness::Explicit(left.unwrap_or_default())
        }
        // Two lines of a field that has one value say nothing that can be trusted.
        (Some(_), Some(_)) => Freshness::Explicit(Duration::ZERO),
    }
}

/// How old a response already was when it was received.
///
/// # Source
///
/// [RFC 9111, section 4.2.3](https://www.rfc-editor.org/rfc/rfc9111#section-4.2.3)
pub fn age_on_receipt(headers: &HeaderMap, asked: SystemTime, received: SystemTime) -> Duration {
    let apparent =
        date(headers).and_then(|date| received.duration_since(date).ok()).unwrap_or_default();
    let delay = received.duration_since(asked).unwrap_or_default();
    let corrected = age_field(headers).map_or(Duration::ZERO, |age| age + delay);
    apparent.max(corrected)
}

/// The first member of `Age`, if it is a number.
///
/// # Source
///
/// [RFC 9111, section 5.1](https://www.rfc-editor.org/rfc/rfc9111#section-5.1)
pub fn age_field(headers: &HeaderMap) -> Option<Duration> {
    let age = crate::list::members(headers, &header::AGE).next()?;
    let digits = !age.is_empty() && age.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_secs(age.parse().unwrap_or(MOST_SECONDS).min(MOST_SECONDS)))
}

/// The `Date` of a message, if it is there and valid.
pub fn date(headers: &HeaderMap) -> Option<SystemTime> {
    headers.get(header::DATE)?.to_str().ok().and_then(parse_date)
}

/// A date in one of the three forms of HTTP. The name of the weekday is not checked.
///
/// # Source
///
/// [RFC 9110, section 5.6.7](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7)
pub fn parse_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// A date as it is sent. HTTP knows of none before 1970.
pub fn format_date(time: SystemTime) -> String {
    httpdate::fmt_http_date(time.max(SystemTime::UNIX_EPOCH))
}

const MOST_SECONDS: u64 = 1 << 31;

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

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
    fn lifetimes_come_from_the_first_that_speaks() {
        let date = |seconds| format_date(at(seconds));
        // Fields, lifetime, section.
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
        ];
        for (lines, expected, section) in rows {
            let headers = headers(&lines);
            let found = lifetime(&headers, &CacheControl::of(&headers), at(0));
            assert_eq!(found, expected, "{lines:?} (RFC 9111 {section})");
        }
    }

    #[test]
    fn age_is_the_larger_of_what_date_and_age_say() {
        let rows: &[(&[(&'static str, String)], u64)] = &[
            (&[("date", format_date(at(0)))], 10),
            (&[("age", "30".into())], 32),
            (&[("age", "30, 99".into())], 32),
            (&[("age", "x".into()), ("date", format_date(at(4)))], 6),
            (&[("date", format_date(at(60)))], 0),
        ];
        for (lines, expected) in rows {
            let age = age_on_receipt(&headers(lines), at(8), at(10));
            assert_eq!(age, *expected as u32 * SECOND, "{lines:?}");
        }
    }

    #[test]
    fn all_three_forms_of_dates_are_read() {
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse_date(text), Some(expected), "{text}");
        }
        assert_eq!(parse_date("yesterday"), None);
    }
}
