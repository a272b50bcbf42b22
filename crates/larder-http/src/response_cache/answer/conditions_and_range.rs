//! Turns a response into 200, 206, 304 or 416 according to the conditions and ranges of the request.
//!
//! # Source
//!
//! [RFC 9111, section 4.3.2](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.2) for conditions, [RFC 9110,
//! section 14](https://www.rfc-editor.org/rfc/rfc9110#section-14) for ranges.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use larder_semantics::{
    fields, freshness, list,
    ranges::{self, ByteRange, Selection},
    validation::{self, Condition, Validators},
};

use crate::{body::CacheBody, conditional::not_modified, response_cache::stored::Part};

/// How the conditions and the range of a request apply to a full response.
#[derive(Clone, Copy, Debug)]
pub(in crate::response_cache) struct ConditionsAndRange {
    /// Whether the request is a HEAD.
    pub(in crate::response_cache) head_only: bool,
    /// Whether the response comes from the cache. For any other response, the origin has already evaluated the
    /// conditions.
    pub(in crate::response_cache) is_stored: bool,
    /// Whether larder sends a 206 only to clients that accept no content coding.
    pub(in crate::response_cache) avoids_coded: bool,
}

/// Applies the conditions and the range of a request to a response that is the full representation.
pub(in crate::response_cache) fn apply_conditions<R>(
    request_headers: &HeaderMap,
    mode: ConditionsAndRange,
    response: Response<CacheBody<R>>,
) -> Response<CacheBody<R>> {
    if ![StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&response.status()) {
        return response;
    }
    if client_has_it(request_headers, response.headers(), mode.is_stored) {
        return not_modified(response.headers());
    }
    let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
    if is_part || mode.head_only || !ranges::if_range_holds(request_headers, response.headers()) {
        return response;
    }
    let Some(body) = response.body().as_held().cloned() else { return response };
    if mode.avoids_coded && may_have_it_coded(request_headers, response.headers()) {
        return response;
    }
    let total = body.len() as u64;
    match ranges::select(request_headers, total) {
        Selection::Whole => response,
        Selection::Unsatisfiable => unsatisfiable(response.headers(), total),
        Selection::Parts(parts) => match parts[..] {
            [range] => part_of(response, &body, &Part { range, total }, 0),
            _ => several_parts(response, &body, &parts),
        },
    }
}

/// Answers a range request from a partial response. Returns `None` if the response does not cover the range.
pub(in crate::response_cache) fn apply_conditions_to_part<R>(
    request_headers: &HeaderMap,
    response: Response<CacheBody<R>>,
    stored_part: &Part,
) -> Option<Response<CacheBody<R>>> {
    if client_has_it(request_headers, response.headers(), true) {
        return Some(not_modified(response.headers()));
    }
    if !ranges::if_range_holds(request_headers, response.headers()) {
        return None;
    }
    let Selection::Parts(parts) = ranges::select(request_headers, stored_part.total) else {
        return None;
    };
    match parts[..] {
        [range] if stored_part.range.covers(&range) => {
            let body = response.body().as_held()?.clone();
            let part = Part { range, total: stored_part.total };
            Some(part_of(response, &body, &part, stored_part.range.first))
        }
        _ => None,
    }
}

fn client_has_it(request_headers: &HeaderMap, fields: &HeaderMap, is_stored: bool) -> bool {
    let mut current = Validators::of(fields);
    if is_stored {
        // A stored response without `Last-Modified` was current at least at its `Date` (RFC 9111, section 4.3.2).
        current.last_modified = current.last_modified.or_else(|| freshness::date(fields));
    }
    let condition = validation::evaluate_not_modified(&Method::GET, request_headers, &current);
    condition == Condition::NotModified
}

