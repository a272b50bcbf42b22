//! What a client gets of a response that is at hand: all of it, a part, or the word that it has it already.
//!
//! # Source
//!
//! [RFC 9111, section 4.3.2](https://www.rfc-editor.org/rfc/rfc9111#section-4.3.2) for conditions,
//! [RFC 9110, section 14](https://www.rfc-editor.org/rfc/rfc9110#section-14) for parts.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use larder_semantics::{
    freshness, list,
    ranges::{self, ByteRange, Selection},
    validation::{self, Condition, Validators},
};

use super::stored::Part;
use crate::{body::CacheBody, conditional::not_modified, etag};

/// The answer to a request with these fields, of a response that is the whole representation.
pub(super) fn fitted<R>(
    asked: &HeaderMap,
    head_only: bool,
    tagged_by: Option<&str>,
    response: Response<CacheBody<R>>,
) -> Response<CacheBody<R>> {
    if ![StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&response.status()) {
        return response;
    }
    if client_has_it(asked, response.headers()) {
        return not_modified(response.headers());
    }
    let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
    if is_part || head_only || !ranges::if_range_holds(asked, response.headers()) {
        return response;
    }
    let Some(body) = response.body().as_held().cloned() else { return response };
    if tagged_by.is_some_and(|version| may_have_it_coded(asked, response.headers(), &body, version))
    {
        return response;
    }
    let total = body.len() as u64;
    match ranges::select(asked, total) {
        Selection::Whole => response,
        Selection::Unsatisfiable => unsatisfiable(response.headers(), total),
        Selection::Parts(parts) => match parts[..] {
            [range] => part_of(response, &body, &Part { range, total }, 0),
            _ => several_parts(response, &body, &parts),
        },
    }
}

/// The answer to a request that asks for a part of what is itself a part. `None` where it does not cover it.
pub(super) fn fitted_part<R>(
    asked: &HeaderMap,
    response: Response<CacheBody<R>>,
    kept: &Part,
) -> Option<Response<CacheBody<R>>> {
    if client_has_it(asked, response.headers()) {
        return Some(not_modified(response.headers()));
    }
    if !ranges::if_range_holds(asked, response.headers()) {
        return None;
    }
    let Selection::Parts(parts) = ranges::select(asked, kept.total) else { return None };
    match parts[..] {
        [range] if kept.range.covers(&range) => {
            let body = response.body().as_held()?.clone();
            let part = Part { range, total: kept.total };
            Some(part_of(response, &body, &part, kept.range.first))
        }
        _ => None,
    }
}

fn client_has_it(asked: &HeaderMap, fields: &HeaderMap) -> bool {
    let mut current = Validators::of(fields);
    // Without one, what is kept was as it is at least when it was made.
    current.last_modified = current.last_modified.or_else(|| freshness::date(fields));
    let condition = validation::evaluate_savers(&Method::GET, asked, &current);
    condition == Condition::NotModified
}

/// Whether what the client has of this may be a part of other bytes. A compression around this cache leaves our tag
/// on bytes of its own: whoever has the beginning of those would put the end of ours behind it.
fn may_have_it_coded(asked: &HeaderMap, fields: &HeaderMap, body: &Bytes, version: &str) -> bool {
    let is_coded = |member: &str| {
        let member = member.to_ascii_lowercase();
        let (name, weight) = member.split_once(';').unwrap_or((&member, ""));
        let refused =
            weight.trim().strip_prefix("q=").is_some_and(|q| q.trim_matches(['0', '.']).is_empty());
        name.trim() != "identity" && !refused
    };
    list::members(asked, &header::ACCEPT_ENCODING).any(is_coded)
        && asked.contains_key(header::IF_RANGE)
        && !fields.contains_key(header::CONTENT_ENCODING)
        && fields.get(header::ETAG) == Some(&etag::of(body, version).to_value())
}

/// 206 with one part, of bytes that begin at `offset`.
fn part_of<R>(
    response: Response<CacheBody<R>>,
    body: &Bytes,
    part: &Part,
    offset: u64,
) -> Response<CacheBody<R>> {
    let (mut head, _) = response.into_parts();
    head.status = StatusCode::PARTIAL_CONTENT;
    let bytes = slice(body, &part.range, offset);
    head.headers.insert(header::CONTENT_RANGE, value(&ranges::format(&part.range, part.total)));
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Response::from_parts(head, CacheBody::held(bytes))
}

