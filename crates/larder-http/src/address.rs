//! The effective request URI, from which keys and invalidation targets are built.

use std::borrow::Cow;

use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Uri, header, request};
use larder_semantics::authority::{normalised, without_user};

/// The head of a request, as the closures of the layers receive it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI as this layer received it.
    pub uri: &'a Uri,
    /// The fields.
    pub headers: &'a HeaderMap,
    /// The extensions, into which session and authentication layers put their results.
    pub extensions: &'a Extensions,
}

impl<'a, B> From<&'a Request<B>> for Head<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

impl<'a> From<&'a request::Parts> for Head<'a> {
    fn from(parts: &'a request::Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            extensions: &parts.extensions,
        }
    }
}

/// Returns the URI that the client requested.
///
/// A nested router of axum strips its prefix from the path, so two nested routers would share keys. With the feature
/// `axum`, this function therefore returns the `OriginalUri` that axum records before.
pub(crate) fn original_uri<'a>(head: &Head<'a>) -> &'a Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(original)) = head.extensions.get() {
        return original;
    }
    head.uri
}

/// Returns the template of the route that a router has matched, such as `/products/{id}`, if a router encloses this layer.
pub(crate) fn matched_route(extensions: &Extensions) -> Option<&str> {
    #[cfg(feature = "axum")]
    return extensions.get::<axum::extract::MatchedPath>().map(axum::extract::MatchedPath::as_str);
    #[cfg(not(feature = "axum"))]
    {
        let _ = extensions;
        None
    }
}

/// Returns `OriginalUri` if the request carries it, so that larder can remove the query parameters that are not part of
/// the key from it, too. Returns `None` if there is only the request's own URI.
pub(crate) fn original_uri_mut(extensions: &mut Extensions) -> Option<&mut Uri> {
    #[cfg(feature = "axum")]
    return extensions
        .get_mut::<axum::extract::OriginalUri>()
        .map(|axum::extract::OriginalUri(original)| original);
    #[cfg(not(feature = "axum"))]
    {
        let _ = extensions;
        None
    }
}

/// The scheme of effective URIs. It is fixed by default, because a client or proxy that could choose the scheme could
/// choose the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// `http`. The default.
    #[default]
    Http,
    /// `https`. Choose it behind a proxy that terminates TLS, too.
    Https,
    /// `https` if `X-Forwarded-Proto` is `https`, otherwise `http`. Choose it only behind a proxy that always sets the
    /// field.
    TrustForwarded,
    /// `https` if the request URI has this scheme, otherwise `http`. The key includes the user information of the URI.
    /// Choose it for a layer around an HTTP client, where the program itself makes the requests.
    OfUri,
}

impl Scheme {
    pub(crate) fn of(self, head: &Head<'_>) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::OfUri if head.uri.scheme() == Some(&http::uri::Scheme::HTTPS) => "https",
            Self::OfUri => "http",
            Self::TrustForwarded => {
                let claimed = head.headers.get("x-forwarded-proto").map(HeaderValue::as_bytes);
                if claimed.is_some_and(|claimed| claimed.eq_ignore_ascii_case(b"https")) {
                    "https"
                } else {
                    "http"
                }
            }
        }
    }
}

/// The address of a request: scheme, authority, path, query.
#[derive(Clone, Debug)]
pub(crate) struct Address<'a> {
    pub(crate) scheme: &'static str,
    pub(crate) authority: Cow<'a, str>,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
}

/// The error for a request that names two hosts or an invalid authority, so that its effective URI is ambiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AmbiguousHost;

impl<'a> Address<'a> {
    pub(crate) fn of(head: &Head<'a>, scheme: Scheme) -> Result<Self, AmbiguousHost> {
        let mut host = Host::default();
        head.headers.get_all(header::HOST).iter().for_each(|line| host.note(line));
        Self::at(host, head, scheme)
    }

