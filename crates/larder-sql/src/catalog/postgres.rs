//! Reads what is known of the tables of a PostgreSQL database.
//!
//! Only what stands in the schema `public` and is what its bare name means is described: with it, a name in a statement and
//! a name here are the same table. Names are folded to lower case; of those that differ in nothing but their case none is
//! described. What is not described is not kept when it is read, and drops everything when it is written.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::{FromRow, PgPool, Row as _};

use super::{Catalog, Effect, KeyKind, Table, folded};
use crate::analysis::{self, Purity, SqlDialect};

/// The tables, views, keys, triggers and functions of the database, as it is now.
pub(crate) async fn read(pool: &PgPool) -> sqlx::Result<Catalog> {
    let mut transaction =
        pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let connection = &mut *transaction;
    let relations: Vec<Relation> = sqlx::query_as(RELATIONS).fetch_all(&mut *connection).await?;
    let columns: Vec<Column> = sqlx::query_as(COLUMNS).fetch_all(&mut *connection).await?;
    let keys: Vec<(i64, String)> = sqlx::query_as(KEYS).fetch_all(&mut *connection).await?;
    let references: Vec<(i64, i64, bool, bool)> =
        sqlx::query_as(REFERENCES).fetch_all(&mut *connection).await?;
    let triggers: Vec<Trigger> = sqlx::query_as(TRIGGERS).fetch_all(&mut *connection).await?;
    let ruled: Vec<(i64,)> = sqlx::query_as(RULES).fetch_all(&mut *connection).await?;
    let made_of: Vec<(i64, i64)> = sqlx::query_as(MADE_OF).fetch_all(&mut *connection).await?;
    let inherits: Vec<(i64, i64)> = sqlx::query_as(INHERITS).fetch_all(&mut *connection).await?;
    let functions = sqlx::query(FUNCTIONS).fetch_all(&mut *connection).await?;
    transaction.rollback().await?;

    let names = names(&relations);
    let name_of = |oid: i64| names.get(&oid).map(String::as_str);
    let trees = trees(&inherits);
    let mut catalog = Catalog::new();
    for relation in &relations {
        let Some(name) = name_of(relation.oid) else { continue };
        if relation.is_view() {
            let tables = || {
                let of = made_of.iter().filter(|(view, _)| *view == relation.oid);
                of.map(|(_, of)| name_of(*of).map(str::to_owned)).collect::<Option<BTreeSet<_>>>()
            };
            // What it is made of the database knows exactly; whether it gives another answer each time, its text says.
            let text = format!("CREATE VIEW v AS {}", relation.definition.as_deref().unwrap_or(""));
            let is_steady = analysis::read_by(&text, SqlDialect::Postgres).is_some();
            catalog.views.insert(name.to_owned(), is_steady.then(tables).flatten());
            continue;
        }
        let mut table = Table::new();
        let own = |trigger: &&Trigger| trigger.relation == relation.oid && !trigger.is_ours;
        let own: Vec<&Trigger> = triggers.iter().filter(own).collect();
        if !own.is_empty() || ruled.contains(&(relation.oid,)) {
            table = table.triggers_anything();
        }
        // A trigger that runs before may store another key than the one that was given.
        if !own.iter().any(|trigger| trigger.is_before_rows) {
            for (column, kind) in key(relation.oid, &columns, &keys).unwrap_or_default() {
                table = table.key(&column, kind);
            }
        }
        let tree =
            trees.get(&relation.oid).into_iter().flatten().filter(|oid| **oid != relation.oid);
        match tree.map(|oid| name_of(*oid)).collect::<Option<Vec<_>>>() {
            Some(tree) => table = table.shares_rows_with(tree),
            // Rows of a table that cannot be named: nobody can say what a write of it changes.
            None => table = table.with_effect(Effect::Anything),
        }
        catalog.tables.insert(name.to_owned(), table);
    }
    for (parent, child, on_delete, on_update) in references {
        let Some(written) = name_of(parent).and_then(|name| catalog.tables.get_mut(name)) else {
            continue;
        };
        let table = std::mem::take(written);
        *written = match name_of(child) {
            Some(child) => table.child(child, on_delete, on_update),
            None if on_delete || on_update => table.triggers_anything(),
            None => table,
        };
    }
    for row in functions {
        let (name, volatility, is_of_users): (String, i64, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if let Some(purity) = purity(&name, volatility, is_of_users) {
            catalog.functions.insert(folded(&name), purity);
        }
    }
    Ok(catalog)
}

#[derive(FromRow)]
struct Relation {
    oid: i64,
    name: String,
    kind: String,
    definition: Option<String>,
}

impl Relation {
    fn is_view(&self) -> bool {
        self.kind == "v"
    }
}

#[derive(FromRow)]
struct Column {
    relation: i64,
    name: String,
    kind: String,
    is_bounded: bool,
    is_generated: bool,
    is_deterministic: bool,
}

#[derive(FromRow)]
struct Trigger {
    relation: i64,
    is_before_rows: bool,
    is_ours: bool,
}

/// The names of relations, without those that differ in their case alone.
fn names(relations: &[Relation]) -> BTreeMap<i64, String> {
    let mut times: HashMap<String, u32> = HashMap::new();
    for relation in relations {
        *times.entry(folded(&relation.name)).or_default() += 1;
    }
    let named = relations.iter().map(|relation| (relation.oid, folded(&relation.name)));
    named.filter(|(_, name)| times[name] == 1).collect()
}

/// The tables of which each table is one, by partitions and inheritance.
fn trees(inherits: &[(i64, i64)]) -> HashMap<i64, BTreeSet<i64>> {
    let mut beside: HashMap<i64, Vec<i64>> = HashMap::new();
    for (child, parent) in inherits {
        beside.entry(*child).or_default().push(*parent);
        beside.entry(*parent).or_default().push(*child);
    }
    let tree = |from: i64| {
        let (mut tree, mut next) = (BTreeSet::from([from]), vec![from]);
        while let Some(oid) = next.pop() {
            next.extend(beside[&oid].iter().filter(|other| tree.insert(**other)));
        }
        tree
    };
    beside.keys().map(|oid| (*oid, tree(*oid))).collect()
}

/// The primary key of a table, where all of its columns compare as they are written.
fn key(
    relation: i64,
    columns: &[Column],
    keys: &[(i64, String)],
) -> Option<Vec<(String, KeyKind)>> {
    let names: Vec<&String> =
        keys.iter().filter(|(of, _)| *of == relation).map(|(_, name)| name).collect();
    let folded: HashSet<String> = names.iter().map(|name| folded(name)).collect();
    if folded.len() < names.len() {
        return None;
    }
    let kind = |name: &&String| {
        let column = columns.iter().find(|one| one.relation == relation && one.name == **name)?;
        Some(((*name).clone(), kind_of(column)?))
    };
    names.iter().map(kind).collect()
}

/// How a column compares its values; `None` where that is not as they are written. A `varchar(5)` cuts blanks, `char` ignores
/// them, `name` cuts at 63 bytes, and a generated column is not what is written at all.
fn kind_of(column: &Column) -> Option<KeyKind> {
    if column.is_generated || column.is_bounded {
        return None;
    }
    match &*column.kind {
        "int2" | "int4" | "int8" => Some(KeyKind::Integer),
        "text" | "varchar" if column.is_deterministic => Some(KeyKind::Text),
        _ => None,
    }
}

/// What is to be known of a function besides the lists: those of users are what they were declared to be. One that is stable
/// may read any table.
fn purity(name: &str, volatility: i64, is_of_users: bool) -> Option<Purity> {
    match (volatility, is_of_users) {
        (0, _) => Some(Purity::Pure),
        (1, true) => Some(Purity::Reads),
        (1, false) => analysis::is_unknown_function(name).then_some(Purity::Reads),
        (_, true) => Some(Purity::Unknown),
        (_, false) => None,
    }
}

const RELATIONS: &str = "
    SELECT c.oid::int8 AS oid, c.relname::text AS name, c.relkind::text AS kind,
        CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END AS definition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v') AND n.nspname = 'public' AND pg_table_is_visible(c.oid)
        -- Who sees which rows depends on who asks.
        AND NOT c.relrowsecurity";

const COLUMNS: &str = "
    SELECT a.attrelid::int8 AS relation, a.attname::text AS name, coalesce(b.typname, t.typname)::text AS kind,
        a.atttypmod <> -1 OR t.typtypmod <> -1 AS is_bounded, a.attgenerated <> '' AS is_generated,
        coalesce(l.collisdeterministic, true) AS is_deterministic
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p') AND n.nspname = 'public'";

const KEYS: &str = "
    SELECT k.conrelid::int8, a.attname::text FROM pg_constraint k
    CROSS JOIN LATERAL unnest(k.conkey) WITH ORDINALITY AS u (attnum, at)
    JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum
    WHERE k.contype = 'p' ORDER BY k.conrelid, u.at";

const REFERENCES: &str = "
    SELECT confrelid::int8, conrelid::int8, confdeltype NOT IN ('a', 'r'), confupdtype NOT IN ('a', 'r')
    FROM pg_constraint WHERE contype = 'f'";

/// The bits of `tgtype` are 1 for each row, 2 before.
const TRIGGERS: &str = "
    SELECT t.tgrelid::int8 AS relation, (t.tgtype & 3) = 3 AS is_before_rows,
        n.nspname = 'larder_outbox' AND p.proname = 'note' AS is_ours
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'";

/// Those with lower numbers are the server's own.
const RULES: &str = "
    SELECT DISTINCT ev_class::int8 FROM pg_rewrite
    WHERE rulename <> '_RETURN' AND ev_enabled <> 'D' AND oid >= 16384";

const MADE_OF: &str = "
    SELECT DISTINCT r.ev_class::int8, d.refobjid::int8 FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
    WHERE r.rulename = '_RETURN' AND d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
        AND d.deptype = 'n' AND d.refobjid <> r.ev_class AND r.oid >= 16384";

const INHERITS: &str = "SELECT inhrelid::int8, inhparent::int8 FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind IN ('r', 'p', 'f')";

/// Overloads together, each by the worst of them.
const FUNCTIONS: &str = "
    SELECT proname::text, max(CASE provolatile WHEN 'i' THEN 0 WHEN 's' THEN 1 ELSE 2 END)::int8, bool_or(oid >= 16384)
    FROM pg_proc WHERE pg_function_is_visible(oid) AND prokind IN ('f', 'a', 'w') GROUP BY proname";
