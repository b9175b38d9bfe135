//! Deterministic worlds that run the production loops: the real routes, the real intake, the real worker and the real
//! core, over a network, a clock, a database and downstreams that are simulated and can be broken at will.

#![allow(
    clippy::missing_panics_doc,
    reason = "a run that cannot be made is nothing that anybody would catch"
)]

#[cfg(not(madsim))]
compile_error!(
    "the simulator needs `--cfg madsim`, which .cargo/config.toml sets; a RUSTFLAGS variable in the environment \
     replaces that setting: unset it, or add `--cfg madsim` to it"
);

/// Runs allocate much and in small pieces: this is a fifth of their time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod batch;
mod bugs;
mod catalogue;
mod clock;
mod database;
mod downstream;
mod effects;
mod maintenance;
mod minimise;
mod net;
mod process;
mod producer;
mod recorder;
mod report;
mod rows;
mod store;
mod transaction;
mod waits;
mod world;

pub use batch::{Failure, batch};
pub use bugs::Bug;
pub use catalogue::{Found, hunt};
pub use minimise::minimise;
pub use report::{report, rerun, to_toml, write_page};
pub use world::{Outcome, run};
