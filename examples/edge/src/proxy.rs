//! Forwards requests to the origin, and its responses to the client.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use larder::http::CacheBody;
use larder_semantics::fields::remove_hop_by_hop;
use tokio::time::timeout;

use crate::framing::check_response;

/// The body of the origin's response, or of an error of the proxy.
pub(crate) type ProxyBody = Either<
    Incoming,
    http_body_util::combinators::MapErr<Full<Bytes>, fn(std::convert::Infallible) -> hyper::Error>,
>;

/// A client for one origin.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    client: Client<HttpConnector, CacheBody<Incoming>>,
    scheme: uri::Scheme,
    authority: uri::Authority,
    /// The name of this process in `Via`, by which it recognises its own requests.
    pseudonym: String,
}

impl Proxy {
    /// A client for this origin: `http://` and an authority, nothing else.
    pub(crate) fn new(origin: &Uri) -> Result<Self, String> {
        let parts = origin.clone().into_parts();
        let plain = parts.path_and_query.as_ref().is_none_or(|path| path == "/");
        match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority)) if scheme == uri::Scheme::HTTP && plain => {
                let mut connector = HttpConnector::new();
                connector.set_connect_timeout(Some(CONNECT_LIMIT));
                let client = Client::builder(TokioExecutor::new()).build(connector);
                let chance = RandomState::new().hash_one(std::process::id());
                let pseudonym = format!("larder-{:08x}", chance & 0xffff_ffff);
                Ok(Self { client, scheme, authority, pseudonym })
            }
            _ => Err(format!("--origin is {origin}, allowed is http://HOST:PORT")),
        }
    }

    /// Forwards a request to the origin. Answers 502 if the origin cannot be reached, and 504 if it sends no head
    /// within 60 seconds for a request without content.
    pub(crate) async fn forward(
        &self,
        mut request: Request<CacheBody<Incoming>>,
    ) -> Response<ProxyBody> {
        self.address(&mut request);
        // The HTTP/1 server of hyper cannot send interim responses: they are only logged.
        hyper::ext::on_informational(&mut request, |interim| {
            tracing::debug!(status = %interim.status(), "interim response of the origin");
        });
        // With content the limit would include the time that the client takes to send it.
        let limit = if request.body().is_end_stream() { HEAD_LIMIT } else { Duration::MAX };
        match timeout(limit, self.request(request)).await {
            Ok(Ok(mut response)) => {
                if let Err(refused) = check_response(response.headers_mut()) {
                    return failure(StatusCode::BAD_GATEWAY, refused.text().to_owned());
                }
                remove_hop_by_hop(response.headers_mut());
                *response.version_mut() = Version::HTTP_11;
                response.map(Either::Left)
            }
            Ok(Err(error)) => {
                let text = format!("the origin cannot be reached: {error}\n");
                failure(StatusCode::BAD_GATEWAY, text)
            }
            Err(_) => {
                let text = format!("the origin did not answer within {HEAD_LIMIT:?}\n");
                failure(StatusCode::GATEWAY_TIMEOUT, text)
            }
        }
    }

    /// Sends a request, and retries it once where that is safe and the origin has closed the connection without a
    /// response: it may have closed the idle connection while the request was on its way.
    ///
    /// Source: RFC 9110, section 9.2.2
    async fn request(
        &self,
        request: Request<CacheBody<Incoming>>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        let repeatable = request.method().is_safe() && request.body().is_end_stream();
        let (head, body) = request.into_parts();
        let again = repeatable.then(|| head.clone());
        let error = match self.client.request(Request::from_parts(head, body)).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        match again {
            Some(head) if !error.is_connect() => {
                tracing::debug!(%error, "the origin closed the connection without a response: retrying once");
                self.client.request(Request::from_parts(head, CacheBody::empty())).await
            }
            _ => Err(error),
        }
    }

    /// The name of this process in `Via`.
    pub(crate) fn pseudonym(&self) -> &str {
        &self.pseudonym
    }

    /// Sets the URI to that of the origin, and adds `Via`; `Host` stays as the client sent it.
    fn address<B>(&self, request: &mut Request<B>) {
        let via = HeaderValue::from_str(&format!("1.1 {}", self.pseudonym));
        request.headers_mut().append(header::VIA, via.expect("hexadecimal digits are ASCII"));
        if !request.headers().contains_key(header::HOST)
            && let Some(asked) = request.uri().authority()
            && let Ok(host) = HeaderValue::from_str(asked.as_str())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        join_cookies(request.headers_mut());
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        let path = request.uri().path_and_query().cloned();
        parts.path_and_query = path.or_else(|| Some(uri::PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(parts).expect("all three were parts of a URI");
        *request.version_mut() = Version::HTTP_11;
    }
}

/// Joins cookies into one line, as HTTP/1 requires: HTTP/2 may send each in a line of its own.
///
/// Source: RFC 9113, section 8.2.3.
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1 {
        let joined = HeaderValue::from_bytes(&lines.join(&b"; "[..]));
        headers.insert(header::COOKIE, joined.expect("these bytes were parts of fields"));
    }
}

fn failure(status: StatusCode, text: String) -> Response<ProxyBody> {
    let never: fn(std::convert::Infallible) -> hyper::Error = |never| match never {};
    let mut response = Response::new(Either::Right(Full::from(text).map_err(never)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The time the origin has to send the head of its response.
const HEAD_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_of_several_lines_become_one() {
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "b=2", "c=3"] {
            headers.append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        join_cookies(&mut headers);
        let lines: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(lines, ["a=1; b=2; c=3"]);
    }
}
