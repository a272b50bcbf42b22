//! How a cache says what it did: the `Cache-Status` field.
//!
//! # Source
//!
//! [RFC 9211](https://www.rfc-editor.org/rfc/rfc9211)

use std::fmt;

/// Why a request went on to the origin: the `fwd` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Forward {
    /// The cache was told not to handle this request.
    Bypass,
    /// The method is not one that is kept.
    Method,
    /// Nothing was kept for this address.
    UriMiss,
    /// Something was kept for this address, but not for these fields.
    VaryMiss,
    /// Something fresh was kept, but the request demanded a new answer.
    Request,
    /// What was kept was stale.
    Stale,
}

impl Forward {
    /// The token.
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

/// One member of the field: what this cache did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    /// The name of the cache, a token.
    pub cache: &'a str,
    /// What became of the request.
    pub handling: Handling,
    /// What the origin answered, where that is not the status of the response.
    pub fwd_status: Option<u16>,
    /// How long the response stays fresh, in seconds; negative once it is stale.
    pub ttl: Option<i64>,
    /// The key under which the response is kept.
    pub key: Option<&'a str>,
    /// A word that explains, a token.
    pub detail: Option<&'a str>,
}

impl<'a> CacheStatus<'a> {
    /// What the cache of this name did, and nothing more.
    pub const fn new(cache: &'a str, handling: Handling) -> Self {
        Self { cache, handling, fwd_status: None, ttl: None, key: None, detail: None }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// It was answered from the cache.
    Hit,
    /// The cache answered it with words of its own.
    Refused,
    /// It went on.
    Forward {
        /// Why.
        why: Forward,
        /// Whether the answer was kept.
        stored: bool,
        /// Whether it was answered by a request that was already under way.
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
            write!(f, "; key=\"{}\"", Escaped(key))?;
        }
        match self.detail {
            Some(detail) => write!(f, "; detail={detail}"),
            None => Ok(()),
        }
    }
}

/// Text as it lies in a string of structured fields; what cannot lie there is left out.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
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
    fn every_form_is_a_structured_field_and_reads_as_meant() {
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