/// Whether the client may have this representation in a content coding. A compression layer around this cache encodes
/// full responses and does not remove their strong `ETag`. A client that has the beginning of the encoded bytes would
/// append the end of the bytes that are not encoded, and the layer would compress a multipart 206 as if it were a page.
fn may_have_it_coded(request_headers: &HeaderMap, fields: &HeaderMap) -> bool {
    let is_coded = |member: &str| {
        let member = member.to_ascii_lowercase();
        let (name, weight) = member.split_once(';').unwrap_or((&member, ""));
        let refused =
            weight.trim().strip_prefix("q=").is_some_and(|q| q.trim_matches(['0', '.']).is_empty());
        name.trim() != "identity" && !refused
    };
    let kind = fields.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_image = kind.is_some_and(|kind| kind.starts_with("image/") && !kind.contains("svg"));
    list::members(request_headers, &header::ACCEPT_ENCODING).any(is_coded)
        && !fields.contains_key(header::CONTENT_ENCODING)
        && !is_image
}

/// Returns a 206 with one range. The bytes of `body` begin at `offset`.
fn part_of<R>(
    response: Response<CacheBody<R>>,
    body: &Bytes,
    part: &Part,
    offset: u64,
) -> Response<CacheBody<R>> {
    let (mut head, _) = response.into_parts();
    head.status = StatusCode::PARTIAL_CONTENT;
    let bytes = slice(body, &part.range, offset);
    if bytes.len() != body.len() {
        fields::remove_of_content(&mut head.headers);
    }
    head.headers.insert(header::CONTENT_RANGE, value(&ranges::format(&part.range, part.total)));
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Response::from_parts(head, CacheBody::held(bytes))
}

/// Returns a 206 with several ranges, as `multipart/byteranges`.
fn several_parts<R>(
    response: Response<CacheBody<R>>,
    body: &Bytes,
    parts: &[ByteRange],
) -> Response<CacheBody<R>> {
    let (mut head, _) = response.into_parts();
    head.status = StatusCode::PARTIAL_CONTENT;
    let kind = head.headers.get(header::CONTENT_TYPE).cloned();
    fields::remove_of_content(&mut head.headers);
    let mut bytes = BytesMut::new();
    for part in parts {
        bytes.put_slice(format!("\r\n--{BOUNDARY}\r\n").as_bytes());
        if let Some(kind) = &kind {
            bytes.put_slice(b"content-type: ");
            bytes.put_slice(kind.as_bytes());
            bytes.put_slice(b"\r\n");
        }
        let range = ranges::format(part, body.len() as u64);
        bytes.put_slice(format!("content-range: {range}\r\n\r\n").as_bytes());
        bytes.put_slice(&slice(body, part, 0));
    }
    bytes.put_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let multipart = format!("multipart/byteranges; boundary={BOUNDARY}");
    head.headers.insert(header::CONTENT_TYPE, value(&multipart));
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Response::from_parts(head, CacheBody::held(bytes.freeze()))
}

