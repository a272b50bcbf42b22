//! Walks over a statement, and gathers its reads, changes and calls for the rules.

use larder_core::Reason;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
};

use sqlparser::ast::{
    AccessExpr, Assignment, AssignmentTarget, ConflictTarget, Delete, Expr, FromTable, Function,
    FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, Insert, Join,
    JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, OnConflictAction, OnInsert, Query,
    Select, SelectItem, SetExpr, SqliteOnConflict, Statement, TableFactor, TableObject,
    TableWithJoins, Update, UpdateTableFromKind, ValueWithSpan, Visitor,
};

use super::{
    Analysis, ChangedColumns, SqlDialect, StatementKind, TableChange,
    functions::{self, Purity},
    pins::{self, Occurrence, Operand, Pin, PinnedKey},
};
use crate::catalog::{Catalog, KeyColumn, folded};

pub(super) struct Collector<'a> {
    dialect: SqlDialect,
    catalog: Option<&'a Catalog>,
    /// The number of occurrences of each relation.
    relations: BTreeMap<String, usize>,
    pinned: BTreeMap<String, Vec<Pin>>,
    /// The names of CTEs that hide tables, for each query that encloses the current position of the walk.
    scopes: Vec<BTreeSet<String>>,
    /// The same for the queries of CTEs that the walk has not reached yet.
    within_ctes: HashMap<*const Query, BTreeSet<String>>,
    /// The name of a table function, which the walk visits next as if it were a relation.
    not_a_relation: Option<*const ObjectName>,
    has_unnamed_columns: bool,
    selects: usize,
    /// The last parts of all names of columns.
    columns: BTreeSet<String>,
    /// Whether the query may read columns that it does not name.
    reads_all_columns: bool,
    /// The names and aliases of tables, as an expression for a whole row has them.
    row_names: BTreeSet<String>,
    /// The qualified names `a.b`, of which `b` is a function of a whole row if `a` has no such column.
    qualified: BTreeSet<(String, String)>,
    /// Whether the query may return a row without a row of a table: an aggregate or what may be one, `VALUES`, a `UNION`.
    may_add_rows: bool,
    changes: Vec<TableChange>,
    volatile: Option<Reason>,
    defines: bool,
    unknown: Option<Reason>,
    reads_unknown: bool,
}

impl<'a> Collector<'a> {
    pub(super) fn new(dialect: SqlDialect, catalog: Option<&'a Catalog>) -> Self {
        Self {
            dialect,
            catalog,
            relations: BTreeMap::new(),
            pinned: BTreeMap::new(),
            scopes: Vec::new(),
            within_ctes: HashMap::new(),
            not_a_relation: None,
            has_unnamed_columns: false,
            selects: 0,
            columns: BTreeSet::new(),
            reads_all_columns: false,
            row_names: BTreeSet::new(),
            qualified: BTreeSet::new(),
            may_add_rows: false,
            changes: Vec::new(),
            volatile: None,
            defines: false,
            unknown: None,
            reads_unknown: false,
        }
    }

    /// Whether a column of the result may be named after the text of its expression.
    pub(super) fn has_unnamed_columns(&self) -> bool {
        self.has_unnamed_columns
    }

    pub(super) fn finish(mut self, fingerprint: String) -> Analysis {
        let implied = self.catalog.and_then(Catalog::implied);
        self.call_if(implied);
        if !self.changes.is_empty() {
            let implied = self.catalog.and_then(Catalog::implied_by_writes);
            self.call_if(implied);
        }
        let reads = self.reads();
        let nature = match (self.unknown, self.volatile) {
            (Some(why), _) => StatementKind::Unknown(why),
            _ if self.defines => StatementKind::Definition,
            _ if !self.changes.is_empty() => StatementKind::Write,
            (_, Some(why)) => StatementKind::Volatile(why),
            _ => StatementKind::Query,
        };
        let reads_unknown = self.reads_unknown || self.unknown.is_some();
        let one_row = |pin: &Pin| match pin {
            Pin::Rows(pinned) => pinned.iter().all(|values| values.len() == 1),
            Pin::Lookup(..) => true,
        };
        let pins_single_rows = reads.values().flatten().flatten().all(one_row);
        let proves_rows = self.selects == 1 && !self.may_add_rows && pins_single_rows;
        let is_system = |column: &String| SYSTEM_COLUMNS.contains(&&**column);
        // The columns of a write are those that it sets and compares, and not those of its rows.
        let names_columns = self.changes.is_empty()
            && !self.reads_all_columns
            && self.columns.is_disjoint(&self.row_names)
            && !self.columns.iter().any(is_system)
            && !self.calls_a_row(&reads);
        let (columns, changes) = (names_columns.then_some(self.columns), self.changes);
        Analysis { fingerprint, nature, reads, reads_unknown, columns, proves_rows, changes }
    }

