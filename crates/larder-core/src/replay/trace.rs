//! Reads a trace.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
};

use crate::traffic::TRACE_HEADER;

/// A recorded trace; see [`Larder::record_trace`](crate::Larder::record_trace).
#[derive(Clone, Debug)]
pub struct Trace {
    pub(super) events: Vec<TraceEvent>,
    memory: usize,
    patterns: u64,
}

/// An event of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TraceEvent {
    Request {
        millis: u64,
        key: u64,
    },
    Fill {
        key: u64,
        weight: usize,
        lifetime_millis: u64,
        tags: Vec<u64>,
    },
    /// Without tags it is an invalidation of everything.
    Invalidation {
        millis: u64,
        tags: Vec<u64>,
    },
}

/// A trace that cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read.
    Io(io::Error),
    /// A line is not one of a trace of this version.
    Line(usize, String),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Line(number, line) => write!(
                f,
                "line {number} is {line:?}, allowed is a trace that larder has recorded, which begins with {TRACE_HEADER:?}"
            ),
        }
    }
}

impl std::error::Error for TraceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Line(..) => None,
        }
    }
}

impl From<io::Error> for TraceError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or a line is not one of a trace.
    pub fn read(file: impl AsRef<Path>) -> Result<Self, TraceError> {
        let mut lines = BufReader::new(File::open(file)?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let memory = first.strip_prefix(TRACE_HEADER).and_then(|rest| rest.trim().parse().ok());
        let memory = memory.ok_or_else(|| TraceError::Line(1, shortened(&first)))?;
        let mut trace = Self { events: Vec::new(), memory, patterns: 0 };
        for (number, line) in lines.enumerate() {
            let line = line?;
            if line.starts_with("p ") {
                trace.patterns += 1;
                continue;
            }
            let event =
                parsed(&line).ok_or_else(|| TraceError::Line(number + 2, shortened(&line)))?;
            trace.events.push(event);
        }
        Ok(trace)
    }

    /// Returns the capacity of the first level that was recorded.
    pub fn memory(&self) -> crate::ByteSize {
        crate::ByteSize::bytes(self.memory)
    }

    /// Returns the number of invalidations by a pattern. A replay leaves them out, since the trace has no names.
    pub fn patterns(&self) -> u64 {
        self.patterns
    }
}

fn shortened(line: &str) -> String {
    line.chars().take(80).collect()
}

fn parsed(line: &str) -> Option<TraceEvent> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let millis = words.next()?.parse().ok()?;
    let hash = |word: &str| u64::from_str_radix(word, 16).ok();
    let hashes = |words: &str| {
        words.split(',').filter(|word| !word.is_empty()).map(hash).collect::<Option<Vec<_>>>()
    };
    let event = match kind {
        "r" => TraceEvent::Request { millis, key: hash(words.next()?)? },
        "f" => TraceEvent::Fill {
            key: hash(words.next()?)?,
            weight: words.next()?.parse().ok()?,
            lifetime_millis: words.next()?.parse().ok()?,
            tags: hashes(words.next()?)?,
        },
        "i" => TraceEvent::Invalidation { millis, tags: hashes(words.next()?)? },
        _ => return None,
    };
    words.next().is_none().then_some(event)
}
