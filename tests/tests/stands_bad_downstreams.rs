//! Downstreams that misbehave in every way that a socket allows. Each attempt gets its documented
//! verdict, within its limits of time and memory, and a healthy source is not affected.

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::event::Outcome;
use surehook_core::verdict::MAX_EXCERPT_BYTES;
use surehook_model::history::{At, Change, Fault, Run, What};
use tests::database::Database;
use tests::http::Client;
use tests::producer::{Post, try_once};
use tests::program::{Service, Target};
use tests::recording::Recording;
use tests::rogue::{Rogue, Script};
use tests::sink::{Answer, Sink};
use tests::{on_each_database, verdicts};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use uuid::Uuid;

on_each_database!(
    each_misbehaviour_gets_its_verdict_and_slows_no_healthy_source,
    retry_after_is_bounded_by_the_back_off_and_the_cap,
);

/// The timeout of each source whose downstream misbehaves.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The longest time of an attempt that ends without its timeout, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How long after its timeout an attempt may end, on a busy machine.
const LATE: Duration = Duration::from_secs(2);

/// More than the slots of one source, so that every slot stays in use for a while.
const EVENTS_EACH: usize = 4;
const CONCURRENCY: usize = 2;

/// The most bytes of one response that its downstream can send. The program reads 16 KiB of a body
/// and 400 KiB of a head. The buffers of two kernels take the rest.
const TAKEN_AT_MOST: u64 = 2 << 20;
/// Interim responses are read and discarded one by one until the timeout. Their memory is bounded,
/// but not their number: here it is a thousand per second on each connection.
const WITHOUT_BOUND: &str = "says-continue-for-ever";
/// The limit for the growth of the program's memory: the largest read buffer of each connection,
/// and memory that the allocator keeps.
const GROWS_AT_MOST: u64 = 32 << 20;

/// The steady load for the percentiles: the number of posts before and during the misbehaviour, and
/// the interval between two posts.
const POSTS_AT_REST: usize = 300;
const POSTS: usize = 600;
const EVERY: Duration = Duration::from_millis(10);
/// Posts in one window. A figure is the median of the 99th percentiles of all windows: a short
/// stall of the machine affects a few windows, and a delayed source affects all.
const WINDOW: usize = 100;
/// A 99th percentile below this counts as undisturbed, because it mostly measures the machine. A
/// misbehaviour that delays something delays it for seconds.
const FLOOR: Duration = Duration::from_millis(200);

/// How one downstream behaves, and the expected record of an attempt.
struct Case {
    /// The name of its source.
    name: &'static str,
    downstream: Downstream,
    verdict: &'static str,
    status_code: Option<u16>,
    error: Option<&'static str>,
    took: Took,
}

enum Downstream {
    Plays(Script),
    At(String),
}

#[derive(Clone, Copy)]
enum Took {
    AtOnce,
    ItsTimeout,
}

