//! Surehook's decisions, and nothing else.
//!
//! This crate decides what is admitted, what a delivery's reply means, when an event is tried again, and what a
//! worker does next. It cannot read a clock, draw a random number, open a socket or touch a disk: time is an
//! argument, jitter is a pure hash, and everything that happened comes in as a value. The same inputs give the same
//! outputs, always, which is what lets a simulator replay a failure from its seed.
//!
//! Two state machines live here:
//!
//! - [`event`]: the life of one event, from *queued* to *delivered* or *dead-lettered*. It is what is persisted.
//! - [`worker`]: one process's dispatcher. It is what is in memory, and may be lost at any moment.
//!
//! Everything else is a rule that one of them, or the intake, asks: [`key`], [`source`], [`admission`],
//! [`forwarding`], [`verdict`], [`retry_after`], [`backoff`], [`breaker`], [`rate`],
//! [`readiness`], [`retention`].

#![no_std]
#![deny(missing_docs)]
#![warn(clippy::wildcard_enum_match_arm)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod admission;
pub mod backoff;
pub mod breaker;
pub mod event;
pub mod forwarding;
pub mod id;
pub mod intake;
pub mod key;
pub mod operators;
pub mod rate;
pub mod readiness;
pub mod reading;
pub mod retention;
pub mod retry_after;
pub mod source;
pub mod time;
pub mod verdict;
pub mod worker;
