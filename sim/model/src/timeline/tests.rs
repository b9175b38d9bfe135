//! Tests of the timeline's axis, rows, texts and pages with hand-made runs.

use super::axis::{Axis, LINE, Place};
use super::index::Index;
use super::links::links;
use super::spans::{bands, leases};
use super::*;
use crate::database::DeliveryRow;
use crate::history::{
    CallResult, Change, Committed, Entry, Fault, Handshake, PostId, Posted, Received, RequestId,
    Sending, What,
};
use crate::marks::Mark;
use crate::oracles::Promise;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surehook_core::admission::Fingerprint;
use surehook_core::event::{DeliveryState, Outcome, Reason, Status};
use surehook_core::id::{EventId, Fence};

const SOURCE: &str = "shop";

fn event(number: u8) -> EventId {
    format!("00000000-0000-7000-8000-0000000000{number:02x}").parse().unwrap()
}

fn db_time(at: Duration) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::try_from(at).unwrap()
}

fn run(entries: Vec<(u64, What)>) -> Run {
    let entries: Vec<Entry> = entries
        .into_iter()
        .map(|(ms, what)| Entry { at: Duration::from_millis(ms), what })
        .collect();
    let ended_at = entries.last().map_or(Duration::ZERO, |last| last.at + Duration::from_secs(1));
    Run { entries, ended_at, ..Run::default() }
}

fn broken(ms: u64, what: &str, events: &[EventId]) -> Violation {
    Violation {
        promise: Promise::Lease,
        at: Duration::from_millis(ms),
        what: what.to_owned(),
        events: events.to_vec(),
    }
}

fn posted(post: u64, key: &str) -> What {
    What::Posted(Posted {
        post: PostId(post),
        producer: "producer".to_owned(),
        process: "process 1".to_owned(),
        source: SOURCE.to_owned(),
        key: key.to_owned(),
        body: Fingerprint::of(b"body"),
        storable: true,
        query: String::new(),
        takes: None,
        headers: BTreeMap::new(),
    })
}

fn answered(post: u64, event: EventId) -> What {
    What::Answered {
        post: PostId(post),
        status_code: 202,
        event: Some(event),
        status: Some(Status::Queued),
        replayed: true,
        problem: None,
    }
}

fn sending(process: &str, event: EventId, attempt: u32) -> What {
    What::Sending(Sending {
        process: process.to_owned(),
        source: SOURCE.to_owned(),
        event,
        attempt,
    })
}

fn received(request: u64, event: EventId, attempt: u32) -> What {
    let (source, body) = (SOURCE.to_owned(), Fingerprint::of(b"body"));
    What::Received(Received {
        request: RequestId(request),
        source,
        event,
        attempt,
        body,
        query: String::new(),
        headers: BTreeMap::new(),
    })
}

fn replied(request: u64) -> What {
    What::Replied {
        request: RequestId(request),
        status_code: 200,
        retry_after: Some(Duration::from_secs(7)),
    }
}

fn sent(process: &str, event: EventId, attempt: u32, status_code: Option<u16>) -> What {
    What::Sent { process: process.to_owned(), event, attempt, status_code }
}

fn row(status: Status, attempt: u32, fence: u64, due_at: Option<Timestamp>) -> DeliveryRow {
    let reason = (status == Status::DeadLettered).then_some(Reason::Lost);
    DeliveryRow {
        delivery: DeliveryState { status, attempt, budget_from: 0, fence: Fence(fence), reason },
        due_at,
    }
}

fn committed(
    event: EventId,
    db_time: Timestamp,
    change: Change,
    before: Option<DeliveryRow>,
    after: Option<DeliveryRow>,
) -> What {
    What::Committed(Committed {
        event,
        db_time,
        sent: None,
        began: None,
        process: "process 1".to_owned(),
        change,
        before,
        after,
    })
}

/// A claim at a given time, with a lease of twelve seconds.
fn claim(event: EventId, at: Duration, fence: u64) -> What {
    let now = db_time(at);
    let lease = Some(now + SignedDuration::from_secs(12));
    committed(
        event,
        now,
        Change::Claimed,
        Some(row(Status::Queued, 0, fence - 1, Some(now))),
        Some(row(Status::Processing, 1, fence, lease)),
    )
}

