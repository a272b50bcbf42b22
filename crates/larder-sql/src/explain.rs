//! Explains how a query cache treats a statement.

use larder_core::{Reason, Tag, Target};

use crate::{
    analysis::StatementKind,
    context::{QueryAdmission, QueryContext},
    db::Db,
    service::QueryOptions,
    statement::Statement,
};

/// The treatment of a statement by a query cache. [`Db::explain`] returns it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// Why the result is not stored; `None` if it is storable.
    pub not_stored: Option<Reason>,
    /// The tags of the result.
    pub reads: Vec<Tag>,
    /// The targets that the statement invalidates.
    pub writes: Vec<Target>,
}

impl<S> Db<S> {
    /// Explains a statement: whether its result is stored, which tags it has, and which targets the statement
    /// invalidates. The statement is not run.
    ///
    /// # Examples
    ///
    /// ```
    /// # use larder_core::Larder;
    /// # use larder_sql::*;
    /// # use tower_layer::Layer as _;
    /// # let larder = Larder::builder().build().expect("the defaults are valid");
    /// let catalog = Catalog::new().table("products", Table::new().key("id", KeyKind::Integer));
    /// let layer = QueryCacheLayer::new(&larder, SqlDialect::Sqlite).catalog(catalog);
    /// let db = Db::new(layer.layer(()));
    /// let explained = db.explain(&Statement::new("SELECT * FROM products WHERE id = ?").bind(42));
    /// assert_eq!(explained.reads[0].as_str(), "sql:main:products:42");
    /// assert_eq!(explained.not_stored, None);
    /// ```
    pub fn explain(&self, statement: &Statement) -> Explanation {
        self.cache().context().explain(statement)
    }

    /// Returns whether, according to the analysis, a statement only reads and its result is storable. larder analyses
    /// each text once, and then looks up the analysis. [`Db::explain`] considers the bound values and the state of the
    /// catalog, too.
    pub fn is_cached(&self, statement: &Statement) -> bool {
        let context = self.cache().context();
        context.analyse(&context.known(), statement.text()).nature == StatementKind::Query
    }
}

impl QueryContext {
    fn explain(&self, statement: &Statement) -> Explanation {
        let prepared = self.prepare(statement.clone());
        let admission = self.admit(&prepared, &QueryOptions::default());
        let not_stored = match (admission, prepared.analysis.nature) {
            (QueryAdmission::Cached, _) => None,
            (QueryAdmission::Refused, _) => Some(Reason::TransactionControl),
            (QueryAdmission::Bypass(why), _)
            | (QueryAdmission::Write, StatementKind::Unknown(why)) => Some(why),
            (QueryAdmission::Write, _) => Some(Reason::Write),
        };
        Explanation {
            not_stored,
            reads: self.read_by(&prepared, true),
            writes: self.written_by(&prepared).all(&self.tags),
        }
    }
}
