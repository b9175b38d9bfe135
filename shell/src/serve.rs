//! `surehook serve`: the service with the real database, sockets, clock and signals.

use crate::clock::TokioClock;
use crate::config::{Config, ConfigError, Role};
use crate::descriptors::{self, Granted, TooFew, Wanted};
use crate::downstream::HttpDownstream;
use crate::http::{App, RouteSet, service};
use crate::http_server::{self, ServerLimits};
use crate::ids::SystemIds;
use crate::ports::Relay;
use crate::process::{Broken, Command, Ended, Host, ProcessPorts, Stop, Task, run};
use crate::reload::Reload;
use crate::store::{BackupError, FileError, MigrateError, OpenError, OpenStore, open};
use crate::systemd::{self, PassedError};
use futures::future::{BoxFuture, Fuse, FusedFuture, join};
use futures::{FutureExt, Stream, StreamExt, select_biased, stream};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use surehook_core::operators::Access;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Pause before a database is migrated again whose tables have vanished.
const RESTORED_WITHIN: Duration = Duration::from_secs(5);

/// Pause between two tries to migrate an unreachable database.
const MIGRATE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Maximum number of tries of `surehook migrate` while other sessions hold locks that it needs.
/// With the pauses this takes a minute.
const MIGRATE_TRIES: u32 = 25;
/// Length of the kernel's accept queue, if the kernel allows it. The usual 128 are exhausted
/// quickly when all producers reconnect at once. A connection that finds the queue full is retried
/// only after a second.
const BACKLOG: u32 = 4096;

/// Why the service did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The URL of the database is not usable.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file of the database is not usable, or another process serves it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file of the database is damaged.
    #[error("{0}; keep the files, and restore a backup with `surehook restore FILE`")]
    Damaged(String),
    /// The database cannot be backed up or restored.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The listening sockets that a supervisor passed are not usable.
    #[error(transparent)]
    Passed(#[from] PassedError),
    /// The process cannot listen on the address.
    #[error("cannot listen on {address}: {error}; {}", advice(error, setting))]
    Listen {
        /// The setting that contains the address.
        setting: &'static str,
        address: SocketAddr,
        error: io::Error,
    },
    /// The schema of the database cannot be migrated to the schema of this program.
    #[error(transparent)]
    Migrate(MigrateError),
    /// The HTTP client for downstreams cannot be created.
    #[error("cannot create the HTTP client for downstreams: {0}")]
    Downstream(String),
    /// The limit of open files is too low.
    #[error("cannot start: {0}")]
    Descriptors(#[from] TooFew),
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers: {0}")]
    Signals(io::Error),
    /// A part of the process stopped by itself.
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl ServeError {
    /// Whether the configuration is wrong and nothing was started.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        matches!(
            self,
            Self::Open(_)
                | Self::File(_)
                | Self::Passed(_)
                | Self::Backup(BackupError::Postgres)
                | Self::Descriptors(_)
        )
    }
}

