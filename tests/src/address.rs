//! Addresses for the servers that tests start.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// A loopback address that no process listens on. Its port is below the range for outgoing
/// connections, so that the kernel does not assign it to one while the program is down between two
/// starts.
///
/// # Panics
///
/// If a thousand ports in a row are taken.
#[must_use]
pub fn free_address() -> SocketAddr {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at the same time start at different ports.
    let begin = u16::try_from(std::process::id().wrapping_mul(7919) % u32::from(PORTS))
        .expect("below 20,000");
    (0..1000)
        .map(|_| FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("one of 1000 ports is free")
}
