//! What only PostgreSQL can show: its planner, its locks, its sessions, and its server going away.

mod interleavings;
mod plans;
mod races;
mod server;
mod sessions;
mod standby;
