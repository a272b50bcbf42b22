//! The records of a journal.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
};

use serde::{Deserialize, Serialize};

/// The identity of a journal, drawn at random when it is created. The sink stores it with the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalId(u64);

impl JournalId {
    /// Draws a random identity of 64 bits, from the seeds that the standard library draws for its hash maps.
    pub fn random() -> Self {
        Self(RandomState::new().hash_one(std::process::id()))
    }

    #[cfg(feature = "disk")]
    pub(super) fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[cfg(feature = "disk")]
    pub(super) fn to_bits(self) -> u64 {
        self.0
    }

    /// Parses the text that [`Display`](fmt::Display) writes: 16 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_whole = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_whole.then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// An operation that has no number yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// The partition of its key.
    pub partition: u32,
    /// The key, as MessagePack.
    pub key: Vec<u8>,
    /// The operation, as MessagePack.
    pub operation: Vec<u8>,
    /// The version of the operation's serialised form.
    pub version: u16,
    /// The time at which it was given to the queue, in milliseconds since 1970.
    pub created: u64,
}

impl Draft {
    /// Returns the bytes that count towards the bound of the queue.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.operation.len() + size_of::<Self>()
    }
}

/// An operation in a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub number: u64,
    /// The operation.
    pub draft: Draft,
}

/// An operation that the sink has rejected, or that waits behind one that it has rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadRecord {
    /// The operation.
    pub record: Record,
    /// The error of the sink. `None` for an operation that waits behind another.
    pub error: Option<String>,
}

/// The content of a journal when it is opened.
#[derive(Debug)]
pub struct Recovered {
    /// The identity of the journal.
    pub id: JournalId,
    /// Whether a sink has been told about it.
    pub is_registered: bool,
    /// The last number that was given to an operation.
    pub last: u64,
    /// For each partition the last number that the sink is known to have.
    pub applied: BTreeMap<u32, u64>,
    /// The operations that the sink may not have, in order.
    pub records: Vec<Record>,
    /// The operations that the sink has rejected, and those behind them, in order.
    pub dead: Vec<DeadRecord>,
}
