//! The actions of operators.

use std::{cmp::Reverse, collections::VecDeque, time::SystemTime};

use larder_core::kernel::PastTarget;
use parking_lot::Mutex;
use serde::Serialize;

use super::access::AdminAccess;

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    Invalidate,
    Login,
    Logout,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Invalidate => "invalidate",
            Self::Login => "login",
            Self::Logout => "logout",
        }
    }
}

/// An action of an operator.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AuditEvent {
    pub(super) at_millis: u64,
    pub(super) actor: String,
    pub(super) action: Action,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) targets: Vec<PastTarget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) because: Option<String>,
    /// `done`, `refused` if the role does not allow it, or what became of the invalidation.
    pub(super) outcome: String,
}

impl AuditEvent {
    /// The event of an action that happens now, and is done.
    pub(super) fn of(access: &AdminAccess, action: Action) -> Self {
        let (targets, because, outcome) = (Vec::new(), None, "done".to_owned());
        let actor = access.actor.clone();
        Self { at_millis: now_millis(), actor, action, targets, because, outcome }
    }
}

/// The last actions, and apart from them the last logins and logouts, which a read-only actor can make too.
pub(super) struct AuditLog {
    most: usize,
    logs: Mutex<Logs>,
}

#[derive(Default)]
struct Logs {
    next: u64,
    actions: VecDeque<(u64, AuditEvent)>,
    sessions: VecDeque<(u64, AuditEvent)>,
}

impl AuditLog {
    pub(super) fn new(most: usize) -> Self {
        Self { most, logs: Mutex::default() }
    }

    /// Logs an action, and remembers it.
    pub(super) fn add(&self, event: AuditEvent) {
        tracing::info!(
            target: "larder",
            actor = event.actor,
            action = event.action.as_str(),
            targets = event.targets.len(),
            because = event.because,
            outcome = event.outcome,
            "an operator acted through the admin API"
        );
        let mut logs = self.logs.lock();
        logs.next += 1;
        let number = logs.next;
        let log = match event.action {
            Action::Invalidate => &mut logs.actions,
            Action::Login | Action::Logout => &mut logs.sessions,
        };
        log.push_back((number, event));
        while log.len() > self.most {
            log.pop_front();
        }
    }

    /// Returns the last actions, logins and logouts, the newest first.
    pub(super) fn all(&self) -> Vec<AuditEvent> {
        let logs = self.logs.lock();
        let mut all: Vec<_> = logs.actions.iter().chain(&logs.sessions).collect();
        all.sort_unstable_by_key(|(number, _)| Reverse(*number));
        all.into_iter().map(|(_, event)| event.clone()).collect()
    }
}

/// Returns the milliseconds since 1970.
fn now_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
