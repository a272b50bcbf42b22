//! Reads the catalog of a PostgreSQL database.
//!
//! Describes only relations of the schema `public` to which their unqualified names resolve, so that a name in a
//! statement and the same name in the catalog refer to the same table. Names are folded to lower case; relations whose
//! names differ only in case are not described. A query that reads a relation outside the catalog is not stored, and a
//! statement that writes to such a relation invalidates everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use super::{Catalog, KeyKind, Table, folded};
use crate::{
    analysis::{self, Purity, SqlDialect},
    database::{fetch, fetch_one},
    driver::{Connection, DriverError},
};

/// Reads the tables, views, keys, triggers and functions of the database, in the transaction of this connection.
pub(crate) async fn read(connection: &mut dyn Connection) -> Result<Catalog, DriverError> {
    let read = CatalogRows::all(connection).await?;
    let mut catalog = Catalog::new().of_origin(&read.origin);
    for relation in &read.relations {
        let name = folded(&relation.name);
        match read.names.get(&relation.oid) {
            // Only the name is stored, so that the analysis does not mistake the relation for a CTE of the same name,
            // and no query that reads it is stored.
            None => drop(catalog.views.insert(name, None)),
            Some(_) if relation.is_view() => drop(catalog.views.insert(name, read.view(relation))),
            Some(_) => match read.table(relation) {
                Some(table) => drop(catalog.tables.insert(name, table)),
                None => drop(catalog.views.insert(name, None)),
            },
        }
    }
    read.add_references(&mut catalog);
    for function in &read.functions {
        let purity = function.purity();
        if function.is_field {
            catalog.fields.insert(function.name.clone(), purity.unwrap_or(Purity::Unknown));
        }
        if let Some(purity) = purity {
            catalog.functions.insert(function.name.clone(), purity);
        }
    }
    for (name, volatility, is_of_index) in &read.operators {
        let Some(purity) = purity(*volatility) else { continue };
        if *is_of_index {
            // Statements that do not name the operator may sort, group and compare rows with it.
            catalog.implied = catalog.implied.max(Some(purity));
        }
        catalog.operators.insert(name.clone(), purity);
    }
    read.add_casts(&mut catalog);
    catalog.has_outbox = read.triggers.iter().any(|trigger| trigger.is_ours);
    catalog.notes_lookups = catalog.has_outbox && read.notes_lookups;
    Ok(catalog)
}

/// All rows of the system catalogs, in one database snapshot.
struct CatalogRows {
    relations: Vec<Relation>,
    /// The names of the described relations.
    names: BTreeMap<i64, String>,
    columns: Vec<Column>,
    keys: Vec<(i64, String)>,
    references: Vec<(i64, i64, bool, bool)>,
    /// The columns of foreign keys and unique constraints of one column.
    lookup_columns: Vec<(i64, String)>,
    triggers: Vec<Trigger>,
    ruled: Vec<i64>,
    made_of: Vec<(i64, i64)>,
    unsteady: Vec<i64>,
    trees: HashMap<i64, BTreeSet<i64>>,
    functions: Vec<Function>,
    operators: Vec<(String, i64, bool)>,
    /// Calls of functions that run with a statement without being named in it.
    code: Vec<Code>,
    casts: Vec<Cast>,
    /// Whether a transaction can read its own rows of the outbox.
    notes_lookups: bool,
    /// The names of all relations of all schemas.
    all_names: Vec<(i64, String)>,
    origin: Vec<String>,
}

impl CatalogRows {
    async fn all(connection: &mut dyn Connection) -> Result<Self, DriverError> {
        let relations: Vec<Relation> = fetch(connection, RELATIONS, []).await?;
        let inherits: Vec<(i64, i64)> = fetch(connection, INHERITS, []).await?;
        Ok(Self {
            origin: origin(connection).await?,
            names: names(&relations),
            relations,
            columns: fetch(connection, COLUMNS, []).await?,
            keys: fetch(connection, KEYS, []).await?,
            references: fetch(connection, REFERENCES, []).await?,
            lookup_columns: fetch(connection, LOOKUP_COLUMNS, []).await?,
            triggers: fetch(connection, TRIGGERS, []).await?,
            ruled: fetch(connection, RULES, []).await?,
            made_of: fetch(connection, MADE_OF, []).await?,
            unsteady: fetch(connection, UNSTEADY, []).await?,
            trees: trees(&inherits),
            functions: fetch(connection, FUNCTIONS, []).await?,
            operators: fetch(connection, OPERATORS, []).await?,
            code: fetch(connection, CODE, []).await?,
            casts: fetch(connection, CASTS, []).await?,
            notes_lookups: fetch_one(connection, NOTES_LOOKUPS, []).await?,
            all_names: fetch(connection, ALL_NAMES, []).await?,
        })
    }

