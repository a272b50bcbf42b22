//! The counters of each route, and the names of routes.
//!
//! A route is the template of a router, such as `/products/{id}`, and never a path: the number of templates is bounded,
//! and a path can contain personal data. A response cache inside a router reads the template from the request. One
//! around a router learns it at the fill, and stores it with the entry, so that hits are counted for it too.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{
    event::{Event, OUTCOMES},
    histogram::Histogram,
    striped::StripedCounters,
};
use crate::{clock::Moment, reason::Reason};

/// A route of one larder: the number of a template in its list of routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(u16);

impl RouteId {
    /// The route of requests of which no router has told a template.
    pub const UNMATCHED: Self = Self(0);
    /// The route of all templates beyond the first 510.
    const OTHER: Self = Self(1);

    /// Returns the number of the route, less than 512.
    pub fn number(self) -> usize {
        usize::from(self.0)
    }
}

/// A route with its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    id: RouteId,
    template: Arc<str>,
}

impl Route {
    /// Returns the number of the route.
    pub fn id(&self) -> RouteId {
        self.id
    }

    /// Returns the template.
    pub fn template(&self) -> &str {
        &self.template
    }
}

/// The templates of all routes, each at the place of its number.
#[derive(Debug)]
pub(crate) struct RouteNames {
    /// Replaced as a whole for each new template, so that a lookup takes no lock.
    known: ArcSwap<Known>,
    naming: Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    ids: BTreeMap<Arc<str>, RouteId>,
    names: Vec<Arc<str>>,
}

impl Default for RouteNames {
    fn default() -> Self {
        let names = vec!["unmatched".into(), "(other)".into()];
        let known = ArcSwap::from_pointee(Known { ids: BTreeMap::new(), names });
        Self { known, naming: Mutex::default() }
    }
}

impl RouteNames {
    /// Returns the route of a template, always the same for the same template.
    pub(crate) fn id(&self, template: &str) -> RouteId {
        let known = self.known.load().ids.get(template).copied();
        known.unwrap_or_else(|| self.added(template))
    }

    pub(crate) fn route(&self, template: &str) -> Route {
        let id = self.id(template);
        Route { id, template: self.name(id) }
    }

    /// Returns the template of a route.
    pub(crate) fn name(&self, route: RouteId) -> Arc<str> {
        Arc::clone(&self.known.load().names[route.number()])
    }

    #[cold]
    fn added(&self, template: &str) -> RouteId {
        let _naming = self.naming.lock();
        let known = self.known.load_full();
        if let Some(route) = known.ids.get(template) {
            return *route;
        }
        if known.names.len() >= MAX_ROUTES || template.len() > LONGEST_TEMPLATE {
            return RouteId::OTHER;
        }
        let route = RouteId(u16::try_from(known.names.len()).expect("there are at most 512"));
        let (name, mut known): (Arc<str>, Known) = (template.into(), Known::clone(&known));
        known.ids.insert(Arc::clone(&name), route);
        known.names.push(name);
        self.known.store(Arc::new(known));
        route
    }
}

/// The counters of the routes of one cache. Each route that is counted takes 2.5 KiB.
#[derive(Debug, Default)]
pub(crate) struct RouteTable(OnceLock<Box<[OnceLock<Box<RouteCounters>>]>>);

impl RouteTable {
    /// Returns the counters of a route.
    #[inline]
    pub(crate) fn of(&self, route: RouteId) -> &RouteCounters {
        let all = self.0.get_or_init(|| (0..MAX_ROUTES).map(|_| OnceLock::new()).collect());
        all[route.number()].get_or_init(Box::default)
    }

    /// Returns the counters of all routes that were counted.
    pub(crate) fn all(&self) -> impl Iterator<Item = (RouteId, &RouteCounters)> {
        let all = self.0.get().into_iter().flatten().enumerate();
        all.filter_map(|(place, route)| {
            Some((RouteId(u16::try_from(place).ok()?), &**route.get()?))
        })
    }
}

/// The counters of one route in one cache.
#[derive(Debug)]
pub(crate) struct RouteCounters {
    outcomes: StripedCounters<OUTCOMES>,
    pub(crate) fills: Histogram,
    fill_nanos: AtomicU64,
    refusals: Mutex<BTreeMap<Reason, u64>>,
    last_refusal: Mutex<Option<RefusedResponse>>,
}

/// A response of a route that was not stored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RefusedResponse {
    /// The reason.
    pub reason: Reason,
    /// The field or option that is the reason, as far as it has a name.
    pub cause: Option<String>,
    /// When it was refused.
    pub at: Moment,
}

impl Default for RouteCounters {
    fn default() -> Self {
        Self {
            outcomes: StripedCounters::default(),
            fills: Histogram::new(),
            fill_nanos: AtomicU64::new(0),
            refusals: Mutex::default(),
            last_refusal: Mutex::default(),
        }
    }
}

impl RouteCounters {
    /// Counts the outcome of a request. Events that are no outcome do not count.
    #[inline]
    pub(crate) fn count(&self, event: Event) {
        if event.is_outcome() {
            self.outcomes.count(event.place());
        }
    }

    /// Counts a response that was not stored, or a request that bypassed the cache.
    pub(crate) fn refuse(&self, why: Reason) {
        *self.refusals.lock().entry(why).or_default() += 1;
    }

    /// Notes a response that is not stored. Larder counts it apart, and may count it later.
    pub(crate) fn note_refusal(&self, refused: RefusedResponse) {
        *self.last_refusal.lock() = Some(refused);
    }

    pub(crate) fn last_refusal(&self) -> Option<RefusedResponse> {
        self.last_refusal.lock().clone()
    }

    pub(crate) fn record_fill_time(&self, took: Duration) {
        self.fills.record(took);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.fill_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn outcomes(&self) -> [u64; OUTCOMES] {
        self.outcomes.sums()
    }

    pub(crate) fn fill_time(&self) -> Duration {
        Duration::from_nanos(self.fill_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn refusals(&self) -> BTreeMap<Reason, u64> {
        self.refusals.lock().clone()
    }
}

const MAX_ROUTES: usize = 512;
/// A longer template counts as `(other)`.
const LONGEST_TEMPLATE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_beyond_the_limit_share_a_route() {
        let names = RouteNames::default();
        let ids: Vec<_> = (0..MAX_ROUTES).map(|n| names.id(&format!("/{n}"))).collect();
        assert_eq!(&*names.name(ids[0]), "/0");
        assert_eq!(names.id("/0"), ids[0], "the same route for the same template");
        assert_eq!(&*names.name(ids[MAX_ROUTES - 1]), "(other)");
        assert_eq!(&*names.name(RouteId::UNMATCHED), "unmatched");
        assert_eq!(names.id(&"x".repeat(LONGEST_TEMPLATE + 1)), RouteId::OTHER);
        let table = RouteTable::default();
        ids.iter().for_each(|route| table.of(*route).count(Event::Hit));
        assert_eq!(table.all().map(|(_, route)| route.outcomes()[0]).sum::<u64>(), 512);
        assert_eq!(table.all().count(), MAX_ROUTES - 2 + 1);
    }

    #[test]
    fn only_the_outcomes_of_requests_count_for_a_route() {
        let route = RouteCounters::default();
        for event in
            [Event::Miss, Event::Stored, Event::StaleOnError, Event::Bypass(Reason::Method)]
        {
            route.count(event);
        }
        assert_eq!(route.outcomes(), [0, 0, 0, 0, 1, 1]);
    }
}
