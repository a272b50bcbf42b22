//! What is warmed.

use http::{HeaderMap, Method, Request, Uri, header};
use larder_http::WarmRequest;

/// A response to warm: a path, a URL, or a request of your own.
///
/// # Examples
///
/// ```
/// use larder_warming::WarmTarget;
///
/// let path = WarmTarget::from("/products/42?page=2");
/// let of_host = WarmTarget::from("https://shop.example/");
/// # let _ = (path, of_host);
/// ```
#[derive(Clone, Debug)]
pub struct WarmTarget {
    pub(crate) path: String,
    /// The host, if it is not that of the warmer.
    pub(crate) host: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) source: Source,
}

/// Where a target comes from, which decides whether its route has to allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The program names it, or the cache has stored it before.
    Known,
    /// An access log, which also contains paths that act, such as `/logout`.
    Log,
}

impl WarmTarget {
    /// Creates the target of a line of an access log. Its path may contain anything, so it is not read as a URL.
    pub(crate) fn logged(path: String) -> Self {
        Self { path, host: None, headers: HeaderMap::new(), source: Source::Log }
    }

    /// Returns the path without its query.
    pub(crate) fn path_alone(&self) -> &str {
        self.path.split(['?', '#']).next().unwrap_or_default()
    }

    /// Returns why the target is never warmed.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self.headers.keys().find(|name| WarmRequest::refuses(name)) {
            Some(name) => Some(format!(
                "the request has the field {name}, and credentials are never sent to warm the cache"
            )),
            None if self.host.as_ref().is_some_and(|host| host.contains('@')) => {
                Some("the URL has a user name or a password".to_owned())
            }
            None if self.path.parse::<Uri>().is_err() => Some("the path is not valid".to_owned()),
            None => None,
        }
    }
}

impl From<&str> for WarmTarget {
    fn from(url: &str) -> Self {
        let scheme = ["http://", "https://"].into_iter().find(|scheme| {
            url.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
        });
        let (host, path) = match scheme {
            Some(scheme) => {
                let rest = &url[scheme.len()..];
                let at = rest.find(['/', '?']).unwrap_or(rest.len());
                (Some(rest[..at].to_owned()), &rest[at..])
            }
            None => (None, url),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Self { path, host, headers: HeaderMap::new(), source: Source::Known }
    }
}

impl From<String> for WarmTarget {
    fn from(url: String) -> Self {
        Self::from(&*url)
    }
}

impl<B> TryFrom<Request<B>> for WarmTarget {
    type Error = NotGetError;

    /// Takes the address and the fields of a request.
    fn try_from(request: Request<B>) -> Result<Self, NotGetError> {
        let (head, _) = request.into_parts();
        if head.method != Method::GET {
            return Err(NotGetError(head.method));
        }
        let of_uri = head.uri.authority().map(http::uri::Authority::as_str);
        let of_field = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let host = of_uri.or(of_field).map(str::to_owned);
        let mut target = Self { path, host, headers: head.headers, source: Source::Known };
        target.headers.remove(header::HOST);
        Ok(target)
    }
}

/// The request has another method than GET, which may change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotGetError(Method);

impl std::fmt::Display for NotGetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the method is {}, and only GET warms the cache", self.0)
    }
}

impl std::error::Error for NotGetError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_url_at_the_beginning_has_a_host() {
        for (url, host, path) in [
            (
                "/login?next=https://evil.example/logout",
                None,
                "/login?next=https://evil.example/logout",
            ),
            ("HTTPS://shop.example?x=1", Some("shop.example"), "/?x=1"),
            ("http://shop.example", Some("shop.example"), "/"),
            ("products/42", None, "/products/42"),
        ] {
            let target = WarmTarget::from(url);
            assert_eq!((target.host.as_deref(), &*target.path), (host, path), "{url}");
        }
        let request =
            Request::get("/a?u=http://b/").header("host", "shop.example").body(()).unwrap();
        let target = WarmTarget::try_from(request).unwrap();
        assert_eq!(
            (target.host.as_deref(), &*target.path),
            (Some("shop.example"), "/a?u=http://b/")
        );
        assert!(WarmTarget::from("http://user:password@shop.example/").refusal().is_some());
    }
}