    fn name(&self, oid: i64) -> Option<&str> {
        self.names.get(&oid).map(String::as_str)
    }

    /// The tables that a view reads. `None` if the view is volatile, or reads a relation that is not described.
    fn view(&self, view: &Relation) -> Option<BTreeSet<String>> {
        if self.unsteady.contains(&view.oid) {
            return None;
        }
        // These dependencies are exact, but lack system catalogs and built-in functions, which appear only in the text
        // of the view.
        let of = self.made_of.iter().filter(|(of, _)| *of == view.oid);
        let tables: Option<BTreeSet<String>> =
            of.map(|(_, table)| self.name(*table).map(str::to_owned)).collect();
        let text = format!("CREATE VIEW v AS {}", view.definition.as_deref().unwrap_or_default());
        let read = analysis::read_by(&text, SqlDialect::Postgres)?;
        tables.filter(|tables| read.iter().all(|name| tables.contains(name)))
    }

    /// Describes a table. `None` if it shares rows with tables that are not described.
    fn table(&self, relation: &Relation) -> Option<Table> {
        let tree = self.trees.get(&relation.oid).into_iter().flatten();
        let tree = tree.filter(|oid| **oid != relation.oid).map(|oid| self.name(*oid));
        let mut table = Table::new().shares_rows_with(tree.collect::<Option<Vec<_>>>()?);
        let own = |trigger: &&Trigger| trigger.relation == relation.oid && !trigger.is_ours;
        let own: Vec<&Trigger> = self.triggers.iter().filter(own).collect();
        let runs = |code: &Code| code.relation == Some(relation.oid) && code.called.may_write();
        let runs = self.code.iter().any(runs);
        if !own.is_empty() || runs || self.ruled.contains(&relation.oid) {
            table = table.triggers_anything();
        }
        // A `BEFORE` trigger may change the key of a row.
        if !own.iter().any(|trigger| trigger.is_before_rows) {
            for (column, kind) in key(relation.oid, &self.columns, &self.keys).unwrap_or_default() {
                table = table.key(&column, kind);
            }
            let columns = || self.columns.iter().filter(|column| column.relation == relation.oid);
            // A generated column changes with the columns that it is computed from.
            if !columns().any(|column| column.is_generated) {
                table = table.columns(columns().map(|column| &*column.name));
            }
            for (_, name) in self.lookup_columns.iter().filter(|(of, _)| *of == relation.oid) {
                let one = [(relation.oid, name.clone())];
                let known = key(relation.oid, &self.columns, &one).unwrap_or_default();
                for (column, kind) in known {
                    table = table.lookup(&column, kind);
                }
            }
        }
        Some(table)
    }

    /// Adds the functions that conversions call (user-defined casts and checks of domains), and the relations for which
    /// a read calls a function that may write.
    fn add_casts(&self, catalog: &mut Catalog) {
        for cast in &self.casts {
            let purity = cast.called.purity();
            catalog.casts = catalog.casts.max(Some(purity));
            match &*cast.context {
                "i" => catalog.implied = catalog.implied.max(Some(purity)),
                "a" => catalog.implied_by_writes = catalog.implied_by_writes.max(Some(purity)),
                _ => {}
            }
        }
        let mut writing: BTreeSet<i64> = BTreeSet::new();
        for code in self.code.iter() {
            if code.is_of_domain {
                let purity = code.called.purity();
                catalog.casts = catalog.casts.max(Some(purity));
                // A write to a column of a domain converts the value, too.
                catalog.implied_by_writes = catalog.implied_by_writes.max(Some(purity));
            }
            writing.extend(code.view.filter(|_| code.called.may_write()));
        }
        // Adds the views that read such views, too.
        loop {
            let of = |(view, made_of): &(i64, i64)| writing.contains(made_of).then_some(*view);
            let more: BTreeSet<i64> = self.made_of.iter().filter_map(of).collect();
            if more.is_subset(&writing) {
                break;
            }
            writing.extend(more);
        }
        let all = self.all_names.iter().filter(|(oid, _)| writing.contains(oid));
        catalog.writing = all.map(|(_, name)| folded(name)).collect();
    }