fn cases(trap: &Sink, tls: &str, nobody: SocketAddr) -> Vec<Case> {
    use Took::{AtOnce, ItsTimeout};
    let say = |bytes: &str| Script::default().say(bytes.as_bytes().to_vec());
    let plays = |name, script, verdict, status_code, error, took| Case {
        name,
        downstream: Downstream::Plays(script),
        verdict,
        status_code,
        error,
        took,
    };
    let at = |name, url: String, error| Case {
        name,
        downstream: Downstream::At(url),
        verdict: "transient",
        status_code: None,
        error: Some(error),
        took: AtOnce,
    };
    let answers = |name, script: Script, verdict, status_code| {
        plays(name, script.replies(status_code, None), verdict, Some(status_code), None, AtOnce)
    };
    let fails =
        |name, script, error, took| plays(name, script, "transient", None, Some(error), took);
    let second = Duration::from_secs(1);
    let filler = vec![b'x'; 64 << 10];
    let mut cases = vec![
        // No connection.
        at("refuses", format!("http://{nobody}/"), "connection refused"),
        at("has-no-name", "http://no-such-host.invalid/".into(), "dns"),
        at("has-an-untrusted-certificate", format!("https://localhost:{tls}/"), "tls"),
        at("speaks-no-tls", trap.url("/").replacen("http", "https", 1), "tls"),
        // No response, or an incomplete one.
        fails("hangs", Script::default().hang(), "timeout", ItsTimeout),
        fails("hangs-up", Script::default(), "connection reset", AtOnce),
        fails("resets", Script::default().reset(), "connection reset", AtOnce),
        fails(
            "drips-its-head",
            Script::default().drip("HTTP/1.1 200 OK\r\n\r\n", second),
            "timeout",
            ItsTimeout,
        ),
        fails(
            "closes-in-its-head",
            say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"),
            "connection reset",
            AtOnce,
        ),
        fails(
            WITHOUT_BOUND,
            Script::default().flood("HTTP/1.1 100 Continue\r\n\r\n", u64::MAX),
            "timeout",
            ItsTimeout,
        ),
        // Not HTTP.
        fails(
            "has-an-endless-head",
            say("HTTP/1.1 200 OK\r\n").flood(filler.clone(), u64::MAX),
            "invalid response",
            AtOnce,
        ),
        fails(
            "has-endless-headers",
            say("HTTP/1.1 200 OK\r\n").flood("X-Many: 1\r\n".repeat(1_000), u64::MAX),
            "invalid response",
            AtOnce,
        ),
        fails("speaks-ssh", say("SSH-2.0-OpenSSH_9.2\r\n\r\n").hang(), "invalid response", AtOnce),
        fails(
            "has-no-status-code",
            say("HTTP/1.1 20 OK\r\n\r\n").hang(),
            "invalid response",
            AtOnce,
        ),
        fails(
            "has-two-lengths",
            say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab").hang(),
            "invalid response",
            AtOnce,
        ),
        // The status decides, even if the head is malformed or the body is incomplete.
        answers(
            "has-bytes-in-names",
            say("HTTP/1.1 200 OK\r\nX-\u{ff}: 1\r\n\r\n").hang(),
            "delivered",
            200,
        ),
        answers(
            "warns-in-its-head",
            say(
                "HTTP/1.1 200 OK\r\nPHP Warning:  Undefined variable\r\nX Name : a\r\n b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            ),
            "delivered",
            200,
        ),
        answers(
            "has-200-headers",
            say(&format!(
                "HTTP/1.1 200 OK\r\n{}Connection: close\r\nContent-Length: 0\r\n\r\n",
                "X-Many: 1\r\n".repeat(200)
            )),
            "delivered",
            200,
        ),
        answers(
            "drips-its-body",
            say("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n").drip(vec![b'x'; 60], second),
            "delivered",
            200,
        ),
        answers(
            "hangs-in-its-body",
            say("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n").hang(),
            "delivered",
            200,
        ),
        answers(
            "closes-half-way",
            say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of"),
            "delivered",
            200,
        ),
        answers(
            "closes-half-way-refusing",
            say("HTTP/1.1 422 No\r\nContent-Length: 100\r\n\r\nhalf of"),
            "permanent",
            422,
        ),
        answers(
            "never-ends-its-chunks",
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
            "delivered",
            200,
        ),
        answers(
            "has-no-chunks",
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"),
            "delivered",
            200,
        ),
        answers(
            "has-an-endless-body",
            say("HTTP/1.1 200 OK\r\n\r\n").flood(filler.clone(), u64::MAX),
            "delivered",
            200,
        ),
        answers(
            "has-50-megabytes",
            say("HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n")
                .flood(filler, (50 << 20) / (64 << 10)),
            "delivered",
            200,
        ),
        answers(
            "has-endless-chunks",
            say("HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n")
                .flood("10\r\n0123456789abcdef\r\n".repeat(100), u64::MAX),
            "transient",
            500,
        ),
        answers("has-a-gzip-bomb", gzip_bomb(), "delivered", 200),
        answers("has-bytes-in-values", bytes_in_values(), "delivered", 200),
        answers(
            "refuses-in-its-own-words",
            say("HTTP/1.1 410 \u{fffd}\u{fffd}\r\nConnection: close\r\n\r\n"),
            "permanent",
            410,
        ),
        answers(
            "switches-protocols",
            say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            "transient",
            101,
        ),
        answers(
            "has-a-code-of-its-own",
            say("HTTP/1.1 999 \r\nConnection: close\r\n\r\n"),
            "transient",
            999,
        ),
    ];
    for (name, status_code) in [
        ("moved-300", 300),
        ("moved-301", 301),
        ("moved-302", 302),
        ("moved-303", 303),
        ("moved-307", 307),
        ("moved-308", 308),
    ] {
        let moved = format!(
            "HTTP/1.1 {status_code} Elsewhere\r\nLocation: {0}\r\nRefresh: 0; url={0}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            trap.url("/trap")
        );
        cases.push(answers(name, say(&moved), "transient", status_code));
    }
    cases
}

/// 64 MiB of zeros, compressed to 64 KiB.
fn gzip_bomb() -> Script {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![0; 1 << 20];
    (0..64).for_each(|_| packed.write_all(&zeros).expect("writing to memory does not fail"));
    let packed = packed.finish().expect("writing to memory does not fail");
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        packed.len()
    );
    Script::default().say(head.into_bytes()).say(packed)
}

