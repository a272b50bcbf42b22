//! The effective URI: what the client asked for, as keys and targets use it.

use std::borrow::Cow;

use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Uri, header, request};
use larder_semantics::authority::{normalised, without_user};

/// The head of a request, as closures of the layers see it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI as this layer received it.
    pub uri: &'a Uri,
    /// The fields.
    pub headers: &'a HeaderMap,
    /// The extensions, where session and auth layers leave what they know.
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

/// The URI that the client asked for.
///
/// A router of axum that nests another strips the prefix from the path, and two nested routers would then share
/// keys: with the feature `axum` it is the one that axum notes before.
pub(crate) fn original_uri<'a>(head: &Head<'a>) -> &'a Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(original)) = head.extensions.get() {
        return original;
    }
    head.uri
}

/// That URI where it lies apart from the request's own, so that a parameter which the key leaves out is left out
/// there too. `None` where the request has only the one.
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

/// The scheme of effective URIs. What a client or a proxy claims is not asked, since it could choose a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// `http`. The default.
    #[default]
    Http,
    /// `https`, also behind a proxy that ends TLS.
    Https,
    /// What `X-Forwarded-Proto` says, else `http`. Only behind a proxy that sets it always.
    TrustForwarded,
    /// What the URI says, else `http`. Right around a client, whose requests are our own.
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

/// The request names two hosts, or one that is no authority: it cannot be told which it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AmbiguousHost;

impl<'a> Address<'a> {
    pub(crate) fn of(head: &Head<'a>, scheme: Scheme) -> Result<Self, AmbiguousHost> {
        let mut host = Host::default();
        head.headers.get_all(header::HOST).iter().for_each(|line| host.note(line));
        Self::at(host, head, scheme)
    }

    /// The address of a request whose `Host` was found already.
    #[inline]
    pub(crate) fn at(host: Host<'a>, head: &Head<'a>, of: Scheme) -> Result<Self, AmbiguousHost> {
        let uri = original_uri(head);
        let scheme = of.of(head);
        let keeps_user = of == Scheme::OfUri;
        let authority = authority(head.uri, host, scheme, keeps_user)?;
        Ok(Self { scheme, authority, path: uri.path(), query: uri.query() })
    }

    /// Scheme and authority, as `https://shop.example`.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

/// What the lines of `Host` say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Host<'a> {
    #[default]
    Missing,
    Line(&'a HeaderValue),
    Several,
}

impl<'a> Host<'a> {
    /// Takes note of a line.
    pub(crate) fn note(&mut self, line: &'a HeaderValue) {
        *self = match self {
            Self::Missing => Self::Line(line),
            Self::Line(_) | Self::Several => Self::Several,
        };
    }
}

/// From the URI, else from `Host`. Both have to agree, or a cache and a handler could see two hosts. User
/// information is part of no address but that of a client, who asks as that user.
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

/// Gives a request the authority of its key, so that no spelling that one client has chosen reaches a handler
/// whose response many get.
pub(crate) fn spell_authority<B>(request: &mut Request<B>, authority: &str) {
    if let Some(host) = request.headers_mut().get_mut(header::HOST)
        && host.as_bytes() != authority.as_bytes()
        && let Ok(spelt) = HeaderValue::from_str(authority)
    {
        *host = spelt;
    }
    spell_authority_of(request.uri_mut(), authority);
}

/// Gives a URI that has an authority this one.
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

/// Which parameters of a query tell two addresses apart.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum QueryRule {
    /// All, as they are written. The default.
    #[default]
    All,
    /// Only these. The handler sees no other.
    Only(Vec<String>),
    /// All but these. The handler does not see them.
    Except(Vec<String>),
}

impl QueryRule {
    /// All but the parameters by which the usual trackers mark links.
    pub fn without_trackers() -> Self {
        Self::Except(TRACKERS.map(str::to_owned).into())
    }

    /// What is left of a query. `None` when nothing has to be taken out.
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

/// `uri` with another query.
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
    fn parameters_are_taken_out_by_rule() {
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
