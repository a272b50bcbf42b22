//! The context of one query cache: its options, its schema snapshot, and the decision whether a query is cached.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use larder_core::{
    Invalidated, Lifetime, LoadHandle, Policy, Reason, Tag, Target,
    kernel::{Event, Kernel, Scope, ScopeContents, TagSource},
    store::CommitId,
};
use parking_lot::{Mutex, RwLock};

use crate::{
    analysis::{Analyses, Analysis, SqlDialect, StatementKind, digest, is_moving_time},
    catalog::{Catalog, folded},
    error::QueryErrorKind,
    layer::Options,
    outbox::follower::OutboxRow,
    service::QueryOptions,
    statement::Statement,
    tags::{Tags, WrittenTargets},
    value::SqlValue,
};

pub(crate) struct QueryContext {
    pub(crate) kernel: Kernel,
    pub(crate) options: Options,
    pub(crate) tags: Tags,
    known: RwLock<Arc<SchemaSnapshot>>,
    relearning: tokio::sync::Mutex<()>,
    /// Whether a task retries reading the catalog or installing the outbox.
    retrying: AtomicBool,
    /// Installs the outbox again; set when this process has installed it.
    pub(crate) outbox: Mutex<Option<Install>>,
    /// Whether the outbox could not be installed again, so that tables may have no triggers.
    lacks_triggers: AtomicBool,
    warned: Mutex<std::collections::HashSet<String>>,
}

/// The catalog, and the analyses of statements that were made with it. A change replaces the whole snapshot.
#[derive(Default)]
pub(crate) struct SchemaSnapshot {
    catalog: Option<Catalog>,
    analyses: Analyses,
    /// Whether the catalog could not be read. The previous catalog, which may be outdated, was then dropped.
    is_distrusted: bool,
}

impl SchemaSnapshot {
    fn of(catalog: Option<Catalog>) -> Arc<Self> {
        Arc::new(Self { catalog, ..Self::default() })
    }

    pub(crate) fn catalog(&self) -> Option<&Catalog> {
        self.catalog.as_ref()
    }
}

/// A statement with its analysis, and the schema snapshot that the analysis was made with.
#[derive(Clone)]
pub(crate) struct PreparedStatement {
    pub(crate) statement: Statement,
    pub(crate) analysis: Arc<Analysis>,
    pub(crate) schema: Arc<SchemaSnapshot>,
}

impl PreparedStatement {
    /// Whether the statement may change the schema.
    pub(crate) fn may_redefine(&self) -> bool {
        matches!(self.analysis.nature, StatementKind::Definition | StatementKind::Unknown(_))
    }
}

/// The decision how to serve a query.
pub(crate) enum QueryAdmission {
    /// Look it up in the cache.
    Cached,
    /// Bypass the cache, for this reason.
    Bypass(Reason),
    /// Run it and invalidate, because it writes.
    Write,
    /// Refuse it, because it begins or ends a transaction. On a pooled connection, the statements of other callers
    /// would run in that transaction.
    Refused,
}

impl QueryContext {
    pub(crate) fn new(kernel: &Kernel, mut options: Options) -> Self {
        Self {
            kernel: kernel.clone(),
            tags: Tags::new(&options.database),
            known: RwLock::new(SchemaSnapshot::of(options.catalog.take())),
            relearning: tokio::sync::Mutex::default(),
            retrying: AtomicBool::new(false),
            outbox: Mutex::default(),
            lacks_triggers: AtomicBool::new(false),
            warned: Mutex::default(),
            options,
        }
    }

    /// Replaces the catalog. A catalog without an origin describes the same database as the previous catalog, and takes
    /// its origin.
    pub(crate) fn learn(&self, catalog: Catalog) {
        let mut known = self.known.write();
        let origin = known.catalog().and_then(Catalog::origin).map(str::to_owned);
        *known = SchemaSnapshot::of(Some(catalog.or_origin(origin)));
    }

