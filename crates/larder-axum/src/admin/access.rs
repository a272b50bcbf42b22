//! The access to the admin API: guards, roles and actors.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::extract::ConnectInfo;
use http::{HeaderMap, Uri, header, request::Parts, uri::Authority};
use subtle::ConstantTimeEq as _;

use super::attempts::Attempts;

/// What an actor may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdminRole {
    /// Read everything, and change nothing.
    ReadOnly,
    /// Invalidate too.
    Full,
}

impl AdminRole {
    /// Returns the name of the role.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Full => "full",
        }
    }
}

/// An actor that may use the admin API, with its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAccess {
    pub(super) actor: String,
    pub(super) role: AdminRole,
}

impl AdminAccess {
    /// Lets an actor do everything. Its name is part of audit events, and of the invalidations that it makes.
    pub fn full(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), role: AdminRole::Full }
    }

    /// Lets an actor read.
    pub fn read_only(actor: impl Into<String>) -> Self {
        Self { actor: actor.into(), role: AdminRole::ReadOnly }
    }
}

/// A closure that lets requests in.
type GuardClosure = Arc<dyn Fn(&Parts) -> Option<AdminAccess> + Send + Sync>;

/// A way to let a request in.
#[derive(Clone)]
pub(super) enum Guard {
    Token { token: String, role: AdminRole },
    Closure(GuardClosure),
    Loopback,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// It has no credentials, or wrong ones.
    Unauthorized,
    /// There were too many wrong tokens.
    TooManyAttempts,
}

/// The guards, and the wrong tokens of each address.
pub(super) struct Access {
    guards: Vec<Guard>,
    attempts: Attempts,
}

impl Access {
    pub(super) fn new(guards: Vec<Guard>) -> Self {
        Self { guards, attempts: Attempts::default() }
    }

    /// Whether browsers can begin a session with a token.
    pub(super) fn has_tokens(&self) -> bool {
        self.guards.iter().any(|guard| matches!(guard, Guard::Token { .. }))
    }

    /// Returns the access of a request by its bearer token, by a closure, or by its address.
    pub(super) fn of(
        &self,
        parts: &Parts,
        (uri, headers): (&Uri, &HeaderMap),
    ) -> Result<AdminAccess, Denied> {
        if let Some(token) = bearer(headers) {
            return self.by_token(token, parts);
        }
        let access = self.guards.iter().find_map(|guard| match guard {
            Guard::Token { .. } => None,
            Guard::Closure(guard) => guard(parts),
            Guard::Loopback => {
                is_on_loopback(parts, uri, headers).then(|| AdminAccess::full("loopback"))
            }
        });
        access.ok_or(Denied::Unauthorized)
    }

    /// Returns the access of a token, and counts a wrong one.
    pub(super) fn by_token(&self, given: &str, parts: &Parts) -> Result<AdminAccess, Denied> {
        let address = address(parts);
        if self.attempts.are_used_up(address) {
            return Err(Denied::TooManyAttempts);
        }
        let mut access = None;
        // All tokens are compared, so that the time does not tell which one is near.
        for guard in &self.guards {
            if let Guard::Token { token, role } = guard
                && bool::from(token.as_bytes().ct_eq(given.as_bytes()))
            {
                access =
                    Some(AdminAccess { actor: format!("{} token", role.as_str()), role: *role });
            }
        }
        if access.is_none() {
            self.attempts.note(address);
        }
        access.ok_or(Denied::Unauthorized)
    }
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Returns the address of the client, as far as the server has told it.
fn address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// Whether a request certainly comes from this machine: from a loopback address, through no proxy, and for a loopback name.
/// A page of another site that a browser on this machine shows can send requests to it, under a name of its own that
/// resolves to a loopback address; its `Host` is that name.
fn is_on_loopback(parts: &Parts, uri: &Uri, headers: &HeaderMap) -> bool {
    let is_forwarded = headers.keys().any(|name| {
        let name = name.as_str();
        name.starts_with("x-forwarded") || FORWARDING.contains(&name)
    });
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let names = [host, uri.authority().map(Authority::as_str)];
    let mut names = names.into_iter().flatten().peekable();
    address(parts).is_some_and(|address| address.to_canonical().is_loopback())
        && !is_forwarded
        && hosts.next().is_none()
        && names.peek().is_some()
        && names.all(is_loopback_name)
}

/// Whether the host of an authority is `localhost` or a loopback address.
pub(super) fn is_loopback_name(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    let is_address = || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    host.eq_ignore_ascii_case("localhost") || is_address()
}

/// Fields that proxies add, besides those that begin with `x-forwarded`.
const FORWARDING: [&str; 10] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-host",
    "x-original-url",
    "cf-connecting-ip",
    "fastly-client-ip",
    "true-client-ip",
];
