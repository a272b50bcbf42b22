//! The language of a page, by content negotiation, and its texts.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};

/// A language of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    English,
    German,
}

impl Language {
    /// Returns the first language of `Accept-Language` that the pages have.
    pub(crate) fn of(accepted: Option<&str>) -> Self {
        let accepted = accepted.unwrap_or_default();
        let known = accepted.split(',').find_map(|range| {
            let range = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            match range.split('-').next() {
                Some("en") => Some(Self::English),
                Some("de") => Some(Self::German),
                _ => None,
            }
        });
        known.unwrap_or(Self::English)
    }

    /// The code of the language.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::German => "de",
        }
    }

    /// The text for a key.
    pub(crate) fn text(self, key: &'static str) -> &'static str {
        let row = TEXTS.iter().find(|(name, ..)| *name == key);
        let (_, english, german) = row.copied().unwrap_or((key, key, key));
        match self {
            Self::English => english,
            Self::German => german,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Language {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let accepted = parts.headers.get(header::ACCEPT_LANGUAGE);
        Ok(Self::of(accepted.and_then(|accepted| accepted.to_str().ok())))
    }
}

const TEXTS: [(&str, &str, &str); 29] = [
    ("title", "Reading lists", "Leselisten"),
    ("newest", "Newest lists", "Neueste Listen"),
    ("popular", "Popular lists", "Beliebte Listen"),
    ("by", "by", "von"),
    ("items", "items", "Einträge"),
    ("stars", "stars", "Sterne"),
    ("star", "Star", "Merken"),
    ("unstar", "Unstar", "Nicht mehr merken"),
    ("read", "read", "gelesen"),
    ("mark_read", "Mark as read", "Als gelesen markieren"),
    ("mark_unread", "Mark as unread", "Als ungelesen markieren"),
    ("add_item", "Add an entry", "Eintrag hinzufügen"),
    ("comments", "Comments", "Kommentare"),
    ("comment", "Comment", "Kommentieren"),
    ("new_list", "New list", "Neue Liste"),
    ("your_lists", "Your lists", "Deine Listen"),
    ("starred", "Starred lists", "Gemerkte Listen"),
    ("private", "private", "privat"),
    ("sign_up", "Sign up", "Registrieren"),
    ("sign_in", "Sign in", "Anmelden"),
    ("sign_out", "Sign out", "Abmelden"),
    ("name", "Name", "Name"),
    ("password", "Password", "Passwort"),
    ("about", "About you", "Über dich"),
    ("save", "Save", "Speichern"),
    ("account", "Account", "Konto"),
    ("member_since", "Member since", "Mitglied seit"),
    ("lists_of", "Lists of", "Listen von"),
    ("delete", "Delete", "Löschen"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_language_is_chosen() {
        let rows = [
            (None, Language::English),
            (Some("de-AT,de;q=0.9,en;q=0.5"), Language::German),
            (Some("fr, de;q=0.3"), Language::German),
            (Some("*"), Language::English),
        ];
        for (accepted, expected) in rows {
            assert_eq!(Language::of(accepted), expected);
        }
        assert_eq!(Language::German.text("newest"), "Neueste Listen");
    }
}
