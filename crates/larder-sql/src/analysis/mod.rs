//! Finds the tables and rows that a statement reads and writes, once for each statement text.
//!
//! # The rules
//!
//! The rows of the tables that a query reads determine its result. larder finds the dependencies of a query by the
//! following rules. They may add dependencies that the query does not have, but they do not miss a dependency.
//!
//! 1. A query depends on all rows of every relation that is named anywhere in it, including joins, subqueries, CTEs and
//!    unions. A view is treated as the tables that it reads. The name of a CTE is not treated as a relation, unless a
//!    table or a view has the same name. Relations of another schema, virtual tables and the tables of SQLite itself
//!    are not in the catalog, and a query that reads such a relation is not stored.
//! 2. An occurrence of a table in a `FROM` is *pinned* if the `WHERE` of the same `SELECT` is a conjunction, and for
//!    each column of the primary key one of its members is `column = value` or `column IN (values)`. Only joined rows
//!    that satisfy the `WHERE` reach the result, and such a row contains a row of this occurrence whose key is one of
//!    those values, so no other row of the table affects the result. This holds for outer joins, too, because the row
//!    of nulls that replaces a missing row does not satisfy the condition.
//!    In PostgreSQL an occurrence whose key is not pinned is pinned by a *lookup column* (a foreign key or a unique
//!    constraint of one column) for which a member is `column = value`: it depends on the rows with this value.
//! 3. If *each* occurrence of a table is pinned, the query depends only on the pinned rows, whether they exist or not
//!    (an `INSERT` that adds such a row changes the result). Otherwise it depends on the whole table.
//!    In PostgreSQL, a query that depends on a whole table depends on the columns that it names and on which rows exist, if
//!    it names all columns that it reads (no `*`, no whole row, no `NATURAL` or `USING`, no view).
//! 4. A value pins an occurrence only if the database compares it with the column exactly as it is written: an integer
//!    with a column of integers, or a text with a column that compares texts byte by byte. With any other value, the
//!    query depends on the whole table.
//!
//! 5. A result with rows proves that the pinned rows of its tables exist, if the query is one `SELECT` with neither
//!    aggregates nor functions, and names one value for each column of the key. Otherwise the result also has the tag of
//!    the rows of the table that do not exist.
//!
//! A write changes
//!
//! 1. the rows that it names by the same rule (`UPDATE`, `DELETE`), or by the values that it inserts for the key;
//!    results that depend on the whole table change, too;
//! 2. no row that exists, if it is an `INSERT` that does not name its rows, because the database chooses their keys; only
//!    results that depend on the whole table or on rows that do not exist change;
//!    Rows that are pinned by a lookup column change with the values that the changed rows have in that column before and
//!    after the write; if the statement does not name them, with all values, or with those that the outbox has noted in the
//!    transaction;
//! 3. any row of the table, if another write names no rows, changes a key, or may remove rows that it does not name
//!    (`REPLACE`, an upsert over another unique key, a table that is defined to replace on conflict);
//! 4. all rows of the tables that change with it by foreign keys and triggers, and of the tables that change with those
//!    tables;
//! 5. everything, if the effects of the write are unknown: schema changes, statements that cannot be parsed, unknown
//!    functions, triggers that cannot be read, tables outside the catalog.
//!
//! So a write invalidates each earlier result that it may have changed.

use larder_core::Reason;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use ahash::RandomState;
use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use sqlparser::{
    ast::{Statement, Visit as _},
    dialect::PostgreSqlDialect,
    parser::Parser,
    tokenizer::{Token, Tokenizer},
};

pub use self::dialect::SqlDialect;
use self::{reads_and_writes::Collector, rewriting::rewritten, tokens::without_blanks};
use crate::catalog::Catalog;

mod dialect;
mod functions;
mod pins;
mod reads_and_writes;
mod rewriting;
mod tokens;
mod transactions;
mod unparsed;

pub(crate) use self::functions::OF_TIME;
pub(crate) use self::{
    functions::{Purity, depends_on_settings_alone, is_moving_time, listed},
    pins::{Operand, Pin, PinnedKey},
};

