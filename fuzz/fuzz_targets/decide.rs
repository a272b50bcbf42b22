//! Fuzzes the decisions over a whole exchange: see `larder_testkit::invariants`.
#![no_main]

use larder_testkit::invariants::{self, Exchange};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (status, bytes) = input;
    invariants::decisions_hold(&Exchange::read(status, bytes));
});
