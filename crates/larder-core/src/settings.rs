//! Settings that all layers of one larder have to agree on, such as the scheme of URIs.

use std::collections::{HashMap, hash_map::Entry};

use parking_lot::Mutex;

/// The first value of each setting, with the layer that noted it.
#[derive(Debug, Default)]
pub(crate) struct Settings(Mutex<HashMap<String, (String, &'static str)>>);

impl Settings {
    /// Notes a value. Returns a warning if an earlier layer noted a different value.
    pub(crate) fn note(&self, name: String, value: String, layer: &'static str) -> Option<String> {
        match self.0.lock().entry(name) {
            Entry::Vacant(place) => {
                place.insert((value, layer));
                None
            }
            Entry::Occupied(place) if place.get().0 == value => None,
            Entry::Occupied(place) => {
                let (first, first_layer) = place.get();
                Some(format!(
                    "{} is {value} in {layer} and {first} in {first_layer} of the same larder. Give both layers \
                     the same value, or use HttpCache, which sets it once",
                    place.key()
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_value_of_a_setting_is_reported_with_both() {
        let settings = Settings::default();
        let note = |name: &str, value: &str, layer| settings.note(name.into(), value.into(), layer);
        assert_eq!(note("scheme", "Https", "ResponseCacheLayer"), None);
        assert_eq!(note("scheme", "Https", "InvalidationLayer"), None);
        assert_eq!(note("query_params", "All", "ResponseCacheLayer"), None);
        let warning = note("scheme", "Http", "InvalidationLayer").unwrap();
        let both = "scheme is Http in InvalidationLayer and Https in ResponseCacheLayer";
        assert!(warning.starts_with(both), "{warning}");
    }
}
