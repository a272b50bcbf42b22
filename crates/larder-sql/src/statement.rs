//! A SQL statement: its text and its bound values.

use std::borrow::Cow;

use crate::value::SqlValue;

/// A SQL statement with its values: the request of a [`QueryCache`](crate::QueryCache) and of the database service
/// inside it.
///
/// Written by hand, or made of the text and the values that a query builder gives.
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
}

impl Statement {
    /// A statement without values. Never write user input into the text: bind it.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    /// Binds the next value.
    #[must_use]
    pub fn bind(mut self, value: impl Into<SqlValue>) -> Self {
        self.values.push(value.into());
        self
    }

    /// The SQL text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The bound values, in order.
    pub fn values(&self) -> &[SqlValue] {
        &self.values
    }
}
