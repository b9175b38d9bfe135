//! Surehook's shell: everything that touches the world, wired around the decisions of `surehook-core`.

pub mod cli;
#[expect(clippy::disallowed_methods, reason = "this is the real clock")]
pub mod clock;
pub mod config;
pub mod demo;
pub mod descriptors;
pub mod doorbell;
#[expect(
    clippy::disallowed_methods,
    reason = "deliveries to the real world have deadlines by the real clock"
)]
pub mod downstream;
pub mod handover;
pub mod headers;
pub mod health;
pub mod http;
#[expect(clippy::disallowed_methods, reason = "these are the real ids")]
pub mod ids;
pub mod intake;
pub mod logs;
mod lookups;
pub mod metrics;
#[expect(clippy::disallowed_methods, reason = "it is run by a person, in the real world")]
pub mod operate;
pub mod ports;
pub mod retention;
pub mod search;
pub mod serve;
pub mod server;
pub mod service;
#[expect(
    clippy::disallowed_methods,
    reason = "only the real server sheds connections, by the real clock"
)]
pub mod shedding;
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "real databases have the real clock, and no order is shown"
)]
pub mod store;
pub mod visible;
pub mod worker;
