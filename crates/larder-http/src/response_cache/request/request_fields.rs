//! Classifies request fields, by their names, according to the effect that they may have on the response.
//!
//! A handler that sets the lifetime of its response knows the fields that select it. If the lifetime comes from
//! the layer alone, the handler has declared nothing, and the cache must assume that any field may select the
//! response: a password in a field of the application, a language, the name of a page fragment. So the fields
//! of every request fall into classes:
//!
//! - **credentials** identify the client; see [`RequestFacts`](crate::response_cache::context::RequestFacts);
//! - **selecting** fields are part of the key of a response that was not opted in and has no `Vary`;
//! - **harmless** fields select nothing: they belong to the connection, to caching, to tracing, or describe the
//!   client to all servers alike;
//! - all other fields are **unknown**: a request with an unknown field never gets a stored response that was not opted
//!   in, and such a response to that request is not stored.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName};

use super::credentials::is_credentials;
use crate::response_cache::options::Options;

/// The fields that are part of the key of a response that was not opted in, sorted.
pub(in crate::response_cache) static SELECTING: LazyLock<Vec<HeaderName>> = LazyLock::new(|| {
    let mut names: Vec<HeaderName> =
        SELECTING_NAMES.iter().map(|name| HeaderName::from_static(name)).collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names
});

/// Stands for all of [`SELECTING`] in the list of an address, so that keys hold only the fields that are
/// present.
pub(in crate::response_cache) const ALL_SELECTING: HeaderName =
    HeaderName::from_static("larder-selecting-fields");

/// Content negotiation, scripts of other origins, and requests for a page fragment.
const SELECTING_NAMES: [&str; 25] = [
    "accept",
    "accept-language",
    "hx-boosted",
    "hx-current-url",
    "hx-history-restore-request",
    "hx-prompt",
    "hx-request",
    "hx-target",
    "hx-trigger",
    "hx-trigger-name",
    "origin",
    "save-data",
    "turbo-frame",
    "x-inertia",
    "x-inertia-partial-component",
    "x-inertia-partial-data",
    "x-inertia-version",
    "x-pjax",
    "x-pjax-container",
    "x-requested-with",
    "x-up-context",
    "x-up-mode",
    "x-up-target",
    "x-up-validate",
    "x-up-version",
];

/// Fields that select nothing. `User-Agent` is among them, so a handler that reads it must declare it in `Vary`.
const HARMLESS: [&str; 66] = [
    "accept-charset",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "alt-used",
    "baggage",
    "cache-control",
    "cdn-loop",
    "cf-connecting-ip",
    "cf-ipcountry",
    "cf-ray",
    "cf-visitor",
    "connection",
    "content-length",
    "content-type",
    "date",
    "dnt",
    "early-data",
    "expect",
    "fastly-client-ip",
    "fly-client-ip",
    "fly-forwarded-port",
    "fly-region",
    "fly-request-id",
    "from",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "max-forwards",
    "nel",
    "pragma",
    "priority",
    "proxy-connection",
    "purpose",
    "range",
    "referer",
    "report-to",
    "sentry-trace",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "true-client-ip",
    "upgrade",
    "upgrade-insecure-requests",
    "user-agent",
    "via",
    "x-amz-cf-id",
    "x-amzn-trace-id",
    "x-b3-flags",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-client-ip",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-forwarded-for",
    "x-real-ip",
    "x-request-id",
    "x-request-start",
];

/// Fields of a browser about the circumstances of a request: `Sec-Fetch-Mode`, `Sec-CH-UA`, `Sec-GPC` and the like.
const HARMLESS_PREFIX: &str = "sec-";

impl Options {
    /// Returns the first request field that may have selected the response and is not part of the key, if there
    /// is one.
    pub(in crate::response_cache) fn unknown_field<'a>(
        &self,
        headers: &'a HeaderMap,
    ) -> Option<&'a HeaderName> {
        headers.keys().find(|name| !self.is_known(name))
    }

    fn is_known(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        text.starts_with(HARMLESS_PREFIX)
            || HARMLESS.binary_search(&text).is_ok()
            || SELECTING_NAMES.binary_search(&text).is_ok()
            || self.is_unkeyed(name)
            || is_credentials(text)
            || self.credential_headers.contains(name)
            || self.vary_by_header.contains(name)
            || self.harmless.contains(name)
            || self.vary_by.iter().any(|input| input.fields.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_fields_are_sorted_and_disjoint() {
        assert!(HARMLESS.is_sorted() && SELECTING_NAMES.is_sorted());
        assert!(HARMLESS.iter().all(|name| !SELECTING_NAMES.contains(name)));
        assert!(HARMLESS.iter().chain(&SELECTING_NAMES).all(|name| !is_credentials(name)));
    }

    #[test]
    fn fields_with_a_word_for_credentials_in_their_name_are_credentials() {
        for name in [
            "authorization",
            "x-auth",
            "x-goog-authenticated-user-email",
            "wastebin-password",
            "x-csrf-token",
            "xtoken",
            "client-secret",
            "sec-session-id",
            "my-api-key",
            "x-api-key-2",
        ] {
            assert!(is_credentials(name), "{name}");
        }
        for name in ["author", "accept", "x-tok", "x-api", "passkey", "x-theme"] {
            assert_eq!(is_credentials(name), name == "author", "{name}");
        }
    }
}
