//! Why there is no value.

use std::{fmt, sync::Arc, time::Duration};

use crate::key::Key;

/// A value was not loaded.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader failed.
    Failed(Arc<E>),
    /// The loader took longer than the policy allows.
    TimedOut {
        /// What the policy allows.
        deadline: Duration,
    },
    /// Under this name lies a value of another type.
    OtherType {
        /// The name.
        key: Box<Key>,
        /// The type of what lies there.
        kept: &'static str,
        /// The type that was asked for.
        asked: &'static str,
    },
    /// The runtime that loaded it was shut down.
    Cancelled,
}

/// Why a flight brought nothing, for all who waited for it.
pub(super) enum Failure<E> {
    Loader(Arc<E>),
    Deadline(Duration),
}

impl<E> Failure<E> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Loader(_) => "loader",
            Self::Deadline(_) => "deadline",
        }
    }
}

impl<E> Clone for Failure<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Loader(error) => Self::Loader(Arc::clone(error)),
            Self::Deadline(deadline) => Self::Deadline(*deadline),
        }
    }
}

impl<E> From<Failure<E>> for LoadError<E> {
    fn from(failure: Failure<E>) -> Self {
        match failure {
            Failure::Loader(error) => Self::Failed(error),
            Failure::Deadline(deadline) => Self::TimedOut { deadline },
        }
    }
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "loading failed: {error}"),
            Self::TimedOut { deadline } => write!(f, "loading took longer than {deadline:?}"),
            Self::OtherType { key, kept, asked } => {
                write!(
                    f,
                    "{key} was asked for as {asked}, but is kept as {kept}: one key, one type"
                )
            }
            Self::Cancelled => f.write_str("the runtime was shut down while the value was loaded"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for LoadError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(error) => Some(&**error),
            _ => None,
        }
    }
}
