//! The commands for operators: find dead letters and their causes, redrive them, pause a source.
//! Every command runs the real program against a real service.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::Duration;
use surehook_core::admission::Fingerprint;
use tempfile::TempDir;
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Load, Progress, Sent, produce};
use tests::program::{Process, Service, free_address, run};
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use tests::{on_each_database, soak, wait};
use uuid::Uuid;

on_each_database!(
    dead_letters_are_found_inspected_and_redriven_by_commands,
    junk_and_events_of_a_removed_source_are_discarded_by_commands,
    a_stored_request_is_shown_saved_and_sent_to_another_service,
    a_paused_source_accepts_events_and_delivers_them_once_resumed,
    an_interrupted_redrive_can_be_run_again,
    downstream_responses_cannot_control_the_terminal,
);

/// Runs commands of the program against a service.
struct Desk {
    folder: TempDir,
    url: String,
}

impl Desk {
    fn of(service: &Service) -> Self {
        Self { folder: TempDir::new().expect("a temporary folder"), url: service.url("") }
    }

    async fn run(&self, line: &str) -> Output {
        let (folder, line) = (self.folder.path().to_owned(), format!("{line} --url {}", self.url));
        let run = move || run(&folder, line.split_whitespace());
        tokio::task::spawn_blocking(run).await.expect("the program ran")
    }

    /// The output of a command, which must succeed.
    async fn told(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.told(&format!("{line} --json")).await).expect("JSON")
    }

    /// The exit code and the error output of a command, which must fail.
    async fn refused(&self, line: &str) -> (Option<i32>, String) {
        let output = self.run(line).await;
        assert!(output.stdout.is_empty(), "{output:?}");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    }
}

