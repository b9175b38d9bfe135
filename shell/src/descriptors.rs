//! File descriptors: the limit of the process, and how it is divided.
//!
//! Each connection uses a file descriptor, and so does each file of SQLite. A process without free
//! descriptors can neither deliver nor reach its database. So the soft limit is raised to the hard
//! limit at start. If the settings need more than that, fewer connections are accepted than
//! `max_connections` says. This keeps the descriptors of deliveries and the database free, whatever
//! the number of incoming connections is. If a delivery finds no descriptor nevertheless, `core`
//! decides what happens ([`Reply::NotSent`](surehook_core::verdict::Reply::NotSent)).

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io;

/// The lowest limit with which the service starts.
pub const LEAST: u64 = 128;
/// Reserved for the process itself: standard streams, listening sockets, the runtime, name lookups,
/// and accepted connections that wait because `max_connections` is reached.
const OWN: u64 = 32;
/// Reserved for the database. For PostgreSQL: 14 connections, and those that ask several servers
/// which one to use. For SQLite: 5 connections with three files each.
const DATABASE: u64 = 32;

/// How many descriptors the settings need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Connections that each listener accepts.
    pub connections: u64,
    pub listeners: u64,
    /// Concurrent deliveries of all sources.
    pub deliveries: u64,
}

/// How many descriptors may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Connections that each listener accepts. At least 1.
    pub connections: u64,
    /// Deliveries for which descriptors are reserved.
    pub deliveries: u64,
}

/// The limit is too low to start the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit of open files is {0}, and at least {LEAST} are needed; raise it (`ulimit -n`, or `LimitNOFILE` of systemd)"
)]
pub struct TooFew(pub u64);

/// Raises the soft limit of open files to the hard limit. Returns the limit that applies then, or
/// `None` if there is none or the system does not report it.
#[must_use]
pub fn raise_limit() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .inspect_err(|error| tracing::warn!(%error, "cannot read the limit of open files"))
        .ok()?;
    let limit = if soft == hard {
        soft
    } else {
        match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
                soft
            }
        }
    };
    (limit != RLIM_INFINITY).then_some(limit)
}

/// Divides the descriptors. Deliveries get what they need, but at most half of the free descriptors
/// or what the connections leave, whichever is more. Connections get the rest.
///
/// # Errors
///
/// The limit is below [`LEAST`].
pub fn divide(limit: Option<u64>, wanted: Wanted) -> Result<Granted, TooFew> {
    let Wanted { connections, listeners, deliveries } = wanted;
    let Some(limit) = limit else { return Ok(Granted { connections, deliveries }) };
    if limit < LEAST {
        return Err(TooFew(limit));
    }
    let free = limit - OWN - DATABASE;
    let all_connections = connections.saturating_mul(listeners);
    let for_deliveries = deliveries.min((free / 2).max(free.saturating_sub(all_connections)));
    let each = (free - for_deliveries) / listeners.max(1);
    Ok(Granted { connections: connections.min(each).max(1), deliveries: for_deliveries })
}

/// Whether an error means that this process or its machine lacks a resource: file descriptors, or
/// memory for a socket.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS))
}

/// Whether the process has no free descriptor now. For calls that do not report this themselves,
/// such as DNS lookups.
#[must_use]
pub fn are_exhausted() -> bool {
    File::open("/dev/null").is_err_and(|error| is_shortage(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(
        limit: Option<u64>,
        connections: u64,
        listeners: u64,
        deliveries: u64,
    ) -> (u64, u64) {
        let Granted { connections, deliveries } =
            divide(limit, Wanted { connections, listeners, deliveries }).unwrap();
        (connections, deliveries)
    }

    #[test]
    fn settings_that_fit_are_granted_in_full() {
        assert_eq!(granted(None, 1_000_000, 2, 1_000_000), (1_000_000, 1_000_000));
        assert_eq!(granted(Some(524_288), 1000, 2, 1600), (1000, 1600));
        assert_eq!(granted(Some(OWN + DATABASE + 1016), 1000, 1, 16), (1000, 16));
    }

    #[test]
    fn deliveries_come_before_connections() {
        assert_eq!(granted(Some(1024), 1000, 1, 64), (1024 - OWN - DATABASE - 64, 64));
        assert_eq!(granted(Some(1024), 1000, 2, 64).0, (1024 - OWN - DATABASE - 64) / 2);
    }

    #[test]
    fn deliveries_get_at_most_half_if_connections_need_the_rest() {
        let free = 1024 - OWN - DATABASE;
        assert_eq!(granted(Some(1024), 1000, 1, 5000), (free / 2, free / 2));
        assert_eq!(granted(Some(1024), 10, 1, 5000), (10, free - 10), "connections need little");
    }

    #[test]
    fn no_division_exceeds_the_limit() {
        for limit in LEAST..2000 {
            for (connections, listeners, deliveries) in
                [(1, 1, 0), (1000, 1, 16), (1000, 2, 16), (1000, 2, 100_000), (1, 2, 100_000)]
            {
                let (each, for_deliveries) =
                    granted(Some(limit), connections, listeners, deliveries);
                assert!(each >= 1 && each <= connections && for_deliveries <= deliveries);
                assert!(
                    each * listeners + for_deliveries + OWN + DATABASE <= limit + 2,
                    "{limit}: {each}, {for_deliveries}"
                );
            }
        }
    }

    #[test]
    fn a_limit_below_the_minimum_is_refused() {
        let wanted = Wanted { connections: 1, listeners: 1, deliveries: 1 };
        assert_eq!(divide(Some(LEAST - 1), wanted), Err(TooFew(LEAST - 1)));
        assert!(divide(Some(LEAST), wanted).is_ok());
    }

    #[test]
    fn only_exhausted_resources_are_a_shortage() {
        for code in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS] {
            assert!(is_shortage(&io::Error::from(code)), "{code}");
        }
        // Whether an address is available depends on the destination. The error may be permanent.
        for code in [
            Errno::ECONNREFUSED,
            Errno::ENETUNREACH,
            Errno::EADDRNOTAVAIL,
            Errno::ETIMEDOUT,
            Errno::EACCES,
        ] {
            assert!(!is_shortage(&io::Error::from(code)), "{code}");
        }
        assert!(!is_shortage(&io::Error::other("unrelated")));
        assert!(!are_exhausted());
    }
}
