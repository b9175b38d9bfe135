//! One process's dispatcher (being built).

pub mod exchange;
