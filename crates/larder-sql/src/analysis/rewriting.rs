//! Rewrites forms of SQL that the parser does not know into forms that it knows, with the same reads and writes.
//!
//! Only the analysis sees the rewritten statement, so it need not return the same result; the database gets the original.
//! A form that may compare a column with a value is rewritten to a form that pins no rows.
//!
//! # Source
//!
//! [SQLite, expressions](https://www.sqlite.org/lang_expr.html), [`INDEXED BY`](https://www.sqlite.org/lang_indexedby.html),
//! [`CROSS JOIN`](https://www.sqlite.org/optoverview.html#manual_control_of_query_plans_using_cross_join),
//! [`MATERIALIZED`](https://www.sqlite.org/lang_with.html#materialization_hints); PostgreSQL,
//! [`TABLE`](https://www.postgresql.org/docs/current/sql-select.html#SQL-TABLE),
//! [`VARIADIC`](https://www.postgresql.org/docs/current/xfunc-sql.html#XFUNC-SQL-VARIADIC-FUNCTIONS) and
//! [window frames](https://www.postgresql.org/docs/current/sql-expressions.html#SYNTAX-WINDOW-FUNCTIONS).

use sqlparser::{keywords::Keyword, tokenizer::Token};

use super::{
    dialect::SqlDialect,
    tokens::{bare, without_blanks},
};

