//! Producers by name: a request in the shape of each producer is stored under the right key, its
//! retry is a replay, its handshake is answered by the downstream, and the document lists what the
//! program knows.
//!
//! The requests are in `fixtures/producers`, one folder for each producer.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use surehook::config::producers::{self, Producer};
use surehook::config::{Config, NoSecrets, Overrides, Source};
use surehook::http::Content;
use tests::database::Database;
use tests::http::{Answer, Client};
use tests::program::{Service, run};
use tests::{on_each_database, wait};
use tokio::net::TcpListener;

on_each_database!(
    every_producer_is_accepted_under_its_key_and_its_retry_is_a_replay,
    every_handshake_is_answered_by_the_downstream_and_not_stored,
);

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What a `.key` file says if every request is a new event.
const EVENT_ID: &str = "(the id of the event)";

async fn every_producer_is_accepted_under_its_key_and_its_retry_is_a_replay(database: Database) {
    let downstream = Downstream::start(BTreeMap::new()).await;
    let (service, sources) = start(&database, &downstream).await;
    let client = Client::default();
    let mut stored = BTreeMap::new();
    for Case { producer, name, request, key, retry } in cases() {
        let context = format!("{producer}/{name}");
        let acknowledgement = &sources[&producer].acknowledgement;
        let check = |answer: &Answer, replayed: bool| {
            assert_eq!(
                answer.status_code,
                acknowledgement.status.as_u16(),
                "{context}: {answer:?}"
            );
            if let Content::Fixed { body, .. } = &acknowledgement.content {
                assert_eq!(&answer.body, body, "{context}");
            }
            assert_eq!(answer.header("idempotent-replayed") == "true", replayed, "{context}");
            answer.header("surehook-event-id").to_owned()
        };

        let first = check(&request.send(&client, &service).await, false);

        let key = if key == EVENT_ID { first.clone() } else { key };
        assert_eq!(
            found_by_key(&client, &service, &producer, &key).await,
            [first.as_str()],
            "{context}"
        );
        let again = retry.request.as_ref().unwrap_or(&request);
        let answer = again.send(&client, &service).await;
        let second = check(&answer, !retry.is_new_event);
        if retry.is_new_event {
            let key = retry.key.unwrap_or_else(|| second.clone());
            assert_eq!(
                found_by_key(&client, &service, &producer, &key).await,
                [second.as_str()],
                "{context}"
            );
            stored.insert(second, again.clone());
        } else {
            assert_eq!(second, first, "{context}: the retry is the same event");
        }
        stored.insert(first, request);
    }
    wait::until("every event to be delivered", || async {
        let received = downstream.events.lock().expect("no test has panicked").len();
        if received >= stored.len() {
            Ok(())
        } else {
            Err(format!("{received} of {}", stored.len()))
        }
    })
    .await;
    let received = downstream.events.lock().expect("no test has panicked").clone();
    assert_eq!(received.keys().collect::<BTreeSet<_>>(), stored.keys().collect::<BTreeSet<_>>());
    for (event, sent) in stored {
        let (query, body) = &received[&event];
        assert_eq!((query.as_str(), body), (sent.query(), &sent.body), "{}", sent.target);
    }
}

