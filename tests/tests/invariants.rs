//! The invariants of the fuzz targets, on exchanges drawn from the fields and words that a cache reads.

use larder_testkit::invariants::{self, Exchange};
use proptest::prelude::*;

/// A line of a message: mostly of fields and words that a cache reads.
fn line() -> impl Strategy<Value = String> {
    let names = prop::sample::select(vec![
        "cache-control",
        "Cache-Control",
        "pragma",
        "expires",
        "date",
        "age",
        "last-modified",
        "etag",
        "vary",
        "set-cookie",
        "cookie",
        "authorization",
        "range",
        "if-range",
        "if-none-match",
        "if-modified-since",
        "content-length",
        "content-range",
        "connection",
        "accept-encoding",
        "cdn-cache-control",
    ]);
    let word = prop::sample::select(vec![
        "no-store",
        "no-cache",
        "private",
        "public",
        "max-age=60",
        "max-age=-1",
        "s-maxage=5",
        "max-age=\"5\"",
        "must-understand",
        "must-revalidate",
        "private=\"x\"",
        "no-cache=\"",
        "\"a\"",
        "W/\"a\"",
        "*",
        "bytes=0-4",
        "bytes=-5,0-1",
        "bytes 0-4/10",
        "0",
        "99999999999999999999",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "close",
        "gzip;q=0.5",
        "é",
    ]);
    let value = prop::collection::vec(
        prop_oneof![4 => word.prop_map(str::to_owned), 1 => "[ -~]{0,12}"],
        0..4,
    );
    (names, value).prop_map(|(name, value)| format!("{name}: {}", value.join(", ")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn decisions_hold_for_any_exchange(
        status in 0_u16..900,
        request in prop::collection::vec(line(), 0..5),
        response in prop::collection::vec(line(), 0..6),
    ) {
        let text = format!("{}\n\n{}", request.join("\n"), response.join("\n"));
        invariants::decisions_hold(&Exchange::read(status, text.as_bytes()));
    }

    #[test]
    fn no_parser_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), text in line()) {
        invariants::parsers_do_not_panic(&bytes);
        invariants::parsers_do_not_panic(text.as_bytes());
    }
}
