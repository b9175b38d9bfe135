//! A load generator and a downstream, for benchmarks and for tests that need a high rate.
//!
//! Both use HTTP on plain sockets, so that their own cost is small. Tests that check each event use
//! [`crate::producer`] and [`crate::sink`] instead.

mod clock;
mod downstream;
pub mod endurance;
mod offer;

pub use downstream::{Manners, Received, Sink};
pub use offer::{Load, Offer, Until, all_accepted, body};
