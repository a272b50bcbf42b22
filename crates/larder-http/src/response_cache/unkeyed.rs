//! What no key tells apart does not reach a handler whose answer many will get.
//!
//! A handler that writes a link from `X-Forwarded-Host`, or from a parameter that the key leaves out, writes what
//! one client has said into the page of all.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use larder_semantics::storing::{Profile, Role};

use super::plan::{IDENTITY, Plan};
use crate::address::{FindUri, Head, with_query};

impl Plan {
    /// Takes out of a request what the key of its answer does not contain.
    pub(super) fn remove_unkeyed<U: FindUri, B>(&self, request: &mut Request<B>) {
        let scheme = self.options.scheme.of(&Head::from(&*request));
        let names = self.unkeyed(request.headers());
        let headers = request.headers_mut();
        for name in names {
            headers.remove(name);
        }
        if self.strips() && headers.contains_key(PROTO) {
            // The scheme is part of the key: this one is what all who ask have.
            headers.insert(PROTO, HeaderValue::from_static(scheme));
        }
        let filter = |uri: &mut Uri| {
            if let Some(query) = self.options.query.filtered(uri.query())
                && let Some(filtered) = with_query(uri, &query)
            {
                *uri = filtered;
            }
        };
        filter(request.uri_mut());
        if let Some(apart) = U::apart(request.extensions_mut()) {
            filter(apart);
        }
    }

    /// Whether a request says anything that the key of its answer does not contain.
    pub(super) fn says_what_is_unkeyed<U: FindUri>(&self, head: &Head<'_>) -> bool {
        !self.unkeyed(head.headers).is_empty()
            || self.options.query.filtered(U::find(head).query()).is_some()
    }

    /// Whether it takes fields out at all. Around a client all that is asked is its own.
    fn strips(&self) -> bool {
        self.options.profile == Profile::Careful && self.options.role == Role::Shared
    }

    /// The fields that change what many frameworks answer, and that no key knows of.
    fn unkeyed(&self, headers: &HeaderMap) -> Vec<HeaderName> {
        if !self.strips() {
            return Vec::new();
        }
        let options = &self.options;
        let is_unkeyed = |name: &&HeaderName| {
            let forwarded = name.as_str().starts_with("x-forwarded-") && **name != FORWARDED_FOR;
            let known = (forwarded || UNKEYED.contains(&name.as_str()))
                && !IDENTITY.contains(name)
                && !options.identity_fields.contains(name);
            known && **name != PROTO && !options.keyed_by.contains(name)
        };
        headers.keys().filter(is_unkeyed).cloned().collect()
    }
}

const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Whom a request comes from is written to logs; a page made for one address is the handler's own mistake.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Besides all that begin with `x-forwarded-`.
const UNKEYED: [&str; 10] = [
    "forwarded",
    "front-end-https",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
    "x-url-scheme",
];
