//! The access to the admin API: guards, roles and actors.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Once},
};

use axum::extract::ConnectInfo;
use http::{HeaderMap, Uri, Version, header, request::Parts, uri::Authority};
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

/// An actor that is let in.
pub(super) struct Admitted {
    pub(super) access: AdminAccess,
    /// Whether its token let it in, which no browser sends by itself.
    pub(super) by_bearer_token: bool,
}

/// Returns the address of the client of a request.
pub(super) type ClientAddress = Box<dyn Fn(&Parts) -> Option<IpAddr> + Send + Sync>;

/// The guards, and the wrong tokens of each network.
pub(super) struct Access {
    guards: Vec<Guard>,
    client_address: ClientAddress,
    attempts: Attempts,
    knows_no_address: Once,
}

impl Access {
    pub(super) fn new(guards: Vec<Guard>, client_address: Option<ClientAddress>) -> Self {
        let client_address = client_address.unwrap_or_else(|| Box::new(peer));
        let (attempts, knows_no_address) = (Attempts::default(), Once::new());
        Self { guards, client_address, attempts, knows_no_address }
    }

    /// Whether browsers can begin a session with a token.
    pub(super) fn has_tokens(&self) -> bool {
        self.guards.iter().any(|guard| matches!(guard, Guard::Token { .. }))
    }

    /// Returns the access of a request by its bearer token, by a closure, or by its address. A bearer token that is not
    /// larder's may be one of the application, which its closure knows; it counts as wrong if no guard lets it in.
    pub(super) fn of(&self, parts: &Parts) -> Result<Admitted, Denied> {
        let token = bearer(&parts.headers).filter(|_| self.has_tokens());
        let denied = match token.map(|token| self.compare(token, parts)) {
            Some(Ok(access)) => return Ok(Admitted { access, by_bearer_token: true }),
            Some(Err(denied)) => Some(denied),
            None => None,
        };
        let access = self.guards.iter().find_map(|guard| match guard {
            Guard::Token { .. } => None,
            Guard::Closure(guard) => guard(parts),
            Guard::Loopback => is_on_loopback(parts).then(|| AdminAccess::full("loopback")),
        });
        if let Some(access) = access {
            return Ok(Admitted { access, by_bearer_token: false });
        }
        Err(match denied {
            Some(Denied::Unauthorized) => self.note_wrong_token(parts),
            Some(Denied::TooManyAttempts) => Denied::TooManyAttempts,
            None => Denied::Unauthorized,
        })
    }

    /// Returns the access of a token, and counts a wrong one.
    pub(super) fn by_token(&self, given: &str, parts: &Parts) -> Result<AdminAccess, Denied> {
        self.compare(given, parts).map_err(|denied| match denied {
            Denied::Unauthorized => self.note_wrong_token(parts),
            Denied::TooManyAttempts => denied,
        })
    }

    fn compare(&self, given: &str, parts: &Parts) -> Result<AdminAccess, Denied> {
        let address = (self.client_address)(parts);
        if address.is_some_and(|address| self.attempts.are_used_up(address)) {
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
        access.ok_or(Denied::Unauthorized)
    }

    fn note_wrong_token(&self, parts: &Parts) -> Denied {
        match (self.client_address)(parts) {
            Some(address) => {
                tracing::warn!(target: "larder", %address, "a request for the admin API has a wrong token");
                self.attempts.note(address);
            }
            // One counter for all clients would let each of them lock out all others.
            None => self.knows_no_address.call_once(|| {
                tracing::warn!(
                    target: "larder",
                    "a request for the admin API has a wrong token; the server does not tell the addresses of clients, so \
                     wrong tokens are not limited and not logged again: serve with \
                     into_make_service_with_connect_info::<SocketAddr>()"
                );
            }),
        }
        Denied::Unauthorized
    }
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Returns the address of the connection, as far as the server has told it.
fn peer(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip())
}

/// Whether a request certainly comes from this machine: from a loopback address, through no proxy, and for a loopback name.
/// A page of another site that a browser on this machine shows can send requests to it, under a name of its own that
/// resolves to a loopback address; its `Host` is that name. Many proxies speak HTTP/1.0 with the server.
fn is_on_loopback(parts: &Parts) -> bool {
    let is_forwarded = parts.headers.keys().any(|name| {
        let name = name.as_str();
        name.starts_with("x-forwarded") || FORWARDING.contains(&name)
    });
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let names = [host, parts.uri.authority().map(Authority::as_str)];
    let mut names = names.into_iter().flatten().peekable();
    let mut pages = [header::ORIGIN, header::REFERER]
        .into_iter()
        .flat_map(|name| parts.headers.get_all(name))
        .map(|page| page.to_str().ok().and_then(|page| page.parse::<Uri>().ok()));
    peer(parts).is_some_and(|address| address.to_canonical().is_loopback())
        && !is_forwarded
        && parts.version != Version::HTTP_10
        && hosts.next().is_none()
        && names.peek().is_some()
        && names.all(is_loopback_name)
        && pages.all(|page| {
            page.is_some_and(|page| {
                page.authority().is_some_and(|of| is_loopback_name(of.as_str()))
            })
        })
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
