//! The fields of a response for downstream caches and browsers, and for storage.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use larder_semantics::{
    cache_control::CacheControl,
    fields, list,
    targeted::{self, CDN_CACHE_CONTROL},
};

use crate::response_cache::{options::Options, overrides::OverrideValues};

/// Sets the fields that control downstream caches. larder cannot invalidate browsers and content delivery networks, so
/// it does not pass its own lifetime on to them. Returns `true` if the layer or the handler has set a field for them.
pub(in crate::response_cache) fn set_downstream_fields(
    options: &Options,
    override_values: &OverrideValues,
    private: bool,
    by_larder: bool,
    headers: &mut HeaderMap,
) -> bool {
    let browser =
        override_values.browser.as_ref().or(options.browser.as_ref().filter(|_| by_larder));
    match browser {
        Some(value) => drop(headers.insert(header::CACHE_CONTROL, value.clone())),
        None if by_larder && !headers.contains_key(header::CACHE_CONTROL) => {
            let value = if private { "private, no-cache" } else { "no-cache" };
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(value));
        }
        None => {}
    }
    let cdn = override_values.cdn.as_ref().or(options.cdn.as_ref().filter(|_| by_larder));
    if let Some(value) = cdn {
        headers.insert(CDN_CACHE_CONTROL, value.clone());
    }
    if private {
        make_private(&options.targets, headers);
    }
    if options.strip_targeted_fields {
        options.targets.iter().for_each(|target| drop(headers.remove(target)));
    }
    browser.is_some() || cdn.is_some()
}

/// Makes the response `private`, so that no shared cache downstream stores the response of one partition.
fn make_private(targets: &[HeaderName], headers: &mut HeaderMap) {
    for target in targets.iter().chain([&CDN_CACHE_CONTROL]) {
        headers.remove(target);
    }
    let control = CacheControl::of(headers);
    if control.private && !control.public && control.s_maxage.is_none() {
        return;
    }
    let members = list::members(headers, &header::CACHE_CONTROL).filter(|member| {
        let name = member.split('=').next().unwrap_or_default();
        let shared = ["public", "s-maxage", "private"];
        !shared.iter().any(|known| name.eq_ignore_ascii_case(known))
    });
    let text = std::iter::once("private").chain(members).collect::<Vec<_>>().join(", ");
    let value = HeaderValue::from_str(&text).expect("members of a field form a field value");
    headers.insert(header::CACHE_CONTROL, value);
}

/// Removes the fields that this cache may not store, or may not send from storage.
pub(in crate::response_cache) fn remove_unkept(options: &Options, headers: &mut HeaderMap) {
    remove_named(options, headers);
    fields::remove_not_stored(headers);
    headers.remove(header::AGE);
}

/// Removes the fields that the response names in `private="…"` or `no-cache="…"`.
pub(in crate::response_cache) fn remove_named(options: &Options, headers: &mut HeaderMap) {
    let control = targeted::control_of(headers, &options.targets);
    fields::remove_named(headers, &control, options.role);
}

#[cfg(test)]
pub(in crate::response_cache) mod tests {
    use super::*;

    pub(in crate::response_cache) fn headers(control: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !control.is_empty() {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
        }
        headers
    }

    #[test]
    fn cache_control_downstream_depends_on_its_source_and_audience() {
        let none = OverrideValues::default();
        // `Cache-Control` of the handler, private, by us, `Cache-Control` downstream.
        let rows = [
            ("", false, true, "no-cache"),
            ("", true, true, "private, no-cache"),
            ("max-age=9", false, false, "max-age=9"),
            ("public, max-age=9", true, false, "private, max-age=9"),
            ("max-age=9, s-maxage=99", true, false, "private, max-age=9"),
            ("private, max-age=9", true, false, "private, max-age=9"),
            ("public, no-cache=\"a, b\"", true, false, "private, no-cache=\"a, b\""),
        ];
        for (control, private, by_larder, expected) in rows {
            let mut headers = headers(control);
            set_downstream_fields(&Options::default(), &none, private, by_larder, &mut headers);
            assert_eq!(headers[header::CACHE_CONTROL], expected, "{control}");
        }
    }
}