/// Returns the tokens of a statement without these forms, or `None` if it has none of them.
pub(super) fn rewritten(tokens: &[Token], dialect: SqlDialect) -> Option<Vec<Token>> {
    let tokens: Vec<&Token> = without_blanks(tokens).collect();
    let (mut rewritten, mut at) = (Vec::with_capacity(tokens.len()), 0);
    while let Some(token) = tokens.get(at) {
        let before = at.checked_sub(1).map(|before| tokens[before]);
        let form = form_of_both(before, &tokens[at..]).or_else(|| match dialect {
            SqlDialect::Sqlite => form_of_sqlite(before, &tokens[at..]),
            SqlDialect::Postgres => form_of_postgres(before, &tokens[at..]),
        });
        // After a period, a keyword is the name of a column.
        match form.filter(|_| !matches!(before, Some(Token::Period))) {
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

impl Form {
    /// Replaces as many tokens as `length` says with keywords.
    fn keywords(length: usize, replacement: &[&str]) -> Option<Self> {
        let replacement = replacement.iter().map(|word| Token::make_keyword(word)).collect();
        Some(Self { length, replacement })
    }

    /// Replaces one token.
    fn signs(replacement: &[Token]) -> Option<Self> {
        Some(Self { length: 1, replacement: replacement.to_vec() })
    }
}

/// The first three tokens, as far as they are keywords.
fn keywords(tokens: &[&Token]) -> [Option<&'static str>; 3] {
    [0, 1, 2].map(|at| tokens.get(at).and_then(|token| keyword(token)))
}

fn form_of_both(before: Option<&Token>, tokens: &[&Token]) -> Option<Form> {
    let form = match keywords(tokens) {
        [Some("ISNULL"), ..] => Form::keywords(1, &["IS", "NULL"]),
        [Some("NOTNULL"), ..] => Form::keywords(1, &["IS", "NOT", "NULL"]),
        // Rows that a window leaves out, at the end of its frame.
        [Some("EXCLUDE"), Some("TIES" | "GROUP"), _] => Form::keywords(2, &[]),
        [Some("EXCLUDE"), Some("CURRENT"), Some("ROW")] => Form::keywords(3, &[]),
        [Some("EXCLUDE"), Some("NO"), Some("OTHERS")] => Form::keywords(3, &[]),
        _ => None,
    }?;
    let is_exclusion = form.replacement.is_empty();
    let is_after_bound = is_keyword(before, &["ROW", "PRECEDING", "FOLLOWING"]);
    let is_at_end = matches!(tokens.get(form.length), Some(Token::RParen));
    (!is_exclusion || (is_after_bound && is_at_end)).then_some(form)
}

/// Whether a token is one of these keywords.
fn is_keyword(token: Option<&Token>, words: &[&str]) -> bool {
    token.and_then(keyword).is_some_and(|keyword| words.contains(&keyword))
}

fn form_of_sqlite(before: Option<&Token>, tokens: &[&Token]) -> Option<Form> {
    let opens = |at: usize| matches!(tokens.get(at), Some(Token::LParen));
    match (*tokens.first()?, keywords(tokens)) {
        // A hint on the index of a table.
        (_, [Some("INDEXED"), Some("BY"), _])
            if is_name(tokens.get(2)) && is_table_name(before) =>
        {
            Form::keywords(3, &[])
        }
        (_, [Some("NOT"), Some("INDEXED"), _]) if is_table_name(before) => Form::keywords(2, &[]),
        // A hint on the evaluation of a CTE.
        (_, [Some("AS"), Some("NOT"), Some("MATERIALIZED")]) if opens(3) => {
            Form::keywords(3, &["AS"])
        }
        (_, [Some("AS"), Some("MATERIALIZED"), _]) if opens(2) => Form::keywords(2, &["AS"]),
        // A hint on the order of a join, which can have a condition in SQLite.
        (_, [Some("CROSS"), Some("JOIN"), _]) => Form::keywords(2, &["JOIN"]),
        // `IS` compares any two values.
        (_, [Some("IS"), Some("NOT"), Some(what @ ("NULL" | "TRUE" | "FALSE" | "DISTINCT"))]) => {
            Form::keywords(3, &["IS", "NOT", what])
        }
        (_, [Some("IS"), Some(what @ ("NULL" | "TRUE" | "FALSE" | "DISTINCT")), _]) => {
            Form::keywords(2, &["IS", what])
        }
        (_, [Some("IS"), Some("NOT"), _]) => Form::keywords(2, &["IS", "DISTINCT", "FROM"]),
        (_, [Some("IS"), ..]) => Form::keywords(1, &["IS", "NOT", "DISTINCT", "FROM"]),
        (_, [Some("NOT"), Some("GLOB"), _]) => Form::keywords(2, &["NOT", "LIKE"]),
        (Token::ShiftLeft | Token::ShiftRight, _) => Form::signs(&[Token::Mul]),
        // Two negations of bits, which are one operator in other dialects.
        (Token::DoubleTilde, _) => Form::signs(&[Token::Tilde, Token::Tilde]),
        // All rows of a table as the right side of `IN`.
        (_, [Some("IN"), ..]) => rows_of_a_table(tokens),
        _ => None,
    }
}

fn form_of_postgres(before: Option<&Token>, tokens: &[&Token]) -> Option<Form> {
    let after = |words: &[&str]| is_keyword(before, words);
    match (*tokens.first()?, keywords(tokens)) {
        // An array as the last arguments of a call.
        (_, [Some("VARIADIC"), ..])
            if matches!(before, Some(Token::LParen | Token::Comma))
                && !matches!(tokens.get(1), Some(Token::Comma | Token::RParen)) =>
        {
            Form::keywords(1, &[])
        }
        (_, [Some("SYMMETRIC" | "ASYMMETRIC"), ..]) if after(&["BETWEEN"]) => {
            Form::keywords(1, &[])
        }
        // All rows of a table as a query.
        (_, [Some("TABLE"), ..])
            if before.is_none_or(|before| matches!(before, Token::LParen))
                || after(&["UNION", "ALL", "DISTINCT", "INTERSECT", "EXCEPT"]) =>
        {
            let replacement =
                vec![Token::make_keyword("SELECT"), Token::Mul, Token::make_keyword("FROM")];
            Some(Form { length: 1, replacement })
        }
        // The tables that inherit from a table, which are part of it in any case.
        (_, [Some("FROM" | "JOIN"), ..])
            if !after(&["DISTINCT"])
                && is_name(tokens.get(1))
                && matches!(tokens.get(2), Some(Token::Mul))
                && ends_a_table(&tokens[3..]) =>
        {
            let replacement = vec![tokens[0].clone(), tokens[1].clone()];
            Some(Form { length: 3, replacement })
        }
        _ => None,
    }
}

/// Whether these tokens can follow the name of a table and its alias, so that a `*` before them is no multiplication.
fn ends_a_table(tokens: &[&Token]) -> bool {
    let ends = |token: Option<&&Token>| match token {
        None | Some(Token::RParen | Token::Comma | Token::SemiColon) => true,
        Some(token) => is_keyword(Some(token), &AFTER_A_TABLE),
    };
    ends(tokens.first()) || (is_name(tokens.first()) && ends(tokens.get(1)))
}

/// Whether a token may be the name or the alias of a table.
fn is_table_name(token: Option<&Token>) -> bool {
    token.is_some_and(|token| matches!(token, Token::Word(_)) && keyword(token).is_none())
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
    let word = bare(token)?;
    KEYWORDS.iter().copied().find(|keyword| word.value.eq_ignore_ascii_case(keyword))
}

/// Whether a token can be the name of a table or an index.
fn is_name(token: Option<&&Token>) -> bool {
    // A word in quotes is no keyword.
    matches!(token, Some(Token::Word(word)) if word.keyword != Keyword::SELECT)
}

/// The keywords that can follow a table in a `FROM`.
const AFTER_A_TABLE: [&str; 18] = [
    "CROSS",
    "EXCEPT",
    "FULL",
    "GROUP",
    "HAVING",
    "INNER",
    "INTERSECT",
    "JOIN",
    "LEFT",
    "LIMIT",
    "NATURAL",
    "OFFSET",
    "ON",
    "ORDER",
    "RIGHT",
    "UNION",
    "USING",
    "WHERE",
];

/// The keywords that the forms consist of, or that decide whether a word is one of them.
const KEYWORDS: [&str; 55] = [
    "ALL",
    "AND",
    "AS",
    "ASYMMETRIC",
    "BETWEEN",
    "BY",
    "CASE",
    "CROSS",
    "CURRENT",
    "DISTINCT",
    "ELSE",
    "EXCEPT",
    "EXCLUDE",
    "FALSE",
    "FOLLOWING",
    "FROM",
    "FULL",
    "GLOB",
    "GROUP",
    "HAVING",
    "IN",
    "INDEXED",
    "INNER",
    "INTERSECT",
    "IS",
    "ISNULL",
    "JOIN",
    "LEFT",
    "LIMIT",
    "MATERIALIZED",
    "NATURAL",
    "NO",
    "NOT",
    "NOTNULL",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OTHERS",
    "PRECEDING",
    "RIGHT",
    "ROW",
    "SELECT",
    "SET",
    "SYMMETRIC",
    "TABLE",
    "THEN",
    "TIES",
    "TRUE",
    "UNION",
    "USING",
    "VARIADIC",
    "WHEN",
    "WHERE",
];
