//! The tags that a statement depends on, and the targets that it invalidates.
//!
//! The tag of a table is `sql:DATABASE:TABLE`, and the tag of a row is `sql:DATABASE:TABLE:KEY`. A result that depends
//! on a whole table has only the tag of the table. A write to one row invalidates the tags of the table and of the row,
//! and a write to any row invalidates the prefix `sql:DATABASE:TABLE`.
//!
//! A result that is pinned by a lookup column has the tag `sql:DATABASE:TABLE:#by:COLUMN:VALUE`. A result that names the
//! columns that it reads of a whole table has the tags `sql:DATABASE:TABLE:#rows` and `sql:DATABASE:TABLE:#set:COLUMN` in
//! place of the tag of the table. A result that may depend on a pinned row that does not exist has the tag
//! `sql:DATABASE:TABLE:#absent`.

use std::{collections::BTreeSet, fmt::Write as _};

use larder_core::{Tag, Target};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    analysis::{Analysis, ChangedColumns, Operand, Pin, PinnedKey, StatementKind, TableChange},
    catalog::{Catalog, KeyColumn, KeyKind},
    value::SqlValue,
};

/// The targets that a statement invalidates.
#[derive(Clone, Debug, Default)]
pub(crate) struct WrittenTargets {
    pub(crate) targets: Vec<Target>,
    /// The tables whose changed rows have unknown values in a lookup column.
    pub(crate) unknown_lookups: BTreeSet<String>,
}

impl WrittenTargets {
    /// All targets, with every value of the lookups that are unknown.
    pub(crate) fn all(mut self, tags: &Tags) -> Vec<Target> {
        let unknown = self.unknown_lookups.iter().map(|table| tags.any_lookup(table));
        self.targets.extend(unknown);
        self.targets
    }
}

/// The tags of one database.
#[derive(Clone, Debug)]
pub(crate) struct Tags {
    database: String,
}

impl Tags {
    pub(crate) fn new(name: &str) -> Self {
        let mut database = "sql:".to_owned();
        escape(name, &mut database);
        Self { database }
    }

    pub(crate) fn table(&self, table: &str) -> Tag {
        Tag::new(self.text_of(table))
    }

    /// Returns the tag of the rows of a table that do not exist. A result that may depend on a pinned row that does not
    /// exist has this tag, so that a new row whose key is unknown invalidates it.
    pub(crate) fn absent(&self, table: &str) -> Tag {
        // The keys of rows do not have an unescaped `#` before letters.
        Tag::new(format!("{}:#absent", self.text_of(table)))
    }

