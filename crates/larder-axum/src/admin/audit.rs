//! The actions of operators.

use std::{collections::VecDeque, time::SystemTime};

use larder_core::kernel::PastTarget;
use parking_lot::Mutex;
use serde::Serialize;

/// An action of an operator.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AuditEvent {
    pub(super) at_millis: u64,
    pub(super) actor: String,
    /// `invalidate`, `login` or `logout`.
    pub(super) action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) targets: Vec<PastTarget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) because: Option<String>,
    pub(super) outcome: String,
}

/// The last actions.
pub(super) struct AuditLog {
    most: usize,
    events: Mutex<VecDeque<AuditEvent>>,
}

impl AuditLog {
    pub(super) fn new(most: usize) -> Self {
        Self { most, events: Mutex::default() }
    }

    /// Logs an action, and remembers it.
    pub(super) fn add(&self, event: AuditEvent) {
        tracing::info!(
            target: "larder",
            actor = event.actor,
            action = event.action,
            targets = event.targets.len(),
            because = event.because,
            outcome = event.outcome,
            "an operator acted through the admin API"
        );
        let mut events = self.events.lock();
        events.push_back(event);
        while events.len() > self.most {
            events.pop_front();
        }
    }

    /// Returns the last actions, the newest first.
    pub(super) fn all(&self) -> Vec<AuditEvent> {
        self.events.lock().iter().rev().cloned().collect()
    }
}

/// Returns the milliseconds since 1970.
pub(super) fn now_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