async fn dead_letters_are_found_inspected_and_redriven_by_commands(database: Database) {
    let sink = Sink::start(|_| Answer::status(503).body("down for maintenance")).await;
    let configuration = format!(
        "[defaults]\nmax_attempts = 2\ninitial_delay = \"10ms\"\nmax_delay = \"20ms\"\nbreaker_failures = 0\n
         [sources.orders]\ndestination = \"{}\"\n[sources.quiet]\ndestination = \"{}\"\n",
        sink.url("/orders"),
        sink.url("/quiet")
    );
    let service = Service::start(&database.url(), &configuration).await;
    let desk = Desk::of(&service);
    let mut events = Vec::new();
    for n in 0..30 {
        events.push(post(&service, "orders", &format!("key-{n}")).await);
    }
    until_all_are(&desk, 30, "dead_lettered").await;

    let sources = desk.json("sources").await;
    assert_eq!(
        (&sources["sources"][0]["source"], &sources["sources"][0]["dead_lettered"]),
        (&Value::from("orders"), &Value::from(30))
    );
    assert_eq!(sources["sources"][1]["dead_lettered"], 0);
    let table = desk.told("sources").await;
    assert!(
        table.lines().nth(1).is_some_and(|line| line.starts_with("orders") && line.contains("30")),
        "{table}"
    );

    let table =
        desk.told("events list --source orders --reason exhausted --since 1h --limit 5").await;
    assert_eq!(
        table
            .lines()
            .filter(
                |line| line.contains("dead_lettered (exhausted)") && line.contains("503 transient")
            )
            .count(),
        5,
        "{table}"
    );
    assert!(table.contains("there may be more"), "{table}");
    assert!(desk.told("events list --source quiet").await.starts_with("no event matches"));
    let by_key = desk.json("events list --source orders --key key-7").await;
    assert_eq!(
        (&by_key["events"][0]["event_id"], by_key["events"].as_array().map(Vec::len)),
        (&Value::from(events[7].to_string()), Some(1))
    );

    let summary = desk.told("summary --since 1h").await;
    let line = summary.lines().nth(1).unwrap_or_default();
    assert!(
        line.trim_start().starts_with("30    30  orders  503 transient  down for maintenance"),
        "{summary}"
    );
    let summary = desk.json("summary --source orders").await;
    assert_eq!(
        (&summary["groups"][0]["example"], summary["groups"].as_array().map(Vec::len)),
        (&Value::from(events[29].to_string()), Some(1)),
        "{summary}"
    );
    let told = desk.told("summary --source quiet").await;
    assert_eq!(told.trim(), "no undelivered event has failed");

    let timeline = desk.told(&format!("events show {}", events[7])).await;
    for told in [
        "orders",
        "key-7",
        "2 of 2",
        "attempt 1",
        "attempt 2",
        "503 transient",
        "down for maintenance",
        "surehook events redrive",
    ] {
        assert!(timeline.contains(told), "{told} is not in\n{timeline}");
    }

    sink.behave(|_| Answer::status(200));
    assert!(
        desk.told("events redrive --source orders --dry-run")
            .await
            .starts_with("30 dead letters would be redriven")
    );
    assert!(desk.told("events redrive --source quiet").await.starts_with("0 dead letters"));
    assert!(desk.told(&format!("events redrive {}", events[7])).await.contains("is queued again"));
    assert!(
        desk.told(
            "events redrive --source orders --reason exhausted --status-code 503 --rate 1000"
        )
        .await
        .starts_with("29 dead letters redriven")
    );
    until_all_are(&desk, 30, "delivered").await;
    for event in [events[7], events[8]] {
        let timeline = desk.told(&format!("events show {event}")).await;
        let rows: Vec<&str> =
            timeline.lines().skip_while(|line| !line.contains("attempt 2")).collect();
        assert!(rows[1].ends_with("redriven by an operator"), "{timeline}");
        assert!(rows[2].contains("attempt 3"), "{timeline}");
    }
    assert!(
        sink.received().iter().filter(|received| received.taken()).count() == 30,
        "an event was not delivered exactly once"
    );

    // Delivered events are sent again, but only with `--delivered`.
    assert!(desk.told("events redrive --all").await.starts_with("0 dead letters"));
    assert!(desk.told(&format!("events show {}", events[3])).await.contains("--delivered"));
    assert!(
        desk.told(&format!("events redrive {} --delivered", events[3]))
            .await
            .contains("is queued again")
    );
    sink.reaches(60 + 31).await;
    until_all_are(&desk, 30, "delivered").await;
    assert!(
        desk.told("events redrive --source orders --delivered --dry-run")
            .await
            .starts_with("30 delivered events would be sent again")
    );
    let newest = desk.json("events list --source orders --limit 10").await["events"][9]["event_id"]
        .as_str()
        .map(str::to_owned)
        .expect("an id");
    assert!(
        desk.told(&format!(
            "events redrive --source orders --delivered --rate 1000 --after {newest}"
        ))
        .await
        .starts_with("20 delivered events queued again")
    );
    sink.reaches(60 + 51).await;
    until_all_are(&desk, 30, "delivered").await;
    let taken: Vec<usize> = events
        .iter()
        .map(|event| sink.of(*event).iter().filter(|received| received.taken()).count())
        .collect();
    let wanted: Vec<usize> =
        (0..30).map(|n| 1 + usize::from(n < 20) + usize::from(n == 3)).collect();
    assert_eq!(
        taken, wanted,
        "not exactly the twenty oldest events and the event with index 3 were sent again"
    );

    // The same column has the same type on each database.
    database.execute("update events set erased_at = received_at").await;
    let told = desk.told("events redrive --source orders --delivered").await;
    assert!(told.starts_with("0 delivered events queued again"), "{told}");
    assert!(told.contains("30 skipped, because retention has erased the payload"), "{told}");
    let told = desk.json("events redrive --source orders --delivered").await;
    assert_eq!((&told["redriven"], &told["erased"]), (&json!(0), &json!(30)), "{told}");
    let metrics = Client::default().get(&service.url("/metrics")).await.expect("a response");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    for told in [
        "surehook_accepted_to_delivered_seconds_count{source=\"orders\"} 51",
        "surehook_database_connections_limit{pool=",
    ] {
        assert!(metrics.contains(told), "{told} is not in\n{metrics}");
    }

    assert_eq!(
        (desk.told("health").await.trim(), desk.told("health --ready").await.trim()),
        ("ok", "ready")
    );
    let unknown = Uuid::now_v7();
    assert_eq!(desk.refused(&format!("events show {unknown}")).await.0, Some(1));
    let (code, why) = desk.refused(&format!("events redrive {}", events[0])).await;
    assert!(code == Some(1) && why.contains("Only a dead letter is redriven"), "{code:?}: {why}");
    let (code, why) = desk.refused(&format!("events redrive {unknown} --delivered")).await;
    assert!(code == Some(1) && why.contains("There is no event"), "{code:?}: {why}");
    let (code, why) = desk.refused("events redrive --delivered").await;
    assert!(code == Some(2) && why.contains("--all"), "{code:?}: {why}");
    let (code, why) = desk.refused("events redrive").await;
    assert!(code == Some(2) && why.contains("--all"), "{code:?}: {why}");
    for (line, told) in [
        ("events list --status done", "[possible values: queued, processing, retrying"),
        ("events list --reason why", "[possible values: permanent, exhausted, lost, discarded"),
        ("events discard", "--all"),
        ("events discard --source ordrs", "the sources are orders, quiet"),
        ("events list --since tomorrow", "`tomorrow` is not a valid time: write a date such as"),
        ("events list --source ordrs", "there is no source `ordrs`: the sources are orders, quiet"),
        ("events redrive --source ordrs --dry-run", "the sources are orders, quiet"),
        ("events redrive --source ordrs --delivered", "the sources are orders, quiet"),
        ("summary --source ordrs", "the sources are orders, quiet"),
        ("events list --after 1", "an event id is a UUID"),
    ] {
        let (code, why) = desk.refused(line).await;
        assert!(code == Some(2) && why.contains(told), "{line}: {code:?}: {why}");
    }
    let first = desk.json("events list --since yesterday --limit 20").await;
    let next = first["next"].as_str().expect("more events").to_owned();
    let rest = desk.json(&format!("events list --since 00:00 --after {next}")).await;
    let listed: Vec<&Value> = [&first, &rest]
        .iter()
        .flat_map(|page| page["events"].as_array().expect("events"))
        .collect();
    let ids: BTreeSet<&str> =
        listed.iter().map(|event| event["event_id"].as_str().expect("an id")).collect();
    assert_eq!((listed.len(), ids.len(), &rest["next"]), (30, 30, &Value::Null));
    let nowhere = Desk { url: format!("http://{}", free_address()), ..Desk::of(&service) };
    let (code, why) = nowhere.refused("sources").await;
    assert!(
        code == Some(1) && why.contains("no response from") && why.contains("--url"),
        "{code:?}: {why}"
    );
}

