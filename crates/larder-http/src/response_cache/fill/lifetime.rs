//! Determines the lifetime of a response, by the precedence of options, choices of the handler and directives, and its
//! stale windows.

use std::time::Duration;

use http::StatusCode;
use larder_core::{Lifetime, Reason, kernel::LifetimeSource};
use larder_semantics::{
    cache_control::{CacheControl, Seconds},
    freshness::Freshness,
    storing::{self, Profile, Role},
};

use crate::response_cache::{options::Options, overrides::OverrideValues};

/// A lifetime with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundLifetime {
    pub(super) lifetime: Lifetime,
    pub(super) source: LifetimeSource,
    /// Whether it comes from larder alone, since the response has none.
    pub(super) by_larder: bool,
}

/// Returns the lifetime and its source. The lifetime comes from the first of these sources
/// that applies: `negative_ttl` for a response without a lifetime, `override_ttl`, the choice of the handler, the
/// response itself, the layer, heuristics.
pub(super) fn lifetime(
    options: &Options,
    override_values: &OverrideValues,
    status: StatusCode,
    (explicit, control): (Freshness, &CacheControl),
    guessed: impl FnOnce() -> Option<Duration>,
) -> Result<FoundLifetime, Reason> {
    let silent = explicit == Freshness::Unknown;
    let found = |lifetime, source, by_larder| Ok(FoundLifetime { lifetime, source, by_larder });
    let negative = options.negative.iter().find(|(of, _)| *of == status);
    if let (true, Some((_, lifetime))) = (silent, negative) {
        return found(*lifetime, LifetimeSource::NegativeTtl, true);
    }
    // The lifetime from the layer is meant for pages. It does not apply to an error that the handler returns in place
    // of a page.
    let meant = storing::takes_default_lifetime(status);
    if let Some(lifetime) = options.override_lifetime.filter(|_| meant) {
        return found(lifetime, LifetimeSource::OverrideTtl, silent);
    }
    // The lifetime that the handler chose also applies to a redirect.
    let is_error = status.is_client_error() || status.is_server_error();
    if let Some(lifetime) = override_values.lifetime.filter(|_| !is_error) {
        return found(lifetime, LifetimeSource::Handler, silent);
    }
    if let Freshness::Explicit(fresh) = explicit {
        return found(Lifetime::fresh_for(fresh), source_of_explicit(control, options.role), false);
    }
    let added = override_values.added.map(|added| (added, LifetimeSource::NestedLayer));
    let of_layer = options.lifetime.map(|lifetime| (lifetime, LifetimeSource::LayerTtl));
    if let Some((lifetime, source)) = added.or(of_layer).filter(|_| meant) {
        return found(lifetime, source, true);
    }
    let guessed = guessed().ok_or(Reason::NoLifetime)?;
    found(Lifetime::fresh_for(guessed), LifetimeSource::Heuristic, false)
}

/// Returns the directive or field that gives a response its explicit lifetime, in the order of
/// [`freshness::lifetime`](larder_semantics::freshness::lifetime).
fn source_of_explicit(control: &CacheControl, role: Role) -> LifetimeSource {
    if control.is_targeted {
        LifetimeSource::Targeted
    } else if control.s_maxage.is_some() && role == Role::Shared {
        LifetimeSource::SMaxage
    } else if control.max_age.is_some() || control.is_malformed {
        LifetimeSource::MaxAge
    } else {
        LifetimeSource::Expires
    }
}

/// Adds the stale windows to the lifetime. They come from the response, or else from the handler, or else from the
/// layer. A response that must not be served stale has no stale windows.
///
/// Source: RFC 9111, section 4.2.4; RFC 5861.
pub(super) fn with_windows(
    lifetime: Lifetime,
    options: &Options,
    override_values: &OverrideValues,
    control: &CacheControl,
) -> Lifetime {
    if control.forbids_stale(options.role) {
        return Lifetime::fresh_for(lifetime.fresh());
    }
    let own_status =
        |found: Option<Seconds>| found.map(|found| Duration::from_secs(found.or_stale()));
    let or_else = |own: Duration, layer: Option<Duration>| {
        // A response that arrives stale gets no window from the layer.
        if lifetime.fresh().is_zero() {
            own
        } else if own.is_zero() && override_values.lifetime.is_none() {
            layer.unwrap_or_default()
        } else {
            own
        }
    };
    let revalidate = own_status(control.stale_while_revalidate).unwrap_or_else(|| {
        or_else(lifetime.window_while_revalidating(), options.while_revalidating)
    });
    let on_error = own_status(control.stale_if_error).unwrap_or_else(|| {
        let own = or_else(lifetime.window_on_error(), options.on_error);
        match options.profile {
            // RFC 9111 allows larder to serve a stale response while the origin is unreachable.
            Profile::Conformance if own.is_zero() => options.revalidatable,
            _ => own,
        }
    });
    lifetime.stale_while_revalidate(revalidate).stale_if_error(on_error)
}