    /// Returns the tag of a row, given the values of its key as text.
    pub(crate) fn row(&self, table: &str, key: &[String]) -> Tag {
        let mut text = self.text_of(table);
        text.push(':');
        let values = text.len();
        for (at, value) in key.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            escape(value, &mut text);
        }
        shorten(&mut text, values);
        Tag::new(text)
    }

    /// Returns the tags that a query depends on, according to rules 3 and 4 of the analysis. If all pinned rows exist, the
    /// result does not depend on rows that do not exist.
    pub(crate) fn read_by(
        &self,
        analysis: &Analysis,
        catalog: Option<&Catalog>,
        values: &[SqlValue],
        all_exist: bool,
    ) -> Vec<Tag> {
        let mut tags = Vec::new();
        for (table, pinned) in &analysis.reads {
            let pinned = pinned.as_deref().and_then(|all| self.pinned(table, all, catalog, values));
            match pinned {
                Some((rows, names_rows)) if tags.len() + rows.len() < MOST_ROWS => {
                    tags.extend(rows);
                    tags.extend((names_rows && !all_exist).then(|| self.absent(table)));
                }
                _ => tags.extend(self.whole(table, analysis, catalog)),
            }
        }
        if tags.is_empty() {
            // A query without tables still depends on the definitions of functions and types, so it needs a tag that
            // `everything` invalidates.
            tags.push(Tag::new(self.database.as_str()));
        }
        tags
    }

    /// The tags of a whole table, or of those of its columns that a query names.
    fn whole(&self, table: &str, analysis: &Analysis, catalog: Option<&Catalog>) -> Vec<Tag> {
        let of_table = || vec![self.table(table)];
        let (Some(named), Some(catalog)) = (&analysis.columns, catalog) else { return of_table() };
        let Some(columns) = catalog.columns(table) else { return of_table() };
        // An `UPDATE` of the key counts as a change of any row.
        let is_key = |name: &&String| catalog.key(table).iter().any(|key| key.name == **name);
        let named: Vec<&String> =
            named.intersection(columns).filter(|name| !is_key(name)).collect();
        if named.len() > MOST_COLUMNS {
            return of_table();
        }
        let set = named.into_iter().map(|column| self.column(table, column));
        std::iter::once(self.row_set(table)).chain(set).collect()
    }

    /// Returns the tag of which rows of a table exist.
    fn row_set(&self, table: &str) -> Tag {
        Tag::new(format!("{}:#rows", self.text_of(table)))
    }

    /// Returns the tag of the values of a column in all rows.
    fn column(&self, table: &str, column: &str) -> Tag {
        let mut text = format!("{}:#set:", self.text_of(table));
        escape(column, &mut text);
        Tag::new(text)
    }

    /// Returns the targets of the results that depend on these columns of the whole table.
    pub(crate) fn changed_columns(&self, table: &str, columns: &ChangedColumns) -> Vec<Target> {
        let rows = || Target::tag(self.row_set(table));
        match columns {
            ChangedColumns::Rows => vec![rows()],
            ChangedColumns::Set(set) => {
                set.iter().map(|name| Target::tag(self.column(table, name))).collect()
            }
            ChangedColumns::Any => {
                vec![rows(), Target::prefix(format!("{}:#set", self.text_of(table)))]
            }
        }
    }

    /// The targets that a statement invalidates.
    pub(crate) fn written_by(
        &self,
        analysis: &Analysis,
        catalog: Option<&Catalog>,
        values: &[SqlValue],
    ) -> WrittenTargets {
        let mut written = WrittenTargets::default();
        match analysis.nature {
            StatementKind::Query | StatementKind::Volatile(_) => return written,
            StatementKind::Write => {}
            StatementKind::Definition | StatementKind::Unknown(_) => {
                written.targets.push(self.everything());
                return written;
            }
        }
        for change in &analysis.changes {
            let targets = &mut written.targets;
            let Some(with) = &change.with else {
                targets.push(self.everything());
                return written;
            };
            let named = change.rows.as_deref();
            let rows = named.and_then(|all| self.rows(&change.table, all, catalog, values));
            let rows = rows.filter(|rows| rows.len() < MOST_ROWS);
            let has_key = catalog.is_some_and(|catalog| !catalog.key(&change.table).is_empty());
            match rows {
                // A new row, whose key the database has chosen: it is none of those that results depend on already.
                None if change.is_new && has_key => {
                    let tags = [self.table(&change.table), self.absent(&change.table)];
                    targets.extend(tags.map(Target::tag));
                }
                // The prefix of the table reaches its columns and lookups, too.
                None => {
                    targets.extend(self.changed(&change.table, None));
                    targets.extend(with.iter().map(|table| self.any_row(table)));
                    continue;
                }
                rows => targets.extend(self.changed(&change.table, rows)),
            }
            targets.extend(self.changed_columns(&change.table, &change.columns));
            targets.extend(with.iter().map(|table| self.any_row(table)));
            for (column, operands) in &change.lookups {
                let kind = catalog.and_then(|catalog| lookup(catalog, &change.table, column));
                let tags = kind.zip(operands.as_deref()).and_then(|(column, operands)| {
                    self.by_lookup(&change.table, column, operands, values)
                });
                match tags {
                    Some(tags) => targets.extend(tags.into_iter().map(Target::tag)),
                    None => drop(written.unknown_lookups.insert(change.table.clone())),
                }
            }
        }
        written
    }

    /// Returns the target of all results that are pinned by a lookup column of this table.
    pub(crate) fn any_lookup(&self, table: &str) -> Target {
        Target::prefix(format!("{}:#by", self.text_of(table)))
    }

    /// Returns the tag of the results that are pinned to this value of a lookup column, in its canonical form.
    pub(crate) fn lookup(&self, table: &str, column: &str, value: &str) -> Tag {
        let mut text = format!("{}:#by:", self.text_of(table));
        escape(column, &mut text);
        text.push(':');
        let start = text.len();
        escape(value, &mut text);
        shorten(&mut text, start);
        Tag::new(text)
    }

    /// The tags of these values of a lookup column. `None` if a value cannot identify rows.
    fn by_lookup(
        &self,
        table: &str,
        column: &KeyColumn,
        operands: &[Operand],
        values: &[SqlValue],
    ) -> Option<Vec<Tag>> {
        let is_null = |operand: &&Operand| matches!(operand, Operand::Bound(at) if values.get(*at) == Some(&SqlValue::Null));
        let tag = |operand| Some(self.lookup(table, &column.name, &text(operand, column, values)?));
        // No condition `column = value` selects a row with a null.
        operands.iter().filter(|operand| !is_null(operand)).map(tag).collect()
    }

    /// The tags of pinned rows, and whether some are pinned by their key. `None` as for [`Self::rows`].
    fn pinned(
        &self,
        table: &str,
        all: &[Pin],
        catalog: Option<&Catalog>,
        values: &[SqlValue],
    ) -> Option<(Vec<Tag>, bool)> {
        let (mut tags, mut names_rows) = (Vec::new(), false);
        for pin in all {
            match pin {
                Pin::Rows(key) => {
                    names_rows = true;
                    tags.extend(self.rows(table, std::slice::from_ref(key), catalog, values)?);
                }
                Pin::Lookup(name, operands) => {
                    let column = lookup(catalog?, table, name)?;
                    tags.extend(self.by_lookup(table, column, operands, values)?);
                }
            }
        }
        Some((tags, names_rows))
    }

    /// Returns the tags of the rows that a statement writes, or of their tables if the rows are unknown. A value that is
    /// made of the rows after the write depends on them.
    pub(crate) fn of_written(
        &self,
        analysis: &Analysis,
        catalog: Option<&Catalog>,
        values: &[SqlValue],
    ) -> Vec<Tag> {
        let of = |change: &TableChange| {
            let named = change.rows.as_deref();
            let rows = named.and_then(|all| self.rows(&change.table, all, catalog, values));
            let rows = rows.filter(|rows| rows.len() < MOST_ROWS);
            rows.unwrap_or_else(|| vec![self.table(&change.table)])
        };
        analysis.changes.iter().flat_map(of).collect()
    }

    /// Returns the targets of a change to these rows: their tags, and the tag of the table for results that depend on
    /// the whole table. `None` means any row, for which the target is the table with all its rows.
    pub(crate) fn changed(&self, table: &str, rows: Option<Vec<Tag>>) -> Vec<Target> {
        let Some(rows) = rows else { return vec![self.any_row(table)] };
        std::iter::once(self.table(table)).chain(rows).map(Target::tag).collect()
    }

    pub(crate) fn any_row(&self, table: &str) -> Target {
        Target::prefix(self.text_of(table))
    }

    pub(crate) fn everything(&self) -> Target {
        Target::prefix(self.database.as_str())
    }

    /// The tags of all pinned rows; `None` if a value cannot identify a row, or if there are too many rows.
    fn rows(
        &self,
        table: &str,
        all: &[PinnedKey],
        catalog: Option<&Catalog>,
        values: &[SqlValue],
    ) -> Option<Vec<Tag>> {
        let key = catalog?.key(table);
        let mut tags = Vec::new();
        for pinned in all {
            let mut named: Vec<Vec<String>> = vec![Vec::new()];
            for (column, alternatives) in key.iter().zip(pinned) {
                let texts = alternatives.iter().map(|operand| text(operand, column, values));
                let texts = texts.collect::<Option<Vec<String>>>()?;
                let with = |begun: &Vec<String>| {
                    let begun = begun.clone();
                    let add =
                        move |text: &String| [&begun[..], std::slice::from_ref(text)].concat();
                    texts.iter().map(add).collect::<Vec<_>>()
                };
                named = named.iter().flat_map(with).collect();
                if named.len() > MOST_ROWS {
                    return None;
                }
            }
            tags.extend(named.iter().map(|key| self.row(table, key)));
        }
        Some(tags)
    }

    fn text_of(&self, table: &str) -> String {
        let mut text = format!("{}:", self.database);
        escape(table, &mut text);
        text
    }
}