    /// Applies rules 1 and 3.
    fn reads(&mut self) -> BTreeMap<String, Option<Vec<Pin>>> {
        let mut reads = BTreeMap::new();
        for (relation, times) in std::mem::take(&mut self.relations) {
            if let Some(pinned) = self.pinned.remove(&relation).filter(|all| all.len() == times) {
                reads.entry(relation).or_insert(Some(pinned));
                continue;
            }
            if self.catalog.is_none_or(|catalog| !catalog.is_table(&relation)) {
                // The columns of a view are not those of its tables.
                self.reads_all_columns = true;
            }
            let made_of = match self.catalog {
                Some(catalog) => catalog.made_of(&relation),
                None => Some(BTreeSet::from([relation])),
            };
            match made_of {
                // The whole table, even if a view or an occurrence names some of its rows.
                Some(tables) => reads.extend(tables.into_iter().map(|table| (table, None))),
                None => self.read_unknown(),
            }
        }
        reads
    }

    /// Whether a qualified name may be a call with a whole row: PostgreSQL reads `a.b` as `b(a)` if `a` has no column `b`.
    fn calls_a_row(&self, reads: &BTreeMap<String, Option<Vec<Pin>>>) -> bool {
        let Some(catalog) = self.catalog else { return false };
        let columns = || reads.keys().filter_map(|table| catalog.columns(table));
        self.qualified.iter().any(|(qualifier, name)| {
            self.row_names.contains(qualifier) && !columns().any(|columns| columns.contains(name))
        })
    }

    fn read_unknown(&mut self) {
        self.reads_unknown = true;
        self.volatile = self.volatile.or(Some(Reason::UnknownRelation));
    }

    fn call(&mut self, purity: Purity) {
        match purity {
            Purity::Pure => {}
            Purity::Volatile => self.volatile = self.volatile.or(Some(Reason::Volatile)),
            Purity::Reads => {
                self.reads_unknown = true;
                self.volatile = self.volatile.or(Some(Reason::StableFunction));
            }
            Purity::Unknown => self.unknown = self.unknown.or(Some(Reason::UnknownFunction)),
        }
    }

    /// Does the same as [`Self::call`], if there is a call.
    fn call_if(&mut self, purity: Option<Purity>) {
        if let Some(purity) = purity {
            self.call(purity);
        }
    }

    /// Returns a name as the server resolves it. PostgreSQL preserves the case of quoted names.
    fn resolved(&self, name: &Ident) -> String {
        match (self.dialect, name.quote_style) {
            (SqlDialect::Postgres, Some(_)) => name.value.clone(),
            _ => folded(&name.value),
        }
    }

    /// Whether a relation is a CTE that is visible here.
    fn is_cte(&self, relation: &ObjectName) -> bool {
        let [ObjectNamePart::Identifier(name)] = &relation.0[..] else { return false };
        self.scopes.last().is_some_and(|scope| scope.contains(&self.resolved(name)))
    }

    /// Records calls of the user-defined overloads of a function for which SQL has its own syntax.
    fn overloaded(&mut self, name: &str) {
        let purity = self.catalog.and_then(|catalog| catalog.purity(name));
        self.call_if(purity);
    }

    /// Returns the name by which a function is looked up. The catalog of PostgreSQL merges the functions of all schemas
    /// that have the same name.
    fn function(&self, name: &ObjectName) -> Option<String> {
        match (self.dialect, self.catalog) {
            (SqlDialect::Postgres, Some(_)) => pins::relation(name),
            _ => pins::unqualified(name),
        }
    }

