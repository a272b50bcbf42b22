//! Strips unkeyed inputs from requests whose responses many clients may get.
//!
//! A handler that builds a link from `X-Forwarded-Host`, or from a parameter that the key leaves out, would write the
//! input of one client into the page that all clients get (cache poisoning).

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use larder_semantics::storing::{Profile, Role};

use crate::{
    address::{
        Address, Head, original_uri, original_uri_mut, spell_authority, spell_authority_of,
        with_query,
    },
    response_cache::{options::Options, request::credentials::is_credentials},
};

impl Options {
    /// Strips the unkeyed inputs from a request, and sets its scheme and authority to the values in the key.
    pub(in crate::response_cache) fn remove_unkeyed<B>(&self, request: &mut Request<B>) {
        let address = Address::of(&Head::from(&*request), self.scheme).ok();
        let address = address.map(|address| (address.scheme, address.authority.into_owned()));
        let names = self.unkeyed(request.headers());
        let headers = request.headers_mut();
        for name in names {
            headers.remove(name);
        }
        if let Some((scheme, authority)) = address.filter(|_| self.strips()) {
            // A missing field is treated as `http`.
            let may_differ = scheme == "https" || headers.contains_key(PROTO);
            if may_differ && !self.vary_by_header.contains(&PROTO) {
                headers.insert(PROTO, HeaderValue::from_static(scheme));
            }
            spell_authority(request, &authority);
            if let Some(apart) = original_uri_mut(request.extensions_mut()) {
                spell_authority_of(apart, &authority);
            }
        }
        let filter = |uri: &mut Uri| {
            if let Some(query) = self.query.filtered(uri.query())
                && let Some(filtered) = with_query(uri, &query)
            {
                *uri = filtered;
            }
        };
        filter(request.uri_mut());
        if let Some(apart) = original_uri_mut(request.extensions_mut()) {
            filter(apart);
        }
    }

    /// Whether a request has unkeyed inputs, or spells its scheme or authority differently from the key.
    pub(in crate::response_cache) fn has_unkeyed_input(&self, head: &Head<'_>) -> bool {
        !self.unkeyed(head.headers).is_empty()
            || self.query.filtered(original_uri(head).query()).is_some()
            || (self.strips() && self.differs_from_key(head))
    }

    /// Whether the scheme or authority that a handler reads differs from the value in the key.
    fn differs_from_key(&self, head: &Head<'_>) -> bool {
        let Ok(address) = Address::of(head, self.scheme) else { return true };
        let differs = |text: &[u8]| text != address.authority.as_bytes();
        head.headers.get(header::HOST).is_some_and(|host| differs(host.as_bytes()))
            || head.uri.authority().is_some_and(|given| differs(given.as_str().as_bytes()))
            || match head.headers.get(PROTO) {
                Some(claimed) => claimed.as_bytes() != address.scheme.as_bytes(),
                None => address.scheme != "http",
            }
    }

    /// Whether this cache strips fields at all. A private cache does not, because all its requests come from its own
    /// client.
    fn strips(&self) -> bool {
        self.profile == Profile::Careful && self.role == Role::Shared
    }

    /// Returns the fields that change the responses of many frameworks and are not part of the key.
    fn unkeyed(&self, headers: &HeaderMap) -> Vec<HeaderName> {
        if !self.strips() {
            return Vec::new();
        }
        headers.keys().filter(|name| **name != PROTO && self.is_unkeyed(name)).cloned().collect()
    }

    /// Whether a field of this name is stripped from the request of a fill, or set to the value in the key.
    pub(in crate::response_cache) fn is_unkeyed(&self, name: &HeaderName) -> bool {
        let forwarded = name.as_str().starts_with("x-forwarded-") && *name != FORWARDED_FOR;
        (forwarded || UNKEYED.contains(&name.as_str()))
            && !is_credentials(name.as_str())
            && !self.credential_headers.contains(name)
            && !self.vary_by_header.contains(name)
    }
}

const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// larder does not strip this field, because handlers write the address of the client to logs. A page that depends on
/// the field is an error of the handler.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The unkeyed fields whose names do not begin with `x-forwarded-`.
const UNKEYED: [&str; 14] = [
    "forwarded",
    "front-end-https",
    "x-envoy-original-path",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-ms-original-url",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
    "x-script-name",
    "x-url-scheme",
];
