//! Deliveries over HTTP, against servers whose behaviour each test chooses.

#![allow(clippy::disallowed_methods, reason = "these tests run in real time")]

mod connections;
mod exchanges;
mod failures;
mod relays;
mod sink;
mod verdicts;
