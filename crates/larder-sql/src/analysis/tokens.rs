//! The tokens of a statement.

use sqlparser::tokenizer::{Token, Word};

/// All tokens except whitespace and comments.
pub(super) fn without_blanks(tokens: &[Token]) -> impl Iterator<Item = &Token> {
    tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_)))
}

/// A word without quotes.
pub(super) fn bare(token: &Token) -> Option<&Word> {
    match token {
        Token::Word(word) if word.quote_style.is_none() => Some(word),
        _ => None,
    }
}
