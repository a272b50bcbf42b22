//! Whether a statement that is not understood can write.
//!
//! What is not understood would count as a write of everything. But most of it are queries in a form that the parser does not
//! know, and these need only bypass the cache. A statement cannot write when it is a single one, begins as a query does,
//! has no word by which a query writes, and calls no function but those that the database itself says are known: this can
//! be seen from its tokens.

use sqlparser::{
    keywords::Keyword,
    tokenizer::{Token, Word},
};

use super::{SqlDialect, functions, functions::Purity};
use crate::catalog::{Catalog, folded};

/// Whether a text of these tokens cannot write. `false` where this cannot be said.
pub(super) fn cannot_write(tokens: &[Token], dialect: SqlDialect, catalog: &Catalog) -> bool {
    let is_blank = |token: &&Token| matches!(token, Token::Whitespace(_));
    let mut tokens: Vec<&Token> = tokens.iter().filter(|token| !is_blank(token)).collect();
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
            if !has(&tokens, &["ANALYZE", "ANALYSE"]) {
                return true;
            }
        }
        (Some("PRAGMA"), SqlDialect::Sqlite) => return only_shows(&tokens),
        _ => return false,
    }
    !has(&tokens, &["INSERT", "UPDATE", "DELETE", "MERGE", "INTO"])
        && catalog.hides_no_write()
        && (0..tokens.len()).all(|at| is_harmless(&tokens, at, catalog))
}

/// A word that is not quoted.
fn bare(token: &Token) -> Option<&Word> {
    match token {
        Token::Word(word) if word.quote_style.is_none() => Some(word),
        _ => None,
    }
}

fn has(tokens: &[&Token], words: &[&str]) -> bool {
    let is = |word: &Word| words.iter().any(|other| word.value.eq_ignore_ascii_case(other));
    tokens.iter().filter_map(|token| bare(token)).any(is)
}

/// Whether the token here calls nothing that may write.
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
        Purity::Unknown if catalog.purity(&name).is_some() => false,
        // `x (a, b) AS` names columns.
        Purity::Unknown => word.keyword != Keyword::NoKeyword || is_followed_by_as(tokens, at + 1),
        _ => true,
    }
}

fn is_followed_by_as(tokens: &[&Token], open: usize) -> bool {
    let close = tokens[open..].iter().position(|token| matches!(token, Token::RParen));
    let after = close.and_then(|close| tokens.get(open + close + 1));
    after.and_then(|token| bare(token)).is_some_and(|word| word.value.eq_ignore_ascii_case("AS"))
}

/// Whether a `PRAGMA` sets nothing: it has no value, or is one of those whose value says what to show.
fn only_shows(tokens: &[&Token]) -> bool {
    let sets = tokens.iter().any(|token| matches!(token, Token::Eq | Token::LParen));
    let names = tokens.iter().filter_map(|token| bare(token));
    let shows = |word: &Word| SHOWING.iter().any(|name| word.value.eq_ignore_ascii_case(name));
    !sets
        || (names.skip(1).take(2).any(shows)
            && !tokens.iter().any(|token| matches!(token, Token::Eq)))
}

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
