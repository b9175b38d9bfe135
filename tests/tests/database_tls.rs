//! TLS with PostgreSQL: which certificates of a server are accepted, as `sslmode` and `sslrootcert` say,
//! and the errors about those that are refused. libpq itself, as `psql`, is the oracle.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;
use tests::postgres::{Cluster, Settings, copy_for_the_server, program};
use tests::program::{Environment, Service, run_in};

const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates/authority.pem");
/// The file of a certificate authority that has issued nothing.
const OTHER_AUTHORITY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates/other-authority.pem");

/// The authorities of the system: the one of the tests, and another one.
const SYSTEM: Environment = &[("SSL_CERT_FILE", AUTHORITY), ("SSL_CERT_DIR", "")];
const OTHER_SYSTEM: Environment = &[("SSL_CERT_FILE", OTHER_AUTHORITY), ("SSL_CERT_DIR", "")];

/// The exit codes.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const MISTAKE: i32 = 2;

fn certificates(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates").join(name)
}

/// A server with the certificate of this name.
fn server(certificate: &str) -> Cluster {
    let file = |name: &str| copy_for_the_server(&certificates(name)).display().to_string();
    let more = vec![
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", file(&format!("{certificate}.pem"))),
        ("ssl_key_file", file("server.key.pem")),
    ];
    Cluster::start(Settings { more, ..Settings::default() })
}

/// A server whose certificate is right: issued by `AUTHORITY` for 127.0.0.1.
fn right() -> &'static Cluster {
    static RIGHT: OnceLock<Cluster> = OnceLock::new();
    RIGHT.get_or_init(|| server("server"))
}

/// Runs a command of the program on the database `postgres`, with these parameters in its URL.
fn surehook(
    command: &str,
    cluster: &Cluster,
    parameters: &str,
    environment: Environment,
) -> Output {
    let folder = TempDir::new().expect("a temporary folder");
    let url = format!("{}?{parameters}", cluster.url("postgres"));
    let configuration = format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"{url}\"\n[sources.orders]\ndestination = \"http://127.0.0.1:9/\"\n"
    );
    std::fs::write(folder.path().join("surehook.toml"), configuration)
        .expect("the folder can be written to");
    run_in(environment, folder.path(), [command])
}

/// Connects to the server by migrating it. The exit code must be the expected one, and the error must
/// contain these words.
#[track_caller]
fn connects(
    cluster: &Cluster,
    parameters: &str,
    environment: Environment,
    code: i32,
    words: &[&str],
) {
    let output = surehook("migrate", cluster, parameters, environment);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{parameters}, {environment:?}: {told}");
    for word in words {
        assert!(told.contains(word), "{parameters}, {environment:?}: no `{word}` in {told}");
    }
}