    /// Records calls of the operators that implement keywords of SQL.
    ///
    /// Source: PostgreSQL, section 9.7 on `LIKE` and `SIMILAR TO`, 9.2 on `BETWEEN`, 9.24 on `IN`, 9.18 on `CASE`.
    fn operators_behind(&mut self, expr: &Expr) {
        let behind: &[&str] = match expr {
            Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::InUnnest { .. }
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::Case { .. } => &["=", "<>"],
            Expr::Function(function)
                if pins::relation(&function.name).as_deref() == Some("nullif") =>
            {
                &["="]
            }
            Expr::Between { .. } => &[">=", "<=", "<", ">"],
            Expr::Like { .. } => &["~~", "!~~"],
            Expr::ILike { .. } => &["~~*", "!~~*"],
            Expr::SimilarTo { .. } => &["~", "!~"],
            _ => return,
        };
        behind.iter().for_each(|operator| self.operator(operator));
    }

    fn operator(&mut self, operator: &impl ToString) {
        let Some(catalog) = self.catalog.filter(|catalog| catalog.has_operators()) else { return };
        // The operator is the last part of `OPERATOR(schema.+)`.
        let written = operator.to_string();
        let name = written.trim_end_matches(')').rsplit('.').next().unwrap_or_default();
        let known = catalog.operator(name);
        self.call_if(known);
    }

    fn change(
        &mut self,
        table: Option<String>,
        rows: Option<Vec<PinnedKey>>,
        what: RowEffects,
        lookups: Vec<Option<Vec<Operand>>>,
        columns: ChangedColumns,
    ) {
        let Some(table) = table else {
            self.unknown = self.unknown.or(Some(Reason::UnknownTable));
            return;
        };
        let with = match self.catalog {
            Some(catalog) if catalog.is_table(&table) => {
                catalog.changes_with(&table, what.deletes, what.updates)
            }
            // There is no catalog, or this is a view or a table that was created since the catalog was read.
            _ => None,
        };
        let is_new = !what.deletes && !what.updates;
        let referring = self.catalog.map_or(&[][..], |catalog| catalog.lookups(&table));
        let names = referring.iter().map(|column| column.name.clone());
        let lookups = names.zip(lookups).collect();
        self.changes.push(TableChange { table, rows, with, columns, is_new, lookups });
    }

    fn insert(&mut self, insert: &Insert) {
        let table = match &insert.table {
            TableObject::TableName(name) => pins::table(name, self.dialect),
            _ => None,
        };
        let replaces = insert.replace_into
            || matches!(insert.or, Some(SqliteOnConflict::Replace))
            || self.replaces(table.as_deref());
        let key = self.key(table.as_deref());
        let updates = match &insert.on {
            None => Some(false),
            Some(OnInsert::OnConflict(conflict)) => match &conflict.action {
                OnConflictAction::DoNothing => Some(false),
                OnConflictAction::DoUpdate(update) => {
                    let target = conflict.conflict_target.as_ref();
                    // An upsert over the key changes the named row; an upsert over another unique key may change any
                    // row.
                    let is_over_key = target.is_some_and(|target| is_key(target, &key));
                    (is_over_key && !touches(&update.assignments, &key)).then_some(true)
                }
            },
            Some(_) => None,
        };
        let rows = match updates {
            Some(_) if !replaces => inserted(insert, &key),
            _ => None,
        };
        let what = RowEffects { deletes: replaces, updates: updates != Some(false) };
        let inserted = |column: &KeyColumn| {
            let rows = inserted(insert, std::slice::from_ref(&column.name))?;
            Some(rows.into_iter().flatten().flatten().collect())
        };
        let is_new = !what.deletes && !what.updates;
        let columns = self.lookups(table.as_deref()).iter();
        let lookups = columns.map(|column| inserted(column).filter(|_| is_new)).collect();
        let columns = if is_new { ChangedColumns::Rows } else { ChangedColumns::Any };
        self.change(table, rows, what, lookups, columns);
    }

