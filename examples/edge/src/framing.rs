//! Checks the framing and routing fields of a message before the proxy relies on them.

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use larder_semantics::{authority::without_user, list};

/// The reason the proxy answers a request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MalformedRequest {
    /// It has no `Host`, which HTTP/1.1 demands.
    NoHost,
    /// Its content has a transfer coding that the proxy would have to decode.
    TransferCoding,
    /// It has passed through this proxy before.
    Loop,
    /// Its `Max-Forwards` is 0: it must not be forwarded any further.
    LastHop,
}

impl MalformedRequest {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NoHost => StatusCode::BAD_REQUEST,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::LastHop => StatusCode::OK,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::NoHost => "a request of HTTP/1.1 needs a Host field\n",
            Self::TransferCoding => "the only transfer coding supported is chunked\n",
            Self::Loop => {
                "a loop: the request has already passed through this proxy; check --origin\n"
            }
            Self::LastHop => "Max-Forwards is 0: the request is not forwarded\n",
        }
    }
}

/// Checks a request, before its hop-by-hop fields are removed.
///
/// # Source
///
/// RFC 9112, sections 3.2 and 6.1; RFC 9110, sections 7.6.2 and 7.6.3
pub(crate) fn check<B>(
    request: &mut http::Request<B>,
    pseudonym: &str,
) -> Result<(), MalformedRequest> {
    let has_host = request.headers().get(header::HOST).is_some_and(|host| !host.is_empty())
        || request.uri().authority().is_some_and(|authority| !authority.as_str().is_empty());
    if !has_host && request.version() == Version::HTTP_11 {
        return Err(MalformedRequest::NoHost);
    }
    if has_other_coding(request.headers()) {
        return Err(MalformedRequest::TransferCoding);
    }
    let passed = |member: &str| member.split_ascii_whitespace().any(|word| word == pseudonym);
    if list::members(request.headers(), &header::VIA).any(passed) {
        return Err(MalformedRequest::Loop);
    }
    if [Method::OPTIONS, Method::TRACE].contains(request.method())
        && let Some(left) = request.headers().get(header::MAX_FORWARDS)
        && let Some(left) = left.to_str().ok().and_then(|left| left.parse::<u32>().ok())
    {
        let Some(left) = left.checked_sub(1) else { return Err(MalformedRequest::LastHop) };
        request.headers_mut().insert(header::MAX_FORWARDS, left.into());
    }
    strip_user(request.headers_mut());
    Ok(())
}

/// Checks that the framing of a response is the one that was decoded. Removes `Content-Length` beside
/// `Transfer-Encoding`.
///
/// # Source
///
/// RFC 9112, section 6.3
pub(crate) fn check_response(headers: &mut HeaderMap) -> Result<(), MalformedRequest> {
    if has_other_coding(headers) {
        return Err(MalformedRequest::TransferCoding);
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    Ok(())
}

fn has_other_coding(headers: &HeaderMap) -> bool {
    headers.get_all(header::TRANSFER_ENCODING).iter().any(|line| {
        let chunked = |coding: &str| coding.eq_ignore_ascii_case("chunked");
        line.to_str().map_or(true, |line| !list::split(line).all(chunked))
    })
}

/// Source: RFC 9110, section 4.2.4
fn strip_user(headers: &mut HeaderMap) {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if let Some(host) = host
        && host.contains('@')
        && let Ok(stripped) = HeaderValue::from_str(without_user(host))
    {
        headers.insert(header::HOST, stripped);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn requests_are_checked() {
        type Fields = &'static [(&'static str, &'static str)];
        let rows: [(&str, Fields, Result<(), MalformedRequest>); 12] = [
            ("GET", &[("host", "a.example")], Ok(())),
            ("GET", &[], Err(MalformedRequest::NoHost)),
            ("GET", &[("host", "")], Err(MalformedRequest::NoHost)),
            ("GET", &[("host", "a"), ("via", "1.1 other, 1.1 me")], Err(MalformedRequest::Loop)),
            ("GET", &[("host", "a"), ("via", "1.1 other")], Ok(())),
            ("POST", &[("host", "a"), ("transfer-encoding", "Chunked")], Ok(())),
            (
                "POST",
                &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
                Err(MalformedRequest::TransferCoding),
            ),
            ("OPTIONS", &[("host", "a"), ("max-forwards", "0")], Err(MalformedRequest::LastHop)),
            ("TRACE", &[("host", "a"), ("max-forwards", "0")], Err(MalformedRequest::LastHop)),
            ("OPTIONS", &[("host", "a"), ("max-forwards", "1")], Ok(())),
            ("OPTIONS", &[("host", "a"), ("max-forwards", "x")], Ok(())),
            ("GET", &[("host", "a"), ("max-forwards", "0")], Ok(())),
        ];
        for (method, fields, expected) in rows {
            let mut request = Request::builder().method(method).uri("/");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let mut request = request.body(()).expect("a valid request");
            assert_eq!(check(&mut request, "me"), expected, "{method} {fields:?}");
        }
        let mut request = Request::options("/").header("host", "u:p@a.example:8080");
        request = request.header("max-forwards", "3");
        let mut request = request.body(()).expect("a valid request");
        assert_eq!(check(&mut request, "me"), Ok(()));
        assert_eq!(request.headers()["max-forwards"], "2");
        assert_eq!(request.headers()["host"], "a.example:8080");
        let mut old = Request::get("/").version(Version::HTTP_10).body(()).expect("valid");
        assert_eq!(check(&mut old, "me"), Ok(()), "HTTP/1.0 has no Host");
    }

    #[test]
    fn content_length_beside_transfer_encoding_is_removed() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("3"));
        assert_eq!(check_response(&mut headers), Ok(()));
        assert!(headers.contains_key(header::CONTENT_LENGTH));
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        assert_eq!(check_response(&mut headers), Ok(()));
        assert!(!headers.contains_key(header::CONTENT_LENGTH));
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("gzip, chunked"));
        assert_eq!(check_response(&mut headers), Err(MalformedRequest::TransferCoding));
    }
}
