//! Surehook's decisions as pure state machines, without I/O.
//!
//! This crate decides which requests are admitted, what the reply to a delivery means, when an
//! event is retried, and what a worker does next. It cannot read a clock, generate random numbers,
//! open a socket or access a disk. Time is an argument, jitter is a pure hash, and everything that
//! happened is an input value. The same inputs always give the same outputs. So a simulator can
//! replay a failure from its seed.
//!
//! There are three state machines:
//!
//! - [`event`]: one event, from *queued* to *delivered* or *dead-lettered*. Its state is stored.
//! - [`intake`]: one process's intake. Its state is in memory.
//! - [`worker`]: one process's worker. Its state is in memory and may be lost at any time.
//!
//! The other modules are rules: [`key`], [`source`], [`admission`], [`relay`], [`reading`],
//! [`forwarding`], [`verdict`], [`retry_after`], [`backoff`], [`due`], [`breaker`], [`rate`],
//! [`cursor`], [`readiness`], [`retention`], [`shutdown`], [`operators`]. [`id`] and [`time`] have
//! common types.

#![no_std]
#![deny(missing_docs)]
#![warn(clippy::wildcard_enum_match_arm)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod admission;
pub mod backoff;
pub mod breaker;
pub mod cursor;
pub mod due;
pub mod event;
pub mod forwarding;
pub mod id;
pub mod intake;
pub mod key;
pub mod operators;
pub mod rate;
pub mod readiness;
pub mod reading;
pub mod relay;
pub mod retention;
pub mod retry_after;
pub mod shutdown;
pub mod source;
pub mod time;
pub mod verdict;
pub mod worker;