    fn update(&mut self, update: &Update) {
        let mut occurrences = Occurrence::all(std::slice::from_ref(&update.table), self.dialect);
        let from = match &update.from {
            Some(UpdateTableFromKind::BeforeSet(from) | UpdateTableFromKind::AfterSet(from)) => {
                &from[..]
            }
            None => &[],
        };
        occurrences.extend(Occurrence::all(from, self.dialect));
        let table = table_of(&update.table.relation, self.dialect);
        let key = self.key(table.as_deref());
        let replaces =
            matches!(update.or, Some(SqliteOnConflict::Replace)) || self.replaces(table.as_deref());
        let names_rows = !replaces && !touches(&update.assignments, &key);
        let rows = self.named(&occurrences, update.selection.as_ref(), table.as_deref());
        self.pin(&occurrences, update.selection.as_ref());
        let what = RowEffects { deletes: replaces, updates: true };
        let columns = self.lookups(table.as_deref());
        let before = pins::values_of(&occurrences, update.selection.as_ref(), columns);
        let lookups = columns.iter().zip(before).map(|(column, before)| {
            let mut values = before?;
            for assigned in assigned(&update.assignments, &column.name) {
                values.push(pins::operand(assigned?)?);
            }
            Some(values)
        });
        let lookups = lookups.collect();
        let set = update.assignments.iter().map(|assignment| match &assignment.target {
            AssignmentTarget::ColumnName(name) => set_column(name),
            AssignmentTarget::Tuple(_) => None,
        });
        let set = set.collect::<Option<BTreeSet<_>>>().filter(|_| !replaces);
        let columns = set.map_or(ChangedColumns::Any, ChangedColumns::Set);
        self.change(table, rows.filter(|_| names_rows), what, lookups, columns);
    }

    fn delete(&mut self, delete: &Delete) {
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let [target] = &from[..] else {
            self.unknown = self.unknown.or(Some(Reason::SeveralTables));
            return;
        };
        let mut occurrences = Occurrence::all(from, self.dialect);
        let using = delete.using.as_deref().unwrap_or_default();
        occurrences.extend(Occurrence::all(using, self.dialect));
        let table = table_of(&target.relation, self.dialect);
        let rows = self.named(&occurrences, delete.selection.as_ref(), table.as_deref());
        self.pin(&occurrences, delete.selection.as_ref());
        let columns = self.lookups(table.as_deref());
        let lookups = pins::values_of(&occurrences, delete.selection.as_ref(), columns);
        let what = RowEffects { deletes: true, updates: false };
        self.change(table, rows, what, lookups, ChangedColumns::Rows);
    }

    /// Notes joins that compare columns which the query does not name as expressions, and aliases that rename columns.
    fn note_joins(&mut self, tree: &TableWithJoins) {
        let factors = std::iter::once(&tree.relation);
        for factor in factors.chain(tree.joins.iter().map(|join| &join.relation)) {
            match factor {
                TableFactor::Table { name, alias, .. } => {
                    self.row_names.extend(pins::relation(name));
                    if let Some(alias) = alias {
                        self.row_names.insert(folded(&alias.name.value));
                        self.reads_all_columns |= !alias.columns.is_empty();
                    }
                }
                TableFactor::NestedJoin { table_with_joins, alias } => {
                    // The alias may rename columns, and is an expression for a whole row.
                    self.reads_all_columns |= alias.is_some();
                    self.note_joins(table_with_joins);
                }
                _ => {}
            }
        }
        let names_all = |join: &Join| {
            matches!(
                &join.join_operator,
                JoinOperator::Join(JoinConstraint::On(_))
                    | JoinOperator::Inner(JoinConstraint::On(_))
                    | JoinOperator::Left(JoinConstraint::On(_))
                    | JoinOperator::LeftOuter(JoinConstraint::On(_))
                    | JoinOperator::Right(JoinConstraint::On(_))
                    | JoinOperator::RightOuter(JoinConstraint::On(_))
                    | JoinOperator::FullOuter(JoinConstraint::On(_))
                    | JoinOperator::CrossJoin(JoinConstraint::None)
            )
        };
        self.reads_all_columns |= !tree.joins.iter().all(names_all);
    }

    /// Notes the tables of a `FROM` of which the condition selects rows by their key.
    fn pin(&mut self, occurrences: &[Occurrence], condition: Option<&Expr>) {
        let Some(catalog) = self.catalog else { return };
        for (table, rows) in pins::pinned(occurrences, condition, catalog) {
            self.pinned.entry(table).or_default().push(rows);
        }
    }

    /// The pinned rows of the written table, which is the first occurrence.
    fn named(
        &self,
        occurrences: &[Occurrence],
        condition: Option<&Expr>,
        table: Option<&str>,
    ) -> Option<Vec<PinnedKey>> {
        let pinned = pins::pinned(occurrences, condition, self.catalog?);
        // Another occurrence of the table in a `FROM` may be the pinned occurrence.
        let mut own = pinned.into_iter().filter(|(name, _)| Some(&**name) == table);
        match (own.next(), own.next()) {
            (Some((_, Pin::Rows(rows))), None) if occurrences.len() == 1 => Some(vec![rows]),
            _ => None,
        }
    }

