//! The errors of a queue.

use std::{fmt, sync::Arc};

use crate::bounds::QueueBound;

type Source = Arc<dyn std::error::Error + Send + Sync>;

/// An operation that was not accepted.
#[derive(Clone, Debug)]
pub struct WriteError {
    kind: WriteErrorKind,
    source: Option<Source>,
}

/// Why an operation was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteErrorKind {
    /// The queue is full, and no room was made before the deadline. Nothing was stored.
    Full(QueueBound),
    /// The queue is closed. Nothing was stored.
    Closed,
    /// The queue has stopped, because its sink does not belong to its journal any more. Nothing was stored.
    Stopped,
    /// The key or the operation cannot be serialised. Nothing was stored.
    Unserialisable,
    /// The journal does not confirm that the operation is durable. It is written nevertheless if the process ends before the
    /// journal can remove it, or if the runtime was shut down meanwhile.
    Journal,
}

impl WriteError {
    pub(crate) fn new(kind: WriteErrorKind) -> Self {
        Self { kind, source: None }
    }

    pub(crate) fn because(
        kind: WriteErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, source: Some(Arc::from(source.into())) }
    }

    /// Returns why the operation was not accepted.
    pub fn kind(&self) -> WriteErrorKind {
        self.kind
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            WriteErrorKind::Full(bound) => {
                write!(f, "the queue is full: it has reached its bound of {bound}")
            }
            WriteErrorKind::Closed => f.write_str("the queue is closed"),
            WriteErrorKind::Stopped => f.write_str("the queue has stopped"),
            WriteErrorKind::Unserialisable => f.write_str("the operation cannot be serialised"),
            WriteErrorKind::Journal => {
                f.write_str("the journal does not confirm that the operation is durable")
            }
        }
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// A queue that cannot be opened.
#[derive(Debug)]
pub struct OpenError {
    kind: OpenErrorKind,
    message: String,
    source: Option<Source>,
}

/// Why a queue cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// An option has a value that is not allowed.
    Option,
    /// The journal cannot be read.
    Journal,
    /// The position of the sink cannot be read or stored.
    Sink,
    /// The journal and the sink do not belong together: one of them was lost, replaced or restored from a copy.
    Mismatch,
    /// The journal has an operation that this version of the program cannot read.
    Unreadable,
}

impl OpenError {
    pub(crate) fn new(kind: OpenErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn because(
        kind: OpenErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(Arc::from(source.into())) }
    }

    /// Returns why the queue cannot be opened.
    pub fn kind(&self) -> OpenErrorKind {
        self.kind
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
