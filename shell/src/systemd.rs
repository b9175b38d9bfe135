//! What systemd, or another supervisor with the same protocol, passes to a service and learns from
//! it: listening sockets that outlive the process (`LISTEN_FDS`), and messages about its state
//! (`NOTIFY_SOCKET`).
//!
//! While a process ends and the next one starts, new connections wait in the accept queue of such a
//! socket.

use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::io;
use std::net::TcpListener;

/// The name of the socket for producers, as in `FileDescriptorName=` of systemd.
pub const WEBHOOKS: &str = "webhooks";
/// The name of the socket for operators.
pub const OPERATORS: &str = "operators";

/// The listening sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct Passed {
    /// The socket to use instead of the address `listen`.
    pub webhooks: Option<TcpListener>,
    /// The socket to use instead of the address `operator_listen`.
    pub operators: Option<TcpListener>,
}

/// Why the passed sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// There are more sockets than listeners, or two for the same one.
    #[error(
        "{count} listening sockets were passed (LISTEN_FDS), named `{names}`: pass one, or one named `webhooks` and one named `operators`"
    )]
    Names { count: usize, names: String },
    /// A file descriptor is not a TCP socket.
    #[error(
        "the socket number {number} that was passed (LISTEN_FDS) cannot be used: {error}; pass a listening TCP socket (systemd: `ListenStream=ADDRESS:PORT`)"
    )]
    Socket { number: usize, error: io::Error },
}

/// Takes the sockets that were passed to this process, if any. They can be taken only once.
///
/// # Errors
///
/// [`PassedError`] if they are not what this program needs.
pub fn passed() -> Result<Passed, PassedError> {
    let mut sockets = ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = Passed::default();
    for (index, listener) in assign(sockets.len(), &names)?.into_iter().enumerate() {
        let socket = sockets
            .take_tcp_listener(index)
            .and_then(|socket| {
                let socket = socket.ok_or(io::ErrorKind::NotFound)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .map_err(|error| PassedError::Socket { number: index + 1, error })?;
        match listener {
            Listener::Webhooks => passed.webhooks = Some(socket),
            Listener::Operators => passed.operators = Some(socket),
        }
    }
    Ok(passed)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    Webhooks,
    Operators,
}

/// The listener for each of `count` sockets: by its name, or in order. `names` are separated by
/// colons, and may be incomplete.
fn assign(count: usize, names: &str) -> Result<Vec<Listener>, PassedError> {
    let of_name = |name: &str| match name {
        WEBHOOKS => Some(Listener::Webhooks),
        OPERATORS => Some(Listener::Operators),
        _ => None,
    };
    let named: Vec<Option<Listener>> =
        names.split(':').map(of_name).chain(std::iter::repeat(None)).take(count).collect();
    let mut in_order = [Listener::Webhooks, Listener::Operators]
        .into_iter()
        .filter(|listener| !named.contains(&Some(*listener)));
    let all: Option<Vec<Listener>> =
        named.iter().map(|named| named.or_else(|| in_order.next())).collect();
    all.filter(|all| all.len() < 2 || all[0] != all[1])
        .ok_or_else(|| PassedError::Names { count, names: names.to_owned() })
}

/// Reports that the process accepts connections.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Reports that the process reads its configuration again. After that, it must report
/// [`ready`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => not_told(&error),
    }
}

/// Reports that the process shuts down.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Sends a message to the supervisor, if there is one.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        not_told(&error);
    }
}

fn not_told(error: &io::Error) {
    tracing::warn!(%error, "cannot report the state of the process to NOTIFY_SOCKET");
}

#[cfg(test)]
mod tests {
    use super::Listener::{Operators, Webhooks};
    use super::*;

    #[test]
    fn sockets_are_assigned_by_name_and_otherwise_in_order() {
        let assigned = |count, names| assign(count, names).unwrap();
        assert_eq!(assigned(0, ""), []);
        assert_eq!(assigned(1, ""), [Webhooks]);
        assert_eq!(assigned(1, "surehook.socket"), [Webhooks]);
        assert_eq!(assigned(1, "operators"), [Operators]);
        assert_eq!(assigned(2, ""), [Webhooks, Operators]);
        assert_eq!(assigned(2, "surehook.socket:surehook.socket"), [Webhooks, Operators]);
        assert_eq!(assigned(2, "operators:webhooks"), [Operators, Webhooks]);
        assert_eq!(assigned(2, "operators:surehook.socket"), [Operators, Webhooks]);
        assert_eq!(assigned(2, "unknown:webhooks"), [Operators, Webhooks]);
    }

    #[test]
    fn more_sockets_than_listeners_are_refused() {
        for (count, names) in [(2, "webhooks:webhooks"), (2, "operators:operators"), (3, "")] {
            let error = assign(count, names).unwrap_err().to_string();
            assert!(error.contains(&format!("{count} listening sockets")), "{error}");
        }
    }
}
