//! A private PgBouncer before a cluster. It runs as the cluster's user, because it refuses to run as
//! root, and stops with the process that started it. Its configuration ignores no startup parameter:
//! the program has to do without those that PgBouncer does not know.

use super::{Cluster, as_server_user, folder, free_port, pid_of, run, server_user};
use crate::program::killed_with_its_thread;
use crate::wait;
use nix::sys::signal::{Signal, killpg};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::TcpStream;

/// When a client gives the server's session back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When it disconnects.
    Session,
    /// At the end of each transaction.
    Transaction,
}

/// A running pooler. Killed when dropped.
#[derive(Debug)]
pub struct Pooler {
    process: Child,
    port: u16,
    log: PathBuf,
}

/// Starts a `PgBouncer` that keeps at most `sessions` sessions for each database and role. `more`
/// are further lines of its configuration.
///
/// # Panics
///
/// If it is not installed, or does not start.
pub async fn start(cluster: &Cluster, mode: Mode, sessions: usize, more: &str) -> Pooler {
    let (port, server) = (free_port(), cluster.port());
    let mode = match mode {
        Mode::Session => "session",
        Mode::Transaction => "transaction",
    };
    // Every role may log in that the cluster knows.
    let configuration = format!(
        "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = users\n\
         auth_user = postgres\nauth_query = select usename, passwd from pg_shadow where usename = $1\n\
         pool_mode = {mode}\ndefault_pool_size = {sessions}\nmax_client_conn = 500\n{more}\n"
    );
    let files = [("pgbouncer.ini", &*configuration), ("users", "\"postgres\" \"\"\n")];
    let arguments = ["pgbouncer.ini"];
    Pooler::start(&program(), &arguments, &new_folder("pgbouncer"), &files, port).await
}

/// The folder of the next pooler, which does not exist yet.
pub(super) fn new_folder(name: &str) -> PathBuf {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    folder().root.join(format!("{name}-{}", STARTED.fetch_add(1, Ordering::Relaxed)))
}

impl Pooler {
    /// Starts a program in a new folder with these files, and waits until it listens.
    pub(super) async fn start(
        program: &Path,
        arguments: &[&str],
        folder: &Path,
        files: &[(&str, &str)],
        port: u16,
    ) -> Self {
        fs::create_dir(folder).expect("the folder can be created");
        let log = folder.join("log");
        let output = fs::File::create(&log).expect("a log can be written");
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("the folder can be written to");
        }
        give_to_the_server_user(folder);
        let mut words = killed_with_its_thread().iter().map(Path::new).chain([program]);
        let mut command = as_server_user(words.next().expect("there is a program"));
        command
            .args(words)
            .args(arguments)
            .current_dir(folder)
            // Its own group, so that the processes that it starts end with it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log can be shared"))
            .stderr(output);
        let process = command.spawn().expect("the pooler can be run");
        let pooler = Self { process, port, log };
        wait::until("the pooler to listen", || async {
            TcpStream::connect(("127.0.0.1", port)).await.map(drop).map_err(|_| pooler.log())
        })
        .await;
        pooler
    }

    /// A URL of the cluster's, through this pooler.
    ///
    /// # Panics
    ///
    /// If the URL has no host and port.
    #[must_use]
    pub fn through(&self, url: &str) -> String {
        let (user, rest) = url.split_once('@').expect("a test's URL has a user");
        let (_, database) = rest.split_once('/').expect("a test's URL has a database");
        format!("{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // Both calls fail only if the process has already ended.
        let _ = killpg(pid_of(&self.process), Signal::SIGKILL);
        drop(self.process.wait());
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("--- the end of the pooler's log, backwards ---\n{}", lines.join("\n"));
        }
    }
}

/// Makes a folder readable for the user that runs the servers, who also removes it in the end.
fn give_to_the_server_user(folder: &Path) {
    if let Some(user) = server_user() {
        let owner = format!("{}:{}", user.uid, user.gid);
        run(Command::new("chown").arg("-R").arg(owner).arg(folder));
    }
}

/// The program that `PGBOUNCER` names, or the one that `make` has unpacked into the folder `target`,
/// or an installed one.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("PGBOUNCER") {
        return named.into();
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    if target.join("pgbouncer-package").exists() {
        return copied(&target);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.exists())
        .expect("PgBouncer is not installed; `make target/pgbouncer` installs it")
}

/// A copy of what `make` has unpacked. The user that runs it may not be able to read the original.
fn copied(target: &Path) -> PathBuf {
    static COPIED: OnceLock<PathBuf> = OnceLock::new();
    let copy = || {
        let copy = folder().root.join("pgbouncer");
        fs::create_dir(&copy).expect("the folder can be created");
        for name in ["pgbouncer", "pgbouncer-package"] {
            run(Command::new("cp").arg("-R").arg(target.join(name)).arg(&copy));
        }
        give_to_the_server_user(&copy);
        copy.join("pgbouncer")
    };
    COPIED.get_or_init(copy).clone()
}
