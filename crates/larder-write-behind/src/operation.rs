//! Operations: what a caller writes, and how operations of one key are folded into one.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value as Json;

/// An operation on the value of a key.
///
/// # Folding
///
/// Before a batch is written, the operations of each key are folded into one. Folding has to be exact: applying the folded
/// operation has to give the same value as applying both, for every value. If that is not possible, [`fold`](Self::fold)
/// returns `false` and both are written, in order.
///
/// # Changes of the type
///
/// Queued operations outlive the program that wrote them. They are stored as MessagePack with field names, so a field with
/// `#[serde(default)]` may be added. For any other change, raise [`VERSION`](Self::VERSION) and read the older form in
/// [`of_version`](Self::of_version). A journal with an operation that cannot be read refuses to open.
///
/// # Examples
///
/// ```
/// use larder_write_behind::Operation;
/// use serde::{Deserialize, Serialize};
///
/// /// The last position of a vehicle, and how far it has driven.
/// #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
/// struct Moved { to: (f64, f64), metres: u64 }
///
/// impl Operation for Moved {
///     type Value = Moved;
///
///     fn apply(&self, value: &mut Option<Moved>) {
///         let before = value.as_ref().map_or(0, |before| before.metres);
///         *value = Some(Moved { to: self.to, metres: before + self.metres });
///     }
///
///     fn fold(&mut self, later: &Self) -> bool {
///         *self = Moved { to: later.to, metres: self.metres + later.metres };
///         true
///     }
/// }
/// ```
#[doc(alias("command", "mutation", "coalesce"))]
pub trait Operation:
    Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The value of a key.
    type Value: Clone + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// The version of the serialised form.
    const VERSION: u16 = 1;

    /// Applies the operation. `None` means that the key has no value.
    fn apply(&self, value: &mut Option<Self::Value>);

    /// Folds a later operation of the same key into this one. Returns `false`, and changes nothing, if the two cannot be
    /// folded exactly.
    fn fold(&mut self, later: &Self) -> bool {
        let _ = later;
        false
    }

    /// Returns whether the result of the operation does not depend on the value before it.
    fn is_absolute(&self) -> bool {
        false
    }

    /// Reads the serialised form of an older version. `None` if that is not possible.
    fn of_version(version: u16, bytes: &[u8]) -> Option<Self> {
        let _ = (version, bytes);
        None
    }
}

/// Sets or deletes the value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write<V> {
    /// Sets the value.
    Put(V),
    /// Deletes the value.
    Delete,
}

impl<V> Operation for Write<V>
where
    V: Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    type Value = V;

    fn apply(&self, value: &mut Option<V>) {
        *value = match self {
            Self::Put(new) => Some(new.clone()),
            Self::Delete => None,
        };
    }

    fn fold(&mut self, later: &Self) -> bool {
        *self = later.clone();
        true
    }

    fn is_absolute(&self) -> bool {
        true
    }
}

/// Adds to a counter, which is 0 for a key without a value. A counter that leaves the range of `i64` wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[doc(alias("increment", "INCRBY"))]
pub struct Add(pub i64);

impl Operation for Add {
    type Value = i64;

    fn apply(&self, value: &mut Option<i64>) {
        *value = Some(value.unwrap_or_default().wrapping_add(self.0));
    }

    fn fold(&mut self, later: &Self) -> bool {
        self.0 = self.0.wrapping_add(later.0);
        true
    }
}

/// Raises a value to at least this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Max(pub i64);

impl Operation for Max {
    type Value = i64;

    fn apply(&self, value: &mut Option<i64>) {
        *value = Some(value.map_or(self.0, |value| value.max(self.0)));
    }

    fn fold(&mut self, later: &Self) -> bool {
        self.0 = self.0.max(later.0);
        true
    }
}

/// Lowers a value to at most this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Min(pub i64);

impl Operation for Min {
    type Value = i64;

    fn apply(&self, value: &mut Option<i64>) {
        *value = Some(value.map_or(self.0, |value| value.min(self.0)));
    }

    fn fold(&mut self, later: &Self) -> bool {
        self.0 = self.0.min(later.0);
        true
    }
}

/// Adds elements to a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "T: Ord + DeserializeOwned"))]
pub struct Union<T>(pub BTreeSet<T>);

impl<T> Operation for Union<T>
where
    T: Clone + fmt::Debug + Ord + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    type Value = BTreeSet<T>;

    fn apply(&self, value: &mut Option<BTreeSet<T>>) {
        value.get_or_insert_default().extend(self.0.iter().cloned());
    }

    fn fold(&mut self, later: &Self) -> bool {
        self.0.extend(later.0.iter().cloned());
        true
    }
}

