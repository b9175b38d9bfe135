//! Private, temporary PostgreSQL clusters: created in a temporary folder, listening on a free port
//! of 127.0.0.1, and removed when the process that started them ends, in whatever way it ends.
//!
//! A server is a child of this process, and has a guardian: a small shell that waits on a pipe from
//! this process. If the pipe closes without a message (an exit without destructors, an abort, `kill
//! -9`), the shell stops the server by its pid. A second shell then removes the folder. PostgreSQL
//! refuses to run as root, so if this process is root, the `postgres` user runs the server.

pub mod patroni;
pub mod pgbouncer;
pub mod pgpool;
mod standby;

use crate::program::cpu_of;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The time limit for the start of a server.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Stops a server if the pipe closes before the message that the server has ended.
const GUARDIAN: &str =
    r#"read -r word; [ "$word" = gone ] || { kill -QUIT "$1"; kill -CONT "$1"; }"#;

/// Removes the folder when its pipe closes. Retries, because servers that are stopping can still
/// write to the folder for a moment.
const REMOVER: &str = r#"
read -r order
tries=100
until rm -rf "$1" || [ $tries -eq 0 ]; do tries=$((tries - 1)); sleep 0.1; done
"#;

/// The setup of a server.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Whether commits are flushed to the disk. Without it a test is faster, but proves nothing
    /// about a power failure.
    pub fsync: bool,
    /// The folder of the write-ahead log, if it is not with the data.
    pub wal: Option<PathBuf>,
    /// Further settings, as in `postgres -c name=value`.
    pub more: Vec<(&'static str, String)>,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Fast: sessions end, transactions are rolled back, memory is written.
    Fast,
    /// Immediate: without a checkpoint, so that the next start recovers as after a crash.
    Immediate,
    /// `kill -9` for the server and each of its processes: a crash. If only the server were killed,
    /// a backend would continue to serve its session until it checks for its parent.
    Kill,
}

/// One cluster with its server.
#[derive(Debug)]
pub struct Cluster {
    data: PathBuf,
    port: u16,
    settings: Settings,
    server: Mutex<Option<Server>>,
}

#[derive(Debug)]
struct Server {
    process: Child,
    guardian: Child,
}

/// The cluster that the tests of a process share, without fsync. Each test creates its own database
/// in it.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(Settings::default()))
}

