//! The real program as a child process. It is found or built, started on a free port with a
//! configuration in its own folder, and always stopped when the test ends.

pub use crate::address::free_address;
use crate::http::Client;
use crate::recording::Recording;
use crate::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use surehook_model::history::{Fault, What};
use tempfile::TempDir;

/// The environment variable that names an existing program to test, instead of one that is built
/// here. The program refuses it, as each unknown variable of this prefix.
pub const PROGRAM_VARIABLE: &str = "SUREHOOK_PROGRAM";

/// The number of ports that are tried until the program gets one that no other process has taken.
const PORTS_TRIED: u32 = 5;

/// The size of the part of the log that a failed test shows.
const LOG_SHOWN_BYTES: usize = 16 << 10;

/// In an [`Environment`], this name stands for the program's limit of open files instead of a
/// variable. The value is the soft limit, a space, and the hard limit.
pub const OPEN_FILES: &str = "the limit of open files";

/// In an [`Environment`], this name stands for the path of the program that is started instead of
/// [`program`]. A comparison measures two builds.
pub const OTHER_PROGRAM: &str = "another program";

/// Variables of the program's environment.
pub type Environment = &'static [(&'static str, &'static str)];

/// `surehook serve` with its own configuration and port. It keeps the port over restarts.
#[derive(Debug)]
pub struct Service {
    // Dropped first, because its log, which a failed test shows, is in the folder.
    process: Option<Process>,
    address: SocketAddr,
    folder: TempDir,
    environment: Environment,
    /// The listening socket that every start gets, if this is a service with socket activation.
    socket: Option<TcpListener>,
    recorded: Option<(Recording, String)>,
}

impl Service {
    /// Starts the program and waits until it is ready. `configuration` is everything except the
    /// address, the database and the log format: top-level settings first, then tables.
    ///
    /// # Panics
    ///
    /// If it does not become ready. Its log is shown.
    pub async fn start(database: &str, configuration: &str) -> Self {
        let service = Self::begin(database, configuration).await;
        service.ready().await;
        service
    }

    pub(crate) async fn recorded(
        recording: &Recording,
        name: String,
        environment: Environment,
        database: &str,
        configuration: &str,
    ) -> Self {
        let mut service = Self::begin_in(environment, database, configuration).await;
        recording.fault(Fault::Started { process: name.clone() });
        service.recorded = Some((recording.clone(), name));
        service.ready().await;
        service
    }