    /// Whether a write to this table removes other rows that conflict with the written row.
    fn replaces(&self, table: Option<&str>) -> bool {
        table.zip(self.catalog).is_some_and(|(table, catalog)| catalog.replaces(table))
    }

    fn lookups(&self, table: Option<&str>) -> &'a [KeyColumn] {
        table.zip(self.catalog).map_or(&[], |(table, catalog)| catalog.lookups(table))
    }

    fn key(&self, table: Option<&str>) -> Vec<String> {
        let key = table.zip(self.catalog).map(|(table, catalog)| catalog.key(table));
        key.unwrap_or_default().iter().map(|column| column.name.clone()).collect()
    }
}

/// The effects of a write on rows that exist already.
#[derive(Clone, Copy)]
struct RowEffects {
    deletes: bool,
    updates: bool,
}

impl Visitor for Collector<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let inherited = self.within_ctes.remove(&std::ptr::from_ref(query));
        let mut scope = inherited.or_else(|| self.scopes.last().cloned()).unwrap_or_default();
        if let Some(with) = &query.with {
            let outer = scope.clone();
            let names = with.cte_tables.iter().map(|table| self.resolved(&table.alias.name));
            let names: Vec<String> = names.collect();
            // In SQLite all CTEs see each other; in PostgreSQL each CTE sees only the CTEs before it, unless the query
            // has `RECURSIVE`.
            let all_see_all = with.recursive || self.dialect == SqlDialect::Sqlite;
            for (at, table) in with.cte_tables.iter().enumerate() {
                let seen = if all_see_all { &names[..] } else { &names[..at] };
                let seen = outer.iter().chain(seen).cloned().collect();
                self.within_ctes.insert(std::ptr::from_ref(&*table.query), seen);
            }
            scope.extend(names);
        }
        self.scopes.push(scope);
        if !query.locks.is_empty() {
            self.volatile = self.volatile.or(Some(Reason::ForUpdate));
        }
        self.may_add_rows |= !matches!(&*query.body, SetExpr::Select(_));
        if !is_plain(&query.body) || !query.pipe_operators.is_empty() {
            self.unknown = self.unknown.or(Some(Reason::NotUnderstood));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.scopes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let is_unnamed = |item: &SelectItem| match item {
            SelectItem::UnnamedExpr(expr) => {
                !matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_))
            }
            _ => false,
        };
        if select.from.iter().any(|table| !table.joins.is_empty()) {
            // A join may have `USING` or `NATURAL`, which compare with `=`.
            self.operator(&"=");
        }
        self.selects += 1;
        for item in &select.projection {
            if matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)) {
                self.reads_all_columns = true;
            }
        }
        for tree in &select.from {
            self.note_joins(tree);
        }
        self.may_add_rows |=
            select.having.is_some() || select.group_by != GroupByExpr::Expressions(vec![], vec![]);
        self.has_unnamed_columns |= select.projection.iter().any(is_unnamed);
        if select.into.is_some() || !select.lateral_views.is_empty() {
            self.unknown = self.unknown.or(Some(Reason::NotUnderstood));
        }
        let occurrences = Occurrence::all(&select.from, self.dialect);
        self.pin(&occurrences, select.selection.as_ref());
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if self.not_a_relation.take() == Some(std::ptr::from_ref(relation)) {
            return ControlFlow::Continue(());
        }
        let last = pins::relation(relation);
        if self.catalog.zip(last).is_some_and(|(catalog, name)| catalog.writes_when_read(&name)) {
            self.call(Purity::Unknown);
        }
        match pins::table(relation, self.dialect) {
            // A CTE. If a relation has the same name, the name is treated as this relation, because the walk may
            // confuse the two.
            Some(name)
                if self.is_cte(relation)
                    && self.catalog.is_none_or(|catalog| !catalog.is_relation(&name)) => {}
            Some(name) => *self.relations.entry(name).or_default() += 1,
            // A name outside the schema that the catalog describes.
            None => self.read_unknown(),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: Some(arguments), .. } => {
                self.reads_all_columns |= arguments.args.iter().any(is_a_row);
                self.not_a_relation = Some(std::ptr::from_ref(name));
                let name = self.function(name);
                let count = arguments.args.len();
                let purity =
                    name.as_ref().map(|name| functions::of_call(name, count, self.catalog));
                self.call(purity.unwrap_or(Purity::Unknown));
                if name.is_some_and(|name| functions::casts(&name)) {
                    self.call_if(self.catalog.and_then(Catalog::casts));
                }
            }
            TableFactor::Table { sample: Some(_), .. } => {
                self.volatile = self.volatile.or(Some(Reason::Volatile));
            }
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::NestedJoin { .. }
            | TableFactor::UNNEST { .. } => {}
            _ => self.unknown = self.unknown.or(Some(Reason::NotUnderstood)),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.operators_behind(expr);
        match expr {
            Expr::Identifier(name) => drop(self.columns.insert(folded(&name.value))),
            Expr::CompoundIdentifier(parts) => {
                self.columns.extend(parts.last().map(|part| folded(&part.value)));
                if let [.., qualifier, name] = &parts[..] {
                    self.qualified.insert((folded(&qualifier.value), folded(&name.value)));
                }
            }
            // `count(*)` has no such expression.
            Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => self.reads_all_columns = true,
            _ => {}
        }
        match expr {
            Expr::Cast { .. } => {
                let purity = self.catalog.and_then(Catalog::casts);
                self.call_if(purity);
            }
            Expr::Function(function) => {
                self.may_add_rows = true;
                self.reads_all_columns |= takes_a_row(function);
                match self.function(&function.name) {
                    Some(name) => {
                        self.call(functions::of(function, &name, self.catalog));
                        if functions::casts(&name) {
                            self.call_if(self.catalog.and_then(Catalog::casts));
                        }
                    }
                    None => self.call(Purity::Unknown),
                }
            }
            // A function that is called without brackets.
            Expr::Identifier(name)
                if name.quote_style.is_none()
                    && functions::needs_no_brackets(&folded(&name.value)) =>
            {
                self.call(Purity::Volatile);
            }
            // `a.orders` may be `orders(a)`.
            Expr::CompoundIdentifier(parts) => {
                let last = parts.last().map(|part| folded(&part.value));
                let field = last.and_then(|last| self.catalog?.field(&last));
                self.reads_all_columns |= field.is_some();
                self.call_if(field);
            }
            Expr::CompoundFieldAccess { access_chain, .. }
                if self.dialect == SqlDialect::Postgres =>
            {
                for access in access_chain {
                    match access {
                        AccessExpr::Dot(Expr::Identifier(name)) => {
                            let name = folded(&name.value);
                            self.call_if(functions::of_field(&name, self.catalog));
                        }
                        AccessExpr::Dot(_) => self.call(Purity::Reads),
                        // An element of an array or a document.
                        AccessExpr::Subscript(_) => {}
                    }
                }
            }
            Expr::Ceil { .. } => ["ceil", "ceiling"].iter().for_each(|name| self.overloaded(name)),
            Expr::Floor { .. } => self.overloaded("floor"),
            Expr::Position { .. } => self.overloaded("position"),
            Expr::Overlay { .. } => self.overloaded("overlay"),
            Expr::Extract { .. } => {
                ["extract", "date_part"].iter().for_each(|name| self.overloaded(name));
            }
            Expr::Substring { .. } => {
                ["substring", "substr"].iter().for_each(|name| self.overloaded(name));
            }
            Expr::Trim { .. } => {
                ["btrim", "ltrim", "rtrim"].iter().for_each(|name| self.overloaded(name));
            }
            Expr::BinaryOp { left, op, right } => {
                // `U&"\\0061"` is one name for PostgreSQL.
                self.reads_all_columns |= is_unicode_prefix(left) && is_quoted(right);
                self.operator(op);
            }
            Expr::UnaryOp { op, .. } => self.operator(op),
            Expr::AnyOp { compare_op, .. } | Expr::AllOp { compare_op, .. } => {
                self.operator(compare_op);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        if self.dialect == SqlDialect::Postgres
            && value
                .value
                .clone()
                .into_string()
                .is_some_and(|text| functions::is_moving_time(&text))
        {
            self.call(Purity::Volatile);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Query(_) => {}
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => self.update(update),
            Statement::Delete(delete) => self.delete(delete),
            _ => self.defines = true,
        }
        ControlFlow::Continue(())
    }
}