    /// Reads the catalog again, after a statement that may have changed the schema. Returns `false` if that fails. Then
    /// no query is cached and each write invalidates everything, until a later attempt succeeds. A background task
    /// makes these attempts, at intervals that double from 100 ms to 30 s.
    pub(crate) async fn relearn(self: &Arc<Self>) -> bool {
        let is_read = self.try_relearn().await;
        if !is_read {
            self.retry_later("the catalog of the database cannot be read: no query is cached until a retry succeeds");
        }
        is_read
    }

    fn retry_later(self: &Arc<Self>, warning: &str) {
        if !self.retrying.swap(true, Ordering::AcqRel) {
            let database = &self.options.database;
            tracing::warn!(target: "larder", database, "{warning}");
            drop(self.kernel.spawn(retry(Arc::downgrade(self))));
        }
    }

    /// Whether an earlier attempt to read the catalog or to install the outbox has failed, and no later attempt has
    /// succeeded.
    fn has_to_retry(&self) -> bool {
        self.known.read().is_distrusted || self.lacks_triggers.load(Ordering::Acquire)
    }

    async fn try_relearn(&self) -> bool {
        let Some(source) = &self.options.source else { return true };
        // Only one task reads at a time, so that an older catalog does not replace a newer one.
        let _alone = self.relearning.lock().await;
        let catalog = source().await;
        let is_read = catalog.is_some();
        match catalog {
            Some(catalog) => self.learn(catalog),
            None => {
                *self.known.write() =
                    Arc::new(SchemaSnapshot { is_distrusted: true, ..SchemaSnapshot::default() });
            }
        }
        is_read
    }

    /// Creates the triggers of the outbox again if this process has installed it, because a schema change may add
    /// tables and change keys. If that fails, a background task tries again, at intervals that double from 100 ms to 30
    /// s.
    pub(crate) async fn reinstall(self: &Arc<Self>) {
        if !self.try_reinstall().await {
            self.retry_later("the outbox cannot be installed again after a schema change: writes of other programs to new tables are not seen until a retry succeeds");
        }
    }

    async fn try_reinstall(&self) -> bool {
        let install = self.outbox.lock().clone();
        let is_installed = match install {
            Some(install) => install().await,
            None => true,
        };
        self.lacks_triggers.store(!is_installed, Ordering::Release);
        is_installed
    }

    /// Invalidates everything that depends on this database.
    pub(crate) async fn invalidate_all(&self) -> Invalidated {
        self.kernel.invalidate(self.tags.everything()).await
    }

    pub(crate) fn known(&self) -> Arc<SchemaSnapshot> {
        Arc::clone(&self.known.read())
    }

    /// Whether this is the current schema snapshot.
    pub(crate) fn is_current(&self, known: &Arc<SchemaSnapshot>) -> bool {
        Arc::ptr_eq(known, &self.known.read())
    }

    /// Analyses a statement with the current schema.
    pub(crate) fn prepare(&self, statement: Statement) -> PreparedStatement {
        let schema = self.known();
        let analysis = self.analyse(&schema, statement.text());
        PreparedStatement { statement, analysis, schema }
    }

    pub(crate) fn analyse(&self, known: &SchemaSnapshot, text: &str) -> Arc<Analysis> {
        known.analyses.get(text, || Analysis::of(text, self.options.dialect, known.catalog()))
    }

    pub(crate) fn admit(
        &self,
        prepared: &PreparedStatement,
        options: &QueryOptions,
    ) -> QueryAdmission {
        let PreparedStatement { statement, analysis, schema } = prepared;
        let why = match analysis.nature {
            StatementKind::Unknown(Reason::TransactionControl) => return QueryAdmission::Refused,
            StatementKind::Write | StatementKind::Definition | StatementKind::Unknown(_) => {
                return QueryAdmission::Write;
            }
            _ if schema.is_distrusted => Some(Reason::NoCatalog),
            _ if self.options.off => Some(Reason::Off),
            _ if options.uncached => Some(Reason::Uncached),
            // An explicit lifetime makes a volatile query storable.
            StatementKind::Volatile(Reason::Volatile)
                if options.lifetime.is_some() && !analysis.reads_unknown =>
            {
                None
            }
            StatementKind::Volatile(why) => Some(why),
            StatementKind::Query
                if options.lifetime.is_none() && self.moves_with_time(statement) =>
            {
                Some(Reason::Volatile)
            }
            StatementKind::Query => None,
        };
        why.map_or(QueryAdmission::Cached, QueryAdmission::Bypass)
    }