/// The kind of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatementKind {
    /// It only reads, and returns the same rows while nothing is written.
    Query,
    /// It only reads, but its result is not storable, for this reason.
    Volatile(Reason),
    /// It writes to tables of the catalog.
    Write,
    /// It changes the schema, or settings.
    Definition,
    /// It may write to any table, for this reason.
    Unknown(Reason),
}

/// The analysis of a statement.
#[derive(Clone, Debug)]
pub(crate) struct Analysis {
    /// A hash of the text, without whitespace and comments unless they are part of a column name.
    pub(crate) fingerprint: String,
    pub(crate) nature: StatementKind,
    /// The tables that it reads, each with the pinned rows, or with `None` for all rows.
    pub(crate) reads: BTreeMap<String, Option<Vec<Pin>>>,
    /// Whether it reads something that the catalog does not describe.
    pub(crate) reads_unknown: bool,
    /// The names of all columns that a query names. `None` if it may read other columns, too.
    pub(crate) columns: Option<BTreeSet<String>>,
    /// Whether a result with rows proves that all pinned rows exist.
    pub(crate) proves_rows: bool,
    pub(crate) changes: Vec<TableChange>,
}

/// The changes of a statement to one table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TableChange {
    pub(crate) table: String,
    /// The rows that it names; `None` for any row.
    pub(crate) rows: Option<Vec<PinnedKey>>,
    /// All tables that change with it, each as a whole. `None` if any table may change.
    pub(crate) with: Option<BTreeSet<String>>,
    pub(crate) columns: ChangedColumns,
    /// Whether it only adds rows with keys that no row has.
    pub(crate) is_new: bool,
    /// For each lookup column of the table, the values that the changed rows have before or after the change. `None` if they are
    /// unknown.
    pub(crate) lookups: Vec<(String, Option<Vec<Operand>>)>,
}

/// The columns of a table that change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChangedColumns {
    /// Rows are added or removed, and no row that stays changes.
    Rows,
    /// The values of these columns are set.
    Set(BTreeSet<String>),
    /// Any of both.
    Any,
}

impl Analysis {
    pub(crate) fn of(text: &str, dialect: SqlDialect, catalog: Option<&Catalog>) -> Self {
        on_deep_stack(|| Self::of_any_depth(text, dialect, catalog))
    }

    fn of_any_depth(text: &str, dialect: SqlDialect, catalog: Option<&Catalog>) -> Self {
        // Leaves quotes as they are written, because texts that differ in quotes are different statements.
        let raw = Tokenizer::new(dialect.parser(), text).with_unescape(false).tokenize();
        let tokens = Tokenizer::new(dialect.parser(), text).tokenize();
        let (Ok(raw), Ok(tokens)) = (raw, tokens) else {
            let controls = transactions::may_control(text);
            return Self::unknown(
                text,
                if controls { Reason::TransactionControl } else { Reason::NotUnderstood },
            );
        };
        let normalised = normalised(&raw);
        if transactions::controls(&tokens) {
            return Self::unknown(&normalised, Reason::TransactionControl);
        }
        let analysis = Self::parsed(text, tokens.clone(), &normalised, dialect, catalog);
        match (analysis.nature, catalog) {
            (StatementKind::Unknown(_) | StatementKind::Definition, Some(catalog))
                if unparsed::cannot_write(&cut(tokens.clone(), dialect), dialect, catalog) =>
            {
                let why = match analysis.nature {
                    StatementKind::Unknown(why) => why,
                    _ => Reason::ShowsSettings,
                };
                let nature = StatementKind::Volatile(why);
                Self { nature, reads_unknown: true, changes: Vec::new(), ..analysis }
            }
            _ => analysis,
        }
    }

