//! A SQL statement: its text and its bound values.

use std::borrow::Cow;

use larder_core::store::CommitId;

use crate::{analysis, value::SqlValue};

/// A SQL statement with its values: the request of a [`QueryCache`](crate::QueryCache) and of the database service
/// inside it.
///
/// It is written by hand, or made from the text and the values that a query builder returns.
///
/// # Examples
///
/// ```
/// use larder_sql::Statement;
///
/// let statement = Statement::new("SELECT * FROM products WHERE id = ?").bind(42);
/// assert_eq!(statement.values(), [42.into()]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    text: Cow<'static, str>,
    values: Vec<SqlValue>,
    /// The identity of the transaction that the statement is alone, for the outbox.
    commit: Option<CommitId>,
}

impl Statement {
    /// Creates a statement without values. Never write user input into the text; bind it instead.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), values: Vec::new(), commit: None }
    }

    /// Binds these values, in order.
    #[must_use]
    pub fn bind_all<V: Into<SqlValue>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.values.extend(values.into_iter().map(Into::into));
        self
    }

    /// Binds the next value.
    #[must_use]
    pub fn bind(mut self, value: impl Into<SqlValue>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs the statement in a transaction of its own with this identity.
    pub(crate) fn committed_as(mut self, commit: Option<CommitId>) -> Self {
        self.commit = commit;
        self
    }

    pub(crate) fn commit(&self) -> Option<CommitId> {
        self.commit
    }

    /// Whether a text has nothing but whitespace, comments and semicolons, so that a database does not even count rows for
    /// it.
    pub fn is_empty(text: &str) -> bool {
        analysis::is_empty(text)
    }

    /// Returns the SQL text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the bound values, in order.
    pub fn values(&self) -> &[SqlValue] {
        &self.values
    }
}

impl From<&'static str> for Statement {
    fn from(text: &'static str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Statement {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}