    /// Returns the name of the result of a query, without the type of its rows: the database with the settings of its
    /// session, the text, and the values.
    pub(crate) fn name(&self, prepared: &PreparedStatement) -> String {
        let PreparedStatement { statement, analysis, schema } = prepared;
        let mut name = String::with_capacity(128);
        name.push_str(&self.options.database);
        name.push(':');
        name.push_str(schema.catalog().and_then(Catalog::origin).unwrap_or_default());
        name.push(':');
        name.push_str(&analysis.fingerprint);
        name.push(':');
        let values = name.len();
        statement.values().iter().for_each(|value| value.name(&mut name));
        if name.len() - values > LONGEST_VALUES {
            // A cryptographic hash replaces the values. It is short, and two different lists of values do not have the
            // same hash.
            let hash = format!("#{};", digest(&name[values..], 32));
            name.truncate(values);
            name.push_str(&hash);
        }
        name
    }

    /// Whether a bound value is a text that PostgreSQL may parse as a different time each day.
    fn moves_with_time(&self, statement: &Statement) -> bool {
        let moves =
            |value: &SqlValue| matches!(value, SqlValue::Text(text) if is_moving_time(text));
        self.options.dialect == SqlDialect::Postgres && statement.values().iter().any(moves)
    }

    /// Adds to a fill the tags of a query that it runs, and refuses to store it if the schema has changed between the
    /// analysis of the statement and the stamp of the fill.
    pub(crate) fn tag_fill(&self, prepared: &PreparedStatement, fill: &LoadHandle, has_rows: bool) {
        if !self.is_current(&prepared.schema) {
            fill.refuse(Reason::Redefined);
        }
        self.read_by(prepared, has_rows).into_iter().for_each(|tag| fill.tag(tag));
    }

    /// Limits a fill by the size of its result.
    pub(crate) fn limit_fill(
        &self,
        fill: &LoadHandle,
        options: &QueryOptions,
        is_empty: bool,
        bytes: usize,
    ) {
        if is_empty {
            fill.ttl(self.empty_ttl(options.lifetime.unwrap_or(self.options.lifetime)));
        }
        if bytes > self.options.max_bytes {
            fill.refuse(Reason::TooLarge);
        }
    }

    /// The policy for the result of a query.
    pub(crate) fn policy(&self, options: &QueryOptions) -> Policy {
        let policy = Policy::from(options.lifetime.unwrap_or(self.options.lifetime));
        // All users share the result, because values that distinguish users are bound, and so are part of the key.
        let policy = policy.name(self.options.name).shared();
        // No deadline by default, as without the cache.
        let deadline = options.deadline.or(self.options.deadline).unwrap_or(Duration::MAX);
        let policy = policy.fill_timeout(deadline);
        let policy = match options.coalesce_timeout.or(self.options.coalesce_timeout) {
            Some(limit) => policy.coalesce_timeout(limit),
            None => policy,
        };
        match options.lifetime {
            None => policy.until_invalidated(),
            Some(_) => policy,
        }
    }

    /// The tags of the result of a query, and whether it is known to have rows.
    pub(crate) fn read_by(&self, prepared: &PreparedStatement, has_rows: bool) -> Vec<Tag> {
        let PreparedStatement { statement, analysis, schema } = prepared;
        let all_exist = has_rows && analysis.proves_rows;
        self.tags.read_by(analysis, schema.catalog(), statement.values(), all_exist)
    }

