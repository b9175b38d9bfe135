//! The HTTP surface: its real routes and its real server, over a store in memory whose faults can be switched.

#![allow(clippy::disallowed_methods, reason = "these tests run in real time")]

mod fuzz;
mod health;
mod routes;
mod server;
mod sockets;
mod world;
