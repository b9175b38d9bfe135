//! Three PostgreSQL servers under Patroni, which promotes a standby when the leader fails, with one
//! etcd for consensus. All of it is private: on free ports of 127.0.0.1, in a temporary folder, and
//! removed with this process.
//!
//! Every commit waits for one standby (`synchronous_mode_strict`), so that a standby that can be
//! promoted has everything that was acknowledged.

use super::{
    as_server_user, children_of, dismiss, folder_for_the_server, free_port, is_running,
    new_data_folder, program, waiting_shell,
};
use crate::http::Client;
use crate::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::iter;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The time to live of the leader's key. Patroni accepts no smaller value.
pub const TTL: Duration = Duration::from_secs(20);
/// How often Patroni runs its control loop.
pub const LOOP_WAIT: Duration = Duration::from_secs(5);
/// How long Patroni retries a call to etcd or PostgreSQL.
pub const RETRY_TIMEOUT: Duration = Duration::from_secs(5);

/// The time limit until each server follows the leader.
const TIMEOUT: Duration = Duration::from_mins(3);

/// Stops a program, and the server that it has started as a daemon, if its pipe closes without a
/// message.
const GUARDIAN: &str = r#"
read -r word
[ "$word" = gone ] && exit
kill -KILL "${1%%:*}"
data="${1#*:}"
[ -f "$data/postmaster.pid" ] && kill -QUIT "$(head -n 1 "$data/postmaster.pid")"
"#;

/// How a leader is killed, in both cases by `kill -9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The server, all of its processes, and its Patroni: as when a machine fails.
    Machine,
    /// The server and all of its processes. Its Patroni notices it.
    Server,
}

#[derive(Debug)]
pub struct Patroni {
    nodes: Vec<Node>,
    // Dropped last, because the servers give up their roles without it.
    _etcd: Guarded,
}

/// One server and its Patroni.
#[derive(Debug)]
struct Node {
    name: String,
    port: u16,
    api_port: u16,
    data: PathBuf,
    configuration: PathBuf,
    patroni: Option<Guarded>,
}

/// A program that ends with this process, together with the server that it may have started.
#[derive(Debug)]
struct Guarded {
    process: Child,
    guardian: Child,
    data: Option<PathBuf>,
}

impl Patroni {
    /// Starts etcd and three servers, and waits until they are one cluster.
    ///
    /// # Panics
    ///
    /// If a program is not installed, or the servers do not become one cluster.
    pub async fn start() -> Self {
        let folder = folder_for_the_server(&new_data_folder());
        let (client_port, peer_port) = (free_port(), free_port());
        let (client, peer) =
            (format!("http://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
        let mut etcd = as_server_user("etcd");
        etcd.arg("--data-dir").arg(folder.join("etcd"));
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &format!("default={peer}")]);
        let etcd = Guarded::start(etcd, &folder.join("etcd.log"), None);
        let mut patroni = Self { nodes: Vec::new(), _etcd: etcd };
        for number in 1..=3 {
            let mut node = Node::new(number, &folder, client_port);
            node.begin();
            patroni.nodes.push(node);
        }
        patroni.whole().await;
        patroni
    }

