//! Surehook's shell: everything that touches the world, wired around the decisions of `surehook-core`.

pub mod ports;
