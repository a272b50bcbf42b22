//! Reads the catalog of a SQLite database.

use super::{Catalog, Effect, KeyKind, Table, folded};
use crate::{
    analysis::{self, OF_TIME, Purity, SqlDialect},
    database::{fetch, fetch_one},
    driver::{Connection, DriverError},
    outbox::sqlite as outbox,
};
use sqlparser::{
    dialect::SQLiteDialect,
    tokenizer::{Token, Tokenizer},
};

/// Reads the tables, views, keys and triggers of the database.
///
/// It uses a connection of the pool and not its own connection, because an in-memory database has no other connection,
/// and because temporary objects and the settings of the session are visible only there.
pub(crate) async fn read(
    connection: &mut dyn Connection,
    id: u128,
) -> Result<Catalog, DriverError> {
    let file: Option<String> = fetch_one(connection, FILE, []).await?;
    let mut facts = vec![match file.filter(|file| !file.is_empty()) {
        Some(file) => file,
        None => format!("in memory {id:032x}"),
    }];
    for setting in SESSION {
        let value: Vec<Option<String>> = fetch(connection, setting, []).await?;
        facts.push(value.into_iter().flatten().next().unwrap_or_default());
    }
    let objects: Vec<[String; 4]> = fetch(connection, OBJECTS, []).await?;
    let of = |kind: &'static str| objects.iter().filter(move |object| object[0] == kind);
    // Virtual tables, the tables that store their rows, and the tables of SQLite itself change without a statement that
    // names them, so the catalog does not describe them.
    let plain: Vec<String> = fetch(connection, PLAIN, []).await?;
    let is_plain = |name: &str| plain.iter().any(|plain| plain == name);
    let mut catalog = Catalog::new().of_origin(&facts);
    for [_, name, _, sql] in of("table").filter(|table| is_plain(&table[1])) {
        let words = words(sql);
        let has = |wanted: &[&str]| {
            // If a definition has unknown tokens, it may contain anything.
            words
                .as_ref()
                .is_none_or(|words| words.windows(wanted.len()).any(|part| part == wanted))
        };
        let columns: Vec<(String, String, Option<String>)> =
            fetch(connection, KEY, [name.into()]).await?;
        let mut table = Table::new();
        if has(&["CONFLICT", "REPLACE"]) {
            table = table.replaces_conflicts();
        }
        // No pragma reports which column has the collation.
        let collates = has(&["COLLATE"]);
        let kinds: Option<Vec<_>> = columns
            .into_iter()
            .map(|(column, declared, collation)| {
                Some((column, kind_of(&declared, collation.as_deref().filter(|_| !collates))?))
            })
            .collect();
        // If larder does not know how a column of the key compares its values, the key does not identify rows.
        for (column, kind) in kinds.unwrap_or_default() {
            table = table.key(&column, kind);
        }
        catalog = catalog.table(name, table);
    }
    for [_, name, _, sql] in of("table").filter(|table| !is_plain(&table[1])) {
        // Only the name is stored, so that the analysis does not mistake the table for a CTE of the same name.
        let writes_itself = words(sql).is_some_and(|words| {
            let module =
                words.iter().position(|word| word == "USING").and_then(|at| words.get(at + 1));
            module.is_some_and(|module| WRITING_THEMSELVES.contains(&module.as_str()))
        });
        match writes_itself {
            true => drop(catalog.tables.insert(folded(name), Table::new().opaque())),
            false => drop(catalog.views.insert(folded(name), None)),
        }
    }
    let functions: Vec<(String, bool, bool)> = fetch(connection, FUNCTIONS, []).await?;
    for (name, is_built_in, is_deterministic) in functions {
        let purity = match (is_built_in, is_deterministic) {
            _ if analysis::listed(&name) != Purity::Unknown || OF_TIME.contains(&&*name) => {
                continue;
            }
            _ if LOADING.contains(&&*name) => Purity::Unknown,
            (true, true) => Purity::Pure,
            (true, false) => Purity::Volatile,
            // The application has defined it, under a name that is on no list, so it may do anything.
            (false, _) => Purity::Unknown,
        };
        catalog.functions.insert(name, purity);
    }
    for [_, child, ..] in of("table") {
        let keys: Vec<[String; 3]> = fetch(connection, FOREIGN_KEYS, [child.into()]).await?;
        for [parent, on_delete, on_update] in keys {
            let acts = |action: &str| !matches!(action, "NO ACTION" | "RESTRICT");
            if let Some(parent) = catalog.tables.get_mut(&folded(&parent)) {
                let table = std::mem::take(parent);
                *parent = table.child(child, acts(&on_delete), acts(&on_update));
            }
        }
    }
    for [_, name, _, sql] in of("view") {
        catalog.views.insert(folded(name), analysis::read_by(sql, SqlDialect::Sqlite));
    }
    for [_, name, table, sql] in of("trigger") {
        if outbox::is_ours(name, table) {
            catalog.has_outbox = true;
            if let Some(table) = catalog.tables.get_mut(&folded(table))
                && !outbox::writes_bytes(sql)
                && table.key.iter().any(|column| column.kind == KeyKind::Bytes)
            {
                table.key.clear();
            }
            continue;
        }
        let effect = match body(sql) {
            Some(tokens) => analysis::written_by(&tokens, SqlDialect::Sqlite, &catalog)
                .map_or(Effect::Anything, Effect::Tables),
            None => Effect::Anything,
        };
        if let Some(written) = catalog.tables.get_mut(&folded(table)) {
            *written = std::mem::take(written).with_effect(effect);
        }
    }
    Ok(catalog)
}