    fn parsed(
        text: &str,
        tokens: Vec<Token>,
        normalised: &str,
        dialect: SqlDialect,
        catalog: Option<&Catalog>,
    ) -> Self {
        if text.len() > LONGEST_TEXT || tokens.len() > MOST_TOKENS {
            // A condition with a hundred thousand members overflows any stack.
            return Self::unknown(normalised, Reason::TooLong);
        }
        let tokens = numbered(cut(tokens, dialect));
        match parsed_statements(&tokens, dialect).as_deref() {
            Some([statement]) => {
                let mut collector = Collector::new(dialect, catalog);
                let _unbroken = statement.visit(&mut collector);
                // SQLite names a column without an alias after the text of its expression.
                let by_text = dialect == SqlDialect::Sqlite && collector.has_unnamed_columns();
                collector.finish(fingerprint(if by_text { text } else { normalised }))
            }
            Some(_) => Self::unknown(normalised, Reason::SeveralStatements),
            None => Self::unknown(normalised, Reason::NotUnderstood),
        }
    }

    fn unknown(text: &str, why: Reason) -> Self {
        Self {
            fingerprint: fingerprint(text),
            nature: StatementKind::Unknown(why),
            reads: BTreeMap::new(),
            reads_unknown: true,
            columns: None,
            proves_rows: false,
            changes: Vec::new(),
        }
    }
}

/// Parses a text of statements. `None` if it cannot be parsed.
fn parsed_statements(tokens: &[Token], dialect: SqlDialect) -> Option<Vec<Statement>> {
    let parse = |tokens| Parser::new(dialect.parser()).with_tokens(tokens).parse_statements().ok();
    parse(tokens.to_vec()).or_else(|| parse(rewritten(tokens, dialect)?))
}

/// The tables to which several statements write, as in the body of a trigger. `None` if they may write to any table.
pub(crate) fn written_by(
    tokens: &[Token],
    dialect: SqlDialect,
    catalog: &Catalog,
) -> Option<BTreeSet<String>> {
    on_deep_stack(|| written_by_any_depth(tokens, dialect, catalog))
}

fn written_by_any_depth(
    tokens: &[Token],
    dialect: SqlDialect,
    catalog: &Catalog,
) -> Option<BTreeSet<String>> {
    if tokens.len() > MOST_TOKENS {
        return None;
    }
    let statements = parsed_statements(tokens, dialect)?;
    let mut tables = BTreeSet::new();
    for statement in statements {
        let mut collector = Collector::new(dialect, Some(catalog));
        let _unbroken = statement.visit(&mut collector);
        let analysis = collector.finish(String::new());
        match analysis.nature {
            StatementKind::Query | StatementKind::Volatile(_) | StatementKind::Write => {
                tables.extend(analysis.changes.into_iter().map(|change| change.table));
            }
            StatementKind::Definition | StatementKind::Unknown(_) => return None,
        }
    }
    Some(tables)
}

/// The tables that a view reads. `None` if its definition cannot be parsed, or is volatile.
pub(crate) fn read_by(query: &str, dialect: SqlDialect) -> Option<BTreeSet<String>> {
    on_deep_stack(|| read_by_any_depth(query, dialect))
}

fn read_by_any_depth(query: &str, dialect: SqlDialect) -> Option<BTreeSet<String>> {
    let tokens = Tokenizer::new(dialect.parser(), query).tokenize().ok()?;
    if tokens.len() > MOST_TOKENS {
        return None;
    }
    let parsed = parsed_statements(&tokens, dialect)?;
    let [Statement::CreateView(view)] = &parsed[..] else { return None };
    let mut collector = Collector::new(dialect, None);
    let _unbroken = view.query.visit(&mut collector);
    let analysis = collector.finish(String::new());
    (analysis.nature == StatementKind::Query).then(|| analysis.reads.into_keys().collect())
}

/// The analyses of statements, by their texts. Most programs have few and short texts, but a program that writes values
/// into its texts may have any number of them. So all analyses are removed at 4,096 texts or 4 MiB of text, and a text
/// over 16 KiB is analysed each time.
#[derive(Debug, Default)]
pub(crate) struct Analyses {
    known: RwLock<Texts>,
}

#[derive(Debug, Default)]
struct Texts {
    analyses: HashMap<Arc<str>, Arc<Analysis>, RandomState>,
    /// The size of all texts together, in bytes.
    bytes: usize,
}

