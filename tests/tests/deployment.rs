//! The files in `deploy/`: unchanged, they publish only the routes for producers, and restart the
//! program whenever it ends.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use tests::http::Client;
use tests::program::{Environment, Process, free_address, program, run_in};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const DOCKERFILE: &str = include_str!("../../deploy/Dockerfile");
const COMPOSE: &str = include_str!("../../deploy/compose.yaml");
const UNIT: &str = include_str!("../../deploy/surehook.service");
const NGINX: &str = include_str!("../../deploy/nginx.conf");
const CADDY: &str = include_str!("../../deploy/Caddyfile");
const README: &str = include_str!("../../README.md");
const SOCKET: &str = include_str!("../../deploy/surehook.socket");
const PRODUCERS: &str = ":8080";

/// The image's environment, from the `ENV` instruction of its last stage.
fn image() -> BTreeMap<&'static str, &'static str> {
    let (_, instruction) = DOCKERFILE.split_once("\nENV ").expect("the image has an environment");
    let lines = instruction.split_inclusive('\n').scan(true, |goes_on, line| {
        let is_of_it = std::mem::replace(goes_on, line.trim_end().ends_with('\\'));
        is_of_it.then(|| line.trim().trim_end_matches('\\').trim_end())
    });
    lines.map(|line| line.split_once('=').expect("NAME=value")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_port_of_the_image_has_no_operators_routes() {
    let image = image();
    let documented =
        DOCKERFILE.lines().filter(|line| line.starts_with("#     docker run ")).collect::<Vec<_>>();
    assert!(documented.len() == 1 && documented[0].contains(" -p 8080:8080 "), "{documented:?}");
    assert!(image["SUREHOOK_LISTEN"].ends_with(PRODUCERS), "{image:?}");
    let inside: SocketAddr = image["SUREHOOK_OPERATOR_LISTEN"].parse().expect("an address");
    assert!(
        inside.ip().is_loopback() && image["SUREHOOK_URL"] == format!("http://{inside}"),
        "{image:?}"
    );

    // The same environment, on ports that are free here.
    let (published, operators) = (free_address(), free_address());
    let folder = folder();
    let environment = leaked(&[
        ("SUREHOOK_CONFIG", "surehook.toml".to_owned()),
        ("SUREHOOK_LISTEN", published.to_string()),
        (
            "SUREHOOK_OPERATOR_LISTEN",
            image["SUREHOOK_OPERATOR_LISTEN"].replace(":9090", &format!(":{}", operators.port())),
        ),
        ("SUREHOOK_URL", image["SUREHOOK_URL"].replace(":9090", &format!(":{}", operators.port()))),
        ("SUREHOOK_LOG", image["SUREHOOK_LOG"].to_owned()),
    ]);
    assert_eq!(
        environment.len(),
        image.len(),
        "this test does not set every variable of the image: {image:?}"
    );
    let mut process = Process::start_in(environment, folder.path(), ["serve"]);
    assert!(process.listens(published).await, "{}", process.log());
    let client = Client::default();
    for (path, status_code) in
        [("/health", 200), ("/ready", 200), ("/events", 404), ("/sources", 404), ("/metrics", 404)]
    {
        let answer = client.get(&format!("http://{published}{path}")).await.expect("a response");
        assert_eq!(answer.status_code, status_code, "{path}");
    }
    // `docker exec … surehook sources` and the health check.
    let told = |arguments: Vec<String>| run_in(environment, folder.path(), arguments);
    let sources = told(vec!["sources".to_owned()]);
    assert!(
        sources.status.success() && String::from_utf8_lossy(&sources.stdout).contains("orders"),
        "{sources:?}"
    );
    let (_, check) = DOCKERFILE.split_once("CMD [\"surehook\", ").expect("a health check");
    let check: Vec<String> = serde_json::from_str(&format!(
        "[{}",
        check.lines().next().expect("the health check has a line")
    ))
    .expect("the health check is a list of strings");
    let check =
        check.iter().map(|word| word.replace("127.0.0.1:8080", &published.to_string())).collect();
    let health = told(check);
    assert!(health.status.success(), "{health:?}");
}

#[test]
fn compose_publishes_the_operators_routes_on_loopback_only() {
    let ports: Vec<&str> = COMPOSE
        .lines()
        .map(str::trim)
        .filter_map(|line| line.strip_prefix("- \"")?.strip_suffix('"'))
        .collect();
    let published: Vec<&&str> = ports
        .iter()
        .filter(|port| port.contains(':') && port.ends_with(|c: char| c.is_ascii_digit()))
        .collect();
    assert_eq!(published, [&"8080:8080", &"127.0.0.1:9090:9090"]);
    assert!(
        COMPOSE.contains("SUREHOOK_OPERATOR_LISTEN: 0.0.0.0:9090")
            && !COMPOSE.contains("SUREHOOK_OPERATOR_LISTEN: \"\"")
    );
}

#[test]
fn a_container_has_more_time_to_stop_than_the_drain_needs() {
    let drain = surehook::config::Config::default().drain_timeout.as_secs();
    let after = |text: &str, name: &str| -> u64 {
        let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no `{name}`"));
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number of seconds")
    };
    for text in [DOCKERFILE, README] {
        assert!(after(text, "--stop-timeout") > drain);
    }
    let (_, intake) = COMPOSE.split_once("\n  intake:").expect("a service for the intake");
    assert!(after(intake, "stop_grace_period:") > drain);
    assert!(after(UNIT, "TimeoutStopSec=") > drain);
}

#[test]
fn passwords_of_compose_can_have_any_characters() {
    assert!(COMPOSE.contains("SUREHOOK_DATABASE: postgres://surehook@database/surehook"));
    assert_eq!(COMPOSE.matches("PGPASSWORD: ${POSTGRES_PASSWORD").count(), 1);
    assert!(!COMPOSE.contains(":${POSTGRES_PASSWORD"), "a password is part of a URL");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_used_as_it_is_in_pgpassword_and_decoded_in_a_url() {
    const PASSWORD: &str = "p@ss/w:#%$?";
    for (user, variables) in
        [("u", vec![("PGPASSWORD", PASSWORD.to_owned())]), ("u:p%40ss%2Fw%3A%23%25%24%3F", vec![])]
    {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = server.local_addr().expect("it listens").port();
        let url = format!("postgres://{user}@127.0.0.1:{port}/surehook?sslmode=disable");
        let environment = [vec![("SUREHOOK_DATABASE", url)], variables].concat();
        let folder = folder();
        let migrate = tokio::task::spawn_blocking(move || {
            run_in(leaked(&environment), folder.path(), ["migrate"])
        });
        assert_eq!(password(&server).await, PASSWORD, "{user}");
        drop(server);
        assert!(!migrate.await.expect("the program ran").status.success());
    }
}

/// Requests the password from a client of PostgreSQL, and closes the connection.
async fn password(server: &TcpListener) -> String {
    let (mut client, _) = server.accept().await.expect("a connection");
    let startup = client.read_u32().await.expect("the length of the startup message") as usize;
    client.read_exact(&mut vec![0; startup - 4]).await.expect("the startup message");
    // AuthenticationCleartextPassword.
    client.write_all(b"R\0\0\0\x08\0\0\0\x03").await.expect("the client reads");
    assert_eq!(client.read_u8().await.expect("a message"), b'p');
    let length = client.read_u32().await.expect("its length") as usize;
    let mut password = vec![0; length - 4];
    client.read_exact(&mut password).await.expect("the password");
    String::from_utf8(password).expect("text").trim_end_matches('\0').to_owned()
}

#[test]
fn the_credential_of_the_unit_is_a_valid_reference() {
    let (_, rest) = UNIT.split_once("\"${file:/run/credentials/surehook.service/").expect("a path");
    let (name, _) = rest.split_once('}').expect("the end of the reference");
    assert!(UNIT.contains(&format!("LoadCredential={name}:/etc/surehook/{name}\n")), "{name}");
}

/// What the proxies pass on is compared with the README, whose shorter form is the same.
#[test]
fn the_proxies_pass_on_only_posts_to_webhooks() {
    let lines = |text: &'static str| {
        let lines = text.lines().map(|line| line.split("    #").next().unwrap_or(line).trim());
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>()
    };
    let (nginx, caddy) = (lines(NGINX), lines(CADDY));
    let block = |language: &str, marker: &str| -> Vec<&'static str> {
        let mut blocks = README.split("```").filter(|block| block.contains(marker));
        let block = blocks.next().unwrap_or_else(|| panic!("no block with `{marker}`"));
        lines(block.strip_prefix(language).unwrap_or(block))
    };
    for line in block("nginx", "limit_except") {
        let is_there = nginx.contains(&line) || line == "proxy_pass http://127.0.0.1:8080;";
        assert!(is_there, "`{line}` is not in nginx.conf: {nginx:?}");
    }
    assert_eq!(block("", "@webhook"), caddy);
    assert_eq!(nginx.iter().filter(|line| line.starts_with("location")).count(), 2);
    assert!(nginx.contains(&"location / { return 404; }") && caddy.contains(&"respond 404"));
}

#[test]
fn systemd_always_restarts_the_unit() {
    let unit = UNIT.split("\n[Service]").next().expect("the unit has a first section");
    assert!(
        unit.lines().any(|line| line == "StartLimitIntervalSec=0"),
        "systemd reads `StartLimitIntervalSec` only in [Unit]"
    );
    assert!(UNIT.lines().any(|line| line == "Restart=always"));
}

#[test]
fn systemd_passes_the_socket_and_is_told_the_state() {
    for line in ["Type=notify", "Sockets=surehook.socket", "TimeoutStartSec=infinity"] {
        assert!(UNIT.lines().any(|other| other == line), "{line}");
    }
    let name = format!("FileDescriptorName={}", surehook::systemd::WEBHOOKS);
    assert!(SOCKET.lines().any(|line| line == name), "{name}");
    let listen = format!("ListenStream={}", surehook::config::Config::default().listen);
    assert!(SOCKET.lines().any(|line| line == listen), "{listen}");
}

/// The levels range from 0 (all restrictions) to 10.
#[test]
fn systemd_rates_the_exposure_of_the_unit_as_low() {
    const HIGHEST_IN_TENTHS: &str = "--threshold=20";
    let Some(mut analyze) = systemd_analyze() else { return };
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join("surehook.service"), UNIT).expect("the folder can be written to");
    let rated = analyze
        .args(["security", "--offline=true", "--no-pager", HIGHEST_IN_TENTHS, "./surehook.service"])
        .current_dir(folder.path())
        .output()
        .expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&rated.stdout);
    assert!(rated.status.success() && said.contains("Overall exposure level"), "{said}{rated:?}");
}

