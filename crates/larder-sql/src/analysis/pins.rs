//! Finds the rows of a table to which a condition pins a query (rule 2).

use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, ExactNumberInfo, Expr, Ident, ObjectName, ObjectNamePart,
    TableFactor, TableWithJoins, UnaryOperator, Value,
};

use super::dialect::SqlDialect;
use crate::catalog::{Catalog, KeyColumn, KeyKind, folded};

/// Rows of a table by their key: the alternative values of each column of the key.
pub(crate) type PinnedKey = Vec<Vec<Operand>>;

/// The rows of a table to which an occurrence is pinned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pin {
    /// The rows with these keys.
    Rows(PinnedKey),
    /// The rows with one of these values in this lookup column.
    Lookup(String, Vec<Operand>),
}

/// A value of a key, as it is written in a statement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// The bound value of this number, counted from 0.
    Bound(usize),
    Int(i64),
    Text(String),
    /// A value that is converted to a type.
    Cast(CastType, Box<Operand>),
}

/// A type to which a key may be converted without a change, if it is the type of its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CastType {
    Integer,
    Text,
    Uuid,
    Date,
    Numeric,
}

impl CastType {
    fn of(written: &DataType) -> Option<Self> {
        Some(match written {
            DataType::SmallInt(None)
            | DataType::Int(None)
            | DataType::Integer(None)
            | DataType::BigInt(None)
            | DataType::Int2(None)
            | DataType::Int4(None)
            | DataType::Int8(None) => Self::Integer,
            DataType::Text | DataType::Varchar(None) | DataType::CharacterVarying(None) => {
                Self::Text
            }
            DataType::Uuid => Self::Uuid,
            DataType::Date => Self::Date,
            DataType::Numeric(ExactNumberInfo::None) | DataType::Decimal(ExactNumberInfo::None) => {
                Self::Numeric
            }
            _ => return None,
        })
    }

    /// Whether this is the type of a column that compares its values in this way.
    pub(crate) fn is_of(self, kind: KeyKind) -> bool {
        matches!(
            (self, kind),
            (Self::Integer, KeyKind::Integer)
                | (Self::Text, KeyKind::Text | KeyKind::TextUpTo(_))
                | (Self::Uuid, KeyKind::Uuid)
                | (Self::Date, KeyKind::Date)
                | (Self::Numeric, KeyKind::Numeric)
        )
    }
}

/// A table in a `FROM`, and the name by which its columns are qualified there.
#[derive(Debug)]
pub(super) struct Occurrence {
    /// `None` unless it is a plain table.
    table: Option<String>,
    name: Option<String>,
}

impl Occurrence {
    pub(super) fn all(from: &[TableWithJoins], dialect: SqlDialect) -> Vec<Self> {
        let mut all = Vec::new();
        for tree in from {
            Self::add(&tree.relation, dialect, &mut all);
            tree.joins.iter().for_each(|join| Self::add(&join.relation, dialect, &mut all));
        }
        all
    }

    fn add(factor: &TableFactor, dialect: SqlDialect, all: &mut Vec<Self>) {
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                let own = table(name, dialect);
                let renames = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
                let known_as = alias.as_ref().map(|alias| folded(&alias.name.value));
                all.push(Self {
                    name: known_as.or_else(|| own.clone()),
                    table: own.filter(|_| !renames),
                });
            }
            TableFactor::NestedJoin { table_with_joins, alias: None } => {
                Self::add(&table_with_joins.relation, dialect, all);
                let joins = table_with_joins.joins.iter();
                joins.for_each(|join| Self::add(&join.relation, dialect, all));
            }
            _ => all.push(Self { table: None, name: None }),
        }
    }
}

/// The tables of a `FROM` that a condition pins, with the pinned rows.
pub(super) fn pinned(
    occurrences: &[Occurrence],
    condition: Option<&Expr>,
    catalog: &Catalog,
) -> Vec<(String, Pin)> {
    let mut members = Vec::new();
    if let Some(condition) = condition {
        conjuncts(condition, &mut members);
    }
    let of = |occurrence: &Occurrence| {
        let table = occurrence.table.as_ref()?;
        let values = |column: &KeyColumn| {
            let mut found = members
                .iter()
                .filter(|(tested, _)| is_column(tested, column, occurrence, occurrences))
                .map(|(_, values)| values.clone());
            found.next()
        };
        let key = catalog.key(table);
        let rows: Option<PinnedKey> = key.iter().map(values).collect();
        let rows = rows.filter(|rows| !rows.is_empty()).map(Pin::Rows);
        let by_lookup = || {
            let mut columns = catalog.lookups(table).iter();
            columns.find_map(|column| Some(Pin::Lookup(column.name.clone(), values(column)?)))
        };
        Some((table.clone(), rows.or_else(by_lookup)?))
    };
    occurrences.iter().filter_map(of).collect()
}