/// Runs the service until SIGTERM or SIGINT. Returns when the shutdown is complete. On SIGHUP, reads
/// the configuration again with `read`.
///
/// Listening sockets that were passed by a supervisor are used instead of the configured addresses.
/// Calls `listening` with the address once connections are accepted.
///
/// # Errors
///
/// [`ServeError`].
pub async fn serve(
    config: Config,
    read: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let config = Arc::new(config);
    let passed = systemd::passed()?;
    let has_two_listeners = config.operator_listen.is_some() || passed.operators.is_some();
    let max_connections = max_connections(&config, has_two_listeners)?;
    let opened = open(config.database.secret())?;
    opened.hold(config.migrate_on_start)?;
    let downstream = HttpDownstream::new(&config.sources)
        .map_err(|error| ServeError::Downstream(error.to_string()))?;
    let mut terminations = terminations().map_err(ServeError::Signals)?;
    let hangups = signal(SignalKind::hangup()).map_err(ServeError::Signals)?;
    let webhooks = Bound::new(passed.webhooks, config.listen, "listen")?;
    let operators = match (passed.operators, config.operator_listen) {
        (None, None) => None,
        (passed, configured) => {
            Some(Bound::new(passed, configured.unwrap_or(config.listen), "operator_listen")?)
        }
    };
    // Migrates before connections are accepted, so that a load balancer sends no request that must
    // wait for the migration, and before the loops start, so that they find a schema. If the database
    // is unreachable, the migration is retried while they run.
    let migrated = if config.migrate_on_start {
        select_biased! {
            _ = terminations.next().fuse() => {
                tracing::info!("shutdown signal during the migration, which is rolled back");
                return Ok(());
            }
            migrated = migrated(&opened).fuse() => migrated?,
        }
    } else {
        true
    };
    let at_operators = match operators {
        None => None,
        Some(bound) => {
            let (address, is_passed) = (bound.address, bound.is_passed());
            let listener = bound.listen()?;
            tracing::info!(%address, is_passed, "listening for operators");
            Some(listener)
        }
    };
    let (address, is_passed) = (webhooks.address, webhooks.is_passed());
    let listener = webhooks.listen()?;
    tracing::info!(%address, is_passed, database = %config.database, role = config.role.as_str(), sources = config.sources.len(), "listening");
    listening(address);

    let downstream = Arc::new(downstream);
    let is_shutting_down = Arc::new(AtomicBool::new(false));
    let reload = Reload {
        read: Arc::new(read),
        downstream: Arc::clone(&downstream),
        present: Arc::clone(&config),
        is_shutting_down: Arc::clone(&is_shutting_down),
    };
    let shutdowns = terminations.map(move |()| {
        is_shutting_down.store(true, Ordering::Release);
        systemd::stopping();
        Command::ShutDown
    });
    // A shutdown does not wait for a file that is being read.
    let commands = stream::select(shutdowns, reload.at_each(received(hangups)).boxed()).fuse();
    let ports = ProcessPorts {
        events: opened.store(),
        operators: opened.store(),
        maintenance: opened.store(),
        relay: Arc::clone(&downstream) as Arc<dyn Relay>,
        downstream,
        clock: Arc::new(TokioClock::new()),
        ids: Arc::new(SystemIds),
        seed: SystemIds.seed(),
    };
    let host = Tokio {
        listeners: Mutex::new(Some((listener, at_operators))),
        operator_hosts: config.operator_hosts.clone(),
        max_connections,
        header_read_timeout: config.intake.header_timeout,
        idle_timeout: config.intake.idle_timeout,
    };
    let migrates = config.migrate_on_start;
    let mut migration =
        if migrated { Fuse::terminated() } else { migrate_when_reachable(&opened).boxed().fuse() };
    let mut lost_schema = opened.lost_schema().boxed().fuse();
    // Also if the database is unreachable: the process answers requests, and `/ready` says why they
    // are refused.
    systemd::ready();
    let mut damage = std::pin::pin!(opened.damage().fuse());
    let mut service = Box::pin(run(config, ports, &host, commands).fuse());
    loop {
        select_biased! {
            ended = service => {
                drop(service);
                opened.close().await;
                return Ok(ended?);
            }
            why = damage => return Err(ServeError::Damaged(why)),
            migrated = migration => migrated?,
            () = lost_schema => {
                lost_schema = opened.lost_schema().boxed().fuse();
                if migrates && migration.is_terminated() {
                    migration = migrate_again(&opened).boxed().fuse();
                }
            }
        }
    }
}

/// `surehook backup`: writes a copy of the database to a new file.
///
/// # Errors
///
/// [`ServeError::Open`] or [`ServeError::Backup`].
pub async fn backup(config: Config, to: &Path) -> Result<(), ServeError> {
    open(config.database.secret())?.backup(to).await?;
    tracing::info!(database = %config.database, file = %to.display(), "database backed up");
    Ok(())
}

/// `surehook restore`: replaces the database with a backup.
///
/// # Errors
///
/// [`ServeError::Open`] or [`ServeError::Backup`].
pub async fn restore(config: Config, from: &Path) -> Result<(), ServeError> {
    let replaced = open(config.database.secret())?.restore(from).await?;
    tracing::info!(database = %config.database, file = %from.display(), "database restored");
    if let Some(old) = replaced {
        tracing::info!(file = %old.display(), "old database kept");
    }
    Ok(())
}