    /// Builds the address of a request whose `Host` lines have already been read.
    #[inline]
    pub(crate) fn at(host: Host<'a>, head: &Head<'a>, of: Scheme) -> Result<Self, AmbiguousHost> {
        let uri = original_uri(head);
        let scheme = of.of(head);
        let keeps_user = of == Scheme::OfUri;
        let authority = authority(head.uri, host, scheme, keeps_user)?;
        Ok(Self { scheme, authority, path: uri.path(), query: uri.query() })
    }

    /// Returns the scheme and the authority, such as `https://shop.example`.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

/// The `Host` lines of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Host<'a> {
    #[default]
    Missing,
    Line(&'a HeaderValue),
    Several,
}

impl<'a> Host<'a> {
    /// Adds a line of `Host`.
    pub(crate) fn note(&mut self, line: &'a HeaderValue) {
        *self = match self {
            Self::Missing => Self::Line(line),
            Self::Line(_) | Self::Several => Self::Several,
        };
    }
}

/// Returns the authority of the URI or, if the URI has none, the authority in `Host`. If both are present they must
/// agree, because otherwise the cache and a handler could read different hosts. Drops user information, except around
/// an HTTP client, where it identifies the user.
///
/// Source: RFC 9112, section 3.2; RFC 9110, section 4.2.4.
#[inline]
fn authority<'a>(
    uri: &'a Uri,
    host: Host<'a>,
    scheme: &str,
    keeps_user: bool,
) -> Result<Cow<'a, str>, AmbiguousHost> {
    let spelt = |text: &'a str| {
        let text = if keeps_user { text } else { without_user(text) };
        normalised(text, scheme).ok_or(AmbiguousHost)
    };
    let in_host = match host {
        Host::Missing => None,
        Host::Line(line) => Some(spelt(line.to_str().map_err(|_| AmbiguousHost)?)?),
        Host::Several => return Err(AmbiguousHost),
    };
    let in_uri = uri.authority().map(|authority| spelt(authority.as_str())).transpose()?;
    match (in_uri, in_host) {
        (Some(uri), Some(host)) if without_user(&uri) != host => Err(AmbiguousHost),
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) => Ok(Cow::Borrowed("")),
    }
}

/// Replaces the authority in `Host` and in the URI by the authority in the key, so that a spelling that one client
/// chose does not reach a handler whose response is served to many clients.
pub(crate) fn spell_authority<B>(request: &mut Request<B>, authority: &str) {
    if let Some(host) = request.headers_mut().get_mut(header::HOST)
        && host.as_bytes() != authority.as_bytes()
        && let Ok(spelt) = HeaderValue::from_str(authority)
    {
        *host = spelt;
    }
    spell_authority_of(request.uri_mut(), authority);
}

/// Replaces the authority of a URI that has one.
pub(crate) fn spell_authority_of(uri: &mut Uri, authority: &str) {
    let differs = uri.authority().is_some_and(|given| given.as_str() != authority);
    if differs && let Ok(authority) = authority.parse() {
        let mut parts = uri.clone().into_parts();
        parts.authority = Some(authority);
        if let Ok(spelt) = Uri::from_parts(parts) {
            *uri = spelt;
        }
    }
}

/// The query parameters that are part of the key.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum QueryRule {
    /// All parameters, as they are written. This is the default.
    #[default]
    All,
    /// Only these parameters; the handler does not see any other.
    Only(Vec<String>),
    /// All parameters except these; the handler does not see them either. A name that ends in `*` stands for all names
    /// with that prefix.
    Except(Vec<String>),
}

impl QueryRule {
    /// Excludes the query parameters of common trackers, such as `utm_*` and `gclid`.
    pub fn without_trackers() -> Self {
        Self::Except(TRACKERS.map(str::to_owned).into())
    }

    /// Removes the query parameters that are not part of the key. Returns `None` if there is nothing to remove.
    pub(crate) fn filtered(&self, query: Option<&str>) -> Option<String> {
        let query = query?;
        let kept = |parameter: &&str| {
            let name = parameter.split_once('=').map_or(*parameter, |(name, _)| name);
            self.keeps(name)
        };
        if query.split('&').all(|parameter| kept(&parameter)) {
            return None;
        }
        Some(query.split('&').filter(kept).collect::<Vec<_>>().join("&"))
    }

