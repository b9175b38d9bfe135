//! The fuzz targets. Each one is a function that turns any bytes into a test case, and panics if
//! the program breaks a promise in it.
//!
//! They are plain functions with three users: cargo-fuzz (`fuzz/`, which finds new inputs), the
//! replay of the saved inputs (`sim/model/tests/corpora.rs`), and proptest
//! (`sim/model/tests/machines.rs`).
//!
//! Runs with faults are not among them; the simulator does those.

pub mod configuration;
pub mod event;
pub mod http;
pub mod idempotency_key;
pub mod intake;
pub mod key_places;
pub mod retry_after;
pub mod worker;

/// The function of a target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its module, of its corpus in `fuzz/corpus/`, and of
/// its file in `fuzz/fuzz_targets/`.
pub const ALL: [(&str, Target); 8] = [
    ("configuration", configuration::run),
    ("event", event::run),
    ("http", http::run),
    ("idempotency_key", idempotency_key::run),
    ("intake", intake::run),
    ("key_places", key_places::run),
    ("retry_after", retry_after::run),
    ("worker", worker::run),
];