/// Returns how many connections each listener accepts. Raises the limit of open files to its
/// maximum, and logs a warning if the settings exceed it.
fn max_connections(config: &Config, has_two_listeners: bool) -> Result<usize, TooFew> {
    let limit = descriptors::raise_limit();
    let concurrency =
        || config.sources.values().map(|source| u64::from(source.policy.concurrency)).sum();
    let wanted = Wanted {
        connections: u64::try_from(config.intake.max_connections).unwrap_or(u64::MAX),
        listeners: if has_two_listeners { 2 } else { 1 },
        deliveries: if config.role == Role::Intake { 0 } else { concurrency() },
    };
    let granted @ Granted { connections, deliveries } = descriptors::divide(limit, wanted)?;
    tracing::debug!(limit, ?wanted, ?granted, "file descriptors");
    if connections < wanted.connections {
        tracing::warn!(
            limit,
            max_connections = wanted.connections,
            accepted = connections,
            "max_connections does not fit the limit of open files; fewer connections are accepted"
        );
    }
    if deliveries < wanted.deliveries {
        tracing::warn!(
            limit,
            concurrency = wanted.deliveries,
            reserved = deliveries,
            "the sources' concurrency does not fit the limit of open files; deliveries can be suspended"
        );
    }
    Ok(usize::try_from(connections).unwrap_or(usize::MAX))
}

/// `surehook migrate`: migrates the database to the schema of this program. If other sessions hold
/// locks that it needs, it gives way and retries, up to `MIGRATE_TRIES` times in total. If the
/// database is unreachable, it fails without waiting.
///
/// # Errors
///
/// [`ServeError::Open`] or [`ServeError::Migrate`].
pub async fn migrate(config: Config) -> Result<(), ServeError> {
    let opened = open(config.database.secret())?;
    let mut tries_left = MIGRATE_TRIES;
    loop {
        tries_left -= 1;
        match opened.migrate().await {
            Ok(()) => break,
            Err(error @ MigrateError::GaveWay(_)) if tries_left > 0 => {
                tracing::warn!(%error, "migration gave way to other sessions; retrying");
            }
            Err(error) => return Err(ServeError::Migrate(error)),
        }
    }
    tracing::info!(database = %config.database, "database schema is up to date");
    Ok(())
}

/// Retries the migration until the database is reachable. During this time the process answers
/// requests, and is not ready.
async fn migrate_when_reachable(opened: &OpenStore) -> Result<(), ServeError> {
    while !migrated(opened).await? {
        tokio::time::sleep(MIGRATE_AGAIN_AFTER).await;
    }
    Ok(())
}

/// A table is missing. After a pause, in which a restore may bring it back, the database is migrated
/// as at the start.
async fn migrate_again(opened: &OpenStore) -> Result<(), ServeError> {
    tracing::warn!("a table of the database is missing; the database is migrated again");
    tokio::time::sleep(RESTORED_WITHIN).await;
    migrate_when_reachable(opened).await
}

/// Migrates the database. Returns `false` if a retry can help.
async fn migrated(opened: &OpenStore) -> Result<bool, ServeError> {
    match opened.migrate().await {
        Ok(()) => Ok(true),
        Err(error @ MigrateError::Unreachable(_)) => {
            tracing::warn!(%error, "not ready: the database cannot be migrated now; retrying");
            Ok(false)
        }
        Err(error @ MigrateError::GaveWay(_)) => {
            tracing::warn!(%error, "migration gave way to other sessions; retrying");
            Ok(false)
        }
        Err(error @ (MigrateError::Newer { .. } | MigrateError::Failed(_))) => {
            Err(ServeError::Migrate(error))
        }
    }
}

/// A socket with its address. It refuses connections until it listens, except if a supervisor has
/// passed it: then it listens already.
struct Bound {
    socket: Socket,
    address: SocketAddr,
    setting: &'static str,
}

enum Socket {
    Passed(TcpListener),
    New(TcpSocket),
}

impl Bound {
    /// The socket that was passed, or a new one at the configured address.
    fn new(
        passed: Option<std::net::TcpListener>,
        address: SocketAddr,
        setting: &'static str,
    ) -> Result<Self, ServeError> {
        let socket = match passed {
            Some(passed) => TcpListener::from_std(passed).map(Socket::Passed),
            None => bind(address).map(Socket::New),
        };
        let bound = socket.and_then(|socket| {
            let address = match &socket {
                Socket::Passed(listener) => listener.local_addr(),
                Socket::New(socket) => socket.local_addr(),
            }?;
            Ok(Self { socket, address, setting })
        });
        bound.map_err(|error| ServeError::Listen { setting, address, error })
    }

    /// For the log: `None` unless the socket was passed.
    fn is_passed(&self) -> Option<bool> {
        matches!(self.socket, Socket::Passed(_)).then_some(true)
    }

