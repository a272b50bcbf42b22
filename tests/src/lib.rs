//! What tests and benches share: real servers. The tests are in `tests/`.

pub mod postgres;