    fn add_references(&self, catalog: &mut Catalog) {
        for (parent, child, on_delete, on_update) in &self.references {
            let parent = self.name(*parent).and_then(|name| catalog.tables.get_mut(name));
            let Some(parent) = parent else { continue };
            let table = std::mem::take(parent);
            *parent = match self.name(*child) {
                Some(child) => table.child(child, *on_delete, *on_update),
                None if *on_delete || *on_update => table.triggers_anything(),
                None => table,
            };
        }
    }
}

/// The identity of the database, and the settings of the session on which results depend.
async fn origin(connection: &mut dyn Connection) -> Result<Vec<String>, DriverError> {
    let mut facts: Vec<String> = fetch(connection, ORIGIN, []).await?;
    if fetch_one(connection, MAY_ASK_CONTROL, []).await? {
        facts.push(fetch_one(connection, SYSTEM, []).await?);
    }
    Ok(facts)
}

#[derive(Deserialize)]
struct Relation {
    oid: i64,
    name: String,
    kind: String,
    is_usual: bool,
    definition: Option<String>,
}

impl Relation {
    fn is_view(&self) -> bool {
        self.kind == "v"
    }
}

#[derive(Deserialize)]
struct Column {
    relation: i64,
    name: String,
    kind: String,
    /// The length or precision of the type, as the server encodes it.
    modifier: Option<i64>,
    is_generated: bool,
    is_deterministic: bool,
}

#[derive(Deserialize)]
struct Trigger {
    relation: i64,
    is_before_rows: bool,
    is_ours: bool,
}

/// The names of the described relations, without names that differ only in case.
fn names(relations: &[Relation]) -> BTreeMap<i64, String> {
    let mut times: HashMap<String, u32> = HashMap::new();
    for relation in relations {
        *times.entry(folded(&relation.name)).or_default() += 1;
    }
    let usual = relations.iter().filter(|relation| relation.is_usual);
    let named = usual.map(|relation| (relation.oid, folded(&relation.name)));
    named.filter(|(_, name)| times[name] == 1).collect()
}

/// The tables that share rows with each table, itself included, by partitions and inheritance.
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

/// The primary key of a table; `None` unless all of its columns compare values exactly as they are written.
fn key(
    relation: i64,
    columns: &[Column],
    keys: &[(i64, String)],
) -> Option<Vec<(String, KeyKind)>> {
    let names: Vec<&String> =
        keys.iter().filter(|(of, _)| *of == relation).map(|(_, name)| name).collect();
    let own = columns.iter().filter(|column| column.relation == relation);
    let mut times: HashMap<String, u32> = HashMap::new();
    own.for_each(|column| *times.entry(folded(&column.name)).or_default() += 1);
    // larder compares names without case, but the server compares them with case, so larder cannot distinguish two
    // columns whose names differ only in case.
    if names.iter().any(|name| times.get(&folded(name)).copied() != Some(1)) {
        return None;
    }
    let kind = |name: &&String| {
        let column = columns.iter().find(|one| one.relation == relation && one.name == **name)?;
        Some(((*name).clone(), kind_of(column)?))
    };
    names.iter().map(kind).collect()
}

/// The way in which a column compares its values; `None` unless it compares them exactly as they are written. `char`
/// ignores blanks, `name` cuts at 63 bytes, `numeric(9,2)` rounds, and the value of a generated column is computed.
fn kind_of(column: &Column) -> Option<KeyKind> {
    if column.is_generated {
        return None;
    }
    match (&*column.kind, column.modifier) {
        ("int2" | "int4" | "int8", None) => Some(KeyKind::Integer),
        ("text" | "varchar", None) if column.is_deterministic => Some(KeyKind::Text),
        // The modifier counts the four bytes of a length, too.
        ("varchar", Some(modifier)) if column.is_deterministic => {
            Some(KeyKind::TextUpTo(u32::try_from(modifier - 4).ok()?))
        }
        ("uuid", None) => Some(KeyKind::Uuid),
        ("date", None) => Some(KeyKind::Date),
        ("numeric", None) => Some(KeyKind::Numeric),
        ("bytea", None) => Some(KeyKind::Bytes),
        _ => None,
    }
}

