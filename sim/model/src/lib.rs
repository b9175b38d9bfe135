//! Reference store and history for tests: plain code, no simulator runtime.