async fn every_handshake_is_answered_by_the_downstream_and_not_stored(database: Database) {
    let handshakes = handshakes();
    let with_relay =
        producers::all().iter().filter(|producer| producer.settings.contains("relay = "));
    assert_eq!(
        handshakes.iter().map(|handshake| handshake.producer.as_str()).collect::<BTreeSet<_>>(),
        with_relay.map(|producer| producer.name.as_str()).collect::<BTreeSet<_>>(),
        "a source relays requests if there is a handshake for it"
    );
    let answers = handshakes.iter().map(|handshake| {
        let address = (format!("/{}", handshake.producer), handshake.request.method.clone());
        (address, handshake.answer.clone())
    });
    let downstream = Downstream::start(answers.collect()).await;
    let (service, _) = start(&database, &downstream).await;
    let client = Client::default();
    for Handshake { producer, request, answer: expected } in handshakes {
        let answer = request.send(&client, &service).await;

        assert_eq!(answer.status_code.to_string(), expected.target, "{producer}: {answer:?}");
        assert_eq!(answer.body, expected.body, "{producer}");
        for (name, value) in &expected.headers {
            assert_eq!(answer.header(name), value, "{producer}: {name}");
        }
        let relayed = downstream.relayed.lock().expect("no test has panicked").pop();
        let relayed = relayed.unwrap_or_else(|| panic!("{producer}: nothing was relayed"));
        assert_eq!(relayed.query(), request.query(), "{producer}");
        assert_eq!(relayed.body, request.body, "{producer}");
        for (name, value) in &request.headers {
            let is_forwarded = !name.eq_ignore_ascii_case("authorization");
            let expected = is_forwarded.then(|| value.clone());
            assert_eq!(relayed.header(name), expected, "{producer}: {name}");
        }
        let events = client.get(&service.url(&format!("/events?source={producer}"))).await;
        let events = events.expect("a response").json();
        assert_eq!(events["events"].as_array().map(Vec::len), Some(0), "{producer}: {events}");
    }
    assert!(downstream.events.lock().expect("no test has panicked").is_empty());
}

#[test]
fn there_are_requests_of_every_producer_that_a_source_can_have() {
    let with_requests: BTreeSet<String> = cases().into_iter().map(|case| case.producer).collect();
    let possible = producers::all().iter().filter(|producer| producer.refused.is_none());
    assert_eq!(with_requests, possible.map(|producer| producer.name.clone()).collect());
}

#[test]
fn the_document_says_what_the_program_knows() {
    let document =
        fs::read_to_string(Path::new(ROOT).join("docs/producers.md")).expect("it is there");
    for part in [table(), refused(), notes()] {
        assert!(document.contains(&part), "docs/producers.md has not these lines:\n\n{part}");
    }
}

#[test]
fn the_command_prints_every_producer_and_its_settings() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let list = run(folder.path(), ["producers"]);
    let list = String::from_utf8(list.stdout).expect("text");
    for producer in producers::all() {
        assert!(list.contains(&format!("{}  ", producer.name)), "{list}");
        let printed = run(folder.path(), ["producers", &producer.name]);
        assert_eq!(printed.status.code(), Some(0));
        assert_eq!(String::from_utf8(printed.stdout).expect("text"), producer.to_string());
    }
    let unknown = run(folder.path(), ["producers", "strip"]);
    assert_eq!(unknown.status.code(), Some(2));
    let told = String::from_utf8(unknown.stderr).expect("text");
    assert_eq!(told, "`strip` is not a known producer; did you mean `stripe`?\n");
}

/// Starts the program with one source for each producer.
async fn start(
    database: &Database,
    downstream: &Downstream,
) -> (Service, BTreeMap<String, Source>) {
    let possible = producers::all().iter().filter(|producer| producer.refused.is_none());
    let configuration: String = possible
        .map(|Producer { name, .. }| {
            format!(
                "[sources.{name}]\nproducer = \"{name}\"\ndestination = \"{}/{name}\"\n",
                downstream.base
            )
        })
        .collect();
    let config =
        Config::parse("the test", configuration.as_bytes(), &Overrides::default(), &NoSecrets);
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let sources =
        config.sources.into_iter().map(|(name, source)| (name.as_str().to_owned(), source));
    (Service::start(&database.url(), &configuration).await, sources.collect())
}

/// The ids of the events of a source with this key.
async fn found_by_key(client: &Client, service: &Service, source: &str, key: &str) -> Vec<String> {
    let key: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let url = service.url(&format!("/events?source={source}&key={key}"));
    let page = client.get(&url).await.expect("a response").json();
    let events = page["events"].as_array().expect("a list of events");
    events.iter().map(|event| event["event_id"].as_str().expect("an id").to_owned()).collect()
}

/// A request of a producer, its key and its retry.
struct Case {
    producer: String,
    name: String,
    request: Message,
    key: String,
    retry: Retry,
}

struct Retry {
    /// `None`: the same request again.
    request: Option<Message>,
    is_new_event: bool,
    /// The key of the new event. `None`: the event's id.
    key: Option<String>,
}