fn settlement(event: EventId, at: Duration, fence: u64) -> What {
    let change = Change::Settled { fence: Fence(fence), attempt: 1, outcome: Outcome::Delivered };
    committed(event, db_time(at), change, Some(row(Status::Processing, 1, fence, None)), None)
}

fn named(process: &str) -> String {
    process.to_owned()
}

/// Each kind of entry and of fault, with its expected text.
fn one_of_each_kind() -> Vec<(What, &'static str)> {
    let (one, now) = (event(1), db_time(Duration::from_secs(3)));
    let process = || named("process 1");
    let settled = Change::Settled {
        fence: Fence(1),
        attempt: 1,
        outcome: Outcome::Retry { after: Duration::from_secs(5) },
    };
    let retry = row(Status::Retrying, 1, 2, Some(now + SignedDuration::from_secs(5)));
    let dead = row(Status::DeadLettered, 1, 3, None);
    let second = Duration::from_secs(1);
    vec![
        (What::Fault(Fault::Started { process: process() }), "starts"),
        (posted(1, "k"), "p1 POST shop key k body 230d8358 to process 1"),
        (answered(1, one), "p1 answered 202: e1, queued, accepted before"),
        (What::Unanswered { post: PostId(1), is_refused: false }, "p1 got no response"),
        (What::Unanswered { post: PostId(1), is_refused: true }, "p1: the connection was refused"),
        (
            What::Looked { event: one, asked_at: second, status: None, attempts: 0 },
            "GET e1, asked at 1.000s: 404",
        ),
        (
            committed(one, now, Change::Accepted, None, Some(row(Status::Queued, 0, 0, Some(now)))),
            "no row → queued (fence 0) due now",
        ),
        (
            claim(one, Duration::from_secs(3), 1),
            "e1 claimed by process 1: queued (fence 0) → processing #1 (fence 1) until +12.0s",
        ),
        (sending("process 1", one, 1), "sends e1 #1"),
        (received(2, one, 1), "receives e1 #1"),
        (replied(2), "answers 200 to e1 #1, Retry-After 7.0s"),
        (sent("process 1", one, 1, Some(200)), "gets 200 for e1 #1"),
        (
            committed(one, now, settled, Some(row(Status::Processing, 1, 1, None)), Some(retry)),
            "retrying #1 (fence 2) due +5.0s",
        ),
        (
            committed(one, now, Change::Claimed, Some(retry), Some(dead)),
            "dead_lettered #1 (fence 3, lost)",
        ),
        (
            committed(
                one,
                now,
                Change::Redriven { of_many: false },
                Some(dead),
                Some(row(Status::Queued, 1, 4, Some(now))),
            ),
            "redriven through process 1",
        ),
        (
            committed(one, now, Change::Pruned, Some(dead), None),
            "pruned by process 1: dead_lettered #1 (fence 3, lost) → deleted",
        ),
        (
            What::StaleSettlement { process: process(), event: one, attempt: 1 },
            "refuses the settlement of e1 #1 by process 1: stale",
        ),
        (
            What::Called {
                process: process(),
                call: "settle",
                result: CallResult::Unknown,
                events: vec![one],
            },
            "settle of e1: reply lost",
        ),
        (
            What::Fault(Fault::Paused { process: process(), duration: second }),
            "is stopped for 1.0s",
        ),
        (
            What::Fault(Fault::Network { what: "cut".to_owned(), duration: second }),
            "network: cut, for 1.0s",
        ),
        (
            What::Fault(Fault::Database {
                what: "slow".to_owned(),
                process: Some(process()),
                duration: Duration::ZERO,
            }),
            "fault: slow, for process 1",
        ),
        (
            What::Fault(Fault::Downstream {
                source: SOURCE.to_owned(),
                what: "Hangs".to_owned(),
                broken: true,
            }),
            "is broken from now on: Hangs",
        ),
        (
            What::Fault(Fault::SourcePaused { source: SOURCE.to_owned(), paused: true }),
            "is paused by an operator",
        ),
        (What::Fault(Fault::Reloaded { process: process() }), "reads its configuration again"),
        (What::Fault(Fault::Draining { process: process() }), "starts its shutdown"),
        (What::Fault(Fault::Closing { process: process() }), "closes its listener"),
        (What::Fault(Fault::Exited { process: process() }), "has shut down"),
        (What::Fault(Fault::Killed { process: process() }), "is killed"),
        (
            What::Handshake(Handshake::Sent {
                post: PostId(7),
                process: process(),
                source: "shop".to_owned(),
                key: "h".to_owned(),
            }),
            "p7 sends a handshake to shop key h to process 1",
        ),
        (
            What::Handshake(Handshake::Answered { post: PostId(7), status_code: 200, event: None }),
            "p7 answered 200",
        ),
        (
            What::Handshake(Handshake::Relayed {
                source: "shop".to_owned(),
                post: Some(PostId(7)),
            }),
            "receives the relayed handshake p7",
        ),
        (What::Fault(Fault::Healed), "all faults have ended"),
        (What::Reached(Mark::PartCommitted), "reaches PartCommitted"),
        (
            What::Ready { process: process(), asked_at: Duration::ZERO, is_ready: false },
            "is not ready, asked at",
        ),
    ]
}