impl Cluster {
    /// Creates a cluster and starts its server.
    ///
    /// # Panics
    ///
    /// If there is no PostgreSQL, or its server does not start.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let data = new_data_folder();
        run(as_server_user("cp").arg("-R").arg(&folder().template).arg(&data));
        if let Some(wal) = &settings.wal {
            run(as_server_user("cp").arg("-R").arg(data.join("pg_wal")).arg(wal));
            run(as_server_user("rm").arg("-R").arg(data.join("pg_wal")));
            run(as_server_user("ln").arg("-s").arg(wal.join("pg_wal")).arg(data.join("pg_wal")));
        }
        Self::started(data, settings)
    }

    /// Starts a server on existing data.
    fn started(data: PathBuf, settings: Settings) -> Self {
        let mut cluster = Self { data, port: 0, settings, server: Mutex::new(None) };
        for _ in 0..5 {
            // Another process can take the port before the server does.
            cluster.port = free_port();
            if cluster.launch() {
                return cluster;
            }
        }
        panic!("the PostgreSQL server does not start:\n{}", cluster.log());
    }

    /// The URL of a database of this cluster.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The CPU time of the server and all its processes, including those that have ended.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let server = pid_of(&server.as_ref().expect("the server runs").process);
        let children: Duration = children_of(server)
            .into_iter()
            .map(|child| cpu_of(child.as_raw().unsigned_abs(), false))
            .sum();
        children + cpu_of(server.as_raw().unsigned_abs(), true)
    }

    /// The port of the server. It stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates a database and returns its URL.
    ///
    /// # Panics
    ///
    /// If it cannot be created.
    pub async fn create_database(&self) -> String {
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        self.execute(&format!("create database {name}")).await;
        self.url(&name)
    }

    /// Executes a statement as the superuser in the database `postgres`.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn execute(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.url("postgres"))
            .await
            .expect("the test's server is reachable");
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
        connection.close().await.expect("the connection can be closed");
    }

    /// Stops the server and waits until it has ended. Its data is kept.
    ///
    /// # Panics
    ///
    /// If it cannot be stopped.
    pub fn stop(&self, stop: Stop) {
        let signal = match stop {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
            Stop::Kill => Signal::SIGKILL,
        };
        if let Some(mut server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            let children =
                if stop == Stop::Kill { children_of(pid_of(&server.process)) } else { Vec::new() };
            // The pid stays reserved for the server until it is waited for, even if it has ended.
            kill(pid_of(&server.process), signal).expect("the server can be signalled");
            for &child in &children {
                let _ = kill(child, signal);
            }
            // A frozen process must be resumed to receive the signal.
            for child in
                children_of(pid_of(&server.process)).into_iter().chain([pid_of(&server.process)])
            {
                let _ = kill(child, Signal::SIGCONT);
            }
            server.process.wait().expect("the server can be waited for");
            let deadline = Instant::now() + START_TIMEOUT;
            while children.iter().any(|&child| is_running(child)) {
                assert!(Instant::now() < deadline, "the server's processes did not end in time");
                thread::sleep(Duration::from_millis(5));
            }
            dismiss(&mut server.guardian);
        }
    }

    /// Suspends the server and its processes, as on a machine that swaps or is migrated.
    /// Connections stay open, and the kernel accepts new ones, but there are no responses.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    pub fn freeze(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Resumes a frozen server.
    ///
    /// # Panics
    ///
    /// If the server is not running.
    pub fn thaw(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    /// Signals the server first, so that it starts no further process in between.
    fn signal_all(&self, signal: Signal) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let process = &server.as_ref().expect("the server runs").process;
        kill(pid_of(process), signal).expect("the server can be signalled");
        for child in children_of(pid_of(process)) {
            // A process that has just ended needs no signal.
            let _ = kill(child, signal);
        }
    }

    /// Starts the server again, on the same data and port.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn resume(&self) {
        // After a kill, the orphaned backends can hold the shared memory for a moment.
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.launch() {
            assert!(Instant::now() < deadline, "the server does not start again:\n{}", self.log());
        }
    }

    /// Starts the server and waits until it accepts connections. Returns `false` if it ended
    /// instead.
    fn launch(&self) -> bool {
        let fsync = if self.settings.fsync { "on" } else { "off" };
        let fixed = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", String::new()),
            ("fsync", fsync.to_owned()),
            ("full_page_writes", fsync.to_owned()),
            ("max_connections", "200".to_owned()),
            ("shared_buffers", "128MB".to_owned()),
            ("max_wal_size", "2GB".to_owned()),
        ];
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log can be written");
        let mut server = as_server_user(program("postgres"));
        server.arg("-D").arg(&self.data);
        for (name, value) in fixed.iter().chain(&self.settings.more) {
            server.arg("-c").arg(format!("{name}={value}"));
        }
        // A separate process group: an interrupt from the keyboard goes to the tests only, and
        // their end then stops the server.
        server
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log can be shared"))
            .stderr(log);
        let mut process = server.spawn().expect("the server can be run");
        let mut guardian = waiting_shell(GUARDIAN, process.id().to_string());
        let deadline = Instant::now() + START_TIMEOUT;
        while process.try_wait().expect("the server can be waited for").is_none() {
            if self.is_ready(&process) {
                *self.server.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Server { process, guardian });
                return true;
            }
            assert!(
                Instant::now() < deadline,
                "the server takes too long to start:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        dismiss(&mut guardian);
        false
    }

    /// Whether the server's own file says that it accepts connections, as a standby or not. The
    /// first line is its pid, the eighth its state.
    fn is_ready(&self, process: &Child) -> bool {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&process.id().to_string().as_str())
            && matches!(lines.get(7), Some(&("ready" | "standby")))
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// The log of the server.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
        let _ = fs::remove_dir_all(&self.data);
    }
}

