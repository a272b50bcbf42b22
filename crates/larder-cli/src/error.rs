//! Errors of the command, each with its exit code.

use std::{fmt, io};

/// Why the command failed, in one line.
#[derive(Debug)]
pub(crate) struct CliError {
    code: u8,
    text: String,
    is_broken_pipe: bool,
}

impl CliError {
    /// The server refused, or failed.
    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self::new(1, text)
    }

    /// An argument is wrong.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(2, text)
    }

    /// There was no answer.
    pub(crate) fn no_answer(text: impl Into<String>) -> Self {
        Self::new(3, text)
    }

    /// The token is missing, wrong, or may only read.
    pub(crate) fn denied(text: impl Into<String>) -> Self {
        Self::new(4, text)
    }

    fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), is_broken_pipe: false }
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Whether the reader of the output has gone, such as `head`.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.is_broken_pipe
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        let is_broken_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { is_broken_pipe, ..Self::refused(error.to_string()) }
    }
}