    /// As [`Self::recorded`], with socket activation: this process holds the listening socket over all
    /// starts, as systemd does.
    pub(crate) async fn activated(
        recording: &Recording,
        name: String,
        database: &str,
        configuration: &str,
    ) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = socket.local_addr().expect("a bound socket has an address");
        write_configuration(folder.path(), address, database, configuration);
        recording.fault(Fault::Started { process: name.clone() });
        let mut service = Self {
            process: None,
            address,
            folder,
            environment: &[],
            socket: Some(socket),
            recorded: Some((recording.clone(), name)),
        };
        service.process = Some(service.spawn("all"));
        service.ready().await;
        service
    }

    fn spawn(&self, role: &str) -> Process {
        let arguments = ["serve", "--config", "surehook.toml", "--role", role];
        match &self.socket {
            Some(socket) => Process::start_on(&[socket], "webhooks", self.folder.path(), arguments),
            None => Process::start_in(self.environment, self.folder.path(), arguments),
        }
    }

    fn record(&self, fault: impl FnOnce(String) -> Fault) {
        if let Some((recording, name)) = &self.recorded {
            recording.fault(fault(name.clone()));
        }
    }

    /// The address for producers, and the name of the process.
    #[must_use]
    pub fn target(&self) -> Target {
        let name = self
            .recorded
            .as_ref()
            .map_or_else(|| "the service".to_owned(), |(_, name)| name.clone());
        Target { name, base: self.url("") }
    }

    /// As [`Self::start`], with these variables in the program's environment.
    ///
    /// # Panics
    ///
    /// If it does not become ready. Its log is shown.
    pub async fn start_in(environment: Environment, database: &str, configuration: &str) -> Self {
        let service = Self::begin_in(environment, database, configuration).await;
        service.ready().await;
        service
    }

    /// Starts the program and waits until it listens, ready or not.
    ///
    /// # Panics
    ///
    /// If it does not. Its log is shown.
    pub async fn begin(database: &str, configuration: &str) -> Self {
        Self::begin_in(&[], database, configuration).await
    }

    /// Starts the program with its log written to `log`, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub async fn start_logging_to(
        log: impl Into<Stdio>,
        environment: Environment,
        database: &str,
        configuration: &str,
    ) -> Self {
        let (folder, address) = (TempDir::new().expect("a temporary folder"), free_address());
        write_configuration(folder.path(), address, database, configuration);
        let mut process = Process::start_logging_to(
            log.into(),
            environment,
            folder.path(),
            ["serve", "--config", "surehook.toml"],
        );
        assert!(process.listens(address).await, "the program ended before it listened");
        let service = Self {
            process: Some(process),
            address,
            folder,
            environment,
            socket: None,
            recorded: None,
        };
        service.ready().await;
        service
    }

    async fn begin_in(environment: Environment, database: &str, configuration: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        for _ in 0..PORTS_TRIED {
            let address = free_address();
            write_configuration(folder.path(), address, database, configuration);
            let mut process = Process::start_in(
                environment,
                folder.path(),
                ["serve", "--config", "surehook.toml"],
            );
            if process.listens(address).await {
                return Self {
                    process: Some(process),
                    address,
                    folder,
                    environment,
                    socket: None,
                    recorded: None,
                };
            }
            let log = process.log();
            assert!(log.contains("in use"), "the program ended before it listened:\n{log}");
        }
        panic!("no free port found in {PORTS_TRIED} tries");
    }

    /// Starts the program again in the same place, after it has ended, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it still runs, or does not become ready.
    pub async fn restart(&mut self) {
        self.restart_as("all").await;
    }

    /// As [`Self::restart`], in another role.
    ///
    /// # Panics
    ///
    /// If it still runs, or does not become ready.
    pub async fn restart_as(&mut self, role: &str) {
        assert!(self.process.is_none(), "the program still runs");
        self.record(|process| Fault::Started { process });
        let mut process = self.spawn(role);
        assert!(
            process.listens(self.address).await,
            "the program ended before it listened:\n{}",
            process.log()
        );
        self.process = Some(process);
        self.ready().await;
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path (`""`: the base).
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The resources that it uses now.
    ///
    /// # Panics
    ///
    /// If it is not running, or the system has no figures.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage::of(self.process.as_ref().expect("the program runs").child.id())
    }

    /// Its limits of open files: soft and hard.
    ///
    /// # Panics
    ///
    /// If it is not running, or the system has no figures.
    #[must_use]
    pub fn open_files(&self) -> (u64, u64) {
        let pid = self.process.as_ref().expect("the program runs").child.id();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))
            .expect("the process has a folder in /proc");
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))
            .expect("every process has this limit");
        let mut figures =
            line.split_whitespace().map(|figure| figure.parse().expect("the field is a number"));
        (figures.next().expect("a soft limit"), figures.next().expect("a hard limit"))
    }

    /// Whether it was started and since then neither killed nor waited for.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Sends a signal to it.
    ///
    /// # Panics
    ///
    /// If it is not running.
    pub fn signal(&self, signal: Signal) {
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT) {
            self.record(|process| Fault::Draining { process });
        }
        self.process.as_ref().expect("the program runs").signal(signal);
    }

    /// Replaces its configuration (everything except the address, the database and the log format),
    /// and tells it to reload. Returns the lines of its log that say what it did.
    ///
    /// # Panics
    ///
    /// If it is not running, or does not say.
    pub async fn reload(&self, configuration: &str) -> Vec<Value> {
        let file = self.folder.path().join("surehook.toml");
        let present = fs::read_to_string(&file).expect("the configuration was written");
        let kept: Vec<&str> = present.lines().take(LINES_OF_SERVICE).collect();
        fs::write(&file, format!("{}\n{configuration}", kept.join("\n")))
            .expect("the folder can be written to");
        let before = self.reloads().len();
        self.record(|process| Fault::Reloaded { process });
        self.signal(Signal::SIGHUP);
        wait::until("the reload", || async {
            let lines = self.reloads().split_off(before);
            if lines.is_empty() { Err("it is not in the log".to_owned()) } else { Ok(lines) }
        })
        .await
    }

    /// The lines of its log about reloads.
    fn reloads(&self) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["target"] == "surehook::reload").collect()
    }

    /// Suspends the process, as a machine that swaps or is migrated does, and resumes it.
    ///
    /// # Panics
    ///
    /// If it is not running.
    pub async fn pause(&self, duration: Duration) {
        self.pause_while(tokio::time::sleep(duration)).await;
    }

    /// As [`Self::pause`], until the future `meanwhile` completes.
    ///
    /// # Panics
    ///
    /// If it is not running.
    pub async fn pause_while<T>(&self, meanwhile: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        self.signal(Signal::SIGSTOP);
        let result = meanwhile.await;
        let duration = begun.elapsed();
        if let Some((recording, name)) = &self.recorded {
            let at = recording.elapsed().saturating_sub(duration);
            recording.record_at(at, What::Fault(Fault::Paused { process: name.clone(), duration }));
        }
        self.signal(Signal::SIGCONT);
        result
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Panics
    ///
    /// If it is not running.
    pub fn kill(&mut self) {
        let process = self.process.take().expect("the program runs");
        match &self.recorded {
            Some((recording, name)) => recording.while_killed(name, || process.kill()),
            None => process.kill(),
        }
    }

    /// Waits until it exits.
    ///
    /// # Panics
    ///
    /// If it is not running, or does not exit in time. Its log is shown.
    pub async fn wait(&mut self, time_limit: Duration) -> ExitStatus {
        let status = self.process.as_mut().expect("the program runs").wait(time_limit).await;
        self.process = None;
        self.record(|process| Fault::Exited { process });
        status
    }

    /// Waits for at most `time` for it to exit.
    ///
    /// # Panics
    ///
    /// If it is not running.
    pub async fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let process = self.process.as_mut().expect("the program runs");
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = process.child.try_wait().expect("a child can be waited for") {
                self.process = None;
                self.record(|process| Fault::Exited { process });
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until `GET /ready` answers `200`.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub async fn ready(&self) {
        let (client, url) = (Client::default(), self.url("/ready"));
        wait::until("the program to be ready", || async {
            let answer = client.get(&url).await?;
            if answer.status_code == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
    }

    /// Waits until its log contains `words`.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub async fn logs(&self, words: &str) {
        wait::until("the line of the log", || async {
            let log = self.log();
            if log.contains(words) { Ok(()) } else { Err(format!("no `{words}` in:\n{log}")) }
        })
        .await;
    }

    /// Everything that it has logged so far, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(self.folder.path())
    }

    /// The lines of its log that show a defect of the program: panics, and errors that the program
    /// itself logged.
    #[must_use]
    pub fn mishaps(&self) -> Vec<String> {
        let is_own_error = |line: &str| {
            line.contains(r#""level":"ERROR""#) && line.contains(r#""target":"surehook"#)
        };
        self.log()
            .lines()
            .filter(|line| line.contains("panic") || is_own_error(line))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some((recording, name)) = self.recorded.take_if(|_| std::thread::panicking()) {
            recording.failure().keep(&format!("{name}.log"), &self.log());
            recording.keep();
        }
    }
}

/// The resources that a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// The peak of resident memory, in bytes.
    pub peak_bytes: u64,
    pub descriptors: usize,
    pub threads: u64,
    /// CPU time of all cores together.
    pub cpu: Duration,
}

impl Usage {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .expect("the process has a folder in /proc");
        let figure = |name: &str| -> u64 {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .expect("every process has these figures");
            line.split_whitespace()
                .next()
                .and_then(|figure| figure.parse().ok())
                .expect("the field is a number")
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("the process has a folder in /proc")
            .count();
        let (resident_bytes, peak_bytes) = (figure("VmRSS:") << 10, figure("VmHWM:") << 10);
        Self {
            resident_bytes,
            peak_bytes,
            descriptors,
            threads: figure("Threads:"),
            cpu: cpu_of(pid, false),
        }
    }
}

/// The CPU time of a process, and optionally of its children that have ended. Zero once the process
/// is gone.
pub(crate) fn cpu_of(pid: u32, with_ended_children: bool) -> Duration {
    // The kernel's documentation counts the fields from 1. The second is the name, which can
    // contain any characters. The unit is 1/100 s wherever Linux runs.
    const MILLIS: u64 = 10;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let ticks: u64 = fields.iter().skip(11).take(if with_ended_children { 4 } else { 2 }).sum();
    Duration::from_millis(ticks * MILLIS)
}

/// A shell script that runs the rest of the command line under a limit of open files (`$0`).
const LIMITED: &str = "set -e; ulimit -Sn ${0% *}; ulimit -Hn ${0#* }; exec \"$@\"";

/// A shell script that runs another program (`$0`) with the arguments of the given one.
const INSTEAD: &str = "shift; exec \"$0\" \"$@\"";

/// A shell script that runs the rest of the command line with one or two listening sockets (`$0`),
/// which are its standard input and output. `$1` are their names. The process keeps its id, which
/// `LISTEN_PID` must name.
const ACTIVATED: &str = "set -e; count=$0; names=$1; shift; exec 3<&0 4>&1 </dev/null >&2; \
    [ \"$count\" = 2 ] || exec 4>&-; \
    export LISTEN_FDS=$count LISTEN_FDNAMES=$names LISTEN_PID=$$; \
    exec env --default-signal=HUP \"$@\"";

/// An address for producers.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name of the process.
    pub name: String,
    /// Its URL without a path.
    pub base: String,
}

