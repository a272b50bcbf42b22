//! Whether a response is storable, and whether it is stored for one user or for all users.
//!
//! # Source
//!
//! [RFC 9111, section 3](https://www.rfc-editor.org/rfc/rfc9111#section-3)

use http::{HeaderMap, StatusCode, header};

use crate::{cache_control::CacheControl, vary};

/// The properties of a request that decide whether its response is storable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestIdentity {
    /// Whether it has `Authorization`.
    pub authorized: bool,
    /// Whether it carries credentials, in a field that the cache treats as credentials.
    pub identified: bool,
    /// Whether the entry belongs to a partition, which only requests of the same user or tenant reach.
    pub partitioned: bool,
}

/// The users that the cache serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Many users, as in the cache of a server or a proxy.
    #[default]
    Shared,
    /// One user, as in the cache of a client.
    Private,
}

/// The strictness of the cache beyond the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// A response that could belong to one user is not stored for other users, even if the specification allows it.
    #[default]
    Careful,
    /// Exactly as RFC 9111 specifies.
    Conformance,
}

/// The reason why a response is not storable. `Cache-Status` uses the same names as `detail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotStorable {
    /// It has `no-store`.
    NoStore,
    /// It has `private`, and the entry has no partition.
    Private,
    /// It sets a cookie.
    SetCookie,
    /// Its `Vary` has `*` or a member that is not a field name, so no request is known to select it.
    VaryStar,
    /// The request has `Authorization`, and no directive of the response allows sharing.
    Authorization,
    /// The request carries credentials, and no directive of the response allows sharing.
    Identified,
    /// It is interim, a protocol switch or a 304, or has `must-understand` and an unknown status.
    Status,
    /// It has no lifetime, and the cache does not add one.
    NoLifetime,
    /// It was stale when it was received, and cannot be revalidated.
    Stale,
    /// It is an event stream, a gRPC response or another stream without an end.
    Streaming,
}

impl NotStorable {
    /// Returns the name that `detail` uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::SetCookie => "set-cookie",
            Self::VaryStar => "vary-star",
            Self::Authorization => "authorization",
            Self::Identified => "identified",
            Self::Status => "status",
            Self::NoLifetime => "no-lifetime",
            Self::Stale => "stale",
            Self::Streaming => "endless",
        }
    }
}

/// Checks whether a response is storable, as far as its head shows and regardless of its lifetime.
///
/// A partial response (206) is checked like a complete response.
///
/// # Source
///
/// [RFC 9111, section 3](https://www.rfc-editor.org/rfc/rfc9111#section-3),
/// [section 3.5](https://www.rfc-editor.org/rfc/rfc9111#section-3.5) for `Authorization` and
/// [section 5.2.2.3](https://www.rfc-editor.org/rfc/rfc9111#section-5.2.2.3) for `must-understand`. Two rules are
/// larder's own and not part of [`Profile::Conformance`]: a response with `Set-Cookie` is not storable, and `private`
/// with field names applies to the whole response.
///
/// # Errors
///
/// The first reason against storing it.
pub fn check(
    asker: RequestIdentity,
    status: StatusCode,
    headers: &HeaderMap,
    control: &CacheControl,
    (profile, role): (Profile, Role),
) -> Result<(), NotStorable> {
    if status.is_informational() || status == StatusCode::NOT_MODIFIED {
        return Err(NotStorable::Status);
    }
    if is_endless(headers) {
        return Err(NotStorable::Streaming);
    }
    match (control.must_understand, control.no_store) {
        (true, _) if !is_understood(status) => return Err(NotStorable::Status),
        (false, true) => return Err(NotStorable::NoStore),
        // A list with a malformed member is read in the stricter way, so `must-understand` does not override
        // `no-store`.
        (true, true) if control.is_malformed => return Err(NotStorable::NoStore),
        _ => {}
    }
    let private = control.private || (profile == Profile::Careful && is_named_private(control));
    if private && role == Role::Shared && !asker.partitioned {
        return Err(NotStorable::Private);
    }
    if vary::is_unmatchable(headers) {
        return Err(NotStorable::VaryStar);
    }
    match role {
        Role::Shared => check_asker(asker, headers, control, profile),
        Role::Private => Ok(()),
    }
}

