//! What a statement reads and writes, found out once for each text.
//!
//! # The rules
//!
//! A query is a function of the rows of its tables. What it depends on is found as follows; each step can only
//! make it depend on more than it does.
//!
//! 1. Every relation that is named anywhere in it, by joins, subqueries, CTEs and unions, counts with all its rows; a view
//!    counts as what it is made of. The name of a CTE is no relation, unless a table or a view has the same name. What is
//!    of another schema, virtual or SQLite's own is not known, and a query that reads it is not kept.
//! 2. An occurrence of a table in a `FROM` is *pinned* when the `WHERE` of the same `SELECT` is a conjunction, and for
//!    each column of the primary key one of its members is `column = value` or `column IN (values)`. Only rows of
//!    the joined tables that satisfy the `WHERE` get any further, and such a row is made with a row of this occurrence
//!    whose key is one of those: all other rows of the table could be anything. That holds for outer joins, too:
//!    the row of nulls in the place of a missing one does not satisfy the condition.
//! 3. If *each* occurrence of a table is pinned, the query depends on these rows only, there or not there (an
//!    `INSERT` that brings one of them changes it). Else on the whole table.
//! 4. Values pin only where they compare with the column as they are written: whole numbers with a column of whole
//!    numbers, texts with a column that compares texts byte by byte. All else depends on the whole table.
//!
//! A write changes
//!
//! 1. the rows that it names by the same rule (`UPDATE`, `DELETE`), or by the values that it inserts for the key; what
//!    depends on the table as a whole changes with them;
//! 2. any row of the table where it names none, changes a key, or may remove rows it does not name (`REPLACE`, an
//!    upsert over another unique key, a table that is defined to replace on conflict);
//! 3. all tables that change with it by foreign keys and triggers, as a whole, and whatever changes with those;
//! 4. everything, where nobody can say: definitions, statements that are not understood, functions that are not known,
//!    triggers that cannot be read, tables of which nothing is known.
//!
//! A query whose tags were all found before a write is dropped by it whenever its answer can have changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use ahash::RandomState;
use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use sqlparser::{
    ast::Visit as _,
    dialect::{Dialect, PostgreSqlDialect, SQLiteDialect},
    parser::Parser,
    tokenizer::{Token, Tokenizer},
};

use self::collector::Collector;
use crate::catalog::Catalog;

mod collector;
mod functions;
mod pins;
mod reads;
mod transactions;

#[cfg(feature = "sqlite")]
pub(crate) use self::functions::OF_TIME;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) use self::functions::listed;
pub(crate) use self::{
    functions::{Purity, is_moving_time},
    pins::{Operand, PinnedKey},
};

/// How a database writes SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlDialect {
    /// As SQLite does.
    Sqlite,
    /// As PostgreSQL does.
    Postgres,
}

impl SqlDialect {
    fn parser(self) -> &'static dyn Dialect {
        match self {
            Self::Sqlite => &SQLiteDialect {},
            Self::Postgres => &PostgreSqlDialect {},
        }
    }
}

/// What a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatementKind {
    /// It only reads, and gives the same while nothing is written.
    Query,
    /// It only reads, but what it gives is not to be kept, for this reason.
    Volatile(&'static str),
    /// It writes what is known.
    Write,
    /// It changes tables themselves.
    Definition,
    /// It may do anything, for this reason.
    Unknown(&'static str),
}

/// What is known of a statement.
#[derive(Clone, Debug)]
pub(crate) struct Analysis {
    /// Stands for its text, whitespace and comments aside.
    pub(crate) fingerprint: String,
    pub(crate) nature: StatementKind,
    /// What it reads: of each table the rows that it is pinned to, or all.
    pub(crate) reads: BTreeMap<String, Option<Vec<PinnedKey>>>,
    /// Whether it reads something of which nothing is known.
    pub(crate) reads_unknown: bool,
    pub(crate) changes: Vec<TableChange>,
}

/// What a statement writes of one table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TableChange {
    pub(crate) table: String,
    /// The rows that it names; any where it names none.
    pub(crate) rows: Option<Vec<PinnedKey>>,
    /// All that changes with it, as a whole. `None` when it may be anything.
    pub(crate) with: Option<BTreeSet<String>>,
}

impl Analysis {
    pub(crate) fn of(text: &str, dialect: SqlDialect, catalog: Option<&Catalog>) -> Self {
        on_deep_stack(|| Self::of_any_depth(text, dialect, catalog))
    }