/// All functions with the same name, with the worst properties of them all.
#[derive(Deserialize)]
struct Function {
    name: String,
    volatility: i64,
    is_of_users: bool,
    /// Whether one of the user-defined functions belongs to no extension.
    is_by_hand: bool,
    is_field: bool,
}

impl Function {
    /// The purity for the catalog; `None` if the lists of known functions determine it. A user-defined function is
    /// treated as it is declared.
    fn purity(&self) -> Option<Purity> {
        let listed = analysis::listed(&self.name);
        match self.volatility {
            0 => Some(Purity::Pure),
            1 if !self.is_of_users && analysis::depends_on_settings_alone(&self.name) => {
                Some(Purity::Pure)
            }
            1 if self.is_of_users || listed == Purity::Unknown => Some(Purity::Reads),
            2.. if self.is_by_hand => Some(Purity::Unknown),
            2.. if self.is_of_users && listed != Purity::Volatile => Some(Purity::Unknown),
            2.. if listed == Purity::Unknown => Some(Purity::Unknown),
            _ => None,
        }
    }
}

/// A user-defined function that is not immutable.
#[derive(Deserialize)]
struct FunctionUse {
    function: String,
    is_volatile: bool,
    is_by_hand: bool,
}

impl FunctionUse {
    /// Whether it may write, according to the rule for functions that a statement names.
    fn may_write(&self) -> bool {
        let is_listed = || analysis::listed(&self.function) == Purity::Volatile;
        self.is_volatile && (self.is_by_hand || !is_listed())
    }

    fn purity(&self) -> Purity {
        match (self.may_write(), self.is_volatile) {
            (true, _) => Purity::Unknown,
            (false, true) => Purity::Volatile,
            (false, false) => Purity::Reads,
        }
    }
}

/// A call of a function by an object that statements use without naming the function.
#[derive(Deserialize)]
struct Code {
    /// The table whose writes call the function, by a default, a check, a generated column or an index.
    relation: Option<i64>,
    view: Option<i64>,
    is_of_domain: bool,
    #[serde(flatten)]
    called: FunctionUse,
}

#[derive(Deserialize)]
struct Cast {
    /// `i`: an expression may imply the cast; `a`: an assignment may imply it; `e`: statements always write it.
    context: String,
    #[serde(flatten)]
    called: FunctionUse,
}

/// The purity of a user-defined operator, according to the declaration of its function. A stable function may read any
/// table. `None` if the function is immutable.
fn purity(volatility: i64) -> Option<Purity> {
    match volatility {
        0 => None,
        1 => Some(Purity::Reads),
        _ => Some(Purity::Unknown),
    }
}

/// The database, the role, and the settings that, according to the documentation of the server, affect how it reads
/// input, writes output or resolves names. Source: PostgreSQL, section 20.11, "Client Connection Defaults", and 20.13.
const ORIGIN: &str = "
    SELECT concat_ws(' ', current_database(), (SELECT oid FROM pg_database WHERE datname = current_database()))
    UNION ALL SELECT 'role ' || current_user
    UNION ALL (SELECT name || ' ' || setting FROM pg_settings WHERE name IN (
        'TimeZone', 'DateStyle', 'IntervalStyle', 'search_path', 'extra_float_digits', 'bytea_output', 'xmlbinary',
        'xmloption', 'lc_messages', 'lc_monetary', 'lc_numeric', 'lc_time', 'array_nulls', 'backslash_quote',
        'standard_conforming_strings', 'transform_null_equals', 'default_text_search_config', 'timezone_abbreviations',
        'quote_all_identifiers', 'row_security', 'client_encoding', 'gin_fuzzy_search_limit', 'geqo_seed')
        ORDER BY name COLLATE \"C\")";
const MAY_ASK_CONTROL: &str = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')";
const SYSTEM: &str = "SELECT system_identifier::text FROM pg_control_system()";

/// All relations to which an unqualified name can resolve, and whether the catalog describes each of them: plain tables
/// and views of the schema `public`, without row-level security.
const RELATIONS: &str = "
    SELECT c.oid::int8 AS oid, c.relname::text AS name, c.relkind::text AS kind,
        c.relkind IN ('r', 'p', 'v') AND n.nspname = 'public' AND pg_table_is_visible(c.oid)
            -- With row-level security the visible rows depend on the role.
            AND NOT c.relrowsecurity AS is_usual,
        CASE WHEN c.relkind = 'v' AND n.nspname = 'public' THEN pg_get_viewdef(c.oid) END AS definition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (n.nspname = 'public' OR pg_table_is_visible(c.oid))
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'larder_outbox')";