/// A request that a producer sends before it sends events, and the downstream's answer.
struct Handshake {
    producer: String,
    request: Message,
    answer: Message,
}

/// A request or a response, as a file has it.
#[derive(Clone, Debug)]
struct Message {
    /// The method of a request; `GET` for a response.
    method: Method,
    /// The target of a request, or the status code of a response.
    target: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Message {
    /// Reads a file: the head, an empty line, and the body without its last line feed.
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (head, body) =
            text.split_once("\n\n").unwrap_or_else(|| panic!("{}: no empty line", path.display()));
        let (first, headers) = head.split_once('\n').unwrap_or((head, ""));
        let mut words = first.split(' ');
        let (method, target) =
            (words.next().expect("a word"), words.next().expect("a second word"));
        let headers = headers.lines().map(|line| {
            let (name, value) =
                line.split_once(": ").unwrap_or_else(|| panic!("{}: {line}", path.display()));
            (name.to_owned(), value.to_owned())
        });
        Some(Self {
            method: if method == "HTTP/1.1" {
                Method::GET
            } else {
                method.parse().expect("a method")
            },
            target: target.to_owned(),
            headers: headers.collect(),
            body: Bytes::copy_from_slice(body.strip_suffix('\n').unwrap_or(body).as_bytes()),
        })
    }

    async fn send(&self, client: &Client, service: &Service) -> Answer {
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let url = service.url(&self.target);
        client
            .send(self.method.clone(), &url, &headers, self.body.clone())
            .await
            .expect("a response")
    }

    fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone())
    }
}

/// The files of all producers: the producer, the name of the file without its ending, and its path.
fn files() -> Vec<(String, String, PathBuf)> {
    let mut files = Vec::new();
    for folder in fs::read_dir(Path::new(ROOT).join("tests/fixtures/producers")).expect("fixtures")
    {
        let folder = folder.expect("a readable folder");
        let producer = folder.file_name().into_string().expect("the name of a producer");
        for file in fs::read_dir(folder.path()).expect("a folder for each producer") {
            let path = file.expect("a readable file").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
            if let Some(name) = name.strip_suffix(".http") {
                files.push((producer.clone(), name.to_owned(), path));
            }
        }
    }
    files.sort();
    assert!(files.len() > 100, "{files:?}");
    files
}

/// `CASE.http` and `CASE.key`, with `CASE.retry.http` if a retry differs, and `CASE.retry.key` if that
/// is another event.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (producer, name, path) in files() {
        let key_of =
            |path: &Path| fs::read_to_string(path).ok().map(|key| key.trim_end().to_owned());
        let Some(key) = key_of(&path.with_file_name(format!("{name}.key"))) else { continue };
        if name.contains(".retry") {
            continue;
        }
        let retry_key = key_of(&path.with_file_name(format!("{name}.retry.key")));
        let retry = Retry {
            request: Message::read(&path.with_file_name(format!("{name}.retry.http"))),
            is_new_event: key == EVENT_ID || retry_key.is_some(),
            key: retry_key,
        };
        let request = Message::read(&path).expect("the file is there");
        cases.push(Case { producer, name, request, key, retry });
    }
    cases
}

/// `CASE.http` and `CASE.answer.http`.
fn handshakes() -> Vec<Handshake> {
    let with_answer = files().into_iter().filter_map(|(producer, name, path)| {
        let answer = Message::read(&path.with_file_name(format!("{name}.answer.http")))?;
        let request = Message::read(&path).expect("the file is there");
        Some(Handshake { producer, request, answer })
    });
    with_answer.collect()
}

/// A downstream that answers handshakes, and accepts events. It listens until the test ends.
struct Downstream {
    base: String,
    relayed: Arc<Mutex<Vec<Message>>>,
    /// The query and the body of each event, by its id.
    events: Arc<Mutex<BTreeMap<String, (String, Bytes)>>>,
}