fn pid_of(process: &Child) -> Pid {
    Pid::from_raw(process.id().try_into().expect("a pid is a positive i32"))
}

fn children_of(pid: Pid) -> Vec<Pid> {
    // The file does not exist after the process has ended.
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).map(Pid::from_raw).collect()
}

/// Whether a process still runs. A process that has ended and was not waited for is still listed,
/// as a zombie.
fn is_running(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| !status.contains("State:\tZ"))
}

/// A shell that runs a script when its pipe closes.
fn waiting_shell(script: &str, argument: impl AsRef<OsStr>) -> Child {
    let mut shell = as_server_user("sh");
    shell.args(["-c", script, "sh"]).arg(argument).process_group(0).stdin(Stdio::piped());
    shell.spawn().expect("`sh` can be run")
}

/// Tells a guardian that its server has ended.
fn dismiss(guardian: &mut Child) {
    if let Some(mut pipe) = guardian.stdin.take() {
        writeln!(pipe, "gone").expect("the guardian listens");
    }
    guardian.wait().expect("the guardian can be waited for");
}

struct Folder {
    root: PathBuf,
    /// A cluster without a server. Copying it is faster than creating each cluster anew.
    template: PathBuf,
    /// Its pipe closes when this process ends.
    _remover: Child,
}

/// The folder with all clusters of this process.
fn folder() -> &'static Folder {
    static FOLDER: OnceLock<Folder> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let root = tempfile::Builder::new()
            .prefix("surehook-postgres-")
            .tempdir()
            .expect("a temporary folder can be created")
            .keep();
        if let Some(user) = server_user() {
            std::os::unix::fs::chown(&root, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .expect("root can change the owner of a folder");
        }
        let remover = waiting_shell(REMOVER, &root);
        let template = root.join("template");
        let mut initdb = as_server_user(program("initdb"));
        initdb
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
                "-D",
            ])
            .arg(&template);
        run(&mut initdb);
        Folder { root, template, _remover: remover }
    })
}

/// The folder for the data of the next cluster.
fn new_data_folder() -> PathBuf {
    static CLUSTERS: AtomicU32 = AtomicU32::new(0);
    folder().root.join(format!("cluster-{}", CLUSTERS.fetch_add(1, Ordering::Relaxed)))
}

/// The user that runs the server, if this process must not run it itself.
fn server_user() -> Option<User> {
    Uid::effective().is_root().then(|| {
        User::from_name("postgres").expect("the users can be listed").expect(
            "root needs a user `postgres` that runs PostgreSQL; Debian's package creates one",
        )
    })
}

/// Creates a folder that the server can write to.
///
/// # Panics
///
/// If it cannot be created.
#[must_use]
pub fn folder_for_the_server(path: &Path) -> PathBuf {
    run(as_server_user("mkdir").arg("-p").arg(path));
    path.to_owned()
}

/// A copy of a file that only the server can read, as it demands for its private key.
///
/// # Panics
///
/// If it cannot be made.
#[must_use]
pub fn copy_for_the_server(file: &Path) -> PathBuf {
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let name = format!("copy-{}", COPIES.fetch_add(1, Ordering::Relaxed));
    let copy = folder().root.join(name);
    fs::copy(file, &copy).expect("the file can be copied");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).expect("the copy is ours");
    if let Some(user) = server_user() {
        std::os::unix::fs::chown(&copy, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .expect("root can change the owner of a file");
    }
    copy
}

fn as_server_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
    listener.local_addr().expect("a listener has an address").port()
}

/// The path of one of PostgreSQL's programs: on `PATH`, or where `pg_config` says, or where Debian
/// keeps it.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let on_path: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let configured = Command::new("pg_config")
        .arg("--bindir")
        .output()
        .ok()
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    let debian = versions.into_iter().rev().map(|(_, path)| path);
    let found = on_path
        .into_iter()
        .chain(configured)
        .chain(debian)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "`{name}` not found: install PostgreSQL's server (Debian: apt-get install postgresql)"
        )
    })
}
