//! What is known of the tables of a database: their keys, what else changes with them, and what views are made of.

use std::collections::{BTreeSet, HashMap};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use std::fmt::Write as _;

use crate::analysis::Purity;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::analysis::fingerprint;

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// The tables of a database.
///
/// [`SqlxService`](crate::SqlxService) reads it from the database. Without one each query depends on whole tables, and
/// each write drops everything. What is not described here is not kept when it is read, and drops everything when it is
/// written.
///
/// ```
/// use larder_sql::{Catalog, KeyKind, Table};
///
/// let catalog = Catalog::new().table("products", Table::new().key("id", KeyKind::Integer));
/// # let _ = catalog;
/// ```
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    tables: HashMap<String, Table>,
    views: HashMap<String, Option<BTreeSet<String>>>,
    functions: HashMap<String, Purity>,
    /// Functions that may stand where a column stands, behind the name of a row.
    fields: HashMap<String, Purity>,
    /// Operators of users that do not give the same for the same.
    operators: HashMap<String, Purity>,
    /// What may be called by any statement, though none names it: implicit casts of users, the checks of their domains, and
    /// operators that stand behind words as `IN` and `LIKE`.
    implied: Option<Purity>,
    /// The same for any statement that writes.
    implied_by_writes: Option<Purity>,
    /// The same for a statement that casts.
    casts: Option<Purity>,
    /// Views that call, when they are read, what may write.
    writing: BTreeSet<String>,
    /// Which database this describes, and with which settings of the session: part of the key of each result.
    origin: Option<String>,
}

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    key: Vec<KeyColumn>,
    children: Vec<Child>,
    triggered: Effect,
    replaces: bool,
    /// Rows of it can be written, but what it gives when it is read is not known: a full-text index.
    is_opaque: bool,
    /// Tables whose rows are also rows of this one, or this one's theirs.
    tree: BTreeSet<String>,
}

/// A column of a primary key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyColumn {
    pub(crate) name: String,
    pub(crate) kind: KeyKind,
}

/// How the values of a key are compared. A value of another kind than the column's names no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// As whole numbers.
    Integer,
    /// As texts, byte by byte. Not for a column whose collation takes two texts for the same.
    Text,
}

/// A table whose rows go or change with those of another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Child {
    table: String,
    on_delete: bool,
    on_update: bool,
}

/// What else a write does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Effect {
    #[default]
    Nothing,
    Tables(BTreeSet<String>),
    /// Nobody can say.
    Anything,
}

impl Catalog {
    /// No tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a table.
    #[must_use]
    pub fn table(mut self, name: &str, table: Table) -> Self {
        self.tables.insert(folded(name), table);
        self
    }

