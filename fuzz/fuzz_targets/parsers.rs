//! Fuzzes each parser of a field.
#![no_main]

use larder_testkit::invariants;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| invariants::parsers_do_not_panic(bytes));
