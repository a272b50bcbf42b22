//! Invalidations by operators.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use larder_core::{
    Invalidation, Target,
    kernel::{PastTarget, Preview},
};
use serde::{Deserialize, Serialize};

use super::{
    Admin, LONGEST_SCAN,
    access::{AdminAccess, AdminRole},
    audit::{Action, AuditEvent},
    query::{ClientError, view},
};

/// An invalidation as clients send it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InvalidationRequest {
    tag: Option<String>,
    name: Option<String>,
    path: Option<String>,
    prefix: Option<String>,
    pattern: Option<String>,
    #[serde(default)]
    everything: bool,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    soft: bool,
    grace_seconds: Option<u64>,
    because: Option<String>,
}

/// The answer to an invalidation.
#[derive(Debug, Serialize)]
pub(super) struct InvalidationAnswer {
    /// `logged`, or `queued` if the log has not confirmed it. In this process it acts in any case.
    outcome: String,
    targets: Vec<PastTarget>,
}

impl InvalidationRequest {
    pub(super) fn read(body: &[u8]) -> Result<Self, ClientError> {
        serde_json::from_slice(body).map_err(|error| {
            ClientError::bad_request(format!(
                "{error}; allowed is a JSON object with one of {TARGETS}, and with soft, grace_seconds, namespace and \
                 because, which are optional"
            ))
        })
    }

    fn target(&self) -> Result<Target, ClientError> {
        let given = [
            self.tag.as_ref().map(|tag| Target::tag(tag.as_str())),
            self.name.as_ref().map(|name| Target::name(name.as_str())),
            self.path.as_ref().map(Target::path),
            self.prefix.as_ref().map(|prefix| Target::prefix(prefix.as_str())),
            self.pattern.as_ref().map(|pattern| Target::pattern(pattern.as_str())),
            self.everything.then(Target::everything),
        ];
        let texts = [&self.tag, &self.name, &self.path, &self.prefix, &self.pattern];
        if texts.into_iter().flatten().any(|text| text.trim().is_empty()) {
            return Err(ClientError::bad_request("the target is empty; allowed is a text"));
        }
        if self.pattern.as_ref().is_some_and(|pattern| pattern.len() > LONGEST_PATTERN) {
            return Err(ClientError::bad_request(format!(
                "the pattern is longer than allowed, which is {LONGEST_PATTERN} bytes"
            )));
        }
        let mut given = given.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(target), None) => Ok(target),
            (None, _) => Err(ClientError::bad_request(format!(
                "no target is given; allowed is one of {TARGETS}"
            ))),
            (Some(_), Some(_)) => Err(ClientError::bad_request(format!(
                "several targets are given; allowed is one of {TARGETS}"
            ))),
        }
    }

    fn invalidation(&self) -> Result<Invalidation, ClientError> {
        let mut invalidation = Invalidation::from(self.target()?);
        match (self.soft, self.grace_seconds) {
            (true, grace) => invalidation = invalidation.soft(grace.map(Duration::from_secs)),
            (false, Some(_)) => {
                return Err(ClientError::bad_request(
                    "grace_seconds is given; it is allowed with soft",
                ));
            }
            (false, None) => {}
        }
        Ok(invalidation)
    }
}

/// Returns what an invalidation would reach.
pub(super) async fn preview(
    admin: &Arc<Admin>,
    request: InvalidationRequest,
) -> Result<Preview, ClientError> {
    let (larder, partitions) = (view(&admin.larder, &request.namespace), admin.partitions);
    let invalidation = request.invalidation()?;
    let preview = move || larder.kernel().preview(invalidation, LONGEST_SCAN, partitions);
    Ok(admin.scan(preview).await)
}

/// Invalidates for an actor. The invalidation and its audit event are made also if the client disconnects meanwhile.
pub(super) async fn invalidate(
    admin: &Arc<Admin>,
    access: AdminAccess,
    request: InvalidationRequest,
) -> Result<InvalidationAnswer, ClientError> {
    if request.because.as_ref().is_some_and(|because| because.len() > LONGEST_REASON) {
        return Err(ClientError::new(
            StatusCode::BAD_REQUEST,
            format!("because is longer than allowed, which is {LONGEST_REASON} bytes"),
        ));
    }
    let larder = view(&admin.larder, &request.namespace);
    let mut invalidation = request.invalidation()?.by(&access.actor);
    if let Some(because) = &request.because {
        invalidation = invalidation.because(because);
    }
    let targets = larder.kernel().targets_of(invalidation.clone(), admin.partitions);
    let event = AuditEvent {
        targets: targets.clone(),
        because: request.because,
        ..AuditEvent::of(&access, Action::Invalidate)
    };
    if access.role != AdminRole::Full {
        let text = format!("the role is {}, allowed is full", access.role.as_str());
        admin.audit.add(AuditEvent { outcome: "refused".to_owned(), ..event });
        return Err(ClientError::new(StatusCode::FORBIDDEN, text));
    }
    let task = tokio::spawn({
        let admin = Arc::clone(admin);
        async move {
            let outcome = larder.invalidate(invalidation).await.to_string();
            admin.audit.add(AuditEvent { outcome: outcome.clone(), ..event });
            outcome
        }
    });
    let outcome = task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    Ok(InvalidationAnswer { outcome, targets })
}

const TARGETS: &str = "tag, name, path, prefix, pattern and everything: true";
/// A scan compares a pattern with each tag.
const LONGEST_PATTERN: usize = 512;
const LONGEST_REASON: usize = 256;
