//! What tests of every kind share: a reference database that is plain code. No simulator runtime, no clock, no I/O.

pub mod database;
pub mod history;
pub mod marks;
pub mod memory;
pub mod oracles;
pub mod scenario;
pub mod targets;
pub mod timeline;