impl Downstream {
    /// Starts it with the answers to handshakes, by path and method.
    async fn start(answers: BTreeMap<(String, Method), Message>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (relayed, events) = (Arc::default(), Arc::default());
        let started = Self { base, relayed: Arc::clone(&relayed), events: Arc::clone(&events) };
        let answers = Arc::new(answers);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = (Arc::clone(&answers), Arc::clone(&relayed), Arc::clone(&events));
                let service = service_fn(move |request| {
                    let (answers, relayed, events) = state.clone();
                    async move {
                        let request = received(request).await?;
                        if let Some(event) = request.header("surehook-event-id") {
                            let query = request.query().to_owned();
                            events
                                .lock()
                                .expect("no test has panicked")
                                .insert(event, (query, request.body));
                            return Ok(Response::new(Full::default()));
                        }
                        let path = request.target.split('?').next().unwrap_or_default().to_owned();
                        let answer = answers.get(&(path, request.method.clone()));
                        relayed.lock().expect("no test has panicked").push(request);
                        Ok::<_, hyper::Error>(answer.map_or_else(not_found, response))
                    }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        started
    }
}

async fn received(request: Request<Incoming>) -> Result<Message, hyper::Error> {
    let (head, body) = request.into_parts();
    let headers = head.headers.iter().map(|(name, value)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    Ok(Message {
        method: head.method,
        target: head.uri.to_string(),
        headers: headers.collect(),
        body: body.collect().await?.to_bytes(),
    })
}

fn response(answer: &Message) -> Response<Full<Bytes>> {
    let status: StatusCode = answer.target.parse().expect("a status code");
    let mut response = Response::builder().status(status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(answer.body.clone())).expect("the headers are valid")
}

fn not_found() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// The table of the document.
fn table() -> String {
    let mut table = "| name | producer | idempotency key | other settings | waits | retries |\n|---|---|---|---|---|---|\n".to_owned();
    for producer in producers::all().iter().filter(|producer| producer.refused.is_none()) {
        let Producer { name, title, documentation, waits, retries, .. } = producer;
        let config =
            Config::parse(name, producer.to_string().as_bytes(), &Overrides::default(), &NoSecrets);
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        let key = &config.sources.values().next().expect("one source").idempotency_key;
        let key: Vec<String> = key.entries().iter().map(|entry| format!("`{entry}`")).collect();
        let known = |fact: &Option<String>| fact.clone().unwrap_or_else(|| "not known".to_owned());
        table += &format!(
            "| `{name}` | [{title}]({documentation}) | {} | {} | {} | {} |\n",
            key.join(", else "),
            other_settings(producer),
            known(waits),
            known(retries)
        );
    }
    table
}

/// The settings but the key, shortened.
fn other_settings(producer: &Producer) -> String {
    let lines = producer.settings.lines().filter(|line| line.starts_with(char::is_alphabetic));
    let others = lines.filter(|line| !line.starts_with("idempotency_key")).map(|line| {
        let shown = line
            .split_once(", body = '<")
            .map_or(line.to_owned(), |(start, _)| format!("{start}, … }}"));
        format!("`{shown}`")
    });
    others.collect::<Vec<_>>().join(" ")
}

/// The list of producers that no source can have.
fn refused() -> String {
    let refused = producers::all().iter().filter_map(|producer| {
        let Producer { name, title, documentation, refused, .. } = producer;
        refused
            .as_ref()
            .map(|reason| format!("- `{name}`, [{title}]({documentation}): {reason}.\n"))
    });
    refused.collect()
}

/// What else is known of each producer.
fn notes() -> String {
    let mut notes = String::new();
    for producer in producers::all().iter().filter(|producer| producer.refused.is_none()) {
        let Producer { name, gives_up, handshake, tolerance, note, .. } = producer;
        let facts: Vec<String> = [
            gives_up.as_ref().map(|fact| format!("After the last retry: {fact}.")),
            handshake.as_ref().map(|fact| format!("Handshake: {fact}.")),
            tolerance.as_ref().map(|fact| format!("Signature: valid for {fact}.")),
            note.clone(),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !facts.is_empty() {
            notes += &format!("- **`{name}`**: {}\n", facts.join(" "));
        }
    }
    notes
}
