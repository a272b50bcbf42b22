//! The purity of functions. Lists name the pure functions, and the volatile functions that write nothing; any other
//! function may do anything.

use sqlparser::ast::{Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Value};

use crate::catalog::Catalog;

/// The effect of a function on the statement that calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purity {
    /// It returns the same value for the same arguments.
    Pure,
    /// Its result changes with time, but it writes nothing.
    Volatile,
    /// It writes nothing, but may read any table.
    Reads,
    /// It may do anything.
    Unknown,
}

/// The purity of a call.
pub(super) fn of(function: &Function, name: &str, catalog: Option<&Catalog>) -> Purity {
    let is_described = catalog.is_some_and(|catalog| catalog.purity(name).is_some());
    if !is_described && OF_TIME.contains(&name) {
        return if is_of_fixed_time(&function.args) { Purity::Pure } else { Purity::Volatile };
    }
    let count = match &function.args {
        FunctionArguments::List(list) => list.args.len(),
        FunctionArguments::None | FunctionArguments::Subquery(_) => 0,
    };
    of_call(name, count, catalog)
}

/// The purity of a call with this number of arguments.
pub(super) fn of_call(name: &str, arguments: usize, catalog: Option<&Catalog>) -> Purity {
    with_clock(name, arguments, of_name(name, catalog))
}

/// The purity of a call, if the function may depend on the clock: the age of a single time is counted from the current
/// date.
fn with_clock(name: &str, arguments: usize, purity: Purity) -> Purity {
    if name == "age" && arguments != 2 { purity.max(Purity::Volatile) } else { purity }
}

/// The purity of a function of this name: from the catalog, or else from the lists.
pub(super) fn of_name(name: &str, catalog: Option<&Catalog>) -> Purity {
    catalog.and_then(|catalog| catalog.purity(name)).unwrap_or_else(|| listed(name))
}

/// The purity of a function on the lists.
pub(crate) fn listed(name: &str) -> Purity {
    if PURE.contains(&name) {
        Purity::Pure
    } else if VOLATILE.contains(&name) {
        Purity::Volatile
    } else {
        Purity::Unknown
    }
}

/// Whether a stable function of PostgreSQL depends on its arguments and on settings of the session alone. The settings
/// are part of the name of the database in keys and tags.
///
/// Source: PostgreSQL, chapter 9, and `pg_proc.dat` of its sources.
pub(crate) fn depends_on_settings_alone(name: &str) -> bool {
    OF_SETTINGS.contains(&name)
}

/// Whether a function converts values to JSON or to the types of columns, so that it may call user-defined casts and the
/// checks of domains.
pub(super) fn casts(name: &str) -> bool {
    name.starts_with("json")
        || ["array_to_json", "row_to_json", "to_json", "to_jsonb"].contains(&name)
}

/// The purity of a function of PostgreSQL that is called in column notation (`(value).function`). `None` if the name is no
/// function, and so is a field.
pub(super) fn of_field(name: &str, catalog: Option<&Catalog>) -> Option<Purity> {
    let described = catalog.and_then(|catalog| catalog.field(name).or(catalog.purity(name)));
    let purity =
        described.or_else(|| Some(listed(name)).filter(|listed| *listed != Purity::Unknown));
    purity.map(|purity| with_clock(name, 1, purity))
}

/// Whether a time function of SQLite has a fixed time as its argument. Otherwise its result depends on the clock;
/// `'subsec'` alone also means now.
fn is_of_fixed_time(arguments: &FunctionArguments) -> bool {
    let FunctionArguments::List(list) = arguments else { return false };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))] = &list.args[..] else {
        return false;
    };
    match &value.value {
        Value::SingleQuotedString(text) => text.starts_with(|first: char| first.is_ascii_digit()),
        _ => false,
    }
}

/// Whether PostgreSQL may parse a text as a different time each day, such as `'today'` or `'10:00 tomorrow'`.
pub(crate) fn is_moving_time(text: &str) -> bool {
    let mut words = text.split(|letter: char| !letter.is_ascii_alphabetic());
    words.any(|word| MOVING_TIMES.iter().any(|moving| word.eq_ignore_ascii_case(moving)))
}

const MOVING_TIMES: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// Whether a name without brackets is a function call.
pub(super) fn needs_no_brackets(name: &str) -> bool {
    name.starts_with("current_") || ["localtime", "localtimestamp", "session_user"].contains(&name)
}

pub(crate) const OF_TIME: [&str; 5] = ["date", "time", "datetime", "julianday", "unixepoch"];

