//! The sessions of browsers.

use std::{collections::HashMap, time::Duration};

use http::{HeaderMap, header};
use parking_lot::Mutex;
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::access::AdminAccess;

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
        if all.len() >= MOST_SESSIONS {
            // Only actors with a token begin sessions, so the oldest one is most likely forgotten.
            let oldest =
                all.iter().min_by_key(|(_, session)| session.ends).map(|(id, _)| id.clone());
            oldest.and_then(|oldest| all.remove(&oldest));
        }
        all.insert(id.clone(), Session { access, csrf, ends });
        id
    }

    /// Returns the session of a request.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<Session> {
        let id = cookie(headers)?;
        let all = self.all.lock();
        all.get(id).filter(|session| session.ends > Instant::now()).cloned()
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
fn random() -> String {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the system has random bits");
    format!("{:032x}", u128::from_ne_bytes(bits))
}

/// The name of the cookie.
pub(super) const COOKIE: &str = "larder_admin";
const MOST_SESSIONS: usize = 64;
