//! Deliveries by reqwest, against servers that do as they are told.

#![allow(clippy::disallowed_methods, reason = "these tests run in real time")]

mod connections;
mod exchanges;
mod failures;
mod sink;
mod verdicts;