/// Columns of each table that change with any write to a row.
const SYSTEM_COLUMNS: [&str; 9] =
    ["cmax", "cmin", "ctid", "oid", "rowid", "_rowid_", "tableoid", "xmax", "xmin"];

/// Whether an argument of a function is a whole row, `f(t.*)`.
fn takes_a_row(function: &Function) -> bool {
    let FunctionArguments::List(list) = &function.args else { return false };
    list.args.iter().any(is_a_row)
}

fn is_a_row(argument: &FunctionArg) -> bool {
    match argument {
        FunctionArg::Unnamed(argument)
        | FunctionArg::Named { arg: argument, .. }
        | FunctionArg::ExprNamed { arg: argument, .. } => {
            matches!(argument, FunctionArgExpr::QualifiedWildcard(_))
        }
    }
}

fn is_unicode_prefix(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(name) if name.quote_style.is_none() && folded(&name.value) == "u")
}

fn is_quoted(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(name) if name.quote_style.is_some())
}

fn is_plain(body: &SetExpr) -> bool {
    match body {
        SetExpr::SetOperation { left, right, .. } => is_plain(left) && is_plain(right),
        SetExpr::Table(_) | SetExpr::Merge(_) => false,
        _ => true,
    }
}

fn table_of(factor: &TableFactor, dialect: SqlDialect) -> Option<String> {
    match factor {
        TableFactor::Table { name, args: None, .. } => pins::table(name, dialect),
        _ => None,
    }
}

