//! Addresses for what a test starts.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// A loopback address that nobody listens on. Below the range from which the kernel takes the ports of outgoing
/// connections, so that none of those can sit on it while the program is down between two lives.
///
/// # Panics
///
/// If a thousand ports in a row are taken.
#[must_use]
pub fn free_address() -> SocketAddr {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at the same time begin in different places.
    let begin = u16::try_from(std::process::id().wrapping_mul(7919) % u32::from(PORTS))
        .expect("below 20,000");
    (0..1000)
        .map(|_| FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}