impl Analyses {
    pub(crate) fn get(&self, text: &str, make: impl FnOnce() -> Analysis) -> Arc<Analysis> {
        if let Some(known) = self.known.read().analyses.get(text) {
            return Arc::clone(known);
        }
        let analysis = Arc::new(make());
        if text.len() > LONGEST_KNOWN_TEXT {
            return analysis;
        }
        let mut known = self.known.write();
        if known.analyses.len() >= MOST_TEXTS || known.bytes + text.len() > MOST_TEXT_BYTES {
            *known = Texts::default();
        }
        if known.analyses.insert(text.into(), Arc::clone(&analysis)).is_none() {
            known.bytes += text.len();
        }
        analysis
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.known.read().bytes
    }
}

/// Runs a recursive function on a stack that is large enough for the deepest statement, even in builds without
/// optimisation. The memory (128 MiB) is reserved for the call, and only its used part is allocated.
fn on_deep_stack<T>(run: impl FnOnce() -> T) -> T {
    stacker::grow(DEEP_STACK, run)
}

/// Cuts names as PostgreSQL does, at 63 bytes between characters. Two names that agree up to there are equal.
fn cut(tokens: Vec<Token>, dialect: SqlDialect) -> Vec<Token> {
    let cut = |mut token: Token| {
        if let Token::Word(word) = &mut token
            && word.value.len() > LONGEST_NAME
        {
            let end = (0..=LONGEST_NAME).rev().find(|at| word.value.is_char_boundary(*at));
            word.value.truncate(end.unwrap_or_default());
        }
        token
    };
    match dialect {
        SqlDialect::Postgres => tokens.into_iter().map(cut).collect(),
        SqlDialect::Sqlite => tokens,
    }
}

/// Whether a text has nothing but whitespace, comments and semicolons.
pub(crate) fn is_empty(text: &str) -> bool {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize();
    tokens.is_ok_and(|tokens| {
        tokens.iter().all(|token| matches!(token, Token::Whitespace(_) | Token::SemiColon))
    })
}

/// Numbers each `?`. If a statement also has other placeholders, drivers number the `?` differently, so these are left
/// without a number and do not identify a row.
fn numbered(tokens: Vec<Token>) -> Vec<Token> {
    let is_plain = |token: &Token| matches!(token, Token::Placeholder(name) if name == "?");
    let is_other = |token: &Token| matches!(token, Token::Placeholder(name) if name != "?");
    let mixed = tokens.iter().any(is_plain) && tokens.iter().any(is_other);
    let mut count = 0;
    let number = |token| match token {
        Token::Placeholder(_) if mixed => Token::Placeholder("?".to_owned()),
        Token::Placeholder(name) if name == "?" => {
            count += 1;
            Token::Placeholder(format!("?{count}"))
        }
        token => token,
    };
    tokens.into_iter().map(number).collect()
}

/// All tokens except whitespace and comments, each after its length.
fn normalised(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in without_blanks(tokens) {
        let token = token.to_string();
        write!(text, "{}:{token} ", token.len()).expect("writing to a string cannot fail");
    }
    text
}

pub(crate) fn fingerprint(text: &str) -> String {
    digest(text, 16)
}

/// The first bytes of the SHA-256 of a text, as many as `bytes`, in hexadecimal digits.
pub(crate) fn digest(text: &str, bytes: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(bytes).fold(String::with_capacity(2 * bytes), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        hex
    })
}

const MOST_TEXTS: usize = 4096;
/// The analyses of these texts take a few times as much memory.
const MOST_TEXT_BYTES: usize = 4 << 20;
const LONGEST_KNOWN_TEXT: usize = 16 << 10;
const LONGEST_TEXT: usize = 64 << 10;
const MOST_TOKENS: usize = 16 << 10;
const DEEP_STACK: usize = 128 << 20;
/// `NAMEDATALEN` of PostgreSQL, without the terminating zero.
const LONGEST_NAME: usize = 63;

#[cfg(test)]
mod tests;