/// The column that a write sets. `None` if it sets a part of it, `address.city`.
fn set_column(name: &ObjectName) -> Option<String> {
    let [_] = &name.0[..] else { return None };
    pins::relation(name)
}

fn touches(assignments: &[Assignment], key: &[String]) -> bool {
    let is_key = |name: &ObjectName| {
        set_column(name).is_none_or(|name| key.contains(&name) || is_row_number(&name))
    };
    assignments.iter().any(|assignment| match &assignment.target {
        AssignmentTarget::ColumnName(name) => is_key(name),
        AssignmentTarget::Tuple(names) => names.iter().any(is_key),
    })
}

/// The values that are assigned to a column. `None` for a value that may be assigned to it.
fn assigned<'e>(
    assignments: &'e [Assignment],
    column: &str,
) -> impl Iterator<Item = Option<&'e Expr>> {
    assignments.iter().filter_map(move |assignment| match &assignment.target {
        AssignmentTarget::ColumnName(name) => match set_column(name) {
            Some(name) => (name == column).then_some(Some(&assignment.value)),
            None => Some(None),
        },
        AssignmentTarget::Tuple(_) => Some(None),
    })
}

fn is_key(target: &ConflictTarget, key: &[String]) -> bool {
    match target {
        ConflictTarget::Columns(columns) => {
            let columns: BTreeSet<_> = columns.iter().map(|column| folded(&column.value)).collect();
            !key.is_empty() && columns == key.iter().cloned().collect()
        }
        ConflictTarget::OnConstraint(_) => false,
    }
}

/// Whether this is a name of the rowid that SQLite gives to every row.
fn is_row_number(name: &str) -> bool {
    ["rowid", "oid", "_rowid_"].contains(&name)
}

/// The rows that an `INSERT` names by its values for the key.
fn inserted(insert: &Insert, key: &[String]) -> Option<Vec<PinnedKey>> {
    if key.is_empty() {
        return None;
    }
    let columns: Vec<_> = insert.columns.iter().map(set_column).collect();
    let unique: BTreeSet<_> = columns.iter().collect();
    if unique.len() < columns.len() || columns.iter().flatten().any(|name| is_row_number(name)) {
        return None;
    }
    let places: Option<Vec<usize>> = key
        .iter()
        .map(|key| columns.iter().position(|column| column.as_deref() == Some(key)))
        .collect();
    let places = places?;
    let SetExpr::Values(values) = &*insert.source.as_ref()?.body else { return None };
    let row = |row: &Vec<Expr>| {
        let value = |place: &usize| Some(vec![pins::operand(row.get(*place)?)?]);
        places.iter().map(value).collect::<Option<PinnedKey>>()
    };
    values.rows.iter().map(|parens| row(parens)).collect()
}
