//! The catalog of a database: tables with their keys, the tables that change with them, and the tables that views read.

use std::fmt::Write as _;
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

use crate::{analysis::Purity, analysis::fingerprint};

pub(crate) mod postgres;
pub(crate) mod sqlite;

/// The tables and views of a database.
///
/// [`DatabaseService`](crate::DatabaseService) reads it from the database. Without a catalog, each query depends on whole
/// tables, and each write invalidates everything. A query that reads a relation outside the catalog is not stored, and
/// a statement that writes to such a relation invalidates everything.
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
    /// Functions that can be written as a column of a row: `row.function`.
    fields: HashMap<String, Purity>,
    /// User-defined operators that are not immutable.
    operators: HashMap<String, Purity>,
    /// The worst purity of the functions that any statement may call without naming them: implicit user-defined casts,
    /// and user-defined operators that sort, group and compare rows.
    implied: Option<Purity>,
    /// The same for any statement that writes: assignment casts, and checks of domains.
    implied_by_writes: Option<Purity>,
    /// The same for a statement that casts.
    casts: Option<Purity>,
    /// Relations for which a read calls a function that may write: views, and tables with row-level security.
    writing: BTreeSet<String>,
    /// The identity of the database, and the settings of the session, which are part of the key of each result.
    origin: Option<String>,
    /// Whether triggers fill an outbox.
    has_outbox: bool,
    /// Whether they note the values of lookup columns, and a transaction can read its own rows.
    notes_lookups: bool,
}

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    key: Vec<KeyColumn>,
    /// Columns other than the key by which queries look rows up: foreign keys and unique constraints of one column.
    lookups: Vec<KeyColumn>,
    /// All columns, if an `UPDATE` changes only the columns that it names. Empty if that is unknown.
    columns: BTreeSet<String>,
    children: Vec<Child>,
    triggered: Effect,
    replaces: bool,
    /// Whether it is a table, such as a full-text index, whose rows can be written although a query that reads it is
    /// not storable.
    is_opaque: bool,
    /// The tables that share rows with this one, by partitions or inheritance.
    tree: BTreeSet<String>,
}

/// A column of a primary key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyColumn {
    pub(crate) name: String,
    pub(crate) kind: KeyKind,
}

/// How the values of a key column are compared. A value of a different kind does not identify a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyKind {
    /// As integers.
    Integer,
    /// As texts, byte by byte. Do not use it for a column whose collation treats different texts as equal.
    Text,
    /// As texts, byte by byte, of at most this number of characters (`varchar(n)`).
    TextUpTo(u32),
    /// As UUIDs.
    Uuid,
    /// As dates.
    Date,
    /// As decimal numbers of any size, without a declared scale.
    Numeric,
    /// As bytes.
    Bytes,
}

impl KeyKind {
    /// Returns the value of a key in the form in which tags have it, if it is written in a form that larder knows.
    pub(crate) fn canonical(self, text: &str) -> Option<Cow<'_, str>> {
        match self {
            Self::Integer | Self::Text => Some(text.into()),
            // The server cuts blanks of a longer text when it is written, but not when it is compared.
            Self::TextUpTo(most) => {
                (text.chars().count() <= most.try_into().ok()?).then_some(text.into())
            }
            Self::Uuid => uuid(text),
            Self::Date => is_iso_date(text).then_some(text.into()),
            Self::Numeric => decimal(text).map(Into::into),
            Self::Bytes => {
                let digits = text.strip_prefix("\\x")?;
                let is_hex = digits.len().is_multiple_of(2)
                    && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                is_hex.then(|| text.to_ascii_lowercase().into())
            }
        }
    }
}