/// The words of a definition in capitals, without whitespace and comments. `None` if the tokenizer fails.
fn words(sql: &str) -> Option<Vec<String>> {
    let tokens = Tokenizer::new(&SQLiteDialect {}, sql).tokenize().ok()?;
    let word = |token: Token| match token {
        Token::Whitespace(_) => None,
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_ascii_uppercase()),
        // Any other token becomes an empty text, which no word equals.
        _ => Some(String::new()),
    };
    Some(tokens.into_iter().filter_map(word).collect())
}

/// The way in which a column of a declared type compares its values; `None` unless it compares them exactly as they are
/// written.
///
/// Source: [Datatypes in SQLite, section 3.1](https://www.sqlite.org/datatype3.html)
fn kind_of(declared: &str, collation: Option<&str>) -> Option<KeyKind> {
    let declared = declared.to_ascii_uppercase();
    if declared.contains("INT") {
        return Some(KeyKind::Integer);
    }
    if collation != Some("BINARY") {
        return None;
    }
    let is_text = ["CHAR", "CLOB", "TEXT"].iter().any(|kind| declared.contains(kind));
    // A column of another type stores bytes as they are.
    Some(if is_text { KeyKind::Text } else { KeyKind::Bytes })
}

/// The statements of a trigger: all tokens between its `BEGIN` and its `END`.
fn body(sql: &str) -> Option<Vec<Token>> {
    let tokens = Tokenizer::new(&SQLiteDialect {}, sql).tokenize().ok()?;
    let is = |token: &Token, word: &str| match token {
        Token::Word(name) => name.quote_style.is_none() && name.value.eq_ignore_ascii_case(word),
        _ => false,
    };
    let begin = tokens.iter().position(|token| is(token, "BEGIN"))?;
    let end = tokens.iter().rposition(|token| is(token, "END"))?;
    tokens.get(begin + 1..end).map(<[Token]>::to_vec)
}

/// Modules of virtual tables to which statements write as to plain tables. A write changes only the virtual table and
/// the tables that store its rows.
const WRITING_THEMSELVES: [&str; 5] = ["FTS3", "FTS4", "FTS5", "RTREE", "GEOPOLY"];

/// All objects of the main and the temporary schema.
const OBJECTS: &str = "
    SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema
    UNION ALL SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_temp_schema";

const PLAIN: &str = "SELECT name FROM pragma_table_list WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

/// The columns of the primary key of a table, with their declared types and collations.
const KEY: &str = "
    SELECT c.name, c.type,
        (SELECT x.coll FROM pragma_index_list(?1) l, pragma_index_xinfo(l.name) x
            WHERE l.origin = 'pk' AND x.key = 1 AND x.name = c.name)
    FROM pragma_table_info(?1) c WHERE c.pk > 0 ORDER BY c.pk";

const FOREIGN_KEYS: &str = "SELECT \"table\", on_delete, on_update FROM pragma_foreign_key_list(?)";

/// Every function, with the worst flags of all overloads. 2048 is `SQLITE_DETERMINISTIC`.
const FUNCTIONS: &str = "
    SELECT lower(name), min(builtin), min((flags & 2048) <> 0) FROM pragma_function_list GROUP BY lower(name)";

/// Functions of SQLite that load code, which may do anything.
const LOADING: [&str; 2] = ["load_extension", "fts3_tokenizer"];

/// The file of the database; an empty text or null for an in-memory database.
pub(crate) const FILE: &str = "SELECT file FROM pragma_database_list WHERE name = 'main'";

/// The settings of a session on which results depend: how `LIKE` compares, how columns are named, and the order of rows
/// without `ORDER BY`.
const SESSION: [&str; 4] = [
    "SELECT CAST('a' LIKE 'A' AS TEXT)",
    "SELECT CAST(full_column_names AS TEXT) FROM pragma_full_column_names",
    "SELECT CAST(short_column_names AS TEXT) FROM pragma_short_column_names",
    "SELECT CAST(reverse_unordered_selects AS TEXT) FROM pragma_reverse_unordered_selects",
];