/// Whether larder knows the requirements of this status. It knows the requirements of all registered statuses.
fn is_understood(status: StatusCode) -> bool {
    status.canonical_reason().is_some()
}

fn is_named_private(control: &CacheControl) -> bool {
    !control.private_fields.is_empty()
}

fn check_asker(
    asker: RequestIdentity,
    headers: &HeaderMap,
    control: &CacheControl,
    profile: Profile,
) -> Result<(), NotStorable> {
    if profile == Profile::Careful && headers.contains_key(header::SET_COOKIE) {
        return Err(NotStorable::SetCookie);
    }
    if asker.partitioned {
        return Ok(());
    }
    if asker.authorized && !may_answer_authorized(control) {
        return Err(NotStorable::Authorization);
    }
    if asker.identified && !may_answer_identified(control, profile) {
        return Err(NotStorable::Identified);
    }
    Ok(())
}

/// Returns whether a response to a request with `Authorization` allows storing and sharing.
///
/// # Source
///
/// [RFC 9111, section 3.5](https://www.rfc-editor.org/rfc/rfc9111#section-3.5)
pub fn may_answer_authorized(control: &CacheControl) -> bool {
    control.public || control.s_maxage.is_some() || control.must_revalidate
}

/// Returns whether a response declares that it is the same for every user, so that requests with credentials may share
/// it.
pub fn may_answer_identified(control: &CacheControl, profile: Profile) -> bool {
    match profile {
        Profile::Careful => control.public || control.s_maxage.is_some() || control.is_targeted,
        Profile::Conformance => true,
    }
}

/// Returns whether a response is a stream without an end (server-sent events, gRPC, multipart replacements).
pub fn is_endless(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return false;
    };
    let starts =
        |start: &str| kind.get(..start.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(start));
    ["text/event-stream", "application/grpc", "multipart/x-mixed-replace"].into_iter().any(starts)
}