/// Runs a command of the program until it exits.
///
/// # Panics
///
/// If it cannot be started.
#[must_use]
pub fn run<S: AsRef<OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = S>) -> Output {
    run_in(&[], folder, arguments)
}

/// As [`run`], with more variables in the environment.
///
/// # Panics
///
/// If it cannot be started.
#[must_use]
pub fn run_in<S: AsRef<OsStr>>(
    environment: Environment,
    folder: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Output {
    command(folder)
        .envs(environment.iter().copied())
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// One run of the program. Killed when dropped, and by the kernel when the test process ends in any
/// other way.
#[derive(Debug)]
pub struct Process {
    folder: PathBuf,
    child: Child,
}

impl Process {
    /// Starts the program in a folder. Its log is the file `log` there.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn start<S: AsRef<OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        Self::start_in(&[], folder, arguments)
    }

    /// As [`Self::start`], with more variables in the environment.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn start_in<S: AsRef<OsStr>>(
        environment: Environment,
        folder: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        Self::start_logging_to(log_file(folder).into(), environment, folder, arguments)
    }

    /// Starts the program with these listening sockets, one or two, as systemd passes them. `names` are
    /// separated by colons. If the folder has a socket `notify`, the program reports its state there.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn start_on<S: AsRef<OsStr>>(
        sockets: &[&TcpListener],
        names: &str,
        folder: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        let count = sockets.len().to_string();
        let mut command = command_by(folder, &["/bin/sh", "-c", ACTIVATED, &count, names]);
        let mut copies = sockets.iter().map(|socket| -> OwnedFd {
            socket.try_clone().expect("a socket can be duplicated").into()
        });
        command.stdin(copies.next().expect("at least one socket"));
        // The shell closes what is not a socket.
        command.stdout(copies.next().map_or_else(|| log_file(folder).into(), Stdio::from));
        let notify = folder.join("notify");
        command.env_remove("NOTIFY_SOCKET");
        if notify.exists() {
            command.env("NOTIFY_SOCKET", notify);
        }
        let child = command.args(arguments).stderr(log_file(folder)).spawn();
        Self { folder: folder.to_owned(), child: child.expect("the program starts") }
    }

    fn start_logging_to<S: AsRef<OsStr>>(
        log: Stdio,
        environment: Environment,
        folder: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        let (mut by, mut variables) = (Vec::new(), Vec::new());
        for (name, value) in environment {
            match *name {
                OPEN_FILES => by.extend(["/bin/sh", "-c", LIMITED, value]),
                OTHER_PROGRAM => by.extend(["/bin/sh", "-c", INSTEAD, value]),
                name => variables.push((name, value)),
            }
        }
        let mut command = command_by(folder, &by);
        let child =
            command.envs(variables).args(arguments).stdout(log_file(folder)).stderr(log).spawn();
        Self { folder: folder.to_owned(), child: child.expect("the program starts") }
    }

    /// Everything that was logged in this folder.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(&self.folder)
    }

    /// Waits until the address accepts connections. Returns `false` if the program ends before
    /// that.
    ///
    /// # Panics
    ///
    /// If neither happens in time.
    pub async fn listens(&mut self, address: SocketAddr) -> bool {
        let child = std::sync::Mutex::new(&mut self.child);
        let url = format!("http://{address}/health");
        let client = Client::default();
        wait::until("the program to listen", || async {
            if child
                .lock()
                .expect("no thread panicked with the lock")
                .try_wait()
                .expect("a child can be waited for")
                .is_some()
            {
                return Ok(false);
            }
            client.get(&url).await.map(|_| true)
        })
        .await
    }

    /// Waits until it exits.
    ///
    /// # Panics
    ///
    /// If it does not exit in time.
    pub async fn wait(&mut self, time_limit: Duration) -> ExitStatus {
        let child = std::sync::Mutex::new(&mut self.child);
        wait::within(time_limit, "the program to end", || async {
            let status = child
                .lock()
                .expect("no thread panicked with the lock")
                .try_wait()
                .expect("a child can be waited for");
            status.ok_or_else(|| "it runs".to_owned())
        })
        .await
    }

    /// Sends a signal to it.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id is an i32");
        kill(Pid::from_raw(pid), signal).expect("the program runs");
    }

    /// Kills it, as `kill -9` does.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both calls fail only if the process has already ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let log = self.log();
            let mut from = log.len().saturating_sub(LOG_SHOWN_BYTES);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            eprintln!("--- the end of the program's log ---\n{}", &log[from..]);
        }
    }
}

