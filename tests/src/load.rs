//! Load on the running program and the downstream that receives it, for benchmarks and for tests that need a high rate.
//!
//! Both speak HTTP on bare sockets, so that they cost little beside what is measured. What is checked event by event uses
//! [`crate::producer`] and [`crate::sink`] instead.

mod clock;
mod downstream;
pub mod endurance;
mod offer;

pub use downstream::{Manners, Received, Sink};
pub use offer::{Load, Offer, Until, all_accepted, body};
