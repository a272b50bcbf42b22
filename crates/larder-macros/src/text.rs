//! Texts with arguments in braces, such as `user:{id}`.

use syn::{Error, Ident, LitStr};

/// A piece of a text.
pub(crate) enum Piece {
    Text(String),
    Argument(Ident),
}

/// Splits a text into its pieces. Each brace names one of the arguments.
pub(crate) fn pieces(text: &LitStr, arguments: &[&Ident]) -> Result<Vec<Piece>, Error> {
    let (value, mut pieces) = (text.value(), Vec::new());
    let mut rest = value.as_str();
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let Some((name, after)) = brace.strip_prefix('{').and_then(|rest| rest.split_once('}'))
        else {
            return Err(Error::new(
                text.span(),
                "a brace has no partner: allowed are the names of arguments, as in `user:{id}`",
            ));
        };
        let Some(argument) = arguments.iter().find(|argument| **argument == name) else {
            let all: Vec<_> = arguments.iter().map(|argument| format!("`{argument}`")).collect();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            return Err(Error::new(
                text.span(),
                format!("`{{{name}}}` names no argument; the arguments are: {all}"),
            ));
        };
        pieces.push(Piece::Argument((*argument).clone()));
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}
