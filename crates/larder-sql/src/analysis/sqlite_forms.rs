//! Rewrites forms of SQLite that the parser does not know into forms that it knows, with the same reads and writes.
//!
//! Only the analysis sees the rewritten statement, so it need not return the same result; the database gets the original.
//! A form that may compare a column with a value is rewritten to a form that pins no rows.
//!
//! # Source
//!
//! [SQLite, expressions](https://www.sqlite.org/lang_expr.html), [`INDEXED BY`](https://www.sqlite.org/lang_indexedby.html),
//! [`CROSS JOIN`](https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join),
//! [`MATERIALIZED`](https://www.sqlite.org/lang_with.html#materialization_hints).

use sqlparser::{keywords::Keyword, tokenizer::Token};

/// Returns the tokens of a statement without these forms, or `None` if it has none of them.
pub(super) fn without_sqlite_forms(tokens: &[Token]) -> Option<Vec<Token>> {
    let is_blank = |token: &&Token| matches!(token, Token::Whitespace(_));
    let tokens: Vec<&Token> = tokens.iter().filter(|token| !is_blank(token)).collect();
    let (mut rewritten, mut at) = (Vec::with_capacity(tokens.len()), 0);
    while let Some(token) = tokens.get(at) {
        match form_at(&tokens[at..]) {
            Some(form) => {
                rewritten.extend(form.replacement);
                at += form.length;
            }
            None => {
                rewritten.push((*token).clone());
                at += 1;
            }
        }
    }
    (rewritten.len() != tokens.len() || rewritten.iter().ne(tokens)).then_some(rewritten)
}

/// A form, and its replacement.
struct Form {
    /// The number of tokens of the form.
    length: usize,
    replacement: Vec<Token>,
}

fn form_at(tokens: &[&Token]) -> Option<Form> {
    let word = |at: usize| tokens.get(at).and_then(|token| keyword(token));
    let form = |length: usize, replacement: &[&str]| {
        let replacement = replacement.iter().map(|word| Token::make_keyword(word)).collect();
        Some(Form { length, replacement })
    };
    let signs = |signs: &[Token]| Some(Form { length: 1, replacement: signs.to_vec() });
    match (tokens.first()?, [word(0), word(1), word(2)]) {
        // A hint on the index of a table.
        (_, [Some("INDEXED"), Some("BY"), _]) if is_name(tokens.get(2)) => form(3, &[]),
        (_, [Some("NOT"), Some("INDEXED"), _]) => form(2, &[]),
        // A hint on the evaluation of a CTE.
        (_, [Some("AS"), Some("NOT"), Some("MATERIALIZED")]) => form(3, &["AS"]),
        (_, [Some("AS"), Some("MATERIALIZED"), _]) => form(2, &["AS"]),
        // A hint on the order of a join, which can have a condition in SQLite.
        (_, [Some("CROSS"), Some("JOIN"), _]) => form(2, &["JOIN"]),
        // `IS` compares any two values.
        (_, [Some("IS"), Some("NOT"), Some("NULL" | "TRUE" | "FALSE" | "DISTINCT")]) => {
            form(3, &["IS", "NOT", word(2)?])
        }
        (_, [Some("IS"), Some("NULL" | "TRUE" | "FALSE" | "DISTINCT"), _]) => {
            form(2, &["IS", word(1)?])
        }
        (_, [Some("IS"), Some("NOT"), _]) => form(2, &["IS", "DISTINCT", "FROM"]),
        (_, [Some("IS"), ..]) => form(1, &["IS", "NOT", "DISTINCT", "FROM"]),
        (_, [Some("ISNULL"), ..]) => form(1, &["IS", "NULL"]),
        (_, [Some("NOTNULL"), ..]) => form(1, &["IS", "NOT", "NULL"]),
        (_, [Some("NOT"), Some("GLOB"), _]) => form(2, &["NOT", "LIKE"]),
        // Rows that a window leaves out.
        (_, [Some("EXCLUDE"), Some("TIES" | "GROUP"), _]) => form(2, &[]),
        (_, [Some("EXCLUDE"), Some("CURRENT"), Some("ROW")]) => form(3, &[]),
        (_, [Some("EXCLUDE"), Some("NO"), Some("OTHERS")]) => form(3, &[]),
        (Token::ShiftLeft | Token::ShiftRight, _) => signs(&[Token::Mul]),
        // Two negations of bits, which are operators of other dialects.
        (Token::DoubleTilde, _) => signs(&[Token::Tilde, Token::Tilde]),
        // All rows of a table as the right side of `IN`.
        (_, [Some("IN"), ..]) => rows_of_a_table(tokens),
        _ => None,
    }
}

/// Rewrites `IN name` and `IN schema.name` to `IN (SELECT * FROM name)`.
fn rows_of_a_table(tokens: &[&Token]) -> Option<Form> {
    let name = match tokens {
        [_, _, Token::Period, name, ..] if is_name(tokens.get(1)) && is_name(Some(name)) => 3,
        [_, _, ..] if is_name(tokens.get(1)) => 1,
        _ => return None,
    };
    // A call of a table function has brackets.
    if matches!(tokens.get(1 + name), Some(Token::LParen | Token::Period)) {
        return None;
    }
    let mut replacement = vec![
        Token::make_keyword("IN"),
        Token::LParen,
        Token::make_keyword("SELECT"),
        Token::Mul,
        Token::make_keyword("FROM"),
    ];
    replacement.extend(tokens[1..=name].iter().map(|token| (*token).clone()));
    replacement.push(Token::RParen);
    Some(Form { length: 1 + name, replacement })
}

/// The keyword of a word without quotes, in capitals.
fn keyword(token: &Token) -> Option<&'static str> {
    let Token::Word(word) = token else { return None };
    if word.quote_style.is_some() {
        return None;
    }
    KEYWORDS.iter().copied().find(|keyword| word.value.eq_ignore_ascii_case(keyword))
}

/// Whether a token can be the name of a table or an index.
fn is_name(token: Option<&&Token>) -> bool {
    match token {
        Some(Token::Word(word)) => word.quote_style.is_some() || word.keyword != Keyword::SELECT,
        _ => false,
    }
}

/// The keywords of the forms.
const KEYWORDS: [&str; 23] = [
    "AS",
    "BY",
    "CROSS",
    "CURRENT",
    "DISTINCT",
    "EXCLUDE",
    "FALSE",
    "GLOB",
    "GROUP",
    "IN",
    "INDEXED",
    "IS",
    "ISNULL",
    "JOIN",
    "MATERIALIZED",
    "NO",
    "NOT",
    "NOTNULL",
    "NULL",
    "OTHERS",
    "ROW",
    "TIES",
    "TRUE",
];