/// A new kind of entry needs a text too: add it to [`one_of_each_kind`].
fn kind(what: &What) -> &'static str {
    match what {
        What::Posted(_) => "posted",
        What::Answered { .. } => "answered",
        What::Unanswered { .. } => "unanswered",
        What::Looked { .. } => "looked",
        What::Sending(_) => "sending",
        What::Sent { .. } => "sent",
        What::Received(_) => "received",
        What::Replied { .. } => "replied",
        What::Committed(_) => "committed",
        What::StaleSettlement { .. } => "stale",
        What::Called { .. } => "called",
        What::Handshake(Handshake::Sent { .. }) => "handshake sent",
        What::Handshake(Handshake::Answered { .. }) => "handshake answered",
        What::Handshake(Handshake::Relayed { .. }) => "handshake relayed",
        What::Fault(Fault::Killed { .. }) => "killed",
        What::Fault(Fault::Started { .. }) => "started",
        What::Fault(Fault::Paused { .. }) => "paused",
        What::Fault(Fault::Reloaded { .. }) => "reloaded",
        What::Fault(Fault::Draining { .. }) => "draining",
        What::Fault(Fault::Closing { .. }) => "closing",
        What::Fault(Fault::Exited { .. }) => "exited",
        What::Fault(Fault::Network { .. }) => "network",
        What::Fault(Fault::Database { .. }) => "database",
        What::Fault(Fault::Downstream { .. }) => "downstream",
        What::Fault(Fault::SourcePaused { .. }) => "source paused",
        What::Fault(Fault::Healed) => "healed",
        What::Reached(_) => "reached",
        What::Ready { .. } => "ready",
    }
}

#[test]
fn every_kind_of_entry_is_in_text_and_drawing() {
    let kinds = one_of_each_kind();
    assert_eq!(kinds.iter().map(|(what, _)| kind(what)).collect::<BTreeSet<_>>().len(), 28);
    let run = run((0..).map(|n| n * 100).zip(kinds.iter().map(|(what, _)| what.clone())).collect());
    let violations = [broken(1500, "it broke", &[event(1)])];
    let text = text(&run, &violations);
    let page = html(&run, &violations, "title", "scenario", "rerun");
    let drawing = &page[page.find("<svg xmlns").unwrap()..page.find("<summary>Scenario").unwrap()];
    // The drawing breaks long lines and marks the actor in them, so the comparison ignores white
    // space.
    let mut shown = String::new();
    for part in drawing.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text)) {
        shown.push_str(part);
        shown.push(' ');
    }
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (_, words) in kinds {
        assert!(text.lines().any(|line| line.contains(words)), "{words:?} is not in\n{text}");
        assert!(squeezed(&shown).contains(words), "{words:?} is not in\n{shown}");
    }
    assert!(text.contains(">>>    1.500s  BROKEN [Lease] it broke"), "{text}");
    assert!(squeezed(&shown).contains("BROKEN [Lease] it broke"), "{shown}");
}

