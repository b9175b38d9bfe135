//! Tests for PostgreSQL only: its planner, its locks, its sessions, and restarts of its server.

mod interleavings;
mod network;
mod open_transactions;
mod plans;
mod races;
mod server;
mod sessions;
mod standby;
mod upgrades;