/// Every byte from 0x80 to 0xff, in a header value, in the reason phrase and in the body.
fn bytes_in_values() -> Script {
    let bytes: Vec<u8> = (0x80..=0xff).collect();
    let parts: [&[u8]; 7] = [
        b"HTTP/1.1 200 ",
        &bytes,
        b"\r\nX-Bytes: ",
        &bytes,
        b"\r\nContent-Length: 128\r\nConnection: close\r\n\r\n",
        &bytes,
        b"",
    ];
    Script::default().say(parts.concat())
}

async fn each_misbehaviour_gets_its_verdict_and_slows_no_healthy_source(database: Database) {
    let run = Recording::begin(database).await;
    let (trap, healthy) =
        (Sink::start(|_| Answer::status(200)).await, run.sink(|_| Answer::status(200)).await);
    let (tls, _server) = tls_with_its_own_certificate().await;
    // A bound port on which no server listens. It stays bound, so that no other test can use it.
    let taken = TcpSocket::new_v4().expect("a socket");
    taken.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let cases = cases(&trap, &tls, taken.local_addr().expect("a bound socket has an address"));
    let mut rogues = BTreeMap::new();
    for case in &cases {
        if let Downstream::Plays(script) = &case.downstream {
            let script = script.clone();
            rogues.insert(case.name, Rogue::start(&run, move |_| script.clone()));
        }
    }
    let service = run
        .service(&configuration(&cases, &healthy, |case| match &case.downstream {
            Downstream::Plays(_) => rogues[case.name].url("/"),
            Downstream::At(url) => url.clone(),
        }))
        .await;
    // A control run: the same load at the same time with healthy downstreams. A delay in both runs
    // is caused by the machine.
    let control = Recording::begin(run.database().another().await).await;
    let well = control.sink(|_| Answer::status(200)).await;
    let beside = control.service(&configuration(&cases, &well, |_| well.url("/"))).await;

    let rest = steady(&run, &service, "healthy", POSTS_AT_REST, EVERY).await;
    let before = service.usage();
    for case in &cases {
        run.fault(Fault::Downstream {
            source: case.name.to_owned(),
            what: "misbehaves".to_owned(),
            broken: true,
        });
    }
    let (storm, calm) =
        futures::join!(everything(&run, &service, &cases), everything(&control, &beside, &cases));

    let told = run.judge().await;
    let client = Client::default();
    let mut wrong = Vec::new();
    for case in &cases {
        let events: Vec<Uuid> = told
            .events
            .values()
            .filter(|event| event.source == case.name)
            .map(|event| event.id.as_uuid())
            .collect();
        assert_eq!(events.len(), EVENTS_EACH, "{}", case.name);
        for event in events {
            wrong.extend(case.wrong(&verdicts::shown(&client, &service, event).await));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} results differ from the table:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(trap.count(), 0, "a redirect was followed");
    for (name, rogue) in &rogues {
        assert_eq!(rogue.count(), EVENTS_EACH, "{name}: not one request for each event");
        assert!(
            rogue.most_taken() <= TAKEN_AT_MOST || *name == WITHOUT_BOUND,
            "{name}: {} bytes of a response were sent",
            rogue.most_taken()
        );
    }
    let peak = service.usage().peak_bytes;
    assert!(peak <= before.resident_bytes + GROWS_AT_MOST, "{before:?} grew to {peak} bytes");
    assert_eq!(service.mishaps(), [""; 0]);
    assert!(!service.log().contains("unclassified error"), "a failure has no error class");

    let (at_rest, meanwhile) = (Figures::of(&told, rest), Figures::of(&told, storm));
    let beside = Figures::of(&control.judge().await, calm);
    let felt = |meanwhile: Duration, at_rest: Duration, beside: Duration| {
        meanwhile > (at_rest.max(beside) * 2).max(FLOOR)
    };
    let figures = format!(
        "during the misbehaviour {meanwhile:?}; before it {at_rest:?}; control run {beside:?}"
    );
    println!("{figures}; {before:?} grew to {peak} bytes");
    assert!(
        !felt(meanwhile.intake, at_rest.intake, beside.intake),
        "the misbehaviour slows the intake: {figures}"
    );
    assert!(
        !felt(meanwhile.delivery, at_rest.delivery, beside.delivery),
        "the misbehaviour slows the healthy source: {figures}"
    );
}

impl Case {
    /// A description of the event, if it differs from this case.
    fn wrong(&self, event: &Value) -> Option<String> {
        let (status, reason) = match self.verdict {
            "delivered" => ("delivered", Value::Null),
            "permanent" => ("dead_lettered", "permanent".into()),
            _ => ("dead_lettered", "exhausted".into()),
        };
        let attempt = &event["history"][0];
        let took = Duration::from_secs_f64(
            attempt["duration_ms"].as_f64().expect("an attempt has a duration") / 1000.0,
        );
        let (least, most) = match self.took {
            Took::AtOnce => (Duration::ZERO, AT_ONCE),
            Took::ItsTimeout => (TIMEOUT, TIMEOUT + LATE),
        };
        let excerpt = attempt["excerpt"].as_str().expect("there is always an excerpt");
        let right = event["status"] == status
            && event["reason"] == reason
            && event["attempts"] == 1
            && attempt["verdict"] == self.verdict
            && attempt["status_code"] == self.status_code.map_or(Value::Null, Value::from)
            && attempt["error"] == self.error.map_or(Value::Null, Value::from)
            && (least..=most).contains(&took)
            // The excerpt is text or base64.
            && excerpt.len() <= MAX_EXCERPT_BYTES.div_ceil(3) * 4;
        let Self { name, verdict, status_code, error, .. } = self;
        (!right).then(|| format!("{name}: expected {verdict} {status_code:?} {error:?} in {least:?} to {most:?}, not {event}"))
    }
}

/// A source for each case, and the healthy one.
fn configuration(cases: &[Case], healthy: &Sink, destination: impl Fn(&Case) -> String) -> String {
    let sources = cases.iter().map(|case| {
        format!(
            "[sources.{}]\ndestination = \"{}\"\ntimeout = \"{}ms\"\nconcurrency = {CONCURRENCY}\nmax_attempts = 1\n",
            case.name,
            destination(case),
            TIMEOUT.as_millis()
        )
    });
    format!(
        "[sources.healthy]\ndestination = \"{}\"\n{}",
        healthy.url("/healthy"),
        sources.collect::<String>()
    )
}

/// Posts to the healthy source and, at the same time, to all others. Returns the start and the end
/// of the posts to the healthy source.
async fn everything(run: &Recording, service: &Service, cases: &[Case]) -> (At, At) {
    let others = cases.iter().map(|case| steady(run, service, case.name, EVENTS_EACH, EVERY * 20));
    futures::join!(steady(run, service, "healthy", POSTS, EVERY), futures::future::join_all(others))
        .0
}

/// A server with a self-signed certificate. Returns its port and its task.
async fn tls_with_its_own_certificate() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port().to_string();
    let certificate =
        CertificateDer::from(&include_bytes!("../../shell/tests/downstream/self-signed.der")[..]);
    let key = PrivateKeyDer::try_from(
        &include_bytes!("../../shell/tests/downstream/self-signed.key.der")[..],
    )
    .expect("a key");
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the key belongs to the certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            assert!(
                acceptor.accept(stream).await.is_err(),
                "the program accepted a self-signed certificate"
            );
        }
    });
    (port, server)
}