    /// Adds a view, and the tables that it is made of.
    #[must_use]
    pub fn view<'a>(mut self, name: &str, tables: impl IntoIterator<Item = &'a str>) -> Self {
        self.views.insert(folded(name), Some(tables.into_iter().map(folded).collect()));
        self
    }

    /// What any statement may call though none names it.
    pub(crate) fn implied(&self) -> Option<Purity> {
        self.implied
    }

    /// What any statement that writes may call though none names it.
    pub(crate) fn implied_by_writes(&self) -> Option<Purity> {
        self.implied_by_writes
    }

    /// What a statement that casts may call.
    pub(crate) fn casts(&self) -> Option<Purity> {
        self.casts
    }

    /// Whether to read this relation calls what may write.
    pub(crate) fn writes_when_read(&self, relation: &str) -> bool {
        self.writing.contains(relation)
    }

    /// Whether nothing that has no name in a statement can write: no cast, no operator.
    pub(crate) fn hides_no_write(&self) -> bool {
        let hidden = [self.implied, self.casts].into_iter().flatten();
        !hidden.chain(self.operators.values().copied()).any(|purity| purity == Purity::Unknown)
    }

    /// Which database this describes, and as seen by which session. `None` where it is not known.
    pub(crate) fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// The same, with this origin where it has none.
    pub(crate) fn or_origin(mut self, origin: Option<String>) -> Self {
        self.origin = self.origin.or(origin);
        self
    }

    /// The same, described for a database and a session of which these are all the facts that answers depend on.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn of_origin(mut self, facts: &[String]) -> Self {
        let mut written = String::new();
        for fact in facts {
            // Behind its length: no two lists of facts are written the same.
            write!(written, "{}:{fact}", fact.len())
                .expect("a string takes whatever is written to it");
        }
        self.origin = Some(fingerprint(&written));
        self
    }

    /// What the database says of a function, where it is not one of those that are known anyway.
    pub(crate) fn purity(&self, function: &str) -> Option<Purity> {
        self.functions.get(function).copied()
    }

    /// What stands where a column stands, if it is a function.
    pub(crate) fn field(&self, name: &str) -> Option<Purity> {
        self.fields.get(name).copied()
    }

    /// Whether nothing but a column can stand where one stands.
    pub(crate) fn fields_are_columns(&self) -> bool {
        self.fields.is_empty()
    }

    pub(crate) fn has_operators(&self) -> bool {
        !self.operators.is_empty()
    }

    /// What an operator of users does, where that is not the same for the same.
    pub(crate) fn operator(&self, name: &str) -> Option<Purity> {
        self.operators.get(name).copied()
    }

    /// The tables that share rows with this one. `None` where it is not known.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn tree(&self, table: &str) -> Option<&BTreeSet<String>> {
        self.tables.get(table).map(|table| &table.tree)
    }

    pub(crate) fn is_table(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }

    /// Whether this is a table or a view.
    pub(crate) fn is_relation(&self, name: &str) -> bool {
        self.is_table(name) || self.views.contains_key(name)
    }

    /// Whether a conflict with another row of a table removes that row.
    pub(crate) fn replaces(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.replaces)
    }

    /// The tables that a relation is made of. `None` where that is not known.
    pub(crate) fn made_of(&self, relation: &str) -> Option<BTreeSet<String>> {
        let (mut tables, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut next = vec![relation];
        while let Some(name) = next.pop() {
            // Views may name each other, if only by the names of their CTEs.
            if !seen.insert(name) {
                continue;
            }
            if let Some(table) = self.tables.get(name) {
                if table.is_opaque {
                    return None;
                }
                tables.insert(name.to_owned());
            } else {
                next.extend(self.views.get(name)?.as_ref()?.iter().map(String::as_str));
            }
        }
        Some(tables)
    }

    pub(crate) fn key(&self, table: &str) -> &[KeyColumn] {
        self.tables.get(table).map_or(&[], |table| &table.key)
    }

    /// All that changes when rows of a table are written, the table itself not among it but through others.
    /// `None` when it may be anything.
    pub(crate) fn changes_with(
        &self,
        table: &str,
        deletes: bool,
        updates: bool,
    ) -> Option<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        self.spread(table, deletes, updates, &mut all).then_some(all)
    }

    fn spread(
        &self,
        table: &str,
        deletes: bool,
        updates: bool,
        all: &mut BTreeSet<String>,
    ) -> bool {
        let Some(table) = self.tables.get(table) else { return false };
        let follow = |child: &&Child| (deletes && child.on_delete) || (updates && child.on_update);
        let children = table.children.iter().filter(follow).map(|child| &*child.table);
        let mut next: Vec<&str> = children.chain(table.tree.iter().map(String::as_str)).collect();
        match &table.triggered {
            Effect::Nothing => {}
            Effect::Tables(tables) => next.extend(tables.iter().map(String::as_str)),
            Effect::Anything => return false,
        }
        next.into_iter().all(|name| {
            // Once is enough: whatever follows has been followed.
            !all.insert(name.to_owned()) || self.spread(name, true, true, all)
        })
    }
}

impl Table {
    /// A table of which nothing else is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column to its primary key.
    #[must_use]
    pub fn key(mut self, column: &str, kind: KeyKind) -> Self {
        self.key.push(KeyColumn { name: folded(column), kind });
        self
    }

    /// Rows of `table` go or change when rows of this one are deleted, or when their keys are updated: a foreign
    /// key with `CASCADE`, `SET NULL` or `SET DEFAULT`.
    #[must_use]
    pub fn child(mut self, table: &str, on_delete: bool, on_update: bool) -> Self {
        self.children.push(Child { table: folded(table), on_delete, on_update });
        self
    }

    /// A write of a row removes rows that are in conflict with it, as by `ON CONFLICT REPLACE` in its definition.
    #[must_use]
    pub fn replaces_conflicts(mut self) -> Self {
        self.replaces = true;
        self
    }

    /// Rows of those tables are rows of this one too, or this one's theirs: partitions, and tables that inherit.
    #[must_use]
    pub fn shares_rows_with<'a>(mut self, tables: impl IntoIterator<Item = &'a str>) -> Self {
        self.tree.extend(tables.into_iter().map(folded));
        self
    }

    /// A write of this table also writes those, by triggers.
    #[must_use]
    pub fn triggers<'a>(self, tables: impl IntoIterator<Item = &'a str>) -> Self {
        let tables = tables.into_iter().map(folded).collect();
        self.with_effect(Effect::Tables(tables))
    }

    /// Nobody can say what a write of this table writes besides.
    #[must_use]
    pub fn triggers_anything(self) -> Self {
        self.with_effect(Effect::Anything)
    }

    /// To read it is to read something of which nothing is known; to write it writes nothing else.
    #[cfg(feature = "sqlite")]
    pub(crate) fn opaque(mut self) -> Self {
        self.is_opaque = true;
        self
    }

    pub(crate) fn with_effect(mut self, effect: Effect) -> Self {
        self.triggered = match (self.triggered, effect) {
            (Effect::Nothing, effect) | (effect, Effect::Nothing) => effect,
            (Effect::Tables(mut a), Effect::Tables(b)) => {
                a.extend(b);
                Effect::Tables(a)
            }
            _ => Effect::Anything,
        };
        self
    }
}

/// A name as it is compared. PostgreSQL tells quoted names by their case: two that differ in nothing else are not known.
pub(crate) fn folded(name: &str) -> String {
    name.to_ascii_lowercase()
}