const COLUMNS: &str = "
    SELECT a.attrelid::int8 AS relation, a.attname::text AS name, coalesce(b.typname, t.typname)::text AS kind,
        coalesce(nullif(a.atttypmod, -1), nullif(t.typtypmod, -1))::int8 AS modifier, a.attgenerated <> '' AS is_generated,
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

const LOOKUP_COLUMNS: &str = "
    SELECT DISTINCT k.conrelid::int8, a.attname::text FROM pg_constraint k
    JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
    WHERE k.contype IN ('f', 'u') AND array_length(k.conkey, 1) = 1 ORDER BY 1, 2";

/// The bits of `tgtype`: 1 is `FOR EACH ROW`, 2 is `BEFORE`.
const TRIGGERS: &str = "
    SELECT t.tgrelid::int8 AS relation, (t.tgtype & 3) = 3 AS is_before_rows,
        n.nspname = 'larder_outbox' AND p.proname = 'note' AS is_ours
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'";

/// Rules with lower identifiers belong to the server itself.
const RULES: &str = "
    SELECT DISTINCT ev_class::int8 FROM pg_rewrite
    WHERE rulename <> '_RETURN' AND ev_enabled <> 'D' AND oid >= 16384";

const MADE_OF: &str = "
    SELECT DISTINCT r.ev_class::int8, d.refobjid::int8 FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
    WHERE r.rulename = '_RETURN' AND d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
        AND d.deptype = 'n' AND d.refobjid <> r.ev_class AND r.oid >= 16384";

const INHERITS: &str = "SELECT inhrelid::int8, inhparent::int8 FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind IN ('r', 'p', 'f')";

/// Views that use a user-defined operator, aggregate or window function, or a user-defined function that is not
/// immutable.
const UNSTEADY: &str = "
    SELECT DISTINCT r.ev_class::int8 FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
    LEFT JOIN pg_proc p ON p.oid = d.refobjid AND d.refclassid = 'pg_proc'::regclass
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refobjid >= 16384
        AND (d.refclassid = 'pg_operator'::regclass OR p.provolatile <> 'i' OR p.prokind <> 'f')";

/// The SQL condition that the function `p` belongs to no extension.
macro_rules! by_hand {
    () => {
        "NOT EXISTS (SELECT 1 FROM pg_depend e
            WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')"
    };
}

/// Functions by name, with all overloads of all schemas together. An aggregate is treated as the worst of its support
/// functions.
const FUNCTIONS: &str = concat!("
    SELECT lower(p.proname) AS name,
        max(CASE greatest(p.provolatile::text, s.worst) WHEN 'i' THEN 0 WHEN 's' THEN 1 ELSE 2 END)::int8 AS volatility,
        bool_or(p.oid >= 16384) AS is_of_users,
        bool_or(p.oid >= 16384 AND ", by_hand!(), ") AS is_by_hand,
        bool_or(p.oid >= 16384 AND p.pronargs > 0 AND p.pronargs - p.pronargdefaults <= 1
            AND t.typtype IN ('c', 'd', 'p')) AS is_field
    FROM pg_proc p LEFT JOIN pg_type t ON t.oid = p.proargtypes[0]
    LEFT JOIN LATERAL (
        SELECT max(step.provolatile::text) AS worst FROM pg_aggregate a
        JOIN pg_proc step ON step.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggmfinalfn)
        WHERE p.oid >= 16384 AND a.aggfnoid = p.oid) s ON true
    WHERE p.prokind IN ('f', 'a', 'w') GROUP BY lower(p.proname)");

