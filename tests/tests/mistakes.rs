//! Mistakes on the command line and in requests: what is printed, and the exit code or the status.
//! These tables are their documentation. To read what the program prints for each of them:
//!
//! ```sh
//! cargo test -p tests --test mistakes -- --nocapture
//! ```

use http::Method;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::{Answer as Response, Client};
use tests::program::{PROGRAM_VARIABLE, Service, free_address, program, run};
use tests::sink::{Answer, Sink};
use tests::wait;

/// A mistake: the arguments of the program, the exit code, and a part of what is printed. `{id}` is a
/// dead letter, `{unknown}` no event, `{nowhere}` an address without a service.
type Mistake = (&'static str, i32, &'static str);

/// Wrong command lines. The program refuses them itself, or the service does not know a value.
const WRONG: [Mistake; 54] = [
    ("", 2, "Usage: surehook"),
    ("status", 2, "tip: use `surehook sources`"),
    ("replay", 2, "tip: use `surehook events redrive ID`"),
    ("list", 2, "tip: use `surehook events list`"),
    ("events summary", 2, "tip: use `surehook summary`"),
    ("sorces", 2, "'sources'"),
    ("events lst", 2, "a similar subcommand exists: 'list'"),
    ("events", 2, "Usage: surehook events"),
    ("events show", 2, "<ID>"),
    ("events show evt_1PqXk2Lz", 2, "`surehook events list --key 'evt_1PqXk2Lz'`"),
    ("events body 17", 2, "an event id is a UUID"),
    ("events redrive evt_1PqXk2Lz", 2, "an event id is a UUID"),
    ("events redrive", 2, "a filter such as --source, or --all"),
    ("events redrive --delivered", 2, "a filter such as --source, or --all"),
    ("events redrive --all --source orders", 2, "cannot be used with"),
    ("events redrive {id} --dry-run", 2, "cannot be used with"),
    ("events redrive --all --rate 0", 2, "0 is not in 1.."),
    ("events redrive --all --after {id}", 2, "--delivered"),
    (
        "events redrive --source ordrs",
        2,
        "there is no source `ordrs`: the sources are orders, quiet",
    ),
    ("events redrive --source ordrs --delivered", 2, "the sources are orders, quiet"),
    ("events redrive --source ordrs --dry-run", 2, "the sources are orders, quiet"),
    ("events list --source ordrs", 2, "there is no source `ordrs`: the sources are orders, quiet"),
    ("events list --source or/ders", 2, "`or/ders` cannot name a source"),
    ("events list --sorce orders", 2, "a similar argument exists: '--source'"),
    ("events list --status done", 2, "[possible values: queued, processing, retrying"),
    ("events list --status dead-lettered", 2, "a similar value exists: 'dead_lettered'"),
    ("events list --reason why", 2, "[possible values: permanent, exhausted, lost"),
    ("events list --status-code 42", 2, "42 is not in 100..=999"),
    ("events list --since noon", 2, "`noon` is not a valid time: write a date such as"),
    ("events list --until 2026-13-01", 2, "`2026-13-01` is not a valid time"),
    ("events list --limit 0", 2, "0 is not in 1.."),
    ("events list --after 1", 2, "an event id is a UUID"),
    ("events list --key=", 2, "`key`"),
    ("events send {id}", 2, "--to <URL>"),
    ("events send {id} --to nowhere", 2, "invalid value 'nowhere' for '--to <URL>'"),
    (
        "events send {id} --to http://{nowhere} --timeout soon",
        2,
        "invalid value 'soon' for '--timeout",
    ),
    ("summary --source ordrs", 2, "the sources are orders, quiet"),
    ("summary --since never", 2, "`never` is not a valid time"),
    ("pause", 2, "<SOURCE>"),
    ("pause ordrs", 2, "there is no source `ordrs`: the sources are orders, quiet"),
    ("resume or/ders", 2, "`or/ders` cannot name a source"),
    ("sources --url ftp://localhost", 2, "is not an http or https URL"),
    ("health --redy", 2, "a similar argument exists: '--ready'"),
    ("producers githb", 2, "github"),
    ("completions", 2, "<SHELL>"),
    ("completions tcsh", 2, "[possible values: bash, elvish, fish"),
    ("check --config missing.toml", 2, "`missing.toml` does not exist"),
    ("check --config wrong.toml", 2, "wrong.toml:1:1: `rol`"),
    ("check --config wrong.toml --json", 2, "\"line\": 1"),
    ("serve --config missing.toml", 2, "`missing.toml` does not exist"),
    ("serve --config right.toml --role both", 2, "--role (or SUREHOOK_ROLE in the environment)"),
    ("serve --config right.toml --listen nowhere", 2, "--listen (or SUREHOOK_LISTEN"),
    ("migrate --databse sqlite:a.db", 2, "a similar argument exists: '--database'"),
    ("backup", 2, "<FILE>"),
];