    /// The URL of a database of these servers, in the form with several hosts.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let hosts: Vec<String> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!(
            "postgres://postgres@{}/{database}?target_session_attrs=read-write",
            hosts.join(",")
        )
    }

    /// Kills a node. [`Self::whole`] returns the name of the leader.
    ///
    /// # Panics
    ///
    /// If there is no such node, or it does not end.
    pub fn kill(&mut self, name: &str, death: Death) {
        let node =
            self.nodes.iter_mut().find(|node| node.name == name).expect("a node of this name");
        if death == Death::Machine
            && let Some(mut patroni) = node.patroni.take()
        {
            // Patroni is killed first, because it would start the server again. Its guard must not
            // stop the server, because the server is to be killed.
            patroni.data = None;
            drop(patroni);
        }
        signal_server(&node.data, Signal::SIGKILL);
    }

    /// Starts what was killed, and waits as [`Self::whole`] does.
    ///
    /// # Panics
    ///
    /// If the cluster is not complete in time.
    pub async fn heal(&mut self) -> (String, u64) {
        for node in self.nodes.iter_mut().filter(|node| node.patroni.is_none()) {
            node.begin();
        }
        self.whole().await
    }

    /// Waits until one server leads, two follow it, and commits wait for one of these. Returns the
    /// leader's name and its timeline.
    ///
    /// # Panics
    ///
    /// If the cluster is not complete in time.
    pub async fn whole(&self) -> (String, u64) {
        let client = Client::default();
        let begun = Instant::now();
        loop {
            let last = match self.look(&client).await {
                Ok(found) => return found,
                Err(last) => last,
            };
            if begun.elapsed() > TIMEOUT {
                let logs: Vec<String> = self.nodes.iter().map(Node::log_end).collect();
                panic!(
                    "waited {TIMEOUT:?} for three servers to be one cluster; last seen: {last}\n{}",
                    logs.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Queries each running Patroni. All of them must report the same leader and timeline.
    async fn look(&self, client: &Client) -> Result<(String, u64), String> {
        let mut seen = Err("no Patroni runs".to_owned());
        for node in self.nodes.iter().filter(|node| node.patroni.is_some()) {
            let answer = client.get(&format!("http://127.0.0.1:{}/cluster", node.api_port)).await?;
            let now = one_cluster(&answer.json())?;
            if seen.as_ref().is_ok_and(|before| *before != now) {
                return Err(format!("{seen:?} and {now:?}"));
            }
            seen = Ok(now);
        }
        seen
    }
}

/// The leader and its timeline, if all three servers run on that timeline and commits wait for one
/// of them.
fn one_cluster(told: &Value) -> Result<(String, u64), String> {
    let members = told["members"].as_array().ok_or_else(|| format!("no members: {told}"))?;
    let running = members
        .iter()
        .filter(|member| matches!(member["state"].as_str(), Some("running" | "streaming")))
        .count();
    let role = |wanted: &str| members.iter().find(|member| member["role"] == wanted);
    let leader = role("leader").ok_or_else(|| format!("no leader: {told}"))?;
    let timeline = leader["timeline"]
        .as_u64()
        .ok_or_else(|| format!("a leader without a timeline: {told}"))?;
    let is_together = members.iter().all(|member| member["timeline"] == timeline);
    if running == 3 && is_together && role("sync_standby").is_some() {
        Ok((leader["name"].as_str().unwrap_or_default().to_owned(), timeline))
    } else {
        Err(told.to_string())
    }
}

impl Node {
    fn new(number: usize, folder: &Path, etcd_port: u16) -> Self {
        let name = format!("node-{number}");
        let (port, api_port) = (free_port(), free_port());
        let data = folder.join(&name);
        let address = |port: u16| format!("127.0.0.1:{port}");
        let server = program("postgres");
        let server = fs::canonicalize(&server).unwrap_or(server);
        // JSON is valid YAML.
        let configuration = json!({
            "scope": "surehook",
            "name": name,
            "restapi": { "listen": address(api_port), "connect_address": address(api_port) },
            "etcd3": { "host": address(etcd_port) },
            "bootstrap": {
                "dcs": {
                    "ttl": TTL.as_secs(),
                    "loop_wait": LOOP_WAIT.as_secs(),
                    "retry_timeout": RETRY_TIMEOUT.as_secs(),
                    "synchronous_mode": true,
                    "synchronous_mode_strict": true,
                    "postgresql": {
                        "use_pg_rewind": true,
                        "parameters": { "wal_log_hints": "on", "max_connections": 100, "synchronous_commit": "on" },
                    },
                },
                "initdb": [{ "encoding": "UTF8" }, { "locale": "C" }, "data-checksums"],
            },
            "postgresql": {
                "listen": address(port),
                "connect_address": address(port),
                "data_dir": data,
                "bin_dir": server.parent(),
                "pgpass": folder.join(format!("{name}.pgpass")),
                "remove_data_directory_on_rewind_failure": true,
                "remove_data_directory_on_diverged_timelines": true,
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust", "local all all trust"],
                "authentication": {
                    "superuser": { "username": "postgres" },
                    "replication": { "username": "postgres" },
                    "rewind": { "username": "postgres" },
                },
                "parameters": { "unix_socket_directories": folder, "shared_buffers": "64MB" },
            },
        });
        let file = folder.join(format!("{name}.yml"));
        fs::write(&file, configuration.to_string()).expect("the folder can be written to");
        Self { name, port, api_port, data, configuration: file, patroni: None }
    }

    fn begin(&mut self) {
        let mut patroni = as_server_user("patroni");
        patroni.arg(&self.configuration);
        self.patroni = Some(Guarded::start(patroni, &self.log_path(), Some(&self.data)));
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("{}:\n{}", self.name, lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Guarded {
    fn start(mut program: Command, log: &Path, data: Option<&Path>) -> Self {
        let file =
            File::options().create(true).append(true).open(log).expect("a log can be written");
        program
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log can be shared"))
            .stderr(file);
        let process = program.spawn().unwrap_or_else(|error| panic!("{program:?}: {error}"));
        let guardian = waiting_shell(
            GUARDIAN,
            format!("{}:{}", process.id(), data.unwrap_or(Path::new("")).display()),
        );
        Self { process, guardian, data: data.map(Path::to_owned) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(data) = &self.data {
            signal_server(data, Signal::SIGQUIT);
        }
        dismiss(&mut self.guardian);
    }
}

/// Signals a server that is not a child of this process, and all of its processes, and waits until
/// they have ended.
fn signal_server(data: &Path, signal: Signal) {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let Some(server) =
        file.lines().next().and_then(|pid| pid.trim().parse().ok()).map(Pid::from_raw)
    else {
        return;
    };
    // The file can be out of date, and its pid can belong to another process.
    let line = fs::read_to_string(format!("/proc/{server}/cmdline")).unwrap_or_default();
    if !line.contains(&*data.to_string_lossy()) {
        return;
    }
    let processes: Vec<Pid> = iter::once(server).chain(children_of(server)).collect();
    for &process in &processes {
        // A process that has just ended needs no signal.
        let _ = kill(process, signal);
    }
    let begun = Instant::now();
    while processes.iter().any(|&process| is_running(process)) {
        assert!(begun.elapsed() < wait::TIMEOUT, "the server's processes did not end in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}