/// 206 as `multipart/byteranges`.
fn several_parts<R>(
    response: Response<CacheBody<R>>,
    body: &Bytes,
    parts: &[ByteRange],
) -> Response<CacheBody<R>> {
    let (mut head, _) = response.into_parts();
    head.status = StatusCode::PARTIAL_CONTENT;
    let kind = head.headers.get(header::CONTENT_TYPE).cloned();
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

/// 416: nothing of what was asked for is there.
fn unsatisfiable<R>(fields: &HeaderMap, total: u64) -> Response<CacheBody<R>> {
    let mut response = Response::new(CacheBody::empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    for name in [header::DATE, header::CACHE_STATUS] {
        if let Some(value) = fields.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
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

/// Long enough that no body contains it by chance; a body that contains it on purpose harms only those who
/// read that body.
const BOUNDARY: &str = "larder-8f3b1c6e9d2a4750";

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

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
    fn conditions_come_before_parts_and_parts_before_the_whole() {
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
            let answer = fitted(&asked(lines), false, None, whole());
            assert_eq!(
                (answer.status().as_u16(), &*body(&answer)),
                (*status, *content),
                "{section}"
            );
        }
        let mut part = whole();
        *part.status_mut() = StatusCode::PARTIAL_CONTENT;
        let held = asked(&[("if-none-match", "\"a\""), ("range", "bytes=0-9")]);
        assert_eq!(
            fitted(&held, false, None, part).status(),
            304,
            "RFC 9110 13.2.2, of what came as a part"
        );
        let answer = fitted(&asked(&[("range", "bytes=2-4")]), false, None, whole());
        assert_eq!(answer.headers()[header::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], "3");
    }

    /// A compression around the cache leaves our tag on its own bytes, and the client joined the two.
    #[test]
    fn whoever_may_have_compressed_bytes_under_our_tag_gets_no_part_to_join_them_with() {
        let bytes = Bytes::from_static(b"0123456789");
        let ours = etag::of(&bytes, "").to_string();
        let ask = |tag: &str, accepts: &str, range_of: Option<&str>| {
            let mut response: Response<CacheBody<String>> =
                Response::new(CacheBody::held(bytes.clone()));
            response.headers_mut().insert(header::ETAG, value(tag));
            let mut asked = asked(&[("range", "bytes=5-")]);
            asked.insert(header::ACCEPT_ENCODING, value(accepts));
            if let Some(tag) = range_of {
                asked.insert(header::IF_RANGE, value(tag));
            }
            fitted(&asked, false, Some(""), response).status().as_u16()
        };
        assert_eq!(ask(&ours, "gzip, br", Some(&ours)), 200);
        for identical in ["identity", "identity;q=1, *;q=0", "gzip;q=0.0"] {
            assert_eq!(ask(&ours, identical, Some(&ours)), 206, "{identical}");
        }
        assert_eq!(ask(&ours, "gzip", None), 206, "it has nothing to join it with");
        assert_eq!(ask("\"mine\"", "gzip", Some("\"mine\"")), 206, "the handler knows its tags");
    }

    #[test]
    fn several_parts_say_which_they_are() {
        let answer = fitted(&asked(&[("range", "bytes=0-1, 8-9")]), false, None, whole());
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
    fn a_part_of_a_part_is_given_where_it_is_covered() {
        let kept = Part { range: ByteRange { first: 100, last: 109 }, total: 1000 };
        let ask = |range| fitted_part(&asked(&[("range", range)]), whole(), &kept);
        let answer = ask("bytes=102-104").unwrap();
        assert_eq!(body(&answer), "234");
        assert_eq!(answer.headers()[header::CONTENT_RANGE], "bytes 102-104/1000");
        for range in ["bytes=0-5", "bytes=105-110", "bytes=102-103,105-106"] {
            assert!(ask(range).is_none(), "{range}");
        }
    }
}
