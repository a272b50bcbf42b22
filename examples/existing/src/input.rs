//! The rules for titles, links and colors, of forms and of the API.

use crate::error::AppError;

/// Returns a title without spaces around it.
pub(crate) fn title(given: &str) -> Result<&str, AppError> {
    let title = given.trim();
    match title.chars().count() {
        1..=120 => Ok(title),
        count => Err(AppError::Invalid(format!(
            "the title has {count} characters, allowed are 1 to 120"
        ))),
    }
}

/// Returns a link to another site, if there is one. A page shows it, so it must not be a script.
pub(crate) fn link(given: Option<&str>) -> Result<Option<&str>, AppError> {
    let Some(link) = given.map(str::trim).filter(|link| !link.is_empty()) else { return Ok(None) };
    let scheme = link.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("http" | "https") => Ok(Some(link)),
        _ => Err(AppError::Invalid(format!(
            "the link {link:?} is not allowed: it must begin with http:// or https://"
        ))),
    }
}

/// Returns a color, if there is one. A page has it in a style.
pub(crate) fn color(given: Option<&str>) -> Result<Option<&str>, AppError> {
    let Some(color) = given.map(str::trim).filter(|color| !color.is_empty()) else {
        return Ok(None);
    };
    let digits = color.strip_prefix('#').filter(|digits| [3, 6].contains(&digits.len()));
    let is_code =
        digits.is_some_and(|digits| digits.chars().all(|digit| digit.is_ascii_hexdigit()));
    if is_code || color.chars().all(|letter| letter.is_ascii_alphabetic()) {
        return Ok(Some(color));
    }
    Err(AppError::Invalid(format!("the color {color:?} is not allowed: give a name or #rrggbb")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_and_styles_are_refused() {
        assert_eq!(link(Some(" https://a.example/?b ")).unwrap(), Some("https://a.example/?b"));
        assert_eq!(link(Some("")).unwrap(), None);
        for given in ["javascript:alert(1)", "javascript://a%0aalert(1)", "data:text/html,a", "a"] {
            assert!(link(Some(given)).is_err(), "{given}");
        }
        assert_eq!(color(Some("#a1B2c3")).unwrap(), Some("#a1B2c3"));
        assert_eq!(color(Some("teal")).unwrap(), Some("teal"));
        for given in ["red;background:url(//a)", "#12", "url(a)", "#12345g"] {
            assert!(color(Some(given)).is_err(), "{given}");
        }
        assert!(title(" ").is_err() && title(&"a".repeat(121)).is_err());
    }
}
