//! The HTTP surface: the real routes and the real server on a store in memory, whose faults the
//! tests switch on and off.

#![allow(clippy::disallowed_methods, reason = "these tests run in real time")]

mod acknowledgements;
#[path = "../../../tests/src/openapi.rs"]
#[allow(
    unreachable_pub,
    reason = "the end-to-end tests check the program's responses against the document with the same file"
)]
mod document;
mod fuzz;
mod gate;
mod health;
mod keys;
mod openapi;
mod relays;
mod replays;
mod routes;
mod server;
mod sockets;
mod stored;
mod world;