/// All objects that call a user-defined function that is not immutable, by its name or by an operator.
const CODE: &str = concat!("
    WITH RECURSIVE domains AS (
        -- The default of a domain also applies to domains over it, and to columns of all these types.
        SELECT oid AS base, oid AS domain FROM pg_type WHERE typtype = 'd'
        UNION SELECT d.base, t.oid FROM domains d JOIN pg_type t ON t.typbasetype = d.domain),
    called AS (
        SELECT d.classid, d.objid, d.refobjid AS function FROM pg_depend d WHERE d.refclassid = 'pg_proc'::regclass
        UNION ALL
        SELECT d.classid, d.objid, o.oprcode::oid FROM pg_depend d
        JOIN pg_operator o ON o.oid = d.refobjid WHERE d.refclassid = 'pg_operator'::regclass
        UNION ALL
        -- An aggregate calls its support functions.
        SELECT d.classid, d.objid, step.oid FROM pg_depend d
        JOIN pg_aggregate g ON g.aggfnoid = d.refobjid AND d.refclassid = 'pg_proc'::regclass
        JOIN pg_proc step ON step.oid IN (g.aggtransfn, g.aggfinalfn, g.aggcombinefn, g.aggmtransfn, g.aggmfinalfn))
    SELECT coalesce(a.adrelid, nullif(k.conrelid, 0), i.indrelid, c.oid, u.attrelid)::int8 AS relation,
        coalesce(r.ev_class, y.polrelid)::int8 AS view, coalesce(k.contypid, 0) <> 0 AS is_of_domain,
        lower(p.proname) AS function, p.provolatile = 'v' AS is_volatile, ", by_hand!(), " AS is_by_hand
    FROM called JOIN pg_proc p ON p.oid = called.function
    LEFT JOIN pg_attrdef a ON classid = 'pg_attrdef'::regclass AND a.oid = objid
    LEFT JOIN pg_constraint k ON classid = 'pg_constraint'::regclass AND k.oid = objid
    LEFT JOIN pg_index i ON classid = 'pg_class'::regclass AND i.indexrelid = objid
    LEFT JOIN pg_class c ON classid = 'pg_class'::regclass AND c.oid = objid AND c.relkind IN ('r', 'p')
    LEFT JOIN domains t ON classid = 'pg_type'::regclass AND t.base = objid
    LEFT JOIN pg_attribute u ON u.atttypid = t.domain
    LEFT JOIN pg_rewrite r ON classid = 'pg_rewrite'::regclass AND r.oid = objid AND r.rulename = '_RETURN'
    LEFT JOIN pg_policy y ON classid = 'pg_policy'::regclass AND y.oid = objid
    WHERE p.oid >= 16384 AND p.provolatile <> 'i'
        AND coalesce(y.oid, a.oid, k.oid, i.indexrelid, c.oid, u.attrelid, r.oid) IS NOT NULL");

const NOTES_LOOKUPS: &str = "
    SELECT EXISTS (SELECT 1 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = 'larder_outbox' AND p.proname = 'own' AND has_function_privilege(p.oid, 'EXECUTE')
            AND has_schema_privilege(n.oid, 'USAGE'))";

const ALL_NAMES: &str =
    "SELECT oid::int8, relname::text FROM pg_class WHERE relkind IN ('r', 'p', 'v')";

/// User-defined casts by functions that are not immutable, and whether an assignment or an expression may imply them.
const CASTS: &str = concat!("
    SELECT x.castcontext::text AS context, lower(p.proname) AS function, p.provolatile = 'v' AS is_volatile,
        ", by_hand!(), " AS is_by_hand
    FROM pg_cast x JOIN pg_proc p ON p.oid = x.castfunc WHERE x.oid >= 16384 AND p.provolatile <> 'i'");

const OPERATORS: &str = "
    SELECT o.oprname::text, max(CASE p.provolatile WHEN 'i' THEN 0 WHEN 's' THEN 1 ELSE 2 END)::int8,
        bool_or(p.provolatile <> 'i' AND EXISTS (SELECT 1 FROM pg_amop m WHERE m.amopopr = o.oid))
    FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode WHERE o.oid >= 16384 GROUP BY o.oprname";
