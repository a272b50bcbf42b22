//! Decides whether a statement that cannot be parsed can write.
//!
//! A statement that cannot be parsed would be treated as a write to every table. But most of these statements are
//! queries in a form that the parser does not know, which only need to bypass the cache. larder knows that such a
//! statement cannot write if its tokens form a single statement that begins like a query, has no keyword with which a
//! query writes, and calls only functions that are known not to write.

use sqlparser::tokenizer::{Token, Word};

use super::{
    SqlDialect, functions,
    functions::Purity,
    tokens::{bare, without_blanks},
};
use crate::catalog::{Catalog, folded};

/// Whether a text of these tokens cannot write. `false` if this is not certain.
pub(super) fn cannot_write(tokens: &[Token], dialect: SqlDialect, catalog: &Catalog) -> bool {
    let mut tokens: Vec<&Token> = without_blanks(tokens).collect();
    while let Some(Token::SemiColon) = tokens.last() {
        tokens.pop();
    }
    if tokens.iter().any(|token| matches!(token, Token::SemiColon)) {
        return false;
    }
    let first =
        tokens.iter().find(|token| !matches!(token, Token::LParen)).and_then(|token| bare(token));
    match (first.map(|word| word.value.to_ascii_uppercase()).as_deref(), dialect) {
        (Some("SELECT" | "VALUES" | "WITH"), _) | (Some("TABLE"), SqlDialect::Postgres) => {}
        (Some("EXPLAIN"), SqlDialect::Sqlite) | (Some("SHOW"), SqlDialect::Postgres) => {
            return true;
        }
        (Some("EXPLAIN"), SqlDialect::Postgres) => {
            let runs = |token: &&&Token| match token {
                Token::Word(word) => word.value.to_ascii_uppercase().starts_with("ANALY"),
                _ => false,
            };
            if tokens.iter().find(runs).is_none() {
                return true;
            }
        }
        (Some("PRAGMA"), SqlDialect::Sqlite) => return only_shows(&tokens),
        _ => return false,
    }
    !has(&tokens, &WRITING)
        && catalog.hides_no_write()
        && (0..tokens.len()).all(|at| is_harmless(&tokens, at, catalog))
}

fn has(tokens: &[&Token], words: &[&str]) -> bool {
    let is = |word: &Word| words.iter().any(|other| word.value.eq_ignore_ascii_case(other));
    tokens.iter().filter_map(|token| bare(token)).any(is)
}

/// Whether the token at this position calls no function that may write.
fn is_harmless(tokens: &[&Token], at: usize, catalog: &Catalog) -> bool {
    let Token::Word(word) = tokens[at] else { return true };
    let name = folded(&word.value);
    if catalog.writes_when_read(&name) || catalog.field(&name) == Some(Purity::Unknown) {
        return false;
    }
    if !matches!(tokens.get(at + 1), Some(Token::LParen)) {
        return true;
    }
    match functions::of_name(&name, Some(catalog)) {
        // The function may have been created since the catalog was read, unless the brackets belong to the syntax of
        // SQL.
        Purity::Unknown => {
            let is_word = word.quote_style.is_none() && BEFORE_BRACKETS.contains(&&*name);
            catalog.purity(&name).is_none() && (is_word || names_columns(tokens, at + 1))
        }
        _ => true,
    }
}

/// Whether the brackets that open here hold the columns of a CTE: `x (a, b) AS [NOT] [MATERIALIZED] (SELECT …`. In
/// contrast, `f(a) AS n` is a call.
fn names_columns(tokens: &[&Token], open: usize) -> bool {
    let close = tokens[open..].iter().position(|token| matches!(token, Token::RParen));
    let Some(close) = close else { return false };
    let is = |token: &Token, words: &[&str]| {
        let word = bare(token);
        word.is_some_and(|word| words.iter().any(|other| word.value.eq_ignore_ascii_case(other)))
    };
    let mut rest = tokens[open + close + 1..].iter().copied().peekable();
    if !rest.next().is_some_and(|token| is(token, &["AS"])) {
        return false;
    }
    rest.next_if(|token| is(token, &["NOT"]));
    rest.next_if(|token| is(token, &["MATERIALIZED"]));
    let begins = rest.next().is_some_and(|token| matches!(token, Token::LParen));
    begins && rest.next().is_some_and(|token| is(token, &["SELECT", "VALUES", "WITH", "TABLE"]))
}

/// Whether a `PRAGMA` sets nothing, because it has no value or its value only selects the output.
fn only_shows(tokens: &[&Token]) -> bool {
    let sets = tokens.iter().any(|token| matches!(token, Token::Eq | Token::LParen));
    let open = tokens.iter().position(|token| matches!(token, Token::LParen | Token::Eq));
    let name = open.and_then(|open| open.checked_sub(1)).and_then(|at| bare(tokens[at]));
    let shows = |word: &Word| SHOWING.iter().any(|name| word.value.eq_ignore_ascii_case(name));
    !sets || (name.is_some_and(shows) && !tokens.iter().any(|token| matches!(token, Token::Eq)))
}

/// Keywords with which a statement that begins like a query writes, or runs a statement that writes.
const WRITING: [&str; 9] =
    ["INSERT", "UPDATE", "DELETE", "MERGE", "INTO", "EXECUTE", "CREATE", "REFRESH", "DECLARE"];

/// Keywords and types of SQL that may come before brackets without being a function call.
const BEFORE_BRACKETS: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "as",
    "between",
    "bit",
    "by",
    "case",
    "cast",
    "char",
    "character",
    "cube",
    "decimal",
    "distinct",
    "else",
    "except",
    "exists",
    "filter",
    "from",
    "group",
    "grouping",
    "having",
    "ilike",
    "in",
    "intersect",
    "is",
    "join",
    "lateral",
    "like",
    "limit",
    "materialized",
    "not",
    "numeric",
    "offset",
    "on",
    "or",
    "over",
    "rollup",
    "row",
    "select",
    "sets",
    "some",
    "then",
    "time",
    "timestamp",
    "union",
    "using",
    "values",
    "varchar",
    "when",
    "where",
    "with",
    "within",
];

/// Source: <https://www.sqlite.org/pragma.html>
const SHOWING: [&str; 12] = [
    "collation_list",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "quick_check",
    "table_info",
    "table_xinfo",
];