/// The lines that [`write_configuration`] adds.
const LINES_OF_SERVICE: usize = 3;

fn write_configuration(folder: &Path, address: SocketAddr, database: &str, configuration: &str) {
    let text = format!(
        "listen = \"{address}\"\ndatabase = \"{database}\"\nlog = \"json\"\n{configuration}"
    );
    fs::write(folder.join("surehook.toml"), text).expect("the folder can be written to");
}

fn log_file(folder: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .expect("the folder can be written to")
}

fn read_log(folder: &Path) -> String {
    fs::read(folder.join("log"))
        .map(|log| String::from_utf8_lossy(&log).into_owned())
        .unwrap_or_default()
}

/// The program, to be run in `folder`, which also holds its temporary files, and isolated from the
/// environment of the tests. If util-linux's `setpriv` is installed, the kernel kills the program
/// when the thread that started it ends, in whatever way.
fn command(folder: &Path) -> Command {
    command_by(folder, &[])
}

/// As [`command`], but started by another program. `by` is that program and its arguments.
fn command_by(folder: &Path, by: &[&str]) -> Command {
    let program = program();
    let mut words =
        killed_with_its_thread().iter().chain(by).map(OsStr::new).chain([program.as_ref()]);
    let mut command = Command::new(words.next().expect("at least the program"));
    command.args(words);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SUREHOOK_") {
            command.env_remove(name);
        }
    }
    command.current_dir(folder).env("TMPDIR", folder).stdin(Stdio::null());
    command
}

