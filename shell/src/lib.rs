//! Surehook's shell: everything that touches the world, wired around the decisions of `surehook-core`.

pub mod cli;
pub mod config;
pub mod doorbell;
pub mod headers;
pub mod intake;
pub mod logs;
pub mod ports;
pub mod retention;
pub mod worker;