/// Posts at a steady pace, independent of the response times. Returns the start and the end.
async fn steady(
    run: &Recording,
    service: &Service,
    source: &'static str,
    posts: usize,
    every: Duration,
) -> (At, At) {
    let begun = run.elapsed();
    let client = Client::default();
    let mut pace = tokio::time::interval(every);
    let mut under_way = JoinSet::new();
    for _ in 0..posts {
        pace.tick().await;
        let (run, client, target) = (run.clone(), client.clone(), service.target());
        under_way.spawn(async move { post(&run, &client, &target, source).await });
    }
    under_way.join_all().await;
    (begun, run.elapsed())
}

async fn post(run: &Recording, client: &Client, target: &Target, source: &str) {
    let key = Uuid::now_v7().to_string();
    let post = Post { producer: "steady", source, key: &key, body: Bytes::from(vec![b'x'; 512]) };
    match try_once(run, client, target, &post).await {
        Ok(Ok(_)) => {}
        other => panic!("a post to {source} was not accepted: {other:?}"),
    }
}

/// 99th percentiles of the posts in a period of a run.
#[derive(Debug)]
struct Figures {
    /// From a post to its response, for all sources.
    intake: Duration,
    /// From the response to the arrival at the healthy downstream.
    delivery: Duration,
}