fn lookup<'c>(catalog: &'c Catalog, table: &str, column: &str) -> Option<&'c KeyColumn> {
    catalog.lookups(table).iter().find(|lookup| lookup.name == column)
}

/// Replaces a long value by its hash, from this place on. If two long values had the same hash, their rows would only be
/// invalidated together.
fn shorten(text: &mut String, start: usize) {
    if text.len() - start > LONGEST_KEY {
        let hash = xxh3_128(&text.as_bytes()[start..]);
        text.truncate(start);
        write!(text, "#{hash:032x}").expect("writing to a string cannot fail");
    }
}

/// Returns the value of a key column in the form of row tags; `None` unless larder knows the form in which the column
/// compares the value.
fn text(operand: &Operand, column: &KeyColumn, values: &[SqlValue]) -> Option<String> {
    let (kind, canonical) = (column.kind, |text| Some(column.kind.canonical(text)?.into_owned()));
    match operand {
        // A cast to the type of the column changes no value.
        Operand::Cast(to, operand) => {
            to.is_of(kind).then_some(())?;
            text(operand, column, values)
        }
        Operand::Int(number) => match kind {
            KeyKind::Integer | KeyKind::Numeric => Some(number.to_string()),
            _ => None,
        },
        // An integer as text may be written in several ways.
        Operand::Text(_) if kind == KeyKind::Integer => None,
        Operand::Text(text) => canonical(text),
        Operand::Bound(at) => match (kind, values.get(*at)?) {
            (KeyKind::Integer | KeyKind::Numeric, SqlValue::Int(number)) => {
                Some(number.to_string())
            }
            (KeyKind::Integer | KeyKind::Bytes, SqlValue::Text(_)) => None,
            (_, SqlValue::Text(text)) => canonical(text),
            (KeyKind::Bytes, SqlValue::Blob(bytes)) => {
                let mut text = "\\x".to_owned();
                for byte in bytes {
                    write!(text, "{byte:02x}").expect("writing to a string cannot fail");
                }
                Some(text)
            }
            _ => None,
        },
    }
}