#[test]
fn text_of_a_run_cannot_inject_markup_or_terminal_codes() {
    let evil = "<script>alert('1')</script>&\"\u{1b}[2J\n\0\u{202e}";
    let mut run = run(vec![
        (0, posted(1, evil)),
        (
            1,
            What::Fault(Fault::Network { what: evil.to_owned(), duration: Duration::from_secs(9) }),
        ),
        (2, What::Fault(Fault::Killed { process: evil.to_owned() })),
        (
            3,
            What::Fault(Fault::Downstream {
                source: evil.to_owned(),
                what: evil.to_owned(),
                broken: true,
            }),
        ),
        (9, answered(1, event(1))),
    ]);
    run.ended_at = Duration::from_secs(20);
    let violations = [broken(5, evil, &[event(1)])];
    let page = html(&run, &violations, evil, evil, evil);
    assert!(!page.contains("<script>alert") && !page.contains("alert('1')"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;"), "{page}");
    assert!(
        !page.contains(|character: char| character.is_control() && character != '\n'),
        "{page}"
    );
    let text = text(&run, &violations);
    assert!(
        !text.contains(|character: char| (character.is_control() && character != '\n')
            || character == '\u{202e}'),
        "{text}"
    );
    assert!(text.contains("\\u{1b}[2J\\n"), "{text}");
}

#[test]
fn the_page_loads_no_external_resources() {
    let run = run((0..)
        .map(|n| n * 100)
        .zip(one_of_each_kind().into_iter().map(|(what, _)| what))
        .collect());
    let page = html(&run, &[broken(1, "it broke", &[event(1)])], "title", "scenario", "rerun");
    let page = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for foreign in ["http:", "https:", "src=", "@import", "<link"] {
        assert!(!page.contains(foreign), "{foreign} in\n{page}");
    }
}

#[test]
fn an_event_has_one_short_name_in_the_whole_timeline() {
    let run = run(vec![
        (1, sending("process 1", event(9), 1)),
        (2, sending("process 1", event(3), 1)),
        (3, sending("process 1", event(9), 2)),
        (4, sending("process 1", event(1), 1)),
    ]);
    for violations in [vec![], vec![broken(4, &format!("event {}: wrong", event(1)), &[event(1)])]]
    {
        let text = text_of_everything(&run, &violations);
        for line in ["sends e1 #1", "sends e2 #1", "sends e1 #2", "sends e3 #1"] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
    let violations = [broken(4, &format!("event {}: wrong", event(1)), &[event(1)])];
    let text = text(&run, &violations);
    assert!(
        text.contains("at 0.004s: event e3: wrong") && text.contains(&format!("e3 {}", event(1))),
        "{text}"
    );
}

#[test]
fn unrelated_events_are_only_in_the_complete_timeline() {
    let run = run(vec![
        (1, posted(1, "mine")),
        (2, posted(2, "another")),
        (3, answered(1, event(1))),
        (4, answered(2, event(2))),
        (5, What::Fault(Fault::Healed)),
    ]);
    let violations = [broken(4, "it broke", &[event(1)])];
    let few = text(&run, &violations);
    assert!(
        few.contains("key mine")
            && few.contains("all faults have ended")
            && !few.contains("key another"),
        "{few}"
    );
    assert!(text_of_everything(&run, &violations).contains("key another"));
}

#[test]
fn a_long_run_is_cut_around_its_violations() {
    let run = run((0..5000).map(|n| (n * 10, sent("process 1", event(1), 1, None))).collect());
    let violations = [broken(25_000, "it broke", &[event(1)])];
    let text = text(&run, &violations);
    assert!(text.lines().count() < 220, "{} lines", text.lines().count());
    assert!(text.contains("BROKEN [Lease] it broke"), "{text}");
    let left_out = text.lines().filter_map(|line| {
        line.trim().strip_prefix("··· ")?.strip_suffix(" left out ···")?.parse::<usize>().ok()
    });
    assert_eq!(left_out.sum::<usize>(), 5001 - TEXT_LINES_MAX, "{text}");
    assert!(text_of_everything(&run, &violations).lines().count() > 5000);
    let drawn = html(&run, &violations, "title", "", "");
    let drawing = &drawn[..drawn.find("<summary>Scenario").unwrap()];
    assert_eq!(drawing.matches("<text class=\"words").count(), ROWS_MAX);
}

#[test]
fn the_height_of_a_gap_is_fixed() {
    let place = |seconds| Place { at: Some(Duration::from_secs(seconds)), lines: 1 };
    let axis = |seconds| Axis::of(&[place(0), place(seconds)]);
    let (short, long) = (axis(10), axis(36_000));
    assert_eq!(short.rows, long.rows);
    assert_eq!(long.gaps.iter().map(|gap| gap.text.as_str()).collect::<Vec<_>>(), ["600m 0s"]);
    assert!(axis(1).gaps.is_empty());
    assert!(axis(1).rows[1] - axis(1).rows[0] >= LINE, "rows do not overlap");
    let middle = f64::midpoint(long.rows[0], long.rows[1]);
    assert!(
        (long.at(Duration::from_hours(5)) - middle).abs() < 0.1,
        "interpolated between two rows"
    );
}

#[test]
fn a_response_that_does_not_arrive_is_drawn_as_lost() {
    let arrivals = |ending: Vec<(u64, What)>| -> Vec<(String, bool)> {
        let begin = vec![(1, sending("process 1", event(1), 1)), (2, received(7, event(1), 1))];
        let run = run(begin.into_iter().chain(ending).collect());
        let index = Index::of(&run);
        links(&run, &index).arrows.into_iter().map(|link| (link.label, link.arrived)).collect()
    };
    let killed = What::Fault(Fault::Killed { process: named("process 1") });
    let request = ("e1 #1".to_owned(), true);
    let reply = |arrived| ("200".to_owned(), arrived);
    let heard = arrivals(vec![(3, replied(7)), (4, sent("process 1", event(1), 1, Some(200)))]);
    assert_eq!(heard, [request.clone(), reply(true)]);
    let too_late = arrivals(vec![(3, replied(7)), (4, sent("process 1", event(1), 1, None))]);
    assert_eq!(too_late, [request.clone(), reply(false)]);
    assert_eq!(
        arrivals(vec![(3, replied(7)), (4, killed.clone())]),
        [request.clone(), reply(false)]
    );
    assert_eq!(arrivals(vec![(3, killed), (4, replied(7))]), [request, reply(false)]);
}

#[test]
fn a_request_that_never_arrives_is_drawn_as_lost() {
    let run = run(vec![
        (1, sending("process 1", event(1), 1)),
        (9, sent("process 1", event(1), 1, None)),
    ]);
    let index = Index::of(&run);
    let links = links(&run, &index).arrows;
    assert_eq!(
        links.iter().map(|link| (link.label.as_str(), link.arrived)).collect::<Vec<_>>(),
        [("e1 #1", false)]
    );
}

#[test]
fn a_delivery_that_never_ends_is_listed_at_the_end() {
    let entries = vec![
        (1, sending("process 1", event(1), 1)),
        (2, sending("process 2", event(2), 1)),
        (9, sent("process 2", event(2), 1, None)),
    ];
    let text = text_of_everything(&run(entries), &[]);
    assert!(
        text.contains("still sends e1 #1, since 0.001s") && !text.contains("still sends e2"),
        "{text}"
    );
}

#[test]
fn a_repeated_lookup_is_left_out_unless_it_is_wrong() {
    let look = |attempts| What::Looked {
        event: event(1),
        asked_at: Duration::ZERO,
        status: Some(Status::Queued),
        attempts,
    };
    let run = run(vec![(1, look(0)), (2, look(0)), (3, look(0)), (4, look(1))]);
    let told = |text: String| {
        text.lines()
            .filter(|line| line.contains("GET e1,"))
            .map(|line| line[..13].trim().to_owned())
            .collect::<Vec<_>>()
    };
    let violations = [broken(3, "it broke", &[event(1)])];
    assert_eq!(told(text(&run, &violations)), ["0.001s", "0.003s", "0.004s"]);
    assert_eq!(told(text_of_everything(&run, &violations)).len(), 4);
}

#[test]
fn a_lease_ends_at_its_settlement_or_by_the_database_clock() {
    let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
    let settled = run(vec![
        (0, claim(event(1), zero, 1)),
        (1000, settlement(event(1), second, 1)),
        (40_000, What::Fault(Fault::Healed)),
    ]);
    assert_eq!(
        leases(&settled).iter().map(|lease| (lease.to, lease.settled)).collect::<Vec<_>>(),
        [(second, Some(1))]
    );

    let by_another = run(vec![
        (0, claim(event(1), zero, 1)),
        (1000, settlement(event(1), second, 9)),
        (40_000, What::Fault(Fault::Healed)),
    ]);
    assert_eq!(
        leases(&by_another)[0].to,
        Duration::from_secs(12),
        "only its own settlement ends a lease"
    );
    assert!(
        text_of_everything(&by_another, &[])
            .contains("the lease of process 1 on e1 #1 ends unsettled")
    );

    // The commit of another event shows that the database's clock is ten seconds ahead at that
    // time.
    let jumped = run(vec![
        (0, claim(event(1), zero, 1)),
        (1000, settlement(event(2), Duration::from_secs(11), 1)),
        (40_000, What::Fault(Fault::Healed)),
    ]);
    assert_eq!(leases(&jumped)[0].to, Duration::from_secs(2));
}

#[test]
fn a_band_ends_at_the_entry_that_ends_it() {
    let process = || named("process 1");
    let ends = |fault: Fault| -> Vec<(u64, bool)> {
        let paused =
            What::Fault(Fault::Paused { process: process(), duration: Duration::from_secs(10) });
        let run = run(vec![
            (0, paused),
            (4000, What::Fault(fault)),
            (60_000, What::Fault(Fault::Healed)),
        ]);
        bands(&run).iter().map(|band| (band.to.as_secs(), band.ends_silently)).collect()
    };
    assert_eq!(ends(Fault::Started { process: process() })[0], (10, true));
    assert_eq!(ends(Fault::Killed { process: process() }), [(4, false), (61, false)]);
    assert_eq!(ends(Fault::Healed)[0], (4, false));
    let run = run(vec![
        (0, What::Fault(Fault::Draining { process: process() })),
        (1000, What::Fault(Fault::Exited { process: process() })),
        (3000, What::Fault(Fault::Started { process: process() })),
        (9000, What::Fault(Fault::Healed)),
    ]);
    let spans: Vec<_> = bands(&run)
        .iter()
        .map(|band| (band.kind.as_str(), band.from.as_secs(), band.to.as_secs()))
        .collect();
    assert_eq!(spans, [("draining", 0, 1), ("down", 1, 3)]);
}

#[test]
fn an_empty_run_and_a_violation_without_events_are_shown() {
    let none = text(&Run::default(), &[]);
    assert!(none.starts_with("No promise was broken."), "{none}");
    assert!(html(&Run::default(), &[], "title", "", "").contains("No promise was broken."));

    let violation = Violation {
        promise: Promise::NoPanic,
        at: Duration::ZERO,
        what: "panic: index out of bounds".to_owned(),
        events: vec![],
    };
    let panicked = text(&Run::default(), std::slice::from_ref(&violation));
    assert!(panicked.contains("BROKEN [NoPanic] panic: index out of bounds"), "{panicked}");
    let page = html(&Run::default(), &[violation], "title", "", "");
    assert!(
        page.contains("no process panics or exits unexpectedly")
            && page.contains("index out of bounds"),
        "{page}"
    );

    let run = run(vec![(1, sending("process 1", event(1), 1))]);
    assert!(text(&run, &[broken(1, "too many", &[])]).contains("sends e1 #1"));
}

#[test]
fn the_first_violation_of_each_promise_is_shown() {
    let run = run(vec![(1, sending("process 1", event(1), 1))]);
    let of = |promise, ms, what: &str| Violation { promise, ..broken(ms, what, &[event(1)]) };
    let violations = [
        of(Promise::Lease, 1, "one"),
        of(Promise::Lease, 2, "two"),
        of(Promise::Slots, 3, "three"),
        of(Promise::Lease, 4, "four"),
    ];
    let text = text(&run, &violations);
    let heads: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  "))
        .collect();
    assert_eq!(heads, ["  at 0.001s: one", "  and 2 more times", "  at 0.003s: three"]);
    let page = html(&run, &violations, "title", "", "");
    assert!(
        page.contains("All broken promises (4)")
            && page.contains("href=\"#v2\"")
            && page.contains("id=\"v2\""),
        "{page}"
    );
}