async fn junk_and_events_of_a_removed_source_are_discarded_by_commands(database: Database) {
    let sink = Sink::start(|_| Answer::status(422)).await;
    let source = |name: &str| format!("[sources.{name}]\ndestination = \"{}\"\n", sink.url("/x"));
    let configuration = source("orders") + &source("legacy");
    let mut service = Service::start(&database.url(), &configuration).await;
    let desk = Desk::of(&service);
    desk.told("pause legacy").await;
    let waiting = post(&service, "legacy", "waits").await;
    let mut junk = Vec::new();
    for n in 0..3 {
        junk.push(post(&service, "orders", &format!("key-{n}")).await);
    }
    until_all_are(&desk, 3, "dead_lettered").await;
    let (code, why) = desk.refused(&format!("events discard {waiting}")).await;
    assert!(code == Some(1) && why.contains("Its source is configured"), "{code:?}: {why}");
    assert!(desk.told("events discard --source legacy").await.starts_with("0 events discarded"));
    service.kill();

    let service = Service::start(&database.url(), &source("orders")).await;
    let desk = Desk::of(&service);
    desk.told("resume legacy").await;
    let of_legacy = async || {
        let shown = desk.json("sources").await;
        let sources = shown["sources"].as_array().expect("sources");
        sources.iter().find(|source| source["source"] == "legacy").cloned()
    };
    assert!(of_legacy().await.expect("it has an event")["behind_seconds"].is_number());
    let told = desk.told("events discard --source legacy --dry-run").await;
    assert!(told.starts_with("1 event would be discarded"), "{told}");
    let told = desk.told("events discard --source legacy").await;
    assert!(told.starts_with("1 event discarded"), "{told}");
    let left = of_legacy().await.expect("it has a dead letter");
    assert_eq!(
        (&left["behind_seconds"], &left["queued"], &left["dead_lettered"]),
        (&Value::Null, &Value::from(0), &Value::from(0))
    );

    let output = desk.run(&format!("events redrive {waiting}")).await;
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(warned.contains("legacy are not delivered: the source is not configured"), "{warned}");
    desk.told("events discard --source legacy").await;
    desk.told("pause orders").await;
    let output = desk.run("events redrive --source orders --dry-run --json").await;
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("`surehook resume orders`"), "{warned}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["not_delivering"][0]["why"], "paused", "{answer}");
    desk.told("resume orders").await;

    let told = desk.told(&format!("events discard {}", junk[0])).await;
    assert!(told.contains("is discarded"), "{told}");
    let all = desk.json("events discard --all").await;
    assert_eq!((&all["discarded"], &all["dry_run"]), (&Value::from(2), &Value::from(false)));
    let shown = desk.told(&format!("events show {}", junk[1])).await;
    assert!(shown.contains("dead_lettered (discarded)"), "{shown}");
    assert_eq!(desk.told("summary").await.trim(), "no undelivered event has failed");
    sink.behave(|_| Answer::status(200));
    assert!(desk.told("events redrive --all").await.starts_with("0 dead letters"));
    desk.told(&format!("events redrive {}", junk[0])).await;
    until_all_are(&desk, 1, "delivered").await;
    until_all_are(&desk, 2, "dead_lettered").await;
    assert_eq!(sink.of(junk[1]).len(), 1, "a discarded event was sent again");
}

