//! Deliveries by reqwest, against servers that do as they are told.

mod exchanges;
mod failures;
mod sink;