/// Returns a 416, because the representation has none of the requested ranges.
fn unsatisfiable<R>(fields: &HeaderMap, total: u64) -> Response<CacheBody<R>> {
    let mut response = Response::new(CacheBody::empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    for (name, value) in fields.iter().filter(|(name, _)| fields::belongs_in_error(name)) {
        response.headers_mut().append(name, value.clone());
    }
    let range = value(&ranges::format_unsatisfied(total));
    response.headers_mut().insert(header::CONTENT_RANGE, range);
    response
}

fn slice(body: &Bytes, range: &ByteRange, offset: u64) -> Bytes {
    let at = |place: u64| usize::try_from(place - offset).expect("a range lies in its body");
    body.slice(at(range.first)..=at(range.last))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("numbers and tokens are visible ASCII")
}

/// The boundary is so long that no body contains it by chance. A body that contains it on purpose harms only its own
/// readers.
const BOUNDARY: &str = "larder-8f3b1c6e9d2a4750";

#[cfg(test)]
mod tests {
    use super::*;

    fn request_headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    const STORED: ConditionsAndRange =
        ConditionsAndRange { head_only: false, is_stored: true, avoids_coded: false };

    fn whole() -> Response<CacheBody<String>> {
        let mut response = Response::new(CacheBody::held(Bytes::from_static(b"0123456789")));
        response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"a\""));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response
    }

    fn body(response: &Response<CacheBody<String>>) -> String {
        String::from_utf8(response.body().as_held().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn conditions_come_before_ranges_and_ranges_before_the_full_response() {
        // Fields, status, content, section.
        type Row = (&'static [(&'static str, &'static str)], u16, &'static str, &'static str);
        let rows: &[Row] = &[
            (&[], 200, "0123456789", "RFC 9110 9.3.1"),
            (&[("if-none-match", "\"a\"")], 304, "", "RFC 9111 4.3.2"),
            (&[("if-none-match", "\"a\""), ("range", "bytes=0-1")], 304, "", "RFC 9110 13.2.2"),
            (&[("range", "bytes=2-4")], 206, "234", "RFC 9110 14.2"),
            (&[("range", "bytes=-2")], 206, "89", "RFC 9110 14.1.2"),
            (&[("range", "bytes=2-4"), ("if-range", "\"a\"")], 206, "234", "RFC 9110 13.1.5"),
            (
                &[("range", "bytes=2-4"), ("if-range", "\"b\"")],
                200,
                "0123456789",
                "RFC 9110 13.1.5",
            ),
            (&[("range", "bytes=99-")], 416, "", "RFC 9110 15.5.17"),
        ];
        for (lines, status, content, section) in rows {
            let answer = apply_conditions(&request_headers(lines), STORED, whole());
            assert_eq!(
                (answer.status().as_u16(), &*body(&answer)),
                (*status, *content),
                "{section}"
            );
        }
        let mut part = whole();
        *part.status_mut() = StatusCode::PARTIAL_CONTENT;
        let held = request_headers(&[("if-none-match", "\"a\""), ("range", "bytes=0-9")]);
        assert_eq!(
            apply_conditions(&held, STORED, part).status(),
            304,
            "RFC 9110 13.2.2, for a partial response"
        );
        let answer = apply_conditions(&request_headers(&[("range", "bytes=2-4")]), STORED, whole());
        assert_eq!(answer.headers()[header::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], "3");
    }

    /// Regression: a compression layer around the cache did not remove the `ETag` from the bytes that it encoded, and
    /// the client combined these bytes with others. The layer also compressed a multipart 206 as if it were a page.
    #[test]
    fn a_client_that_may_have_encoded_bytes_gets_no_206_to_combine_with_them() {
        let ask = |kind: &'static str, accepts: &str, fields: &[(&'static str, &'static str)]| {
            let mut response = whole();
            response.headers_mut().insert(header::CONTENT_TYPE, value(kind));
            let mut request_headers = request_headers(fields);
            request_headers.insert(header::ACCEPT_ENCODING, value(accepts));
            let mode = ConditionsAndRange { avoids_coded: true, ..STORED };
            apply_conditions(&request_headers, mode, response).status().as_u16()
        };
        let rows: [&[(&'static str, &'static str)]; 3] = [
            &[("range", "bytes=5-")],
            &[("range", "bytes=5-"), ("if-range", "\"a\"")],
            &[("range", "bytes=0-1, 5-6")],
        ];
        for fields in rows {
            assert_eq!(ask("text/plain", "gzip, br", fields), 200, "{fields:?}");
            assert_eq!(ask("image/svg+xml", "*", fields), 200, "{fields:?}");
            assert_eq!(ask("image/png", "gzip", fields), 206, "{fields:?}: never compressed");
            for identical in ["identity", "identity;q=1, *;q=0", "gzip;q=0.0", ""] {
                assert_eq!(ask("text/plain", identical, fields), 206, "{identical} {fields:?}");
            }
        }
    }

    #[test]
    fn digests_of_the_full_content_are_removed_from_a_206() {
        let digests = |mut response: Response<CacheBody<String>>| {
            for name in ["content-digest", "content-md5", "repr-digest"] {
                response.headers_mut().insert(name, value("sha-256=:AA==:"));
            }
            response
        };
        // Request fields, the digests that are left.
        type Row = (&'static [(&'static str, &'static str)], [bool; 3]);
        let rows: &[Row] = &[
            (&[], [true, true, true]),
            (&[("range", "bytes=2-4")], [false, false, true]),
            (&[("range", "bytes=0-9")], [true, true, true]),
            (&[("range", "bytes=0-1, 8-9")], [false, false, true]),
            (&[("range", "bytes=99-")], [false, false, false]),
            (&[("if-none-match", "\"a\"")], [false, false, true]),
        ];
        for (lines, left) in rows {
            let answer = apply_conditions(&request_headers(lines), STORED, digests(whole()));
            let found = ["content-digest", "content-md5", "repr-digest"]
                .map(|name| answer.headers().contains_key(name));
            assert_eq!(found, *left, "{lines:?} (RFC 9530 2)");
        }
    }

    #[test]
    fn a_416_has_only_the_fields_that_are_not_about_the_content() {
        let mut response = whole();
        let fields = [
            ("access-control-allow-origin", "*"),
            ("vary", "origin"),
            ("strict-transport-security", "max-age=1"),
            ("content-security-policy", "default-src 'self'"),
            ("cache-control", "max-age=60"),
            ("cdn-cache-control", "max-age=60"),
            ("expires", "0"),
            ("content-language", "de"),
        ];
        for (name, text) in fields {
            response.headers_mut().insert(name, value(text));
        }
        let answer =
            apply_conditions(&request_headers(&[("range", "bytes=99-")]), STORED, response);
        let mut names: Vec<_> = answer.headers().keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "access-control-allow-origin",
            "content-range",
            "content-security-policy",
            "strict-transport-security",
            "vary",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn date_replaces_a_missing_last_modified_of_stored_responses_only() {
        let dated = || {
            let mut response: Response<CacheBody<String>> =
                Response::new(CacheBody::held(Bytes::from_static(b"0123456789")));
            let date = value("Thu, 01 Jan 1970 00:00:10 GMT");
            response.headers_mut().insert(header::DATE, date);
            response
        };
        let since = request_headers(&[("if-modified-since", "Thu, 01 Jan 1970 01:00:00 GMT")]);
        let status = |is_stored| {
            apply_conditions(&since, ConditionsAndRange { is_stored, ..STORED }, dated()).status()
        };
        assert_eq!(status(true), 304, "RFC 9111 4.3.2");
        assert_eq!(status(false), 200, "RFC 9110 13.1.3: the origin has evaluated it");
    }

    #[test]
    fn a_304_has_last_modified_only_without_an_etag() {
        for (has_etag, is_left) in [(true, false), (false, true)] {
            let mut response = whole();
            let changed = value("Thu, 01 Jan 1970 00:00:00 GMT");
            response.headers_mut().insert(header::LAST_MODIFIED, changed);
            if !has_etag {
                response.headers_mut().remove(header::ETAG);
            }
            let since = request_headers(&[("if-modified-since", "Thu, 01 Jan 1970 01:00:00 GMT")]);
            let answer = apply_conditions(&since, STORED, response);
            assert_eq!(answer.status(), 304);
            assert_eq!(answer.headers().contains_key(header::LAST_MODIFIED), is_left);
        }
    }

    #[test]
    fn a_multipart_206_names_the_range_of_each_part() {
        let answer =
            apply_conditions(&request_headers(&[("range", "bytes=0-1, 8-9")]), STORED, whole());
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
        let text = body(&answer);
        let part = |range: &str, content: &str| {
            let head = format!("--{BOUNDARY}\r\ncontent-type: text/plain\r\n");
            format!("{head}content-range: bytes {range}/10\r\n\r\n{content}\r\n")
        };
        assert!(text.contains(&part("0-1", "01")) && text.contains(&part("8-9", "89")), "{text}");
        assert!(text.ends_with(&format!("--{BOUNDARY}--\r\n")));
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], text.len().to_string());
    }

    #[test]
    fn a_stored_partial_response_serves_the_ranges_that_it_covers() {
        let stored_part = Part { range: ByteRange { first: 100, last: 109 }, total: 1000 };
        let ask = |range| {
            apply_conditions_to_part(&request_headers(&[("range", range)]), whole(), &stored_part)
        };
        let answer = ask("bytes=102-104").unwrap();
        assert_eq!(body(&answer), "234");
        assert_eq!(answer.headers()[header::CONTENT_RANGE], "bytes 102-104/1000");
        for range in ["bytes=0-5", "bytes=105-110", "bytes=102-103,105-106"] {
            assert!(ask(range).is_none(), "{range}");
        }
    }
}
