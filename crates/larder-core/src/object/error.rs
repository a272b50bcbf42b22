//! Errors of loading a value.

use std::{fmt, sync::Arc, time::Duration};

use crate::{key::Key, reason::Reason};

/// The error of a call that has no value to return.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader returned this error.
    Failed(Arc<E>),
    /// The loader took longer than the policy allows.
    TimedOut {
        /// The limit that the policy sets.
        deadline: Duration,
    },
    /// The value that is stored under this name has another type.
    OtherType {
        /// The key of the value.
        key: Box<Key>,
        /// The type of the stored value.
        stored: &'static str,
        /// The requested type.
        requested: &'static str,
    },
    /// This call waited for other calls for the same name, and their loaders panicked.
    Panicked,
    /// This call waited for other calls for the same name, and they failed with an error of another type.
    FailedElsewhere,
    /// The loader requests, directly or through other loaders, the value that it is loading.
    Circle {
        /// The names of the nested fills, the outermost first; the last name is the value that was requested again.
        names: Vec<String>,
    },
    /// The runtime that ran the loader was shut down.
    Cancelled,
}

/// The reason why a fill did not produce a value, for all of its waiters.
pub(super) enum Failure<E> {
    Loader(Arc<E>),
    Deadline(Duration),
    Panic,
    Elsewhere,
}

impl<E> Failure<E> {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Loader(_) => Reason::Loader,
            Self::Deadline(_) => Reason::Deadline,
            Self::Panic => Reason::Panic,
            Self::Elsewhere => Reason::Elsewhere,
        }
    }
}

impl<E> Clone for Failure<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Loader(error) => Self::Loader(Arc::clone(error)),
            Self::Deadline(deadline) => Self::Deadline(*deadline),
            Self::Panic => Self::Panic,
            Self::Elsewhere => Self::Elsewhere,
        }
    }
}

impl<E> From<Failure<E>> for LoadError<E> {
    fn from(failure: Failure<E>) -> Self {
        match failure {
            Failure::Loader(error) => Self::Failed(error),
            Failure::Deadline(deadline) => Self::TimedOut { deadline },
            Failure::Panic => Self::Panicked,
            Failure::Elsewhere => Self::FailedElsewhere,
        }
    }
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "loading failed: {error}"),
            Self::TimedOut { deadline } => {
                write!(f, "the loader took longer than the fill timeout of {deadline:?}")
            }
            Self::OtherType { key, stored, requested } => {
                write!(
                    f,
                    "{key} was requested as {requested}, but is stored as {stored}. Use one type per key"
                )
            }
            Self::Panicked => f.write_str("the loader panicked in another call for this name"),
            Self::FailedElsewhere => f.write_str(
                "the loader failed in another call for this name, with an error of another type",
            ),
            Self::Circle { names } => {
                write!(f, "the loaders of these values wait for each other: {}", names.join(" -> "))
            }
            Self::Cancelled => f.write_str("the runtime was shut down while the loader ran"),
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