async fn a_stored_request_is_shown_saved_and_sent_to_another_service(database: Database) {
    const BODY: &[u8] = b"\0\xff {\"amount\": 1}\r\n\x1b[2J\n";
    let broken = Sink::start(|_| Answer::status(422).body("no amount")).await;
    let configuration = format!("[sources.orders]\ndestination = \"{}\"\n", broken.url("/orders"));
    let service = Service::start(&database.url(), &configuration).await;
    let desk = Desk::of(&service);
    let headers =
        [("idempotency-key", "k"), ("content-type", "application/json"), ("x-sig", "s=1")];
    let url = service.url("/webhooks/orders?shop=7");
    let posted = Client::default()
        .send(http::Method::POST, &url, &headers, bytes::Bytes::from_static(BODY))
        .await
        .expect("a response");
    let event = posted.json()["event_id"].as_str().expect("an id").to_owned();
    until_all_are(&desk, 1, "dead_lettered").await;

    let shown = desk.told(&format!("events show {event} --request")).await;
    for told in [
        &*format!("destination   {}", broken.url("/orders")),
        &format!("body          {} bytes, application/json", BODY.len()),
        "query         shop=7",
        "header        x-sig: s=1",
        "no amount",
    ] {
        assert!(shown.contains(told), "{told} is not in\n{shown}");
    }
    let output = desk.run(&format!("events body {event}")).await;
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), BODY), "{output:?}");

    let mended = Sink::start(|_| Answer::status(200).body("fine\x1b[2J")).await;
    let before = desk.json(&format!("events show {event}")).await;
    let line = format!("events send {event} --to {}", mended.url("/mended?own=1"));
    let told = desk.told(&line).await;
    assert!(told.starts_with("200 delivered") && told.contains("fine\\u{1b}[2J"), "{told:?}");
    let sent = mended.received().pop().expect("a request");
    assert_eq!((&*sent.path, &*sent.query), ("/mended", "own=1&shop=7"));
    let expected = Fingerprint::of(BODY);
    assert_eq!((&sent.body_sha256, sent.attempt), (expected.as_bytes(), 2));
    assert!(sent.headers.contains(&("x-sig".to_owned(), b"s=1".to_vec())), "{sent:?}");
    assert_eq!(desk.json(&format!("events show {event}")).await, before, "the event has changed");

    let output = desk.run(&format!("events send {event} --to {}", broken.url("/orders"))).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("422 permanent") && told.contains("no amount"), "{told}");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (code, why) = desk.refused(&format!("events send {event} --to nowhere")).await;
    assert!(code == Some(2) && why.contains("--to"), "{code:?}: {why}");
    let unknown = Uuid::now_v7();
    for line in ["events body", "events show --request", "events send --to http://localhost:1/"] {
        let (code, why) = desk.refused(&format!("{line} {unknown}")).await;
        assert!(code == Some(1) && why.contains("There is no event"), "{line}: {code:?}: {why}");
    }
}

