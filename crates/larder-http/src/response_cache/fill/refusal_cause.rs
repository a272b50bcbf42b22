//! The field of a response that is the reason why it is not stored, for explanations.

use http::{HeaderMap, HeaderName, StatusCode, header};
use larder_core::Reason;

/// Returns the field of a response that is the reason why it is not stored, without values that may be secret.
pub(super) fn cause_of_refusal(
    why: Reason,
    status: StatusCode,
    headers: &HeaderMap,
) -> Option<String> {
    let line = |name: &HeaderName| {
        let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
        let text = lines.collect::<Vec<_>>().join(", ");
        (!text.is_empty())
            .then(|| format!("{name}: {}", text.chars().take(LONGEST_CAUSE).collect::<String>()))
    };
    match why {
        Reason::NoStore | Reason::Private | Reason::NoCache | Reason::Stale => {
            line(&header::CACHE_CONTROL)
        }
        Reason::VaryStar => line(&header::VARY),
        Reason::Endless => line(&header::CONTENT_TYPE),
        Reason::Length | Reason::TooLarge => line(&header::CONTENT_LENGTH),
        Reason::Status | Reason::Error | Reason::NoLifetime => {
            Some(format!("status {}", status.as_u16()))
        }
        Reason::SetCookie => {
            let cookies = headers.get_all(header::SET_COOKIE).iter();
            let names =
                cookies.filter_map(|line| Some(line.to_str().ok()?.split_once('=')?.0.trim()));
            Some(format!("set-cookie: {}", names.collect::<Vec<_>>().join(", ")))
        }
        _ => None,
    }
}

/// The maximum length of a line that is shown.
const LONGEST_CAUSE: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_a_cookie_is_never_shown() {
        let mut headers = HeaderMap::new();
        for line in ["session=secret; HttpOnly", "theme=secret"] {
            headers.append(header::SET_COOKIE, line.parse().unwrap());
        }
        let cause = cause_of_refusal(Reason::SetCookie, StatusCode::OK, &headers);
        assert_eq!(cause.as_deref(), Some("set-cookie: session, theme"));
        for why in Reason::ALL {
            let cause = cause_of_refusal(*why, StatusCode::OK, &headers).unwrap_or_default();
            assert!(!cause.contains("secret"), "{why}: {cause}");
        }
    }
}
