//! What the end-to-end tests share: real servers to run against.

pub mod postgres;
