//! Why an invalidation was made, and by which actor.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The reason and the actor of an invalidation, which travel with its record. They take no part in comparing records, and
/// a log writes them apart from the record, so that a process that does not know them reads the record as before.
#[derive(Clone, Debug, Default)]
pub struct RecordNote(Option<Arc<NoteText>>);

/// The texts of a note, as a log writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct NoteText {
    because: Option<String>,
    by: Option<String>,
}

impl RecordNote {
    /// Creates a note. Texts are truncated after 256 bytes.
    pub fn new(because: Option<&str>, by: Option<&str>) -> Self {
        let [because, by] =
            [because, by].map(|text| text.map(truncated).filter(|text| !text.is_empty()));
        let is_empty = because.is_none() && by.is_none();
        Self((!is_empty).then(|| Arc::new(NoteText { because, by })))
    }

    /// Returns the reason.
    pub fn because(&self) -> Option<&str> {
        self.0.as_deref()?.because.as_deref()
    }

    /// Returns the actor.
    pub fn by(&self) -> Option<&str> {
        self.0.as_deref()?.by.as_deref()
    }

    /// Whether there is neither a reason nor an actor.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl PartialEq for RecordNote {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for RecordNote {}

impl Serialize for RecordNote {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.because(), self.by()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RecordNote {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (because, by) = <(Option<String>, Option<String>)>::deserialize(deserializer)?;
        Ok(Self::new(because.as_deref(), by.as_deref()))
    }
}

pub(crate) fn truncated(text: &str) -> String {
    let end = (0..=text.len().min(LONGEST_TEXT)).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or_default()].to_owned()
}

/// The maximum length of a reason and of an actor, in bytes.
const LONGEST_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_truncated_at_a_character_and_notes_are_equal() {
        let note = RecordNote::new(Some(&"é".repeat(200)), Some(""));
        assert_eq!((note.because().map(str::len), note.by()), (Some(256), None));
        assert_eq!(note, RecordNote::default());
        assert!(RecordNote::new(Some(""), None).is_empty() && !note.is_empty());
    }
}