/// Writes a UUID as PostgreSQL does: lower case, with four hyphens. It also accepts upper case, braces, and hyphens at
/// other places.
fn uuid(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    let digits: String = inner.chars().filter(|letter| *letter != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let digits = digits.to_ascii_lowercase();
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Some(parts.join("-").into())
}

/// Whether this is a date as in ISO 8601, of the years 1 to 9999.
fn is_iso_date(text: &str) -> bool {
    let is_digit = |at: usize| text.as_bytes()[at].is_ascii_digit();
    text.len() == 10
        && [0, 1, 2, 3, 5, 6, 8, 9].into_iter().all(is_digit)
        && (&text[4..5], &text[7..8]) == ("-", "-")
}

/// Writes a decimal number without zeros that do not change its value. `None` for an exponent and for `NaN`.
fn decimal(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || whole.len() + fraction.len() == 0 {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    Some(match (whole, fraction) {
        ("", "") => "0".to_owned(),
        (whole, "") => format!("{sign}{whole}"),
        ("", fraction) => format!("{sign}0.{fraction}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    })
}

/// A table whose rows are deleted or changed with the rows of another table, by a foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Child {
    table: String,
    on_delete: bool,
    on_update: bool,
}

/// The tables to which triggers write when a table is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Effect {
    #[default]
    Nothing,
    Tables(BTreeSet<String>),
    /// Any table may be written.
    Anything,
}

impl Catalog {
    /// Creates a catalog without tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a table.
    #[must_use]
    pub fn table(mut self, name: &str, table: Table) -> Self {
        self.tables.insert(folded(name), table);
        self
    }

    /// Adds a view over these tables.
    #[must_use]
    pub fn view<'a>(mut self, name: &str, tables: impl IntoIterator<Item = &'a str>) -> Self {
        self.views.insert(folded(name), Some(tables.into_iter().map(folded).collect()));
        self
    }

    /// Whether triggers fill an outbox.
    pub(crate) fn has_outbox(&self) -> bool {
        self.has_outbox
    }

    /// Whether the triggers of the outbox note the values of lookup columns.
    pub(crate) fn notes_lookups(&self) -> bool {
        self.notes_lookups
    }

    /// The worst purity of the functions that any statement may call without naming them.
    pub(crate) fn implied(&self) -> Option<Purity> {
        self.implied
    }

    /// The worst purity of the functions that any statement that writes may call without naming them.
    pub(crate) fn implied_by_writes(&self) -> Option<Purity> {
        self.implied_by_writes
    }

    /// The worst purity of the functions that a statement with a cast may call.
    pub(crate) fn casts(&self) -> Option<Purity> {
        self.casts
    }

    /// Whether reading this relation calls a function that may write.
    pub(crate) fn writes_when_read(&self, relation: &str) -> bool {
        self.writing.contains(relation)
    }

    /// Whether no function that a statement calls without naming it, through a cast or an operator, may write.
    pub(crate) fn hides_no_write(&self) -> bool {
        let hidden = [self.implied, self.casts].into_iter().flatten();
        !hidden.chain(self.operators.values().copied()).any(|purity| purity == Purity::Unknown)
    }

    /// The identity of the database, and the settings of the session. `None` if they are unknown.
    pub(crate) fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// Sets the origin, unless it is already set.
    pub(crate) fn or_origin(mut self, origin: Option<String>) -> Self {
        self.origin = self.origin.or(origin);
        self
    }

    /// Sets the origin, from all facts about the database and the session on which results depend.
    pub(crate) fn of_origin(mut self, facts: &[String]) -> Self {
        let mut written = String::new();
        for fact in facts {
            // Writes the length before each fact, so that two different lists of facts are written differently.
            write!(written, "{}:{fact}", fact.len()).expect("writing to a string cannot fail");
        }
        self.origin = Some(fingerprint(&written));
        self
    }

    /// The purity of a function as the database declares it; `None` if the lists of known functions determine it.
    pub(crate) fn purity(&self, function: &str) -> Option<Purity> {
        self.functions.get(function).copied()
    }

    /// The purity of a function that a statement can call in column notation (`row.function`).
    pub(crate) fn field(&self, name: &str) -> Option<Purity> {
        self.fields.get(name).copied()
    }

    pub(crate) fn has_operators(&self) -> bool {
        !self.operators.is_empty()
    }

    /// The purity of a user-defined operator; `None` if the operator is immutable.
    pub(crate) fn operator(&self, name: &str) -> Option<Purity> {
        self.operators.get(name).copied()
    }

    /// The tables that share rows with this one. `None` for a table outside the catalog.
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

    /// Whether a write to a table removes other rows that conflict with the written row.
    pub(crate) fn replaces(&self, table: &str) -> bool {
        self.tables.get(table).is_some_and(|table| table.replaces)
    }

    /// The tables that a relation reads. `None` if they are unknown.
    pub(crate) fn made_of(&self, relation: &str) -> Option<BTreeSet<String>> {
        let (mut tables, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut next = vec![relation];
        while let Some(name) = next.pop() {
            // Views may name each other, for example if a CTE has the name of a view.
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

    /// The columns of a table by which queries look rows up, beside its key.
    pub(crate) fn lookups(&self, table: &str) -> &[KeyColumn] {
        self.tables.get(table).map_or(&[], |table| &table.lookups)
    }

    /// The columns of a table. Empty if they are unknown.
    pub(crate) fn columns(&self, table: &str) -> Option<&BTreeSet<String>> {
        let columns = self.tables.get(table).map(|table| &table.columns);
        columns.filter(|columns| !columns.is_empty())
    }

    /// All tables that change when rows of a table are written, without the table itself, unless it changes through
    /// other tables. `None` if any table may change.
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
            // Follows each table once, because that already adds all tables that change with it.
            !all.insert(name.to_owned()) || self.spread(name, true, true, all)
        })
    }
}

impl Table {
    /// Creates a table without a key, foreign keys or triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column to its primary key.
    #[must_use]
    pub fn key(mut self, column: &str, kind: KeyKind) -> Self {
        self.key.push(KeyColumn { name: folded(column), kind });
        self
    }

    /// Adds a column other than the key by which queries look rows up, such as a foreign key or a unique name. A query for
    /// `column = value` then depends on the rows with this value, and not on the whole table.
    #[must_use]
    pub fn lookup(mut self, column: &str, kind: KeyKind) -> Self {
        self.lookups.push(KeyColumn { name: folded(column), kind });
        self
    }

    /// Declares all columns of the table, of which an `UPDATE` changes only those that it names. A query that reads the
    /// whole table then depends on the columns that it names, and on the insertion and deletion of rows.
    #[must_use]
    pub fn columns<'a>(mut self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        self.columns.extend(columns.into_iter().map(folded));
        self
    }

    /// Adds a child table, which has a foreign key with `CASCADE`, `SET NULL` or `SET DEFAULT`: its rows are deleted or
    /// changed when rows of this table are deleted, or when their keys are updated.
    #[must_use]
    pub fn child(mut self, table: &str, on_delete: bool, on_update: bool) -> Self {
        self.children.push(Child { table: folded(table), on_delete, on_update });
        self
    }

    /// Declares that a write removes rows that conflict with the written row, as with `ON CONFLICT REPLACE` in the
    /// table's definition.
    #[must_use]
    pub fn replaces_conflicts(mut self) -> Self {
        self.replaces = true;
        self
    }

    /// Adds tables that share rows with this one: partitions, and tables that inherit from each other.
    #[must_use]
    pub fn shares_rows_with<'a>(mut self, tables: impl IntoIterator<Item = &'a str>) -> Self {
        self.tree.extend(tables.into_iter().map(folded));
        self
    }

    /// Adds tables to which triggers write at each write to this table.
    #[must_use]
    pub fn triggers<'a>(self, tables: impl IntoIterator<Item = &'a str>) -> Self {
        let tables = tables.into_iter().map(folded).collect();
        self.with_effect(Effect::Tables(tables))
    }

    /// Declares that the triggers of this table may write to any table.
    #[must_use]
    pub fn triggers_anything(self) -> Self {
        self.with_effect(Effect::Anything)
    }

    /// Declares that a query which reads this table is not storable, and that a write to it changes no other table.
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

/// Folds a name for comparison. PostgreSQL preserves the case of quoted names, so relations whose names differ only in
/// case are not described.
pub(crate) fn folded(name: &str) -> String {
    name.to_ascii_lowercase()
}