/// Returns whether a response of this status gets the default lifetime of the cache if it has no lifetime of its own.
///
/// These are fewer statuses than the heuristically cacheable statuses, because an error with an added lifetime could
/// replace a good page for all users.
pub fn takes_default_lifetime(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    const ANYONE: RequestIdentity =
        RequestIdentity { authorized: false, identified: false, partitioned: false };
    const BEARER: RequestIdentity =
        RequestIdentity { authorized: true, identified: true, partitioned: false };
    const COOKIE: RequestIdentity =
        RequestIdentity { authorized: false, identified: true, partitioned: false };
    const CC: &str = "cache-control";
    const PARTITION: RequestIdentity =
        RequestIdentity { authorized: true, identified: true, partitioned: true };

    #[test]
    fn credentials_and_directives_decide_whether_a_response_is_storable() {
        use NotStorable as No;
        use Profile::{Careful, Conformance};
        type Row = (
            RequestIdentity,
            &'static [(&'static str, &'static str)],
            Profile,
            Result<(), NotStorable>,
            &'static str,
        );
        let rows: &[Row] = &[
            (ANYONE, &[(CC, "max-age=5")], Careful, Ok(()), "RFC 9111 3"),
            (ANYONE, &[(CC, "no-store")], Careful, Err(No::NoStore), "RFC 9111 5.2.2.5"),
            (ANYONE, &[(CC, "private")], Careful, Err(No::Private), "RFC 9111 5.2.2.7"),
            (PARTITION, &[(CC, "private")], Careful, Ok(()), "a partition is a private cache"),
            (ANYONE, &[(CC, "private=\"x\"")], Careful, Err(No::Private), "ours"),
            (ANYONE, &[(CC, "private=\"x\"")], Conformance, Ok(()), "RFC 9111 5.2.2.7"),
            (ANYONE, &[(CC, "no-store, must-understand")], Careful, Ok(()), "RFC 9111 5.2.2.3"),
            (
                ANYONE,
                &[(CC, "no-store, must-understand, x y")],
                Careful,
                Err(No::NoStore),
                "malformed",
            ),
            (ANYONE, &[("vary", "a, *")], Careful, Err(No::VaryStar), "RFC 9111 4.1"),
            (ANYONE, &[("vary", "a b")], Careful, Err(No::VaryStar), "malformed is `*`"),
            (ANYONE, &[("vary", "a b")], Conformance, Err(No::VaryStar), "malformed is `*`"),
            (ANYONE, &[(CC, "max-age=9; private")], Careful, Err(No::Private), "malformed"),
            (ANYONE, &[(CC, "max-age=9 no-store")], Conformance, Err(No::NoStore), "malformed"),
            (ANYONE, &[("set-cookie", "a=b")], Careful, Err(No::SetCookie), "ours"),
            (ANYONE, &[("set-cookie", "a=b")], Conformance, Ok(()), "RFC 9111 7.3"),
            (PARTITION, &[("set-cookie", "a=b")], Careful, Err(No::SetCookie), "ours"),
            (BEARER, &[(CC, "max-age=5")], Careful, Err(No::Authorization), "RFC 9111 3.5"),
            (BEARER, &[(CC, "max-age=5")], Conformance, Err(No::Authorization), "RFC 9111 3.5"),
            (BEARER, &[(CC, "public")], Careful, Ok(()), "RFC 9111 3.5"),
            (BEARER, &[(CC, "s-maxage=5")], Careful, Ok(()), "RFC 9111 3.5"),
            (BEARER, &[(CC, "must-revalidate")], Conformance, Ok(()), "RFC 9111 3.5"),
            (BEARER, &[(CC, "must-revalidate")], Careful, Err(No::Identified), "ours"),
            (COOKIE, &[(CC, "max-age=5")], Careful, Err(No::Identified), "ours"),
            (COOKIE, &[(CC, "max-age=5")], Conformance, Ok(()), "RFC 9111 3"),
            (COOKIE, &[(CC, "public")], Careful, Ok(()), "ours"),
            (ANYONE, &[("content-type", "Text/Event-Stream")], Careful, Err(No::Streaming), "ours"),
        ];
        for (asker, lines, profile, expected, section) in rows {
            let headers = headers(lines);
            let control = CacheControl::of(&headers);
            let rules = (*profile, Role::Shared);
            let found = check(*asker, StatusCode::OK, &headers, &control, rules);
            assert_eq!(found, *expected, "{asker:?} {lines:?} {profile:?} ({section})");
        }
    }

    #[test]
    fn must_understand_allows_storing_only_known_statuses() {
        let control = CacheControl { must_understand: true, no_store: true, ..Default::default() };
        for (status, expected) in [(200, Ok(())), (299, Err(NotStorable::Status))] {
            let status = StatusCode::from_u16(status).unwrap();
            let rules = (Profile::Conformance, Role::Shared);
            assert_eq!(check(ANYONE, status, &HeaderMap::new(), &control, rules), expected);
        }
    }

    #[test]
    fn a_private_cache_stores_responses_of_its_user() {
        let lines = [(CC, "private"), ("set-cookie", "a=b")];
        let headers = headers(&lines);
        let control = CacheControl::of(&headers);
        let rules = (Profile::Careful, Role::Private);
        assert_eq!(check(BEARER, StatusCode::OK, &headers, &control, rules), Ok(()));
    }

    #[test]
    fn interim_and_304_responses_are_not_storable() {
        for status in [304, 101] {
            let status = StatusCode::from_u16(status).unwrap();
            let control = CacheControl::default();
            let rules = (Profile::Conformance, Role::Shared);
            let found = check(ANYONE, status, &HeaderMap::new(), &control, rules);
            assert_eq!(found, Err(NotStorable::Status));
        }
    }

    #[test]
    fn a_default_lifetime_is_for_few_statuses() {
        let taking: Vec<u16> = (100..600)
            .filter(|status| takes_default_lifetime(StatusCode::from_u16(*status).unwrap()))
            .collect();
        assert_eq!(taking, [200, 203, 204, 300, 301, 308]);
    }

    #[test]
    fn each_reason_has_a_token_of_its_own() {
        use NotStorable::{
            Authorization, Identified, NoLifetime, NoStore, Private, SetCookie, Stale, Status,
            Streaming, VaryStar,
        };
        let all = [
            NoStore,
            Private,
            SetCookie,
            VaryStar,
            Authorization,
            Identified,
            Status,
            NoLifetime,
            Stale,
            Streaming,
        ];
        let tokens = [
            "no-store",
            "private",
            "set-cookie",
            "vary-star",
            "authorization",
            "identified",
            "status",
            "no-lifetime",
            "stale",
            "endless",
        ];
        assert_eq!(all.map(NotStorable::as_str), tokens);
    }
}