    fn of_any_depth(text: &str, dialect: SqlDialect, catalog: Option<&Catalog>) -> Self {
        // Left as they are written: two texts with different quotes are two statements.
        let raw = Tokenizer::new(dialect.parser(), text).with_unescape(false).tokenize();
        let tokens = Tokenizer::new(dialect.parser(), text).tokenize();
        let (Ok(raw), Ok(tokens)) = (raw, tokens) else {
            let controls = transactions::may_control(text);
            return Self::unknown(
                text,
                if controls { TRANSACTION_CONTROL } else { "not-understood" },
            );
        };
        let normalised = normalised(&raw);
        if transactions::controls(&tokens) {
            return Self::unknown(&normalised, TRANSACTION_CONTROL);
        }
        let analysis = Self::parsed(text, tokens.clone(), &normalised, dialect, catalog);
        match (analysis.nature, catalog) {
            (StatementKind::Unknown(_) | StatementKind::Definition, Some(catalog))
                if reads::cannot_write(&cut(tokens.clone(), dialect), dialect, catalog) =>
            {
                let why = match analysis.nature {
                    StatementKind::Unknown(why) => why,
                    _ => "shows-settings",
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
            // A condition of a hundred thousand members is deeper than any stack.
            return Self::unknown(normalised, "too-long");
        }
        let tokens = numbered(cut(tokens, dialect));
        let parsed = Parser::new(dialect.parser()).with_tokens(tokens).parse_statements();
        match parsed.as_deref() {
            Ok([statement]) => {
                let mut collector = Collector::new(dialect, catalog);
                let _unbroken = statement.visit(&mut collector);
                // SQLite calls a column without a name by the text of its expression.
                let by_text = dialect == SqlDialect::Sqlite && collector.has_unnamed_columns();
                collector.finish(fingerprint(if by_text { text } else { normalised }))
            }
            Ok(_) => Self::unknown(normalised, "several-statements"),
            Err(_) => Self::unknown(normalised, "not-understood"),
        }
    }

    fn unknown(text: &str, why: &'static str) -> Self {
        Self {
            fingerprint: fingerprint(text),
            nature: StatementKind::Unknown(why),
            reads: BTreeMap::new(),
            reads_unknown: true,
            changes: Vec::new(),
        }
    }
}

/// What several statements write, as in the body of a trigger. `None` when it may be anything.
#[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
pub(crate) fn written_by(
    tokens: Vec<Token>,
    dialect: SqlDialect,
    catalog: &Catalog,
) -> Option<BTreeSet<String>> {
    on_deep_stack(|| written_by_any_depth(tokens, dialect, catalog))
}

fn written_by_any_depth(
    tokens: Vec<Token>,
    dialect: SqlDialect,
    catalog: &Catalog,
) -> Option<BTreeSet<String>> {
    if tokens.len() > MOST_TOKENS {
        return None;
    }
    let statements = Parser::new(dialect.parser()).with_tokens(tokens).parse_statements().ok()?;
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

/// The tables that a view is made of. `None` where its definition cannot be read, or gives another answer each time.
#[cfg_attr(not(any(feature = "sqlite", feature = "postgres")), allow(dead_code))]
pub(crate) fn read_by(query: &str, dialect: SqlDialect) -> Option<BTreeSet<String>> {
    on_deep_stack(|| read_by_any_depth(query, dialect))
}

fn read_by_any_depth(query: &str, dialect: SqlDialect) -> Option<BTreeSet<String>> {
    let tokens = Tokenizer::new(dialect.parser(), query).tokenize().ok()?;
    if tokens.len() > MOST_TOKENS {
        return None;
    }
    let parsed = Parser::new(dialect.parser()).with_tokens(tokens).parse_statements().ok()?;
    let [sqlparser::ast::Statement::CreateView(view)] = &parsed[..] else { return None };
    let mut collector = Collector::new(dialect, None);
    let _unbroken = view.query.visit(&mut collector);
    let analysis = collector.finish(String::new());
    (analysis.nature == StatementKind::Query).then(|| analysis.reads.into_keys().collect())
}

/// The statements that were analysed, by their texts. A program has few texts and short ones; one that writes values into
/// its texts has no end of them. So when there are too many, by number or by bytes, it begins anew, and a long text is
/// analysed each time.
#[derive(Debug, Default)]
pub(crate) struct Analyses {
    known: RwLock<Texts>,
}

#[derive(Debug, Default)]
struct Texts {
    analyses: HashMap<Arc<str>, Arc<Analysis>, RandomState>,
    /// Of all texts together.
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

/// Runs what recurses into a statement on a stack that holds the deepest one there can be, in builds without optimisation too.
/// The memory is taken from the system for so long, and only as much of it as is used.
fn on_deep_stack<T>(run: impl FnOnce() -> T) -> T {
    stacker::grow(DEEP_STACK, run)
}

/// PostgreSQL cuts names at 63 bytes, between letters: two that agree so far are one.
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

/// Whether a text is nothing but blanks and comments.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn is_empty(text: &str) -> bool {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize();
    tokens.is_ok_and(|tokens| {
        tokens.iter().all(|token| matches!(token, Token::Whitespace(_) | Token::SemiColon))
    })
}

/// Gives each `?` its number. Where it stands beside others drivers count differently: those name nothing then.
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

/// All tokens but whitespace and comments, each behind its length.
fn normalised(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))) {
        let token = token.to_string();
        write!(text, "{}:{token} ", token.len()).expect("a string takes whatever is written to it");
    }
    text
}

pub(crate) fn fingerprint(text: &str) -> String {
    digest(text, 16)
}

/// The first so many bytes of the SHA-256 of a text, in hexadecimal digits.
pub(crate) fn digest(text: &str, bytes: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(bytes).fold(String::with_capacity(2 * bytes), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes whatever is written to it");
        hex
    })
}

/// Why a statement that begins or ends a transaction is refused.
pub(crate) const TRANSACTION_CONTROL: &str = "transaction-control";
const MOST_TEXTS: usize = 4096;
/// A few times as many bytes are kept with them.
const MOST_TEXT_BYTES: usize = 4 << 20;
const LONGEST_KNOWN_TEXT: usize = 16 << 10;
const LONGEST_TEXT: usize = 64 << 10;
const MOST_TOKENS: usize = 16 << 10;
const DEEP_STACK: usize = 128 << 20;
/// `NAMEDATALEN` of PostgreSQL, without the zero at its end.
const LONGEST_NAME: usize = 63;

#[cfg(test)]
mod tests;
