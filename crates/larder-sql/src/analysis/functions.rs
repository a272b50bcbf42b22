//! What is known of functions: those that give the same for the same, and those that do not but write nothing. Any
//! other may do anything.

use sqlparser::ast::{Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Value};

/// What calling a function means for what it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purity {
    /// The same for the same arguments.
    Pure,
    /// Another answer at another time, but nothing is written.
    Volatile,
    Unknown,
}

pub(super) fn of(function: &Function, name: &str) -> Purity {
    if OF_TIME.contains(&name) {
        return if is_of_fixed_time(&function.args) { Purity::Pure } else { Purity::Volatile };
    }
    of_name(name)
}

pub(super) fn of_name(name: &str) -> Purity {
    if PURE.contains(&name) {
        Purity::Pure
    } else if VOLATILE.contains(&name) {
        Purity::Volatile
    } else {
        Purity::Unknown
    }
}

/// SQLite's `date('now')` is another each day, as is one whose arguments come to `now`.
fn is_of_fixed_time(arguments: &FunctionArguments) -> bool {
    let FunctionArguments::List(list) = arguments else { return false };
    let is_fixed = |argument: &FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) => match argument {
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) => true,
            Expr::Value(value) => match &value.value {
                Value::SingleQuotedString(text) => !text.trim().eq_ignore_ascii_case("now"),
                Value::Number(..) => true,
                _ => false,
            },
            _ => false,
        },
        _ => false,
    };
    // A column may hold the word, so a time comes from one that is not text; which nobody knows here.
    let holds_no_text = |argument: &FunctionArg| {
        !matches!(
            argument,
            FunctionArg::Unnamed(FunctionArgExpr::Expr(
                Expr::Identifier(_) | Expr::CompoundIdentifier(_)
            ))
        )
    };
    !list.args.is_empty() && list.args.iter().all(|one| is_fixed(one) && holds_no_text(one))
}

const OF_TIME: [&str; 7] =
    ["date", "time", "datetime", "julianday", "strftime", "unixepoch", "timediff"];

const PURE: [&str; 104] = [
    "abs",
    "any_value",
    "array_agg",
    "avg",
    "bit_length",
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
    "group_concat",
    "hex",
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
    "json_object",
    "json_tree",
    "json_type",
    "json_valid",
    "jsonb_agg",
    "jsonb_array_length",
    "jsonb_build_object",
    "lag",
    "last_value",
    "lead",
    "least",
    "left",
    "length",
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
    "row_number",
    "rpad",
    "rtrim",
    "sign",
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
];

const VOLATILE: [&str; 34] = [
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
    "gen_random_uuid",
    "inet_client_addr",
    "last_insert_rowid",
    "lastval",
    "localtime",
    "localtimestamp",
    "nextval",
    "now",
    "pg_backend_pid",
    "random",
    "randomblob",
    "session_user",
    "sqlite_version",
    "statement_timestamp",
    "timeofday",
    "total_changes",
    "transaction_timestamp",
    "txid_current",
    "user",
    "uuid_generate_v4",
    "version",
    "typeof_now",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_function_is_in_two_lists() {
        let all: Vec<_> = PURE.iter().chain(&VOLATILE).chain(&OF_TIME).collect();
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), unique.len());
    }
}
