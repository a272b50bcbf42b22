//! Passes requests on to the origin, and its responses back.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use larder::{http::CacheBody, semantics::fields::remove_hop_by_hop};

/// The body of the origin, or that of an error of ours.
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
}

impl Proxy {
    /// A client for this origin: `http://` and an authority, nothing else.
    pub(crate) fn new(origin: &Uri) -> Result<Self, String> {
        let parts = origin.clone().into_parts();
        let plain = parts.path_and_query.as_ref().is_none_or(|path| path == "/");
        match (parts.scheme, parts.authority) {
            (Some(scheme), Some(authority)) if scheme == uri::Scheme::HTTP && plain => {
                // What the client of hyper sends again it had not begun to send: the origin sees each
                // request once.
                let client = Client::builder(TokioExecutor::new()).build_http();
                Ok(Self { client, scheme, authority })
            }
            _ => Err(format!("--origin is {origin}, allowed is http://HOST:PORT")),
        }
    }

    /// Asks the origin. One that is gone is a 502.
    pub(crate) async fn forward(
        &self,
        mut request: Request<CacheBody<Incoming>>,
    ) -> Response<ProxyBody> {
        self.address(&mut request);
        // An HTTP/1 server of hyper cannot send them on; they are for the log alone.
        hyper::ext::on_informational(&mut request, |interim| {
            tracing::debug!(status = %interim.status(), "interim response of the origin");
        });
        match self.client.request(request).await {
            Ok(mut response) => {
                remove_hop_by_hop(response.headers_mut());
                *response.version_mut() = Version::HTTP_11;
                response.map(Either::Left)
            }
            Err(error) => {
                let text = format!("the origin cannot be reached: {error}\n");
                bad_gateway(text)
            }
        }
    }

    /// Makes the request one to the origin; `Host` stays what the client asked for.
    fn address<B>(&self, request: &mut Request<B>) {
        request.headers_mut().append(header::VIA, HeaderValue::from_static("1.1 larder"));
        if !request.headers().contains_key(header::HOST)
            && let Some(asked) = request.uri().authority()
            && let Ok(host) = HeaderValue::from_str(asked.as_str())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        let path = request.uri().path_and_query().cloned();
        parts.path_and_query = path.or_else(|| Some(uri::PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        *request.version_mut() = Version::HTTP_11;
    }
}

fn bad_gateway(text: String) -> Response<ProxyBody> {
    let never: fn(std::convert::Infallible) -> hyper::Error = |never| match never {};
    let mut response = Response::new(Either::Right(Full::from(text).map_err(never)));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
