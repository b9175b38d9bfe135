//! The HTTP surface: its real routes and its real server, over a store in memory whose faults can be switched.

#![allow(clippy::disallowed_methods, reason = "these tests run in real time")]

#[path = "../../../tests/src/openapi.rs"]
#[allow(
    unreachable_pub,
    reason = "the end-to-end tests hold the program's answers against the document by the same file"
)]
mod document;
mod fuzz;
mod gate;
mod health;
mod openapi;
mod routes;
mod server;
mod sockets;
mod world;
