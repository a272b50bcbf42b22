//! The sessions of browsers.

use std::{collections::HashMap, time::Duration};

use http::{HeaderMap, header};
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::access::{AdminAccess, AdminRole};

/// The sessions, by their identifiers. The cookie has the identifier, which says nothing about the token.
pub(super) struct Sessions {
    lifetime: Duration,
    all: Mutex<HashMap<String, Session>>,
}

/// A session of a browser.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) access: AdminAccess,
    /// The value that the page sends with each action. A page of another site does not know it.
    pub(super) csrf: String,
    /// Its identifier, which no answer but the cookie shows.
    id: String,
    ends: Instant,
}

impl Sessions {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { lifetime, all: Mutex::default() }
    }

    /// Begins a session, and returns its identifier.
    pub(super) fn begin(&self, access: AdminAccess) -> String {
        let (id, csrf) = (random(), random());
        let ends = Instant::now() + self.lifetime;
        let mut all = self.all.lock();
        all.retain(|_, session| session.ends > Instant::now());
        // The sessions of one role do not displace those of another.
        let of_role = |role: AdminRole| {
            let of_role = all.iter().filter(move |(_, session)| session.access.role == role);
            of_role.map(|(id, session)| (session.ends, id))
        };
        if of_role(access.role).count() >= MOST_SESSIONS {
            let oldest = of_role(access.role).min().map(|(_, id)| id.clone());
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        let session = Session { access, csrf, id: id.clone(), ends };
        all.insert(id.clone(), session);
        id
    }

    /// Returns the session of a request.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<Session> {
        let id = cookie(headers)?;
        let all = self.all.lock();
        all.get(id).filter(|session| session.ends > Instant::now()).cloned()
    }

    /// Whether a session has not ended, neither by its time nor by the logout of its actor.
    pub(super) fn has(&self, session: &Session) -> bool {
        let all = self.all.lock();
        all.get(&session.id).is_some_and(|session| session.ends > Instant::now())
    }

    /// Ends the session of a request.
    pub(super) fn end(&self, headers: &HeaderMap) {
        if let Some(id) = cookie(headers) {
            self.all.lock().remove(id);
        }
    }

    /// Returns the lifetime of a session in seconds.
    pub(super) fn max_age(&self) -> u64 {
        self.lifetime.as_secs()
    }
}

impl Session {
    /// Whether the value is that of the page of this session.
    pub(super) fn has_csrf(&self, given: &str) -> bool {
        self.csrf.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut cookies =
        lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    cookies.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// Returns 128 random bits as hexadecimal digits.
pub(super) fn random() -> String {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the system has random bits");
    format!("{:032x}", u128::from_ne_bytes(bits))
}

/// The name of the cookie.
pub(super) const COOKIE: &str = "larder_admin";
/// The number of sessions of each role.
const MOST_SESSIONS: usize = 64;