impl Figures {
    fn of(run: &Run, (from, to): (At, At)) -> Self {
        let posted: BTreeMap<_, _> = run
            .each(|what| if let What::Posted(post) = what { Some(post.post) } else { None })
            .map(|(at, post)| (post, at))
            .collect();
        let posts = run.posts();
        let mut accepted = BTreeMap::new();
        let mut intake = Vec::new();
        for (at, answer) in
            run.answers().filter(|(_, answer)| (from..=to).contains(&posted[&answer.post]))
        {
            intake.push(at - posted[&answer.post]);
            if posts[&answer.post].source == "healthy" {
                accepted.insert(answer.event.expect("a 202 names its event"), at);
            }
        }
        // An event can arrive before its producer has read the response.
        let delivery: Vec<_> = run
            .received()
            .filter_map(|(at, received)| Some(at.saturating_sub(*accepted.get(&received.event)?)))
            .collect();
        assert_eq!(delivery.len(), accepted.len(), "each healthy event arrives once");
        Self { intake: p99(&intake), delivery: p99(&delivery) }
    }
}

fn p99(figures: &[Duration]) -> Duration {
    let mut of_each: Vec<Duration> = figures
        .chunks_exact(WINDOW)
        .map(|window| {
            let mut window = window.to_vec();
            window.sort_unstable();
            window[WINDOW * 99 / 100 - 1]
        })
        .collect();
    of_each.sort_unstable();
    of_each[of_each.len() / 2]
}

/// The wait that a response leads to.
#[derive(Clone, Copy)]
enum Waits {
    /// The back-off, because the header is invalid or asks for less.
    BackOff,
    Seconds(u64),
    /// The longest wait that the retry policy allows.
    Cap,
}

const BACK_OFF: Duration = Duration::from_millis(200);
const CAP: Duration = Duration::from_millis(2500);
/// The tolerance between a decided wait and its record: on SQLite, the triggers of the tests count
/// milliseconds.
const ABOUT: Duration = Duration::from_millis(60);