/// A command line that starts another program, which the kernel kills when the thread that started it
/// ends. Empty if util-linux's `setpriv` is not installed.
pub(crate) fn killed_with_its_thread() -> &'static [&'static str] {
    const SETPRIV: &str = "/usr/bin/setpriv";
    if Path::new(SETPRIV).exists() { &[SETPRIV, "--pdeathsig", "KILL", "--"] } else { &[] }
}

/// The path of the program: the one that `SUREHOOK_PROGRAM` names, or the workspace's own, which
/// cargo builds first. Cargo does not build the program of another package for these tests, and no
/// longer holds its lock when they run.
///
/// # Panics
///
/// If it cannot be built.
#[must_use]
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| std::env::var_os(PROGRAM_VARIABLE).map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let mut cargo = cargo();
    cargo.args([
        "build",
        "--package",
        "surehook",
        "--bin",
        "surehook",
        "--locked",
        "--message-format=json-render-diagnostics",
    ]);
    // The test's path is `target/PROFILE/deps/TEST`. The program is built with the same profile.
    let test = std::env::current_exe().expect("a test knows its path");
    let profile = test
        .ancestors()
        .nth(2)
        .and_then(Path::file_name)
        .and_then(OsStr::to_str)
        .unwrap_or("debug");
    if profile != "debug" {
        cargo.args(["--profile", profile]);
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo could not build the program: {}", output.status);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program that it built")
}

/// Cargo, in the workspace: the one that runs these tests, or the one on `PATH`. The variables that
/// cargo set for the package of these tests are removed. Some build scripts would treat them as a
/// change, and everything would be compiled again, alternately here and there.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "what is expected cannot fail")]
pub fn cargo() -> Command {
    const OF_THE_PACKAGE: [&str; 7] = [
        "CARGO_BIN_",
        "CARGO_CRATE_NAME",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_TMPDIR",
        "OUT_DIR",
    ];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if OF_THE_PACKAGE.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace"),
    );
    cargo
}