    fn keeps(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|known| known == name),
            Self::Except(names) => !names.iter().any(|known| match known.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => known == name,
            }),
        }
    }
}

/// Returns `uri` with another query.
pub(crate) fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let path = uri.path();
    let path_and_query = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse().ok()?);
    Uri::from_parts(parts).ok()
}

const TRACKERS: [&str; 12] = [
    "utm_*", "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "fbclid", "msclkid", "mc_cid",
    "mc_eid", "igshid", "_ga",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn address(uri: &str, hosts: &[&str], scheme: Scheme) -> Result<String, AmbiguousHost> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(()).unwrap();
        let head = Head::from(&request);
        Address::of(&head, scheme).map(|address| address.origin())
    }

    #[test]
    fn hosts_are_normalised_and_have_to_agree() {
        let rows = [
            ("/a", &["Shop.Example:80"][..], Scheme::Http, Ok("http://shop.example")),
            ("/a", &["shop.example:80"], Scheme::Https, Ok("https://shop.example:80")),
            ("/a", &["shop.example:443"], Scheme::Https, Ok("https://shop.example")),
            ("http://a.example/x", &[], Scheme::Http, Ok("http://a.example")),
            ("http://a.example/x", &["A.example"], Scheme::Http, Ok("http://a.example")),
            ("http://a.example:80/x", &["a.example"], Scheme::Http, Ok("http://a.example")),
            ("http://a.example/x", &["b.example"], Scheme::Http, Err(AmbiguousHost)),
            ("/a", &["a.example", "b.example"], Scheme::Http, Err(AmbiguousHost)),
            ("/a", &["[::1]:80"], Scheme::Http, Ok("http://[::1]")),
            ("/a", &["shop.example", "shop.example"], Scheme::Http, Err(AmbiguousHost)),
            ("/a", &["shop.\u{e9}xample"], Scheme::Http, Err(AmbiguousHost)),
            ("/a", &[], Scheme::Http, Ok("http://")),
            ("/a", &["shop.example:"], Scheme::Http, Ok("http://shop.example")),
            ("/a", &["%73hop.example:080"], Scheme::Http, Ok("http://shop.example")),
            ("/a", &["a.example, b.example"], Scheme::Http, Err(AmbiguousHost)),
            ("/a", &["a.example/b"], Scheme::Http, Err(AmbiguousHost)),
            ("/a", &["u:p@a.example"], Scheme::Http, Ok("http://a.example")),
            ("http://u:p@a.example/x", &["a.example"], Scheme::Http, Ok("http://a.example")),
            ("http://u:p@a.example/x", &[], Scheme::OfUri, Ok("http://u:p@a.example")),
            ("http://u:p@a.example/x", &["a.example"], Scheme::OfUri, Ok("http://u:p@a.example")),
        ];
        for (uri, hosts, scheme, expected) in rows {
            assert_eq!(address(uri, hosts, scheme), expected.map(str::to_owned), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn query_rules_remove_parameters() {
        let only = QueryRule::Only(vec!["page".into()]);
        assert_eq!(only.filtered(Some("x=1&page=2&y")), Some("page=2".into()));
        assert_eq!(only.filtered(Some("page=2")), None);
        let clean = QueryRule::without_trackers();
        assert_eq!(clean.filtered(Some("utm_source=a&page=2&fbclid=1")), Some("page=2".into()));
        assert_eq!(QueryRule::All.filtered(Some("a&b")), None);
    }

    #[test]
    fn a_query_is_replaced_and_the_rest_stays() {
        let uri: Uri = "http://a.example/x?y=1".parse().unwrap();
        assert_eq!(with_query(&uri, "z=2").unwrap(), "http://a.example/x?z=2");
        assert_eq!(with_query(&uri, "").unwrap(), "http://a.example/x");
    }
}
