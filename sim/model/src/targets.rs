//! What the fuzzers run: for each target, a function that takes any bytes, makes a case of them, and panics if the
//! program breaks a promise on it.
//!
//! They are plain functions, so that each has three users: cargo-fuzz (`fuzz/`, which finds new bytes), the replay of
//! the bytes that are kept (`sim/model/tests/corpora.rs`), and proptest (`sim/model/tests/machines.rs`).
//!
//! Not here: worlds with faults; those are the simulator's.

pub mod configuration;
pub mod event;
pub mod http;
pub mod idempotency_key;
pub mod intake;
pub mod retry_after;
pub mod worker;

/// A target's function.
pub type Target = fn(&[u8]);

/// Every target by its name: that of its module, of its corpus in `fuzz/corpus/`, and of its file in
/// `fuzz/fuzz_targets/`.
pub const ALL: [(&str, Target); 7] = [
    ("configuration", configuration::run),
    ("event", event::run),
    ("http", http::run),
    ("idempotency_key", idempotency_key::run),
    ("intake", intake::run),
    ("retry_after", retry_after::run),
    ("worker", worker::run),
];
