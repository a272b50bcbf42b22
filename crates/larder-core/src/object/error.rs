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
    /// The loader panicked, in other calls for this name that this one waited for.
    Panicked,
    /// Other calls for this name, which this one waited for, failed with an error of another type.
    FailedElsewhere,
    /// The loader asks, directly or through others, for the value that it is to load.
    Circle {
        /// The names of the fills, the outermost first; the last is the one that was asked for again.
        names: Vec<String>,
    },
    /// The runtime that loaded it was shut down.
    Cancelled,
}

/// Why a flight brought nothing, for all who waited for it.
pub(super) enum Failure<E> {
    Loader(Arc<E>),
    Deadline(Duration),
    Panic,
    Elsewhere,
}

impl<E> Failure<E> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Loader(_) => "loader",
            Self::Deadline(_) => "deadline",
            Self::Panic => "panic",
            Self::Elsewhere => "elsewhere",
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
            Self::TimedOut { deadline } => write!(f, "loading took longer than {deadline:?}"),
            Self::OtherType { key, kept, asked } => {
                write!(
                    f,
                    "{key} was asked for as {asked}, but is kept as {kept}: one key, one type"
                )
            }
            Self::Panicked => f.write_str("the loader panicked in another call for this name"),
            Self::FailedElsewhere => {
                f.write_str("another call for this name failed with an error of another type")
            }
            Self::Circle { names } => {
                write!(f, "the loaders of these values wait for each other: {}", names.join(" -> "))
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
