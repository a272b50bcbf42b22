//! Detects texts that begin or end a transaction.
//!
//! On a pooled connection such a statement would put the statements of other callers into a transaction, or end their
//! transaction. larder detects it in texts of one or several statements, even if the rest of the text cannot be parsed.

use sqlparser::tokenizer::Token;

use super::tokens::without_blanks;

/// Whether one of the statements of a text begins or ends a transaction.
pub(super) fn controls(tokens: &[Token]) -> bool {
    let words: Vec<String> = without_blanks(tokens)
        .map(|token| match token {
            Token::Word(word) if word.quote_style.is_none() => word.value.to_ascii_uppercase(),
            Token::SemiColon => ";".to_owned(),
            _ => String::new(),
        })
        .collect();
    any_controls(&words)
}

/// Whether a text that the tokenizer rejects may begin or end a transaction.
pub(super) fn may_control(text: &str) -> bool {
    let mut words = Vec::new();
    for statement in text.split_inclusive(';') {
        let parts = statement.split(|letter: char| !letter.is_ascii_alphabetic() && letter != '_');
        words.extend(parts.filter(|word| !word.is_empty()).map(str::to_ascii_uppercase));
        words.push(";".to_owned());
    }
    any_controls(&words)
}

fn any_controls(words: &[String]) -> bool {
    let mut in_body = false;
    for statement in words.split(|word| word == ";") {
        let word = |at: usize| statement.get(at).map_or("", String::as_str);
        if in_body {
            // In the body of a trigger or a routine, `END` ends the body and not a transaction.
            in_body = word(0) != "END";
            continue;
        }
        let controls = match word(0) {
            "BEGIN" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE" => true,
            "START" | "PREPARE" => word(1) == "TRANSACTION",
            _ => false,
        };
        if controls {
            return true;
        }
        let defines = |word: &String| ["TRIGGER", "FUNCTION", "PROCEDURE"].contains(&word.as_str());
        let defines = statement.iter().take(4).any(defines);
        in_body = word(0) == "CREATE" && defines && statement.iter().any(|word| word == "BEGIN");
    }
    false
}