/// Command lines that are right and fail.
const FAILED: [Mistake; 10] = [
    ("events show {unknown}", 1, "There is no event"),
    ("events body {unknown}", 1, "There is no event"),
    ("events send {unknown} --to http://{nowhere}", 1, "There is no event"),
    ("events redrive {unknown}", 1, "There is no event"),
    ("events redrive {id} --delivered", 1, "The event is dead_lettered"),
    ("events send {id} --to http://{nowhere}", 1, "connection refused"),
    ("sources --url {nowhere}", 1, "no response from http://{nowhere}/sources"),
    ("health --url {nowhere}", 1, "Check that the service runs, and that --url"),
    ("events list --url {nowhere}", 1, "no response from"),
    ("man missing/folder", 1, "the manual pages were not written"),
];

/// A request that is refused: method, path, one header, body, and the status, the problem's type and
/// a part of its detail.
type Refused = (
    &'static str,
    &'static str,
    (&'static str, &'static str),
    &'static str,
    u16,
    &'static str,
    &'static str,
);

const NO: (&str, &str) = ("accept", "*/*");

const REQUESTS: [Refused; 31] = [
    ("GET", "/event", NO, "", 404, "unknown-route", "openapi.json"),
    ("DELETE", "/events/{id}", NO, "", 405, "method-not-allowed", "GET"),
    ("POST", "/webhooks/ordrs", ("idempotency-key", "a"), "", 404, "unknown-source", "No source"),
    ("POST", "/webhooks/orders", NO, "", 400, "key-missing", "header:Idempotency-Key"),
    (
        "POST",
        "/webhooks/orders",
        ("idempotency-key", ""),
        "",
        400,
        "key-invalid",
        "header:Idempotency-Key",
    ),
    ("POST", "/webhooks/orders", ("idempotency-key", "k"), "another", 422, "key-reused", "{id}"),
    (
        "POST",
        "/webhooks/orders",
        ("idempotency-key", "b"),
        "more than a KB",
        413,
        "body-too-large",
        "1024",
    ),
    ("GET", "/events/17", NO, "", 400, "bad-event-id", "an event id is a UUID"),
    ("GET", "/events/{unknown}", NO, "", 404, "unknown-event", "There is no event {unknown}"),
    ("GET", "/events/{unknown}/body", NO, "", 404, "unknown-event", "There is no event {unknown}"),
    ("GET", "/events?sorce=orders", NO, "", 400, "bad-query", "unknown field `sorce`"),
    ("GET", "/events?source=ordrs", NO, "", 400, "bad-query", "the sources are orders, quiet"),
    (
        "GET",
        "/events?source=orders&source=quiet",
        NO,
        "",
        400,
        "bad-query",
        "duplicate field `source`",
    ),
    ("GET", "/events?status=done", NO, "", 400, "bad-query", "`status` must be one of queued"),
    ("GET", "/events?reason=why", NO, "", 400, "bad-query", "`reason` must be one of permanent"),
    ("GET", "/events?status_code=42", NO, "", 400, "bad-query", "from 100 to 999"),
    ("GET", "/events?since=yesterday", NO, "", 400, "bad-query", "RFC 3339"),
    ("GET", "/events?limit=501", NO, "", 400, "bad-query", "from 1 to 500"),
    ("GET", "/events?after=1", NO, "", 400, "bad-query", "an event id is a UUID"),
    ("GET", "/events?dry_run=true", NO, "", 400, "bad-query", "only for a redrive"),
    ("GET", "/summary?source=ordrs", NO, "", 400, "bad-query", "the sources are orders, quiet"),
    ("GET", "/summary?limit=1", NO, "", 400, "bad-query", "unknown field `limit`"),
    ("POST", "/redrive?source=ordrs", NO, "", 400, "bad-query", "the sources are orders, quiet"),
    ("POST", "/redrive?status=queued", NO, "", 400, "bad-query", "dead letters only"),
    ("POST", "/redrive?dry_run=perhaps", NO, "", 400, "bad-query", "`true` or `false`"),
    (
        "POST",
        "/events/{unknown}/redrive",
        NO,
        "",
        404,
        "unknown-event",
        "There is no event {unknown}",
    ),
    ("POST", "/events/{id}/redrive?delivered=true", NO, "", 409, "not-delivered", "dead_lettered"),
    ("POST", "/events/{id}/redrive?delivered=yes", NO, "", 400, "bad-query", "`true` or `false`"),
    (
        "POST",
        "/sources/ordrs/pause",
        NO,
        "",
        404,
        "unknown-source",
        "the sources are orders, quiet",
    ),
    ("POST", "/sources/or.ders/resume", NO, "", 404, "unknown-source", "cannot name a source"),
    ("GET", "/events", ("origin", "https://evil.example"), "", 403, "cross-site", "another site"),
];

