//! The deterministic simulator. It runs the production loops (routes, intake, worker, core) on a
//! simulated network, clock and database with simulated downstreams, all of which can be made to
//! fail.

#![allow(
    clippy::missing_panics_doc,
    reason = "a run that cannot start is an error in the test, which no caller handles"
)]

#[cfg(not(madsim))]
compile_error!(
    "the simulator needs `--cfg madsim`, which .cargo/config.toml sets. The environment variable RUSTFLAGS \
     overrides that setting: unset it, or add `--cfg madsim` to it"
);

/// Runs make many small allocations. This allocator saves a fifth of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod batch;
mod bugs;
mod catalogue;
mod clock;
mod configuration;
mod cursor;
mod database;
mod downstream;
mod effects;
mod held;
mod maintenance;
mod minimise;
mod net;
mod process;
mod producer;
mod recorder;
mod report;
mod rows;
mod store;
mod timer;
mod transaction;
mod waits;
mod world;

pub use batch::{Failure, batch};
pub use bugs::Bug;
pub use catalogue::{Found, hunt};
pub use minimise::minimise;
pub use report::{report, rerun, to_toml, write_page};
pub use world::{Outcome, run};
