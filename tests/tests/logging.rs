//! Logging never fails and never blocks the service, whatever happens to the output: a pipe that is
//! not read, a pipe whose reader has ended, a full disk. Lost lines are counted, and the log
//! reports them when it can be written again.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::File;
use std::io::{PipeReader, Read, pipe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tests::database::Database;
use tests::http::Client;
use tests::program::{Environment, Service};
use tests::sink::{Answer, Sink};
use tests::small_disk::SmallDisk;
use tests::wait;

/// All libraries log at the level `trace`, so that a few requests fill any buffer.
const VERBOSE: Environment = &[("SUREHOOK_LOG_FILTER", "trace")];

/// The longest time from the signal to the end of an idle process, on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// How long a process waits at its end until its last log lines are written.
const WAITS_FOR_THE_LOG: Duration = Duration::from_secs(1);

struct World {
    service: Service,
    sink: Sink,
    client: Client,
    posted: AtomicUsize,
    _database: Database,
}

impl World {
    async fn start(log: impl Into<std::process::Stdio>, environment: Environment) -> Self {
        let (database, sink) = (Database::sqlite(), Sink::start(|_| Answer::status(200)).await);
        let configuration = format!(
            "drain_timeout = \"5s\"\n[sources.orders]\ndestination = \"{}\"\n",
            sink.url("/orders")
        );
        let service =
            Service::start_logging_to(log, environment, &database.url(), &configuration).await;
        Self {
            service,
            sink,
            client: Client::default(),
            posted: AtomicUsize::new(0),
            _database: database,
        }
    }

    /// Posts one event, and asserts that it is accepted and delivered.
    async fn delivers(&self) {
        let posted = self.posted.fetch_add(1, Ordering::Relaxed) + 1;
        let key = format!("key-{posted}");
        let answer = self
            .client
            .post(&self.service.url("/webhooks/orders"), &[("idempotency-key", &key)], "{}")
            .await
            .expect("a response");
        assert_eq!(answer.status_code, 202, "post {posted}: {answer:?}");
        wait::until("the event to be delivered", || async {
            let received = self.sink.count();
            if received >= posted { Ok(()) } else { Err(format!("{received} of {posted}")) }
        })
        .await;
    }

    async fn lines_lost(&self) -> u64 {
        let answer = self.client.get(&self.service.url("/metrics")).await.expect("a response");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let value =
            text.lines().find_map(|line| line.strip_prefix("surehook_log_lines_lost_total "));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Posts until log lines are lost.
    async fn loses_lines(&self) {
        let begun = Instant::now();
        while self.lines_lost().await == 0 {
            assert!(
                begun.elapsed() < Duration::from_mins(1),
                "no log line was lost after {:?} posts",
                self.posted
            );
            for _ in 0..10 {
                self.delivers().await;
            }
        }
    }

    async fn is_well(&self) {
        self.delivers().await;
        for path in ["/health", "/ready"] {
            assert_eq!(
                self.client.get(&self.service.url(path)).await.expect("a response").status_code,
                200,
                "{path}"
            );
        }
    }

    async fn ends_in_order(mut self) {
        self.service.signal(Signal::SIGTERM);
        let status = self.service.wait(ENDS_WITHIN).await;
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_log_pipe_delays_neither_deliveries_nor_shutdown() {
    let (_reader, log) = pipe().expect("a pipe");
    let world = World::start(log, VERBOSE).await;
    world.loses_lines().await;
    world.is_well().await;
    let signalled = Instant::now();
    world.ends_in_order().await;
    let ended = signalled.elapsed();
    assert!(ended >= WAITS_FOR_THE_LOG, "it ended after {ended:?}, with lines that it could write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_reports_how_many_lines_were_lost() {
    let (reader, log) = pipe().expect("a pipe");
    let world = World::start(log, VERBOSE).await;
    world.loses_lines().await;
    let log = read_to_its_end(reader);
    wait::until("the loss to be logged", || async {
        let lost = world.lines_lost().await;
        // Each report counts the lines that were lost since the report before.
        world.delivers().await;
        let told: u64 = lines(&log.text())
            .iter()
            .filter(|line| is_about_loss(line))
            .filter_map(|line| line["lost"].as_u64())
            .sum();
        if told > 0 && told >= lost { Ok(()) } else { Err(format!("{told} of {lost}")) }
    })
    .await;
    world.ends_in_order().await;
    log.ends().await;
    let lines = lines(&log.text());
    assert!(lines.iter().any(|line| line["message"] == "shut down"), "{:?}", lines.last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_log_lines_are_written_before_a_clean_exit() {
    let (reader, log) = pipe().expect("a pipe");
    let mut world = World::start(log, VERBOSE).await;
    // More than a pipe holds, and less than the buffer of the program holds.
    for _ in 0..100 {
        world.delivers().await;
    }
    assert_eq!(
        world.lines_lost().await,
        0,
        "log lines were lost, although they fit into the buffer"
    );
    world.service.signal(Signal::SIGTERM);
    let log = read_to_its_end(reader);
    assert_eq!(world.service.wait(ENDS_WITHIN).await.code(), Some(0));
    log.ends().await;
    let (text, lines) = (log.text(), lines(&log.text()));
    assert!(
        text.len() > 64 << 10,
        "the log has only {} bytes, which fit into the pipe",
        text.len()
    );
    assert!(lines.iter().any(|line| line["message"] == "shut down"), "{:?}", lines.last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_log_pipe_does_not_stop_the_process() {
    for gone_at_the_start in [true, false] {
        let (reader, log) = pipe().expect("a pipe");
        let mut reader = Some(reader);
        if gone_at_the_start {
            reader = None;
        }
        let world = World::start(log, VERBOSE).await;
        drop(reader);
        world.loses_lines().await;
        world.is_well().await;
        world.ends_in_order().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_device_does_not_stop_the_process() {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full can be opened");
    let world = World::start(full, &[]).await;
    world.loses_lines().await;
    world.is_well().await;
    world.ends_in_order().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_disk_is_survived_and_lost_lines_are_reported() {
    let Some(disk) = SmallDisk::mount(1) else { return };
    let path = disk.path().join("surehook.log");
    let file =
        File::options().create(true).append(true).open(&path).expect("an empty disk has space");
    let world = World::start(file, VERBOSE).await;
    world.loses_lines().await;
    world.is_well().await;
    disk.grow_to(64);
    let text = wait::until("the loss to be logged", || async {
        // This request logs a line.
        world.client.get(&world.service.url("/health")).await?;
        let text = String::from_utf8_lossy(&std::fs::read(&path).expect("the log can be read"))
            .into_owned();
        let is_told = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .any(|line: Value| is_about_loss(&line));
        if is_told { Ok(text) } else { Err("not logged".to_owned()) }
    })
    .await;
    // The write that filled the disk may have written only a part of its line.
    let cut = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_err()).count();
    assert!(cut <= 1, "{cut} lines are not JSON");
    world.ends_in_order().await;
}

fn is_about_loss(line: &Value) -> bool {
    line["message"].as_str().is_some_and(|message| message.starts_with("log lines were lost"))
        && line["lost"].as_u64() > Some(0)
}

/// The complete lines of a log, each of which must be JSON in which times are numbers.
fn lines(text: &str) -> Vec<Value> {
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    let parsed = |line: &str| {
        let parsed: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let fields = parsed.as_object().into_iter().flatten();
        let mut times = fields.filter(|(name, _)| name.ends_with("_ms"));
        assert!(times.all(|(_, value)| value.is_number()), "{line}");
        parsed
    };
    whole.lines().map(parsed).collect()
}

/// A thread that reads a pipe until it is closed, and the text that it has read.
struct ReadLog {
    text: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

fn read_to_its_end(mut reader: PipeReader) -> ReadLog {
    let text = Arc::<Mutex<Vec<u8>>>::default();
    let into = Arc::clone(&text);
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while let Ok(read @ 1..) = reader.read(&mut buffer) {
            into.lock().expect("the lock is not poisoned").extend_from_slice(&buffer[..read]);
        }
    });
    ReadLog { text, thread }
}

impl ReadLog {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("the lock is not poisoned")).into_owned()
    }

    async fn ends(&self) {
        wait::until("the log to be closed", || async {
            if self.thread.is_finished() { Ok(()) } else { Err("it is still open".to_owned()) }
        })
        .await;
    }
}