/// A script must notice that the file it wrote is not complete.
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    for arguments in [&["producers"][..], &["completions", "bash"]] {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full can be opened");
        let output = std::process::Command::new(program())
            .args(arguments)
            .env_remove(PROGRAM_VARIABLE)
            .stdout(full)
            .output()
            .expect("the program runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains("the output was not written"), "{arguments:?}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_is_explained_with_its_exit_code_or_status() {
    let desk = Desk::start().await;
    let mut wrong = Vec::new();
    for (line, code, told) in WRONG.into_iter().chain(FAILED) {
        let (line, told) = (desk.filled(line), desk.filled(told));
        let output = run(desk.folder.path(), line.split(' ').filter(|word| !word.is_empty()));
        let printed = [&output.stdout[..], &output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        println!(
            "$ surehook {line}\n{}\n[exit code {:?}]\n",
            printed.trim_end(),
            output.status.code()
        );
        // Only a result is for standard output: JSON, or what another service has answered.
        let is_result = line.contains("--json") || line.starts_with("events send");
        if output.status.code() != Some(code)
            || !printed.contains(&told)
            || (!is_result && !output.stdout.is_empty())
        {
            wrong.push(format!("surehook {line}: not exit code {code} with `{told}`: {output:?}"));
        }
    }
    for (method, path, header, body, status, kind, told) in REQUESTS {
        let (path, told) = (desk.filled(path), desk.filled(told));
        let body = if body == "more than a KB" { "x".repeat(1025) } else { body.to_owned() };
        let response = desk.send(method, &path, header, &body).await;
        let problem = response.json();
        println!("{method} {path}\n{} {problem:#}\n", response.status_code);
        let is_told = problem["detail"].as_str().is_some_and(|detail| detail.contains(&told));
        let urn = format!("urn:surehook:problem:{kind}");
        if response.status_code != status || response.problem() != urn || !is_told {
            wrong.push(format!("{method} {path}: not {status} {kind} with `{told}`: {problem:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A service with a dead letter.
struct Desk {
    service: Service,
    folder: TempDir,
    id: String,
    nowhere: String,
    // Deleted with their owner.
    _sink: Sink,
    _database: Database,
}

impl Desk {
    async fn start() -> Self {
        let sink = Sink::start(|_| Answer::status(422).body("no amount")).await;
        let database = Database::sqlite();
        let configuration = format!(
            "[sources.orders]\ndestination = \"{0}\"\nmax_body = 1024\n[sources.quiet]\ndestination = \"{0}\"\n",
            sink.url("/")
        );
        let service = Service::start(&database.url(), &configuration).await;
        let folder = TempDir::new().expect("a temporary folder");
        let write = |name: &str, content: &str| {
            std::fs::write(Path::new(folder.path()).join(name), content)
                .expect("the file is written");
        };
        write("wrong.toml", "rol = \"all\"\n");
        write("right.toml", &configuration);
        let nowhere = free_address().to_string();
        let mut desk =
            Self { service, folder, id: String::new(), nowhere, _sink: sink, _database: database };
        let stored = desk.send("POST", "/webhooks/orders", ("idempotency-key", "k"), "{}").await;
        stored.json()["event_id"].as_str().expect("an id").clone_into(&mut desk.id);
        wait::until("the event to be dead-lettered", || async {
            let shown: Value = desk.send("GET", &desk.filled("/events/{id}"), NO, "").await.json();
            if shown["status"] == "dead_lettered" { Ok(()) } else { Err(shown.to_string()) }
        })
        .await;
        desk
    }

    /// A line with the ids and the addresses of this test.
    fn filled(&self, line: &str) -> String {
        let line = match line.split_once(' ') {
            // Commands ask this service, unless they name another one.
            Some(("events" | "summary" | "pause" | "resume", _)) if !line.contains("--url") => {
                format!("{line} --url {}", self.service.url(""))
            }
            _ => line.to_owned(),
        };
        let line = line.replace("{unknown}", "0199c2f0-5b7a-7c3e-9d41-5f0a7b1c2d3e");
        line.replace("{id}", &self.id).replace("{nowhere}", &self.nowhere)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        (name, value): (&str, &str),
        body: &str,
    ) -> Response {
        let method = Method::from_bytes(method.as_bytes()).expect("the method is valid");
        let body = bytes::Bytes::from(body.to_owned());
        let url = self.service.url(path);
        Client::default().send(method, &url, &[(name, value)], body).await.expect("a response")
    }
}