/// The values to which a condition pins each of these columns of the only table of a write. `None` for a column that it does
/// not pin.
pub(super) fn values_of(
    occurrences: &[Occurrence],
    condition: Option<&Expr>,
    columns: &[KeyColumn],
) -> Vec<Option<Vec<Operand>>> {
    let mut members = Vec::new();
    if let Some(condition) = condition {
        conjuncts(condition, &mut members);
    }
    let of = |column: &KeyColumn| {
        let [occurrence] = occurrences else { return None };
        let mut found = members
            .iter()
            .filter(|(tested, _)| is_column(tested, column, occurrence, occurrences))
            .map(|(_, values)| values.clone());
        found.next()
    };
    columns.iter().map(of).collect()
}

/// The last part of the name of a relation.
pub(super) fn relation(name: &ObjectName) -> Option<String> {
    match name.0.last()? {
        ObjectNamePart::Identifier(part) => Some(folded(&part.value)),
        ObjectNamePart::Function(_) => None,
    }
}

/// The name of a table, if it is in the schema that the catalog describes.
pub(super) fn table(name: &ObjectName, dialect: SqlDialect) -> Option<String> {
    let usual = match dialect {
        SqlDialect::Sqlite => "main",
        SqlDialect::Postgres => "public",
    };
    relation(name).filter(|_| is_bare_or_of(name, usual))
}

/// The name of a function, unless it is qualified by a user's schema.
pub(super) fn unqualified(name: &ObjectName) -> Option<String> {
    relation(name).filter(|_| is_bare_or_of(name, "pg_catalog"))
}

fn is_bare_or_of(name: &ObjectName, usual: &str) -> bool {
    match &name.0[..] {
        [_] => true,
        [ObjectNamePart::Identifier(schema), _] => folded(&schema.value) == usual,
        _ => false,
    }
}

/// A literal or bound value that the database compares as it is written.
pub(super) fn operand(expr: &Expr) -> Option<Operand> {
    let cast = |to, operand| Some(Operand::Cast(CastType::of(to)?, Box::new(operand)));
    match expr {
        Expr::Nested(inner) => operand(inner),
        Expr::Cast {
            kind: CastKind::Cast | CastKind::DoubleColon,
            expr,
            data_type,
            format: None,
            ..
        } => cast(data_type, operand(expr)?),
        Expr::TypedString(typed) => match &typed.value.value {
            Value::SingleQuotedString(text) => cast(&typed.data_type, Operand::Text(text.clone())),
            _ => None,
        },
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => number.parse().ok().map(Operand::Int),
            Value::SingleQuotedString(text) => Some(Operand::Text(text.clone())),
            Value::Placeholder(name) => {
                let number = name.strip_prefix(['?', '$'])?.parse::<usize>().ok()?;
                number.checked_sub(1).map(Operand::Bound)
            }
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match operand(expr)? {
            Operand::Int(number) => number.checked_neg().map(Operand::Int),
            _ => None,
        },
        _ => None,
    }
}

/// The members of a conjunction that compare an expression with values.
fn conjuncts<'a>(condition: &'a Expr, members: &mut Vec<(&'a Expr, Vec<Operand>)>) {
    let mut next = vec![condition];
    while let Some(condition) = next.pop() {
        match condition {
            Expr::Nested(inner) => next.push(inner),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                next.extend([&**right, &**left]);
            }
            other => member(other, members),
        }
    }
}

/// A member of a conjunction, if it compares an expression with values.
fn member<'a>(condition: &'a Expr, members: &mut Vec<(&'a Expr, Vec<Operand>)>) {
    match condition {
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let member = operand(right).map(|value| (&**left, value));
            let member = member.or_else(|| operand(left).map(|value| (&**right, value)));
            members.extend(member.map(|(tested, value)| (tested, vec![value])));
        }
        Expr::InList { expr, list, negated: false } => {
            let values: Option<Vec<_>> = list.iter().map(operand).collect();
            members.extend(values.map(|values| (&**expr, values)));
        }
        _ => {}
    }
}

/// Whether an expression is this column of this occurrence, and not of another occurrence.
fn is_column(
    tested: &Expr,
    column: &KeyColumn,
    occurrence: &Occurrence,
    all: &[Occurrence],
) -> bool {
    let is = |ident: &Ident, name: &str| folded(&ident.value) == name;
    match tested {
        Expr::Nested(inner) => is_column(inner, column, occurrence, all),
        Expr::Identifier(name) => all.len() == 1 && is(name, &column.name),
        Expr::CompoundIdentifier(parts) => match &parts[..] {
            [table, name] => {
                let known_as = folded(&table.value);
                let same = all.iter().filter(|other| other.name.as_deref() == Some(&known_as));
                same.count() == 1
                    && occurrence.name.as_deref() == Some(&known_as)
                    && is(name, &column.name)
            }
            _ => false,
        },
        _ => false,
    }
}