/// Escapes characters that separate the parts of a tag or act as wildcards, and control characters.
fn escape(text: &str, out: &mut String) {
    for letter in text.chars() {
        match letter {
            ':' | ',' | '*' | '%' | '#' => {
                write!(out, "%{:02x}", letter as u32).expect("writing to a string cannot fail");
            }
            letter if letter.is_control() => {
                write!(out, "%{{{:x}}}", letter as u32).expect("writing to a string cannot fail");
            }
            letter => out.push(letter),
        }
    }
}

/// A statement that names fewer rows than this has a tag for each row; otherwise the tag of the table replaces these
/// tags.
const MOST_ROWS: usize = 64;
/// A query that names more columns of a table has the tag of the table in place of theirs.
const MOST_COLUMNS: usize = 8;
const LONGEST_KEY: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_row_keys_have_different_tags() {
        let tags = Tags::new("main");
        let keys: [&[&str]; 8] =
            [&["a", "b"], &["a,b"], &["a:b"], &["a%2cb"], &["a\u{1}b"], &["a?b"], &["*"], &[""]];
        let long = ["x".repeat(1000), "x".repeat(1001)];
        let short = keys.iter().map(|key| key.iter().map(|part| (*part).to_owned()).collect());
        let all = short.chain(long.map(|text| vec![text]));
        let named: std::collections::BTreeSet<Tag> =
            all.map(|key: Vec<String>| tags.row("t", &key)).collect();
        assert_eq!(named.len(), keys.len() + 2);
        assert_eq!(tags.row("products", &["42".to_owned()]).as_str(), "sql:main:products:42");
    }
}