/// Changes a JSON document by a merge patch.
///
/// # Source
///
/// [RFC 7396](https://www.rfc-editor.org/rfc/rfc7396)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergePatch(pub Json);

impl Operation for MergePatch {
    type Value = Json;

    fn apply(&self, value: &mut Option<Json>) {
        let document = value.get_or_insert(Json::Null);
        merge(document, &self.0);
    }

    fn fold(&mut self, later: &Self) -> bool {
        let mut folded = self.0.clone();
        let is_exact = compose(&mut folded, &later.0);
        if is_exact {
            self.0 = folded;
        }
        is_exact
    }

    fn is_absolute(&self) -> bool {
        !self.0.is_object()
    }
}

/// The function `MergePatch` of RFC 7396, section 2.
fn merge(target: &mut Json, patch: &Json) {
    let Json::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Json::Object(serde_json::Map::new());
    }
    let Json::Object(target) = target else { return };
    for (name, value) in patch {
        match value {
            Json::Null => drop(target.remove(name)),
            value => merge(target.entry(name.as_str()).or_insert(Json::Null), value),
        }
    }
}

/// Makes `first` the patch that does the same as both patches in order. Returns `false` if there is none: a patch cannot
/// replace a member by an object, but only merge the object into the member.
fn compose(first: &mut Json, later: &Json) -> bool {
    match (first, later) {
        (Json::Object(first), Json::Object(later)) => {
            later.iter().all(|(name, value)| match first.get_mut(name) {
                Some(before) => compose(before, value),
                None => {
                    first.insert(name.clone(), value.clone());
                    true
                }
            })
        }
        (_, Json::Object(_)) => false,
        (first, later) => {
            *first = later.clone();
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Applies two operations one by one and, if they can be folded, as one.
    fn both_ways<O: Operation>(value: &Option<O::Value>, one: &O, two: &O)
    where
        O::Value: PartialEq + fmt::Debug,
    {
        let mut in_order = value.clone();
        one.apply(&mut in_order);
        two.apply(&mut in_order);
        let mut folded = one.clone();
        let mut at_once = value.clone();
        if folded.fold(two) {
            folded.apply(&mut at_once);
            assert_eq!(at_once, in_order, "{one:?}, {two:?} to {value:?} by {folded:?}");
        }
        if two.is_absolute() {
            let mut alone = None;
            two.apply(&mut alone);
            assert_eq!(alone, in_order, "{two:?} is absolute");
        }
    }

    fn document() -> impl Strategy<Value = Json> {
        let leaf =
            prop_oneof![Just(json!(null)), Just(json!(1)), Just(json!("x")), Just(json!({}))];
        leaf.prop_recursive(3, 16, 3, |inner| {
            let members = prop::collection::btree_map("[abc]", inner, 0..3);
            members.prop_map(|members| Json::Object(members.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn folding_is_exact(base in any::<Option<i64>>(), a in any::<i64>(), b in any::<i64>()) {
            both_ways(&base, &Add(a), &Add(b));
            both_ways(&base, &Max(a), &Max(b));
            both_ways(&base, &Min(a), &Min(b));
            for (one, two) in [(Write::Put(a), Write::Put(b)), (Write::Put(a), Write::Delete), (Write::Delete, Write::Put(b))] {
                both_ways(&base, &one, &two);
            }
            let set = |n: i64| BTreeSet::from([n % 3]);
            both_ways(&base.map(set), &Union(set(a)), &Union(set(b)));
        }

        #[test]
        fn merge_patches_are_folded_only_if_that_is_exact(
            base in prop::option::of(document()), one in document(), two in document(),
        ) {
            both_ways(&base, &MergePatch(one), &MergePatch(two));
        }
    }

    /// The table of RFC 7396, appendix A.
    #[test]
    fn merge_patches_are_those_of_the_rfc() {
        for (document, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut value = Some(document.clone());
            MergePatch(patch.clone()).apply(&mut value);
            assert_eq!(value, Some(result), "{document} with {patch}");
        }
    }

    #[test]
    fn a_member_that_an_object_replaces_is_not_folded() {
        let mut removed = MergePatch(json!({"a": null}));
        let unchanged = removed.clone();
        assert!(!removed.fold(&MergePatch(json!({"b": 1, "a": {"x": 1}}))));
        assert_eq!(removed, unchanged);
    }
}
