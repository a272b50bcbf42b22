//! Invalidations by operators.

use std::time::Duration;

use http::StatusCode;
use larder_core::{
    Invalidation, Larder, Target,
    kernel::{PastTarget, Preview},
};
use serde::{Deserialize, Serialize};

use super::{
    Admin, LONGEST_SCAN,
    access::AdminAccess,
    audit::{AuditEvent, now_millis},
    query::ClientError,
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

    fn view(&self, larder: &Larder) -> Larder {
        match &*self.namespace {
            "" => larder.clone(),
            namespace => larder.namespace(namespace),
        }
    }
}

/// Returns what an invalidation would reach.
pub(super) fn preview(
    admin: &Admin,
    request: &InvalidationRequest,
) -> Result<Preview, ClientError> {
    let larder = request.view(&admin.larder);
    Ok(larder.kernel().preview(request.invalidation()?, LONGEST_SCAN))
}

/// Invalidates for an actor.
pub(super) async fn invalidate(
    admin: &Admin,
    access: &AdminAccess,
    request: &InvalidationRequest,
) -> Result<InvalidationAnswer, ClientError> {
    if request.because.as_ref().is_some_and(|because| because.len() > LONGEST_REASON) {
        return Err(ClientError::new(
            StatusCode::BAD_REQUEST,
            format!("because is longer than allowed, which is {LONGEST_REASON} bytes"),
        ));
    }
    let larder = request.view(&admin.larder);
    let mut invalidation = request.invalidation()?.by(&access.actor);
    if let Some(because) = &request.because {
        invalidation = invalidation.because(because);
    }
    let targets = larder.kernel().targets_of(invalidation.clone());
    let outcome = larder.invalidate(invalidation).await.to_string();
    admin.audit.add(AuditEvent {
        at_millis: now_millis(),
        actor: access.actor.clone(),
        action: "invalidate",
        targets: targets.clone(),
        because: request.because.clone(),
        outcome: outcome.clone(),
    });
    Ok(InvalidationAnswer { outcome, targets })
}

const TARGETS: &str = "tag, name, path, prefix, pattern and everything: true";
const LONGEST_REASON: usize = 256;