    /// Returns the targets that a statement invalidates. Logs one warning for each statement that may write to any
    /// table.
    pub(crate) fn written_by(&self, prepared: &PreparedStatement) -> WrittenTargets {
        let PreparedStatement { statement, analysis, schema } = prepared;
        if let StatementKind::Unknown(why) = analysis.nature
            && self.is_first(&analysis.fingerprint)
        {
            let (database, text) = (&self.options.database, statement.text());
            tracing::warn!(target: "larder", database, why = why.as_str(), text, "a statement may write to any table: all stored results of this database are invalidated each time it runs");
        }
        self.tags.written_by(analysis, schema.catalog(), statement.values())
    }

    /// Whether the outbox notes the values of lookups, so that a transaction can read them before it commits.
    pub(crate) fn notes_lookups(&self) -> bool {
        self.known().catalog().is_some_and(Catalog::notes_lookups)
    }

    /// Returns the targets of the lookups of a table in these rows of the outbox. If there is none of the table, or one
    /// without its lookups, these are all lookups of the table.
    pub(crate) fn lookup_targets(&self, table: &str, noted: &[OutboxRow]) -> Vec<Target> {
        let known = self.known();
        let Some(catalog) = known.catalog() else { return vec![self.tags.any_lookup(table)] };
        let lines = || noted.iter().filter(|line| folded(&line.table) == table);
        if lines().next().is_none() {
            return vec![self.tags.any_lookup(table)];
        }
        lines().flat_map(|line| line.lookup_targets(&self.tags, catalog)).collect()
    }

    /// Adds the rows or tables that a statement writes to the enclosing scope: a value made of the rows that the statement
    /// returns depends on them.
    pub(crate) fn note_written(&self, prepared: &PreparedStatement) {
        let Some(scope) = self.kernel.current_scope() else { return };
        let PreparedStatement { statement, analysis, schema } = prepared;
        let tags = self.tags.of_written(analysis, schema.catalog(), statement.values());
        scope.add_tags(TagSource::Statement, tags);
    }

    /// Returns the identity for a transaction that begins now: only inside of a value that is written through, and only if
    /// the database has an outbox.
    pub(crate) fn commit_id(&self) -> Option<CommitId> {
        let is_writing = self.kernel.current_scope().is_some_and(|scope| scope.is_writing());
        let has_outbox = || self.known().catalog().is_some_and(Catalog::has_outbox);
        (is_writing && has_outbox()).then(CommitId::random)
    }

    /// Invalidates in the scope in which a write began, so that a write-through takes the invalidation for its own. With
    /// the identity of a transaction that is committed, its outbox rows do not invalidate the same targets again.
    pub(crate) async fn invalidate_in(
        &self,
        scope: Option<&Scope>,
        commit: Option<CommitId>,
        targets: Vec<Target>,
    ) -> Invalidated {
        let invalidating = async {
            match commit {
                Some(commit) => self.kernel.invalidate_commit(commit, targets).await,
                None => self.kernel.invalidate(targets).await,
            }
        };
        match scope {
            Some(scope) => scope.clone().scoped(invalidating).await,
            None => invalidating.await,
        }
    }

