//! Shared by tests of all kinds: the reference database, histories, oracles, scenarios, marks,
//! timelines and property tests. No simulator runtime, no clock, no I/O.

pub mod database;
pub mod history;
pub mod marks;
pub mod memory;
pub mod oracles;
pub mod policies;
pub mod scenario;
pub mod targets;
pub mod timeline;
