//! The `Cache-Status` field, in which a cache reports how it handled a request.
//!
//! # Source
//!
//! [RFC 9211](https://www.rfc-editor.org/rfc/rfc9211)

use std::fmt;

/// The reason why the cache forwarded a request to the origin, for the `fwd` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Forward {
    /// The cache was configured not to handle this request.
    Bypass,
    /// Responses to this method are not stored.
    Method,
    /// No response was stored for this URL.
    UriMiss,
    /// A response was stored for this URL, but for other values of the fields in its `Vary`.
    VaryMiss,
    /// A fresh response was stored, but the request demanded a new response.
    Request,
    /// The stored response was stale.
    Stale,
}

impl Forward {
    /// All reasons.
    pub const ALL: &[Self] =
        &[Self::Bypass, Self::Method, Self::UriMiss, Self::VaryMiss, Self::Request, Self::Stale];

    /// Returns the sentence that explains the reason.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Bypass => "The cache does not handle this request.",
            Self::Method => "Responses to this method are not stored.",
            Self::UriMiss => "No response is stored for this URL.",
            Self::VaryMiss => {
                "A response is stored for this URL, but for other values of the fields in its `Vary`."
            }
            Self::Request => "A response is stored, but the request demands a new one.",
            Self::Stale => "The stored response is stale or invalidated.",
        }
    }

    /// Returns the token for the field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// One member of the field, which is the report of this cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    /// The name of the cache, a token.
    pub cache: &'a str,
    /// The outcome of the request.
    pub handling: Handling,
    /// The status of the origin's response, if it differs from the status of this response.
    pub fwd_status: Option<u16>,
    /// How long the response stays fresh, in seconds; negative once it is stale.
    pub ttl: Option<i64>,
    /// The key under which the response is stored.
    pub key: Option<&'a str>,
    /// A token that explains the outcome.
    pub detail: Option<&'a str>,
}

impl<'a> CacheStatus<'a> {
    /// Creates the report of the cache of this name, with the outcome only.
    pub const fn new(cache: &'a str, handling: Handling) -> Self {
        Self { cache, handling, fwd_status: None, ttl: None, key: None, detail: None }
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// The response came from the cache.
    Hit,
    /// The cache answered with a response of its own, such as an error.
    Refused,
    /// The cache forwarded the request to the origin.
    Forward {
        /// The reason.
        why: Forward,
        /// Whether the response was stored.
        stored: bool,
        /// Whether the request was coalesced with a request that was already in flight.
        collapsed: bool,
    },
}

impl fmt::Display for CacheStatus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cache)?;
        match self.handling {
            Handling::Hit => f.write_str("; hit")?,
            Handling::Refused => {}
            Handling::Forward { why, stored, collapsed } => {
                write!(f, "; fwd={}", why.as_str())?;
                if let Some(status) = self.fwd_status {
                    write!(f, "; fwd-status={status}")?;
                }
                if stored {
                    f.write_str("; stored")?;
                }
                if collapsed {
                    f.write_str("; collapsed")?;
                }
            }
        }
        if let Some(ttl) = self.ttl {
            write!(f, "; ttl={ttl}")?;
        }
        if let Some(key) = self.key {
            write!(f, "; key=\"{}\"", EscapedText(key))?;
        }
        match self.detail {
            Some(detail) => write!(f, "; detail={detail}"),
            None => Ok(()),
        }
    }
}

/// Text that is escaped for a string in structured fields. Characters that cannot occur there are left out.
struct EscapedText<'a>(&'a str);

impl fmt::Display for EscapedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars().filter(|letter| matches!(letter, ' '..='~')) {
            if matches!(letter, '"' | '\\') {
                f.write_str("\\")?;
            }
            fmt::Write::write_char(f, letter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(why: Forward, stored: bool, collapsed: bool) -> Handling {
        Handling::Forward { why, stored, collapsed }
    }

    #[test]
    fn every_status_is_a_valid_structured_field_with_the_expected_text() {
        let rows = [
            (Handling::Hit, Some(42), None, "larder; hit; ttl=42"),
            (Handling::Hit, Some(-3), Some("error"), "larder; hit; ttl=-3; detail=error"),
            (forward(Forward::UriMiss, true, false), None, None, "larder; fwd=uri-miss; stored"),
            (
                forward(Forward::VaryMiss, false, true),
                Some(9),
                None,
                "larder; fwd=vary-miss; collapsed; ttl=9",
            ),
            (
                forward(Forward::UriMiss, false, false),
                None,
                Some("set-cookie"),
                "larder; fwd=uri-miss; detail=set-cookie",
            ),
        ];
        for (handling, ttl, detail, expected) in rows {
            let status = CacheStatus { ttl, detail, ..CacheStatus::new("larder", handling) };
            assert_reads(&status.to_string(), expected);
        }
        let all = CacheStatus {
            fwd_status: Some(304),
            ttl: Some(9),
            key: Some("a\"b\n\\"),
            ..CacheStatus::new("larder", forward(Forward::Stale, true, false))
        };
        let expected = r#"larder; fwd=stale; fwd-status=304; stored; ttl=9; key="a\"b\\""#;
        assert_reads(&all.to_string(), expected);
    }

    fn assert_reads(text: &str, expected: &str) {
        assert_eq!(text, expected);
        assert!(sfv::Parser::new(text).parse::<sfv::List>().is_ok(), "{text}");
    }
}