async fn downstream_responses_cannot_control_the_terminal(database: Database) {
    const EVIL: &str = "\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200b}\u{2028}";
    let sink = Sink::start(|_| Answer::status(422).body(EVIL)).await;
    let configuration = format!("[sources.orders]\ndestination = \"{}\"\n", sink.url("/orders"));
    let service = Service::start(&database.url(), &configuration).await;
    let desk = Desk::of(&service);
    let event = post(&service, "orders", "k").await;
    until_all_are(&desk, 1, "dead_lettered").await;
    let is_harmful = |one: char| EVIL.replace("31m", "").contains(one);
    for line in [
        format!("events show {event}"),
        format!("events show {event} --json"),
        "events list --json".to_owned(),
    ] {
        let told = desk.told(&line).await;
        assert!(told.contains("202e") && !told.contains(is_harmful), "{line}: {told:?}");
    }
    assert_eq!(
        desk.json(&format!("events show {event}")).await["history"][0]["excerpt"],
        EVIL,
        "the escaped JSON does not decode to the response"
    );
    let raw =
        Client::default().get(&service.url(&format!("/events/{event}"))).await.expect("a response");
    let raw = String::from_utf8(raw.body.to_vec()).expect("text");
    assert!(
        raw.contains("\\u202e") && !raw.contains(is_harmful),
        "HTTP clients such as curl print control characters of the response: {raw:?}"
    );
}

async fn a_paused_source_accepts_events_and_delivers_them_once_resumed(database: Database) {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!(
        "[sources.held]\ndestination = \"{}\"\n[sources.other]\ndestination = \"{}\"\n",
        sink.url("/held"),
        sink.url("/other")
    );
    let mut service = Service::start(&database.url(), &configuration).await;
    let desk = Desk::of(&service);
    assert!(desk.told("pause held").await.starts_with("held is paused"));
    // The pause is stored in the database, so it survives a restart.
    service.signal(Signal::SIGTERM);
    service.wait(Duration::from_secs(10)).await;
    service.restart().await;

    let held = post(&service, "held", "k").await;
    let other = post(&service, "other", "k").await;
    sink.reaches(1).await;
    assert_eq!(sink.of(other).len(), 1);
    // Longer than the poll interval of an idle source.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(sink.of(held).len(), 0);
    let shown = desk.told("sources").await;
    assert!(
        shown.lines().any(|line| line.starts_with("held") && line.contains("paused since")),
        "{shown}"
    );

    assert!(desk.told("resume held").await.starts_with("held is resumed"));
    sink.reaches(2).await;
    assert_eq!(sink.of(held).len(), 1);
    let (code, why) = desk.refused("pause unknown").await;
    assert!(code == Some(2) && why.contains("No source of this name"), "{code:?}: {why}");
}

async fn an_interrupted_redrive_can_be_run_again(database: Database) {
    let letters: usize = soak::either(2_000, 100_000);
    let run = Recording::begin(database).await;
    let sink = run.sink(|_| Answer::status(422)).await;
    let mut service = run.service(&sink.three_sources()).await;
    let load = Load {
        sources: &["github", "stripe", "shopify"],
        posts: letters,
        duplicates: 0,
        connections: 32,
    };
    let sent = produce(run.clone(), vec![service.target()], load, Progress::default()).await;
    sink.reaches(letters).await;
    run.all_ended().await;
    sink.behave(|_| Answer::status(200));

    let desk = Desk::of(&service);
    let first = Process::start(
        desk.folder.path(),
        ["events", "redrive", "--all", "--rate", "2000", "--url", &desk.url],
    );
    sink.reaches(letters + letters / 10).await;
    first.kill();
    service.kill();
    service.restart().await;
    desk.told("events redrive --all").await;
    desk.told("events redrive --all").await;
    run.all_ended().await;

    assert!(
        desk.told("events redrive --all --dry-run").await.starts_with("0 dead letters"),
        "dead letters are left"
    );
    let taken = sink.taken();
    let wanted: BTreeMap<Uuid, usize> =
        sent.iter().map(Sent::event).map(|event| (event, 1)).collect();
    let again = taken.iter().filter(|(_, times)| **times > 1).count();
    println!(
        "{letters} dead letters, redrive interrupted and run again: {} delivered, {again} of them twice",
        taken.len()
    );
    assert_eq!(
        taken.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>(),
        "not exactly the posted events were delivered"
    );
    // Deliveries in flight at the kill may be repeated. The oracles check that these are the only
    // repetitions.
    run.judge().await;
}

