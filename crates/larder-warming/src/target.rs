//! What is warmed.

use http::{HeaderMap, HeaderName, Method, Request, Uri, header};

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
    /// Creates the target of a line of an access log.
    pub(crate) fn logged(path: String) -> Self {
        Self { source: Source::Log, ..Self::from(path) }
    }

    /// Returns the path without its query.
    pub(crate) fn path_alone(&self) -> &str {
        self.path.split(['?', '#']).next().unwrap_or_default()
    }

    /// Returns why the target is never warmed.
    pub(crate) fn refusal(&self) -> Option<String> {
        let named = |name: &&HeaderName| CREDENTIALS.contains(name);
        match self.headers.keys().find(named) {
            Some(name) => Some(format!(
                "the request has the field {name}, and credentials are never sent to warm the cache"
            )),
            None if self.path.parse::<Uri>().is_err() => Some("the path is not valid".to_owned()),
            None => None,
        }
    }
}

impl From<&str> for WarmTarget {
    fn from(url: &str) -> Self {
        let after_scheme = url.split_once("://").map(|(_, rest)| rest);
        let (host, path) = match after_scheme {
            Some(rest) => {
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
        let mut target = Self::from(head.uri.to_string());
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        target.host = target.host.or_else(|| host.map(str::to_owned));
        target.headers = head.headers;
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

const CREDENTIALS: [HeaderName; 3] =
    [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
