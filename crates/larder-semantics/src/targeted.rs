//! Targeted cache control: fields for one kind of cache, which replace `Cache-Control` there.
//!
//! # Source
//!
//! [RFC 9213](https://www.rfc-editor.org/rfc/rfc9213); the field is a dictionary of
//! [RFC 9651](https://www.rfc-editor.org/rfc/rfc9651).

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use crate::cache_control::{CacheControl, Seconds};

/// `CDN-Cache-Control`
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// Returns the directives that apply to this cache. They come from the first field of `targets` that is valid and not
/// empty, or else from `Cache-Control`.
///
/// A target that is not a dictionary is ignored, as the specification demands, except that `no-store`, `no-cache` and
/// `private` in it apply in addition.
///
/// # Source
///
/// [RFC 9213, section 2.2](https://www.rfc-editor.org/rfc/rfc9213#section-2.2)
pub fn control_of(headers: &HeaderMap, targets: &[HeaderName]) -> CacheControl {
    let mut broken = Vec::new();
    let mut control = None;
    for target in targets.iter().filter(|target| headers.contains_key(*target)) {
        match targeted(headers, target) {
            Ok(None) => {}
            Ok(found) => {
                control = found;
                break;
            }
            Err(NoDictionary) => broken.extend(headers.get_all(target)),
        }
    }
    let mut control = control.unwrap_or_else(|| CacheControl::of(headers));
    for line in broken {
        control.hold_strict_words(&String::from_utf8_lossy(line.as_bytes()));
    }
    control
}

/// The error for a field that is not a dictionary.
struct NoDictionary;

/// Returns the directives of one target. `None` if it is empty.
fn targeted(
    headers: &HeaderMap,
    target: &HeaderName,
) -> Result<Option<CacheControl>, NoDictionary> {
    let lines = headers.get_all(target).iter().map(|line| line.to_str());
    let text = lines.collect::<Result<Vec<_>, _>>().map_err(|_| NoDictionary)?.join(", ");
    let directives: Dictionary = Parser::new(&text).parse().map_err(|_| NoDictionary)?;
    if directives.is_empty() {
        return Ok(None);
    }
    let mut control = CacheControl { is_present: true, is_targeted: true, ..Default::default() };
    for (name, value) in &directives {
        let ListEntry::Item(item) = value else {
            // A list of field names is read in the stricter way, as if the directive applied to the whole response.
            control.set_seconds(name.as_str(), Seconds::Invalid);
            control.set_flag(name.as_str());
            continue;
        };
        match &item.bare_item {
            BareItem::Integer(seconds) => {
                let seconds = u64::try_from(i64::from(*seconds));
                let seconds = seconds.map_or(Seconds::Invalid, Seconds::Valid);
                control.set_seconds(name.as_str(), seconds);
            }
            BareItem::Boolean(false) => {}
            // A lifetime of another type is invalid; a flag with a value still applies.
            _ => {
                control.set_seconds(name.as_str(), Seconds::Invalid);
                control.set_flag(name.as_str());
            }
        }
    }
    Ok(Some(control))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn control(lines: &[(&'static str, &'static str)]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        control_of(&headers, &[HeaderName::from_static("shop-cache-control"), CDN_CACHE_CONTROL])
    }

    const CDN: &str = "cdn-cache-control";
    const CC: &str = "cache-control";

    #[test]
    fn the_first_valid_target_replaces_cache_control() {
        use Seconds::{Invalid, Valid};
        // The columns are the fields, the resulting max-age and the section.
        type Row = (&'static [(&'static str, &'static str)], Option<Seconds>, &'static str);
        let rows: &[Row] = &[
            (&[(CDN, "max-age=10"), (CC, "max-age=1")], Some(Valid(10)), "RFC 9213 2.2"),
            (&[(CDN, "max-age=10"), (CC, "no-store")], Some(Valid(10)), "RFC 9213 2.2"),
            (
                &[("shop-cache-control", "max-age=7"), (CDN, "max-age=10")],
                Some(Valid(7)),
                "RFC 9213 2.2: the list is in order",
            ),
            (&[(CDN, ""), (CC, "max-age=1")], Some(Valid(1)), "RFC 9213 2.2: empty"),
            (&[(CDN, "max-age=10,"), (CC, "max-age=1")], Some(Valid(1)), "RFC 9651: no dictionary"),
            (&[(CDN, "MAX-AGE=10"), (CC, "max-age=1")], Some(Valid(1)), "RFC 9651: keys are lower"),
            (
                &[(CDN, "max-age=\"10\""), (CC, "max-age=1")],
                Some(Invalid),
                "RFC 9213 2.1: an integer",
            ),
            (&[(CDN, "max-age=10;x=1")], Some(Valid(10)), "RFC 9651: parameters are ignored"),
            (&[(CDN, "max-age=-1")], Some(Invalid), "RFC 9111 4.2.1"),
            (&[(CDN, "max-age=10, unknown=(a b)")], Some(Valid(10)), "RFC 9213 2.1"),
            (&[(CDN, "max-age=1"), (CDN, "max-age=2")], Some(Valid(2)), "RFC 9651: the last"),
            (&[(CC, "max-age=1")], Some(Valid(1)), "RFC 9111 5.2"),
        ];
        for (lines, expected, section) in rows {
            assert_eq!(control(lines).max_age, *expected, "{lines:?} ({section})");
        }
    }

    #[test]
    fn flags_in_a_target_are_read_by_type() {
        assert!(control(&[(CDN, "no-store")]).no_store);
        assert!(control(&[(CDN, "private=\"x\"")]).private);
        assert!(!control(&[(CDN, "no-store=?0, max-age=1")]).no_store);
        assert!(control(&[(CDN, "max-age=1")]).is_targeted);
        assert!(control(&[(CDN, "private=(\"x\" \"y\"), max-age=1")]).private);
    }

    #[test]
    fn strict_words_apply_in_a_target_that_is_not_a_dictionary() {
        // The columns are the fields, no-store, private and the resulting max-age.
        type Row = (&'static [(&'static str, &'static str)], bool, bool, Option<Seconds>);
        let sixty = Some(Seconds::Valid(60));
        let rows: &[Row] = &[
            (&[(CDN, "no-store, max-age=10,"), (CC, "max-age=60")], true, false, sixty),
            (&[(CDN, "Private"), (CC, "max-age=60")], false, true, sixty),
            (&[(CDN, "max-age=5,"), (CC, "max-age=60")], false, false, sixty),
            (&[("shop-cache-control", "NO-STORE"), (CDN, "max-age=60")], true, false, sixty),
            (&[(CDN, "max-age=60"), ("unknown-cache-control", "No-Store")], false, false, sixty),
        ];
        for (lines, no_store, private, max_age) in rows {
            let found = control(lines);
            let found = (found.no_store, found.private, found.max_age);
            assert_eq!(found, (*no_store, *private, *max_age), "{lines:?}");
        }
    }
}