async fn post(service: &Service, source: &str, key: &str) -> Uuid {
    let url = service.url(&format!("/webhooks/{source}"));
    let answer =
        Client::default().post(&url, &[("idempotency-key", key)], "{}").await.expect("a response");
    assert_eq!(answer.status_code, 202, "{answer:?}");
    answer.json()["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an event id")
}

async fn until_all_are(desk: &Desk, events: usize, status: &str) {
    wait::until("all events to end", || async {
        let listed =
            desk.json(&format!("events list --source orders --status {status} --limit 1000")).await;
        let there = listed["events"].as_array().map_or(0, Vec::len);
        if there == events { Ok(()) } else { Err(format!("{there} are {status}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_listen_moves_the_operators_routes_to_its_address() {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let operators = free_address();
    let configuration = format!(
        "operator_listen = \"{operators}\"\n[sources.orders]\ndestination = \"{}\"\n",
        sink.url("/orders")
    );
    let database = Database::sqlite();
    let service = Service::start(&database.url(), &configuration).await;
    let event = post(&service, "orders", "k").await;
    let client = Client::default();
    let status_code = async |url: String| client.get(&url).await.expect("a response").status_code;
    let [shown, request, body] =
        ["", "/request", "/body"].map(|part| format!("/events/{event}{part}"));
    for path in
        ["/sources", "/events", "/summary", "/metrics", "/openapi.json", &shown, &request, &body]
    {
        assert_eq!(status_code(service.url(path)).await, 404, "{path}");
        assert_eq!(status_code(format!("http://{operators}{path}")).await, 200, "{path}");
    }
    assert_eq!(
        (
            status_code(service.url("/ready")).await,
            status_code(format!("http://{operators}/ready")).await
        ),
        (200, 200)
    );
    let posted = client
        .post(&format!("http://{operators}/webhooks/orders"), &[("idempotency-key", "k2")], "{}")
        .await
        .expect("a response");
    assert_eq!(posted.status_code, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_page_cannot_use_operators_routes() {
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!(
        "operator_hosts = [\"ops.example\"]\n[sources.orders]\ndestination = \"{}\"\n",
        sink.url("/orders")
    );
    let database = Database::sqlite();
    let service = Service::start(&database.url(), &configuration).await;
    let client = Client::default();
    let pause = service.url("/sources/orders/pause");
    let rebound = [
        ("host", "evil.example"),
        ("origin", "http://evil.example"),
        ("sec-fetch-site", "same-origin"),
    ];
    let forged = [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")];
    for (headers, problem) in [(&rebound[..], "foreign-host"), (&forged[..], "cross-site")] {
        let answer = client.post(&pause, headers, "").await.expect("a response");
        assert_eq!(
            (answer.status_code, answer.problem()),
            (403, format!("urn:surehook:problem:{problem}")),
            "{headers:?}"
        );
        let answer = client
            .send(http::Method::GET, &service.url("/events"), headers, bytes::Bytes::new())
            .await
            .expect("a response");
        assert_eq!(answer.status_code, 403, "{headers:?}");
    }
    let sources = client.get(&service.url("/sources")).await.expect("a response").json();
    assert_eq!(sources["sources"][0]["paused_since"], Value::Null, "{sources}");
    // Requests under the host name of the proxy, from a page that the proxy serves, are allowed.
    let proxied = [
        ("host", "ops.example"),
        ("origin", "https://ops.example"),
        ("sec-fetch-site", "same-origin"),
    ];
    assert_eq!(client.post(&pause, &proxied, "").await.expect("a response").status_code, 200);
}