/// The units are checked with the tested program in place of the installed one.
#[test]
fn systemd_accepts_the_units() {
    let Some(mut analyze) = systemd_analyze() else { return };
    let folder = TempDir::new().expect("a temporary folder");
    let program = program().display().to_string();
    let unit = UNIT.replace("/usr/local/bin/surehook", &program);
    assert!(unit.contains(&program));
    for (name, text) in [("surehook.service", unit.as_str()), ("surehook.socket", SOCKET)] {
        fs::write(folder.path().join(name), text).expect("the folder can be written to");
    }
    let checked = analyze
        .args(["verify", "--man=no", "./surehook.service", "./surehook.socket"])
        .current_dir(folder.path())
        .output()
        .expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&checked.stderr);
    let about_us: Vec<&str> = said.lines().filter(|line| line.contains("surehook")).collect();
    assert!(checked.status.success() && about_us.is_empty(), "{said}");
}

fn systemd_analyze() -> Option<Command> {
    let path = "/usr/bin/systemd-analyze";
    let installed = Path::new(path).exists().then(|| Command::new(path));
    if installed.is_none() {
        println!("skipped: systemd-analyze is not installed");
    }
    installed
}

#[test]
fn no_documented_command_serves_the_operators_routes_to_the_network() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))
        .expect("the file exists");
    let open: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("surehook ") && line.contains("--listen 0.0.0.0"))
        .collect();
    assert!(
        !open.is_empty() && open.iter().all(|line| line.contains("--operator-listen 127.0.0.1:")),
        "{open:?}"
    );
}

#[test]
fn the_documents_say_how_postgresqls_certificate_is_checked() {
    for document in ["README.md", "docs/SECURITY.md"] {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document))
                .expect("the file exists");
        for word in ["sslmode=verify-full", "sslrootcert=", "prefer"] {
            assert!(text.contains(word), "{document} does not contain `{word}`");
        }
    }
    // `check` reads the file.
    let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates/authority.pem");
    let url = format!("postgres://user@host/name?sslmode=verify-full&sslrootcert={authority}");
    let folder = folder();
    let checked = run_in(leaked(&[("SUREHOOK_DATABASE", url)]), folder.path(), ["check"]);
    assert!(checked.status.success(), "{checked:?}");
}

fn folder() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let text = "[sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n";
    fs::write(folder.path().join("surehook.toml"), text).expect("the folder can be written to");
    folder
}

/// Leaks the variables, because an `Environment` is `'static`.
fn leaked(variables: &[(&'static str, String)]) -> Environment {
    let leaked = variables
        .iter()
        .map(|(name, value)| (*name, &*value.clone().leak()))
        .collect::<Vec<(&str, &str)>>();
    leaked.leak()
}
