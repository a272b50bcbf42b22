//! A statement: its text, and the values that are bound to it.

use std::borrow::Cow;

use crate::value::SqlValue;

/// What is asked of a database: the request of a [`QueryCache`](crate::QueryCache) and of what lies inside it.
///
/// Whatever yields text and values is one: what a builder has built, or a text that was written by hand.
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
    /// A statement without values. Never put what somebody has typed into its text: bind it.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    /// Binds the next value.
    #[must_use]
    pub fn bind(mut self, value: impl Into<SqlValue>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is bound, in order.
    pub fn values(&self) -> &[SqlValue] {
        &self.values
    }
}
