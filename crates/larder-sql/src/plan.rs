//! One query cache: its options made ready, and what it decides before it asks anybody.

use std::{fmt::Write as _, sync::Arc};

use larder_core::{Event, Larder, Lifetime, Policy, Schema, Tag, Target};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;

use crate::{
    analysis::{Analyses, Analysis, Nature},
    catalog::Catalog,
    layer::Options,
    service::Wishes,
    statement::Statement,
    tags::Tags,
};

pub(crate) struct Plan {
    pub(crate) larder: Larder,
    pub(crate) options: Options,
    pub(crate) tags: Tags,
    catalog: RwLock<Option<Arc<Catalog>>>,
    analyses: Analyses,
    warned: Mutex<std::collections::HashSet<String>>,
}

/// What is to be done with a query.
pub(crate) enum Admit {
    /// Look it up under this name.
    Cached(String),
    /// Ask the database, for this reason.
    Bypass(&'static str),
    /// It writes: ask the database, and invalidate.
    Write,
}

impl Plan {
    pub(crate) fn new(larder: &Larder, mut options: Options) -> Self {
        Self {
            larder: larder.clone(),
            tags: Tags::new(&options.database),
            catalog: RwLock::new(options.catalog.take().map(Arc::new)),
            analyses: Analyses::default(),
            warned: Mutex::default(),
            options,
        }
    }

    /// What is known of the tables from now on.
    pub(crate) fn learn(&self, catalog: Catalog) {
        *self.catalog.write() = Some(Arc::new(catalog));
        self.analyses.clear();
    }

    /// Reads what is known of the tables anew, after a statement that may have changed them.
    pub(crate) async fn relearn(&self) {
        let Some(source) = &self.options.source else { return };
        // Where nothing is known, nothing is kept, and each write drops everything.
        self.learn(source().await.unwrap_or_default());
    }

    pub(crate) fn analyse(&self, text: &str) -> Arc<Analysis> {
        self.analyses
            .get(text, || Analysis::of(text, self.options.dialect, self.catalog.read().as_deref()))
    }

    pub(crate) fn admit<T: DeserializeOwned + 'static>(
        &self,
        statement: &Statement,
        analysis: &Analysis,
        wishes: &Wishes,
    ) -> Admit {
        let why = match analysis.nature {
            Nature::Write | Nature::Definition | Nature::Unknown(_) => return Admit::Write,
            _ if wishes.uncached => "uncached",
            // Whoever says for how long wants to have it kept.
            Nature::Volatile("volatile") if wishes.lifetime.is_some() => "",
            Nature::Volatile(why) => why,
            Nature::Query => "",
        };
        if !why.is_empty() {
            return Admit::Bypass(why);
        }
        let mut name = String::with_capacity(128);
        name.push_str(&self.options.database);
        name.push(':');
        name.push_str(&analysis.fingerprint);
        name.push(':');
        statement.values().iter().for_each(|value| value.name(&mut name));
        write!(name, "{}", Schema::of::<T>()).expect("a string takes whatever is written to it");
        Admit::Cached(name)
    }

    /// How the result of a query is kept.
    pub(crate) fn policy(&self, wishes: &Wishes) -> Policy {
        let policy = Policy::from(wishes.lifetime.unwrap_or(self.options.lifetime));
        // The data are the same whoever asks: what tells people apart is bound.
        let policy = policy.name(self.options.name).shared();
        match wishes.lifetime {
            None => policy.until_invalidated(),
            Some(_) => policy,
        }
    }

    /// What a query depends on.
    pub(crate) fn read_by(&self, statement: &Statement, analysis: &Analysis) -> Vec<Tag> {
        let catalog = self.catalog.read().clone();
        self.tags.read_by(analysis, catalog.as_deref(), statement.values())
    }

    /// What a statement makes untrue.
    pub(crate) fn written_by(&self, statement: &Statement, analysis: &Analysis) -> Vec<Target> {
        if let Nature::Unknown(why) = analysis.nature
            && self.warned.lock().len() < MOST_WARNINGS
            && self.warned.lock().insert(analysis.fingerprint.clone())
        {
            let (database, text) = (&self.options.database, statement.text());
            tracing::warn!(target: "larder", database, why, text, "it may write anything: all queries are dropped");
        }
        let catalog = self.catalog.read().clone();
        self.tags.written_by(analysis, catalog.as_deref(), statement.values())
    }

    /// A query that is not kept leaves what it depends on to what it becomes part of.
    pub(crate) fn note_bypass(
        &self,
        statement: &Statement,
        analysis: &Analysis,
        why: &'static str,
    ) {
        let meter = self.larder.meter(self.options.name);
        meter.record(Event::Bypass(why), self.larder.now());
        let Some(scope) = self.larder.current_scope() else { return };
        scope.add_tags(self.read_by(statement, analysis));
        if why == "unknown-relation" {
            // Nobody can say what it depends on.
            scope.add_unkept(larder_core::Gathered::default(), "unknown-query");
        }
    }

    pub(crate) fn empty_for(&self, policy: Lifetime) -> Lifetime {
        Lifetime::fresh_for(self.options.empty_for.min(policy.fresh()))
    }
}

const MOST_WARNINGS: usize = 1000;
