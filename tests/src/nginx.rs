//! The real nginx in front of the program, over TLS, with the configuration in `deploy/`. Only its
//! addresses and its certificate are replaced. nginx runs as a single process in a temporary folder,
//! and uses no file of an installed server.

use crate::address::free_address;
use crate::http::Client;
use crate::program::{Target, killed_with_its_thread};
use crate::wait;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// The shipped configuration.
pub const CONFIGURATION: &str = include_str!("../../deploy/nginx.conf");

const AUTHORITY: &[u8] = include_bytes!("../tests/certificates/authority.pem");
const CERTIFICATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates");

/// What the configuration needs around it. Paths are relative to the folder. Each line of the log
/// has the status of each process that was tried.
const AROUND: &str = "daemon off; master_process off; pid pid; error_log error.log;
events {}
http {
    log_format processes '$status: $upstream_status';
    access_log requests.log processes;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    include surehook.conf;
}
";

/// A running nginx. Killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    process: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Nginx {
    /// Starts nginx in front of these processes, and waits until it listens.
    ///
    /// # Panics
    ///
    /// If nginx is not installed, or does not start.
    pub async fn start(processes: &[SocketAddr]) -> Self {
        let (folder, address) = (TempDir::new().expect("a temporary folder"), free_address());
        let server =
            |address: &SocketAddr| format!("server {address}{}", after("server 127.0.0.1:8080"));
        let servers: Vec<String> = processes.iter().map(server).collect();
        let mut configuration = CONFIGURATION.to_owned();
        for (shipped, here) in [
            (&*server(&([127, 0, 0, 1], 8080).into()), servers.join("\n")),
            ("listen 443 ssl;", format!("listen {address} ssl;")),
            ("/etc/ssl/certs/hooks.example.com.pem", format!("{CERTIFICATES}/server.pem")),
            ("/etc/ssl/private/hooks.example.com.key", format!("{CERTIFICATES}/server.key.pem")),
        ] {
            assert_eq!(configuration.matches(shipped).count(), 1, "{shipped}");
            configuration = configuration.replace(shipped, &here);
        }
        for (name, text) in [("nginx.conf", AROUND), ("surehook.conf", &*configuration)] {
            fs::write(folder.path().join(name), text).expect("the folder can be written to");
        }
        let program = program();
        let words = killed_with_its_thread().iter().map(OsStr::new).chain([program.as_os_str()]);
        let words: Vec<&OsStr> = words.collect();
        let started = Command::new(words[0])
            .args(&words[1..])
            .args(["-c", "nginx.conf", "-p"])
            .arg(folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let nginx = Self { process: started.expect("nginx starts"), address, folder };
        wait::until("nginx to listen", || async {
            TcpStream::connect(address).await.map(drop).map_err(|_| nginx.read("error.log"))
        })
        .await;
        nginx
    }

    /// The address for producers.
    #[must_use]
    pub fn target(&self) -> Target {
        let base = format!("https://localhost:{}", self.address.port());
        Target { name: "nginx".to_owned(), base }
    }

    /// A producer's client with its own connections.
    #[must_use]
    pub fn client() -> Client {
        Client::trusting(AUTHORITY)
    }

    /// The number of requests that were sent to more than one process.
    #[must_use]
    pub fn sent_again(&self) -> usize {
        self.read("requests.log").lines().filter(|line| line.contains(',')).count()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Both calls fail only if the process has already ended.
        drop(self.process.kill());
        drop(self.process.wait());
        if std::thread::panicking() {
            let log = self.read("error.log");
            let lines: Vec<&str> = log.lines().take(10).collect();
            eprintln!("--- the beginning of nginx's log ---\n{}", lines.join("\n"));
        }
    }
}

/// The rest of the configuration's line after this text.
fn after(text: &str) -> &'static str {
    let (_, rest) = CONFIGURATION.split_once(text).unwrap_or_else(|| panic!("no `{text}`"));
    rest.lines().next().expect("the line ends")
}

/// The program that `make` has put into the folder `target`, or an installed one.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    std::iter::once(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"))
        .chain(installed)
        .map(|folder| folder.join("nginx"))
        .find(|program| program.exists())
        .expect("nginx is not installed; `make target/nginx` installs it")
}