    fn listen(self) -> Result<TcpListener, ServeError> {
        let Self { socket, address, setting } = self;
        match socket {
            Socket::Passed(listener) => Ok(listener),
            Socket::New(socket) => socket.listen(BACKLOG).map_err(|error| ServeError::Listen {
                setting,
                address,
                error,
            }),
        }
    }
}

/// Reserves an address, without accepting connections.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Allows a port that only closed connections still occupy. On Windows, the option would also
    // allow a port that is in use.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// What an operator can do if the process cannot listen on an address.
pub(crate) fn advice(error: &io::Error, setting: &str) -> String {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    match error.kind() {
        AddrInUse => {
            format!("another process listens there: stop it, or set `{setting}` to another address")
        }
        PermissionDenied => format!(
            "this user may not listen on a port below 1024: set `{setting}` to a port from 1024 up, or grant CAP_NET_BIND_SERVICE \
             (systemd: `AmbientCapabilities=CAP_NET_BIND_SERVICE`)"
        ),
        AddrNotAvailable => format!(
            "no interface of this machine has this address: set `{setting}` to one that it has"
        ),
        _ => format!("set `{setting}` to another address"),
    }
}

/// A stream of SIGTERM and SIGINT.
fn terminations() -> io::Result<impl Stream<Item = ()> + Send + Unpin> {
    let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    Ok(stream::select_all(signals.map(received)))
}

fn received(mut signal: Signal) -> impl Stream<Item = ()> + Send + Unpin {
    stream::poll_fn(move |context| signal.poll_recv(context))
}

/// Runs the service on tokio. Holds the listening sockets until they are served.
struct Tokio {
    /// One listener for all requests, or one for producers and one for operators.
    listeners: Mutex<Option<(TcpListener, Option<TcpListener>)>>,
    /// The host names that operators use through a proxy.
    operator_hosts: BTreeSet<String>,
    max_connections: usize,
    header_read_timeout: Duration,
    idle_timeout: Duration,
}

impl Host for Tokio {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Task {
        let task = tokio::spawn(task);
        let abort = AbortOnDrop(task.abort_handle());
        async move {
            let _abort = abort;
            task.await.map_err(|error| Broken(format!("{name}: {error}")))
        }
        .boxed()
    }

    fn serve(&self, app: Arc<App>, stop: Stop) -> Task {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
        let limits = ServerLimits {
            max_connections: self.max_connections,
            header_read_timeout: self.header_read_timeout,
            idle_timeout: self.idle_timeout,
        };
        let operator_hosts = self.operator_hosts.clone();
        async move {
            let (listener, at_operators) = listeners
                .ok_or_else(|| Broken("the listening sockets are already served".to_owned()))?;
            let serve = |listener: TcpListener, route_set| {
                // If the system does not report the address, it counts as loopback: the stricter
                // rule applies.
                let is_loopback = listener
                    .local_addr()
                    .map_or(true, |address| address.ip().to_canonical().is_loopback());
                let access = Access::new(is_loopback, operator_hosts.iter().cloned());
                http_server::serve(
                    listener,
                    service(Arc::clone(&app), route_set, access),
                    limits,
                    stop.clone(),
                )
            };
            match at_operators {
                None => serve(listener, RouteSet::Everyone).await,
                Some(at_operators) => drop(
                    join(
                        serve(listener, RouteSet::Producers),
                        serve(at_operators, RouteSet::Operators),
                    )
                    .await,
                ),
            }
            Ok(())
        }
        .boxed()
    }
}

/// Aborts the task when the future that waits for it is dropped.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listen_error_names_its_reason_and_setting() {
        let told = |kind: io::ErrorKind| {
            let address = SocketAddr::from(([127, 0, 0, 1], 80));
            ServeError::Listen { setting: "operator_listen", address, error: kind.into() }
                .to_string()
        };
        for (kind, hint) in [
            (io::ErrorKind::AddrInUse, "another process listens there"),
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrNotAvailable, "no interface of this machine"),
            (io::ErrorKind::Other, "set `operator_listen`"),
        ] {
            let told = told(kind);
            assert!(told.contains(hint) && told.contains("`operator_listen`"), "{told}");
            assert_eq!(
                told.contains("another process"),
                kind == io::ErrorKind::AddrInUse,
                "{told}"
            );
        }
    }
}
