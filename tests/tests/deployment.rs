//! The files in `deploy/`: unchanged, they publish only the routes for producers, and restart the
//! program whenever it ends.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use tempfile::TempDir;
use tests::http::Client;
use tests::program::{Environment, Process, free_address, run_in};

const DOCKERFILE: &str = include_str!("../../deploy/Dockerfile");
const COMPOSE: &str = include_str!("../../deploy/compose.yaml");
const UNIT: &str = include_str!("../../deploy/surehook.service");
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
fn systemd_always_restarts_the_unit() {
    let unit = UNIT.split("\n[Service]").next().expect("the unit has a first section");
    assert!(
        unit.lines().any(|line| line == "StartLimitIntervalSec=0"),
        "systemd reads `StartLimitIntervalSec` only in [Unit]"
    );
    assert!(UNIT.lines().any(|line| line == "Restart=always"));
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
    let url = "postgres://user@host/name?sslmode=verify-full&sslrootcert=/path/to/ca.pem";
    let folder = folder();
    let checked =
        run_in(leaked(&[("SUREHOOK_DATABASE", url.to_owned())]), folder.path(), ["check"]);
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