    /// Runs a write of these statements and then invalidates, in a task of its own, so that it invalidates even if the caller is dropped or the
    /// driver panics. If the write has a commit identity, its outbox rows do not
    /// invalidate a second time.
    pub(crate) async fn write<R, E>(
        self: &Arc<Self>,
        statements: &[PreparedStatement],
        commit: Option<CommitId>,
        running: impl Future<Output = Result<R, E>> + Send + 'static,
    ) -> Result<Result<R, E>, QueryErrorKind>
    where
        R: Send + 'static,
        E: Send + 'static,
    {
        for prepared in statements {
            self.note_bypass(prepared, Reason::Write);
            self.note_written(prepared);
        }
        let scope = self.kernel.current_scope();
        let targets =
            statements.iter().flat_map(|prepared| self.written_by(prepared).all(&self.tags));
        let mut targets: Vec<Target> = targets.collect();
        let redefines = statements.iter().any(PreparedStatement::may_redefine);
        let may_define = statements.iter().any(|prepared| {
            let nature = prepared.analysis.nature;
            prepared.may_redefine() && nature != StatementKind::Unknown(Reason::UnknownFunction)
        });
        let schemas: Vec<_> = statements.iter().map(|prepared| prepared.schema.clone()).collect();
        let context = Arc::clone(self);
        let writing = self.kernel.spawn(async move {
            let outcome = AssertUnwindSafe(running).catch_unwind().await;
            if redefines {
                // Invalidates now, because the next steps may wait for locks of other connections, and again below,
                // because results may be read under the old schema in the meantime.
                let everything = vec![context.tags.everything()];
                let _logged_or_queued =
                    context.invalidate_in(scope.as_ref(), None, everything).await;
                context.relearn().await;
                if may_define {
                    context.reinstall().await;
                }
            } else if !schemas.iter().all(|schema| context.is_current(schema)) {
                // The schema has changed in the meantime, so the write may have changed more tables than the analysis
                // found.
                targets = vec![context.tags.everything()];
            }
            // Invalidates even after an error or a panic, because the write may have been applied nevertheless.
            let commit = commit.filter(|_| matches!(outcome, Ok(Ok(_))));
            let _logged_or_queued = context.invalidate_in(scope.as_ref(), commit, targets).await;
            outcome.map_err(|_| QueryErrorKind::Panicked)
        });
        writing.await.unwrap_or(Err(QueryErrorKind::Cancelled))
    }

    /// Whether this is the first warning about a statement, and one of the first 1,000 warnings. Checks and records it
    /// under one lock.
    fn is_first(&self, fingerprint: &str) -> bool {
        let mut warned = self.warned.lock();
        warned.len() < MOST_WARNINGS && warned.insert(fingerprint.to_owned())
    }

    /// Counts a query that runs now for the enclosing value.
    pub(crate) fn note_query(&self) {
        if let Some(scope) = self.kernel.current_scope() {
            scope.add_query();
        }
    }

    /// Counts a bypass, and adds the tags of the query to the enclosing scope. The result is not stored, but a page
    /// that has it may be stored.
    pub(crate) fn note_bypass(&self, prepared: &PreparedStatement, why: Reason) {
        let meter = self.kernel.meter(self.options.name);
        meter.record(Event::Bypass(why), self.kernel.now());
        let Some(scope) = self.kernel.current_scope() else { return };
        scope.add_query();
        scope.add_tags(TagSource::Query, self.read_by(prepared, false));
        if prepared.analysis.reads_unknown {
            // The dependencies of the query are unknown, so the enclosing value must not be stored.
            scope.add_unstored(ScopeContents::default(), Reason::UnknownQuery);
        }
    }

    fn empty_ttl(&self, policy: Lifetime) -> Lifetime {
        Lifetime::fresh_for(self.options.empty_ttl.min(policy.fresh()))
    }
}

/// Installs the outbox, and returns whether that succeeded.
pub(crate) type Install = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Retries reading the catalog and installing the outbox until both have succeeded.
async fn retry(context: Weak<QueryContext>) {
    let mut pause = FIRST_RETRY;
    loop {
        tokio::time::sleep(pause).await;
        pause = LAST_RETRY.min(pause * 2);
        let Some(context) = context.upgrade() else { return };
        let is_read = !context.known().is_distrusted || context.try_relearn().await;
        let lacks_triggers = context.lacks_triggers.load(Ordering::Acquire);
        if !is_read || (lacks_triggers && !context.try_reinstall().await) {
            continue;
        }
        // Pages may have been stored in the meantime, although their queries were not cached, and a write may not have
        // invalidated them.
        let _logged_or_queued = context.kernel.invalidate(context.tags.everything()).await;
        let database = &context.options.database;
        tracing::info!(target: "larder", database, "the catalog was read and the outbox was installed again: queries are cached");
        context.retrying.store(false, Ordering::Release);
        // If another attempt has failed in the meantime, it found `retrying` set and relies on this task.
        if !context.has_to_retry() || context.retrying.swap(true, Ordering::AcqRel) {
            return;
        }
        pause = FIRST_RETRY;
    }
}

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
const MOST_WARNINGS: usize = 1000;
/// A longer list of values is hashed in the key.
const LONGEST_VALUES: usize = 512;
