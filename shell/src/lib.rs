//! Surehook's shell: everything that touches the world, wired around the decisions of `surehook-core`.

pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod doorbell;
pub mod downstream;
pub mod headers;
pub mod health;
pub mod http;
pub mod ids;
pub mod intake;
pub mod logs;
pub mod ports;
pub mod retention;
pub mod serve;
pub mod server;
pub mod service;
pub mod store;
pub mod worker;