/// Whether libpq connects.
fn libpq_connects(cluster: &Cluster, parameters: &str) -> bool {
    let mut psql = Command::new(program("psql"));
    psql.arg(format!("{}?{parameters}", cluster.url("postgres"))).args(["-X", "-c", "select 1"]);
    for variable in ["PGSSLMODE", "PGSSLROOTCERT", "PGOPTIONS"] {
        psql.env_remove(variable);
    }
    psql.stdin(Stdio::null()).output().expect("`psql` can be run").status.success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_that_are_accepted_are_those_of_libpq() {
    let (expired, other_name) = (server("expired"), server("other-name"));
    let mut outcomes = [0, 0];
    for (name, cluster) in
        [("right", right()), ("expired", &expired), ("for another name", &other_name)]
    {
        for mode in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
            for file in [AUTHORITY, OTHER_AUTHORITY] {
                let parameters = format!("sslmode={mode}&sslrootcert={file}");
                // The system's authorities must make no difference.
                let environment = if file == AUTHORITY { OTHER_SYSTEM } else { SYSTEM };
                let expected = libpq_connects(cluster, &parameters);
                let output = surehook("migrate", cluster, &parameters, environment);
                let connected = output.status.success();
                assert_eq!(connected, expected, "{name}, {parameters}: {output:?}");
                outcomes[usize::from(connected)] += 1;
            }
        }
    }
    assert_eq!(outcomes, [13, 23], "refused and accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_certificate_is_explained_with_its_host_and_the_file() {
    let unknown = "no authority in this file has issued it";
    let refused =
        format!("the certificate of 127.0.0.1 is refused (sslrootcert={OTHER_AUTHORITY})");
    for mode in ["require", "verify-ca", "verify-full"] {
        let parameters = format!("sslmode={mode}&sslrootcert={OTHER_AUTHORITY}");
        connects(right(), &parameters, SYSTEM, FAILED, &[&refused, unknown]);
    }
    let refused = format!("the certificate of 127.0.0.1 is refused (sslrootcert={AUTHORITY})");
    let parameters = format!("sslmode=verify-full&sslrootcert={AUTHORITY}");
    let other_name = "it is for other.example, and not for 127.0.0.1";
    connects(&server("other-name"), &parameters, SYSTEM, FAILED, &[&refused, other_name]);
    let date = "it expired at 2026-01-01T00:00:00Z; renew it";
    connects(&server("expired"), &parameters, SYSTEM, FAILED, &[&refused, date]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authorities_of_the_system_are_trusted_only_where_they_are_named() {
    let refused = "the certificate of 127.0.0.1 is refused (sslrootcert=system): no authority of this system has issued it";
    for parameters in
        ["sslmode=verify-full", "sslrootcert=system", "sslmode=verify-full&sslrootcert=system"]
    {
        connects(right(), parameters, SYSTEM, DONE, &[]);
        connects(right(), parameters, OTHER_SYSTEM, FAILED, &[refused]);
    }
    // These modes verify nothing.
    for parameters in ["", "sslmode=prefer", "sslmode=require"] {
        connects(right(), parameters, OTHER_SYSTEM, DONE, &[]);
    }
    let none = [("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "")];
    let words = ["this system has no certificate authorities", "set SSL_CERT_FILE"];
    connects(right(), "sslmode=verify-full", none.to_vec().leak(), FAILED, &words);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_of_the_environment_follow_the_same_rules() {
    let with = |variables: &[(&'static str, &'static str)]| -> Environment {
        SYSTEM.iter().chain(variables).copied().collect::<Vec<_>>().leak()
    };
    let unknown = "no authority in this file has issued it";
    for (parameters, variables, code, words) in [
        ("", &[("PGSSLMODE", "verify-full")][..], DONE, ""),
        ("", &[("PGSSLMODE", "require"), ("PGSSLROOTCERT", OTHER_AUTHORITY)], FAILED, unknown),
        ("sslmode=require", &[("PGSSLROOTCERT", OTHER_AUTHORITY)], FAILED, unknown),
        ("sslmode=prefer", &[("PGSSLMODE", "nonsense")], DONE, ""),
        ("", &[("PGSSLMODE", "nonsense")], MISTAKE, "`PGSSLMODE`: it must be `disable`"),
        ("", &[("PGSSLMODE", "verify-ca")], MISTAKE, "(the environment has PGSSLMODE)"),
        (
            "",
            &[("PGSSLROOTCERT", "/missing.pem"), ("PGSSLMODE", "verify-ca")],
            MISTAKE,
            "/missing.pem",
        ),
    ] {
        connects(right(), parameters, with(variables), code, &[words]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_ends_each_command_with_2() {
    let folder = TempDir::new().expect("a temporary folder");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").expect("the folder can be written to");
    let empty = empty.display();
    let cannot = "the certificate of 127.0.0.1 cannot be verified: the file";
    for (parameters, words) in [
        (
            "sslmode=verify-ca".to_owned(),
            ["write `sslrootcert=FILE`, or `sslmode=verify-full`", ""],
        ),
        (
            "sslmode=require&sslrootcert=system".to_owned(),
            ["`sslrootcert=system` needs `sslmode=verify-full`", ""],
        ),
        (
            "sslmode=require&sslrootcert=/missing.pem".to_owned(),
            [cannot, "/missing.pem of `sslrootcert` cannot be read (No such file"],
        ),
        (
            format!("sslmode=verify-full&sslrootcert={empty}"),
            [cannot, "empty.pem of `sslrootcert` has no certificate (PEM)"],
        ),
    ] {
        for command in ["check", "serve", "migrate"] {
            let output = surehook(command, right(), &parameters, SYSTEM);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(MISTAKE), "{command}, {parameters}: {told}");
            for word in words {
                assert!(told.contains(word), "{command}, {parameters}: {told}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_reads_the_file_again() {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("ca.pem");
    std::fs::copy(OTHER_AUTHORITY, &file).expect("the file can be copied");
    let database = right().create_database().await;
    let url = format!("{database}?sslmode=verify-full&sslrootcert={}", file.display());
    let service =
        Service::begin(&url, "[sources.a]\ndestination = \"http://127.0.0.1:9/\"\n").await;
    service.logs("no authority in this file has issued it").await;
    std::fs::write(&file, "").expect("the folder can be written to");
    service.logs("ca.pem of `sslrootcert` has no certificate (PEM)").await;
    std::fs::copy(AUTHORITY, &file).expect("the file can be copied");
    service.ready().await;
}
