//! Surehook's shell: all I/O, around the decisions of `surehook-core`.

mod alarm;
mod certificates;
pub mod cli;
#[expect(clippy::disallowed_methods, reason = "this is the real clock")]
pub mod clock;
pub mod config;
pub mod demo;
pub mod descriptors;
pub mod doorbell;
#[expect(clippy::disallowed_methods, reason = "deadlines of deliveries use the real clock")]
pub mod downstream;
pub mod due_times;
pub mod handover;
pub mod headers;
pub mod health;
pub mod http;
pub mod http_server;
#[expect(clippy::disallowed_methods, reason = "these ids use the real clock and entropy")]
pub mod ids;
pub mod intake;
pub mod logs;
mod lookups;
pub mod metrics;
#[expect(clippy::disallowed_methods, reason = "operator commands run only in the real world")]
pub mod operate;
pub mod ports;
pub mod process;
pub mod reload;
pub mod retention;
pub mod search;
pub mod serve;
#[expect(
    clippy::disallowed_methods,
    reason = "only the real server closes slow connections, and it uses the real clock"
)]
pub mod shedding;
pub mod snapshots;
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "real databases use the real clock, and no output depends on the order of a hash map"
)]
pub mod store;
pub mod systemd;
pub mod version;
pub mod visible;
pub mod worker;
