//! The authority of a URI in normal form.
//!
//! # Source
//!
//! [RFC 3986, section 6.2](https://www.rfc-editor.org/rfc/rfc3986#section-6.2) and
//! [RFC 9110, section 4.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-4.2.3)

use std::borrow::Cow;

/// Normalises an authority to lower case, without the default port of its scheme, an empty port, leading zeros of a
/// port, or needless percent-encoding. User information stays as it is. `None` if the string is not an authority.
///
/// ```
/// use larder_semantics::authority::normalised;
///
/// assert_eq!(normalised("Shop.Example:443", "https").as_deref(), Some("shop.example"));
/// assert_eq!(normalised("shop.example:", "http").as_deref(), Some("shop.example"));
/// assert_eq!(normalised("shop.example/x", "http"), None);
/// ```
#[inline]
pub fn normalised<'a>(authority: &'a str, scheme: &str) -> Option<Cow<'a, str>> {
    // Most authorities are already in normal form, which one pass over the bytes shows.
    let is_normal = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    if authority.bytes().all(is_normal) {
        return Some(Cow::Borrowed(authority));
    }
    spelt_anew(authority, scheme)
}

/// Returns an authority without its user information.
///
/// # Source
///
/// [RFC 9110, section 4.2.4](https://www.rfc-editor.org/rfc/rfc9110#section-4.2.4)
pub fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn spelt_anew<'a>(authority: &'a str, scheme: &str) -> Option<Cow<'a, str>> {
    let host_and_port = without_user(authority);
    let user = &authority[..authority.len() - host_and_port.len()];
    let (host, port) = split(host_and_port)?;
    let implied = if scheme == "https" { 443 } else { 80 };
    let port = match port {
        "" => None,
        port if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(port.parse::<u16>().ok()?).filter(|port| *port != implied)
        }
        _ => return None,
    };
    let mut spelt = format!("{user}{}", normalised_host(host)?);
    if let Some(port) = port {
        spelt.push_str(&format!(":{port}"));
    }
    Some(if spelt == authority { Cow::Borrowed(authority) } else { Cow::Owned(spelt) })
}

/// Splits an authority into the host, with the brackets of an IPv6 address, and the digits of the port.
fn split(text: &str) -> Option<(&str, &str)> {
    let end_of_host = match text.strip_prefix('[') {
        Some(address) => address.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(end_of_host);
    match rest.strip_prefix(':') {
        Some(port) => Some((host, port)),
        None => rest.is_empty().then_some((host, "")),
    }
}

fn normalised_host(host: &str) -> Option<String> {
    let literal = host.starts_with('[');
    let mut normal = String::with_capacity(host.len());
    let mut letters = host.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '[' | ']' | ':' if literal => normal.push(letter),
            '%' => {
                let digits = letters.as_str().get(..2)?;
                let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                let byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
                letters = letters.as_str()[2..].chars();
                match char::from(byte).to_ascii_lowercase() {
                    plain if is_unreserved(plain) => normal.push(plain),
                    _ => normal.push_str(&format!("%{byte:02X}")),
                }
            }
            letter if is_unreserved(letter) || "!$&'()*+,;=".contains(letter) => {
                normal.push(letter.to_ascii_lowercase());
            }
            _ => return None,
        }
    }
    Some(normal)
}

fn is_unreserved(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "-._~".contains(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_one_authority_have_one_normal_form() {
        let rows = [
            ("shop.example", "http", Some("shop.example")),
            ("Shop.EXAMPLE", "http", Some("shop.example")),
            ("shop.example:80", "http", Some("shop.example")),
            ("shop.example:080", "http", Some("shop.example")),
            ("shop.example:", "http", Some("shop.example")),
            ("shop.example:443", "https", Some("shop.example")),
            ("shop.example:80", "https", Some("shop.example:80")),
            ("shop.example:08080", "http", Some("shop.example:8080")),
            ("%73hop.example", "http", Some("shop.example")),
            ("%53hop.example", "http", Some("shop.example")),
            ("a%2fb", "http", Some("a%2Fb")),
            ("[2001:DB8::1]:80", "http", Some("[2001:db8::1]")),
            ("[::1]", "http", Some("[::1]")),
            ("[::1]:8080", "http", Some("[::1]:8080")),
            ("u:P@Shop.example:80", "http", Some("u:P@shop.example")),
            ("", "http", Some("")),
            ("shop.example:x", "http", None),
            ("shop.example:99999", "http", None),
            ("shop.example:+80", "http", None),
            ("a]b", "http", None),
            ("a[b", "http", None),
            ("shop.example:80:80", "http", None),
            ("a b", "http", None),
            ("a/b", "http", None),
            ("a,b", "http", Some("a,b")),
            ("[::1", "http", None),
            ("[::1]x", "http", None),
            ("::1", "http", None),
            ("a%2", "http", None),
            ("a%+1", "http", None),
        ];
        for (text, scheme, expected) in rows {
            assert_eq!(normalised(text, scheme).as_deref(), expected, "{text} {scheme}");
        }
    }

    #[test]
    fn a_normal_authority_is_returned_without_a_copy() {
        for text in ["u:p@shop.example:8080", "[::1]:8080", "shop.example"] {
            let once = normalised(text, "http").unwrap();
            assert!(matches!(once, Cow::Borrowed(_)), "{text}");
        }
        assert_eq!(without_user("a@b@shop.example:8080"), "shop.example:8080");
    }
}