async fn retry_after_is_bounded_by_the_back_off_and_the_cap(database: Database) {
    use Waits::{BackOff, Cap, Seconds};
    let long = "9".repeat(60 << 10);
    let cases: Vec<(&[u8], Waits)> = vec![
        (b"Retry-After: 0", BackOff),
        (b"Retry-After: 1", Seconds(1)),
        (b"retry-after:\t 1 \t", Seconds(1)),
        (b"Retry-After: 1\r\nRetry-After: 3600", Seconds(1)),
        (b"Retry-After: 2147483648", Cap),
        (b"Retry-After: 18446744073709551616", Cap),
        (b"Retry-After: 99999999999999999999999999999999999999999999", Cap),
        (b"Retry-After: -1", BackOff),
        (b"Retry-After: -9223372036854775808", BackOff),
        (b"Retry-After: +5", BackOff),
        (b"Retry-After: 1.5", BackOff),
        (b"Retry-After: 1e9", BackOff),
        (b"Retry-After: 0x7fffffff", BackOff),
        (b"Retry-After: 5, 6", BackOff),
        (b"Retry-After: NaN", BackOff),
        (b"Retry-After: Infinity", BackOff),
        (b"Retry-After:", BackOff),
        (b"Retry-After: soon", BackOff),
        (b"Retry-After: \xff\xfe\x80", BackOff),
        ("Retry-After: \u{661}\u{660}".as_bytes(), BackOff),
        (b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", Cap),
        (b"Retry-After: Thu, 01 Jan 1970 00:00:00 GMT", BackOff),
        (b"Retry-After: Sun, 31 Feb 2999 00:00:00 GMT", BackOff),
        (b"Retry-After: Fri, 31 Dec 99999 23:59:59 GMT", BackOff),
        (
            b"Date: Fri, 31 Dec 9999 23:59:58 GMT\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT",
            Seconds(1),
        ),
        (b"Date: now\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT", BackOff),
    ];
    let long = format!("Retry-After: {long}");
    let cases: Vec<(Vec<u8>, Waits)> = cases
        .into_iter()
        .chain([(long.as_bytes(), Cap)])
        .map(|(header, waits)| (header.to_vec(), waits))
        .collect();

    let run = Recording::begin(database).await;
    let mut rogues = Vec::new();
    let mut configuration = format!(
        "[defaults]\ninitial_delay = \"{}ms\"\nmax_delay = \"{}ms\"\n",
        BACK_OFF.as_millis(),
        CAP.as_millis()
    );
    for (index, (header, waits)) in cases.iter().enumerate() {
        let asked = match waits {
            BackOff => None,
            Seconds(seconds) => Some(Duration::from_secs(*seconds)),
            Cap => Some(Duration::MAX),
        };
        let parts: [&[u8]; 3] = [
            b"HTTP/1.1 503 Later\r\n",
            header,
            b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ];
        let later = Script::default().say(parts.concat()).replies(503, asked);
        let now =
            Script::default().say("HTTP/1.1 204 \r\nConnection: close\r\n\r\n").replies(204, None);
        let rogue =
            Rogue::start(
                &run,
                move |received| if received.attempt == 1 { later.clone() } else { now.clone() },
            );
        configuration
            .push_str(&format!("[sources.later-{index}]\ndestination = \"{}\"\n", rogue.url("/")));
        rogues.push(rogue);
    }
    let service = run.service(&configuration).await;
    let client = Client::default();
    for index in 0..cases.len() {
        post(&run, &client, &service.target(), &format!("later-{index}")).await;
    }

    let told = run.judge().await;
    let mut wrong = Vec::new();
    for (index, (header, waits)) in cases.iter().enumerate() {
        let header = String::from_utf8_lossy(&header[..header.len().min(80)]);
        let event = told
            .events
            .values()
            .find(|event| event.source == format!("later-{index}"))
            .expect("each was accepted");
        let attempts: Vec<_> = event.history.iter().map(|attempt| attempt.status_code).collect();
        let waited = told
            .committed()
            .filter(|(_, committed)| committed.event == event.id)
            .find_map(|(_, committed)| match committed.change {
                Change::Settled { outcome: Outcome::Retry { after }, .. } => Some(after),
                _ => None,
            })
            .expect("it was retried");
        let (least, most) = match waits {
            BackOff => (BACK_OFF / 2, BACK_OFF),
            Seconds(seconds) => (Duration::from_secs(*seconds), Duration::from_secs(*seconds)),
            Cap => (CAP, CAP),
        };
        if attempts != [Some(503), Some(204)] || waited + ABOUT < least || waited > most + ABOUT {
            wrong.push(format!("{header}: waited {waited:?}, expected {least:?} to {most:?}; responses {attempts:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(service.mishaps(), [""; 0]);
}
