//! The request fields that carry credentials.

use http::{HeaderName, header};

/// Whether the name of a field shows that it holds credentials.
pub(in crate::response_cache) fn is_credentials(name: &str) -> bool {
    CREDENTIAL_FIELDS.iter().any(|known| known == name) || sounds_secret(name)
}

/// Whether a name contains a word for credentials.
pub(in crate::response_cache) fn sounds_secret(name: &str) -> bool {
    // This is a single pass over the name, because it runs for each unusual field name of every request.
    let bytes = name.as_bytes();
    bytes.iter().enumerate().any(|(at, first)| match first {
        b'a' => bytes[at..].starts_with(b"auth") || bytes[at..].starts_with(b"api-key"),
        b't' => bytes[at..].starts_with(b"token"),
        b's' => bytes[at..].starts_with(b"secret") || bytes[at..].starts_with(b"session"),
        b'p' => bytes[at..].starts_with(b"password"),
        _ => false,
    })
}

/// The request fields that carry credentials, unless the layer sets others.
const CREDENTIAL_FIELDS: [HeaderName; 12] = [
    header::COOKIE,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-forwarded-user"),
    HeaderName::from_static("x-forwarded-email"),
    HeaderName::from_static("x-forwarded-groups"),
    HeaderName::from_static("x-forwarded-preferred-username"),
    HeaderName::from_static("x-forwarded-access-token"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-remote-user"),
];
