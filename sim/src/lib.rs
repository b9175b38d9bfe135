//! Deterministic worlds that run the production loops.

#[cfg(not(madsim))]
compile_error!(
    "the simulator needs `--cfg madsim`, which .cargo/config.toml sets; a RUSTFLAGS variable in the environment \
     replaces that setting: unset it, or add `--cfg madsim` to it"
);