const PURE: &[&str] = &[
    "abs",
    "any_value",
    "array",
    "array_agg",
    "avg",
    "bit_length",
    "bm25",
    "bool_and",
    "bool_or",
    "btrim",
    "ceil",
    "ceiling",
    "char",
    "char_length",
    "character_length",
    "chr",
    "coalesce",
    "concat",
    "concat_ws",
    "count",
    "cume_dist",
    "date_part",
    "date_trunc",
    "decode",
    "dense_rank",
    "encode",
    "every",
    "exp",
    "first_value",
    "floor",
    "format",
    "generate_series",
    "glob",
    "greatest",
    "grouping",
    "group_concat",
    "hex",
    "highlight",
    "ifnull",
    "iif",
    "initcap",
    "instr",
    "json",
    "json_agg",
    "json_array",
    "json_array_length",
    "json_build_array",
    "json_build_object",
    "json_each",
    "json_extract",
    "json_group_array",
    "json_group_object",
    "json_insert",
    "json_object",
    "json_patch",
    "json_quote",
    "json_remove",
    "json_set",
    "json_tree",
    "json_type",
    "json_valid",
    "jsonb",
    "jsonb_agg",
    "jsonb_array_length",
    "jsonb_build_object",
    "lag",
    "last_value",
    "lead",
    "least",
    "left",
    "length",
    "likely",
    "ln",
    "log",
    "lower",
    "lpad",
    "ltrim",
    "max",
    "md5",
    "min",
    "mod",
    "nth_value",
    "ntile",
    "nullif",
    "octet_length",
    "percent_rank",
    "plainto_tsquery",
    "position",
    "pow",
    "power",
    "printf",
    "quote",
    "raise",
    "rank",
    "regexp_replace",
    "repeat",
    "replace",
    "reverse",
    "right",
    "round",
    "row",
    "row_number",
    "rpad",
    "rtrim",
    "sign",
    "snippet",
    "soundex",
    "split_part",
    "sqrt",
    "starts_with",
    "string_agg",
    "strpos",
    "substr",
    "substring",
    "sum",
    "to_tsvector",
    "total",
    "trim",
    "typeof",
    "unhex",
    "unicode",
    "unlikely",
    "upper",
    "zeroblob",
];

const VOLATILE: &[&str] = &[
    "changes",
    "clock_timestamp",
    "current_catalog",
    "current_database",
    "current_date",
    "current_role",
    "current_schema",
    "current_setting",
    "current_time",
    "current_timestamp",
    "current_user",
    "currval",
    "gen_random_bytes",
    "gen_random_uuid",
    "gen_salt",
    "inet_client_addr",
    "last_insert_rowid",
    "lastval",
    "localtime",
    "localtimestamp",
    "nextval",
    "now",
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_advisory_unlock",
    "pg_advisory_unlock_all",
    "pg_advisory_unlock_shared",
    "pg_advisory_xact_lock",
    "pg_advisory_xact_lock_shared",
    "pg_backend_pid",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    "pg_try_advisory_xact_lock",
    "pg_try_advisory_xact_lock_shared",
    "random",
    "randomblob",
    "session_user",
    "setseed",
    "setval",
    "sqlite_version",
    "statement_timestamp",
    "strftime",
    "timediff",
    "timeofday",
    "total_changes",
    "transaction_timestamp",
    "txid_current",
    "user",
    "uuid_generate_v1",
    "uuid_generate_v1mc",
    "uuid_generate_v4",
    "version",
];

const OF_SETTINGS: &[&str] = &[
    "age",
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "convert",
    "convert_from",
    "convert_to",
    "date",
    "date_part",
    "date_trunc",
    "enum_first",
    "enum_last",
    "enum_range",
    "extract",
    "format",
    "generate_series",
    "json_agg",
    "json_build_array",
    "json_build_object",
    "json_object_agg",
    "json_populate_record",
    "json_populate_recordset",
    "json_to_record",
    "json_to_recordset",
    "json_to_tsvector",
    "jsonb_agg",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_object_agg",
    "jsonb_path_exists_tz",
    "jsonb_path_match_tz",
    "jsonb_path_query_array_tz",
    "jsonb_path_query_first_tz",
    "jsonb_path_query_tz",
    "jsonb_populate_record",
    "jsonb_populate_recordset",
    "jsonb_to_record",
    "jsonb_to_recordset",
    "jsonb_to_tsvector",
    "length",
    "make_timestamptz",
    "money",
    "numeric",
    "overlaps",
    "phraseto_tsquery",
    "plainto_tsquery",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
    "to_tsquery",
    "to_tsvector",
    "ts_headline",
    "websearch_to_tsquery",
    "xml_is_well_formed",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_function_is_in_two_lists() {
        let all: Vec<_> = PURE.iter().chain(VOLATILE).chain(&OF_TIME).collect();
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), unique.len());
    }
}
