//! The oracles find faults in recorded runs of the real program, as in simulations: a change made
//! directly in the database is reported as the promise that it breaks.

use std::collections::BTreeSet;
use std::time::Duration;
use surehook_model::oracles::Promise;
use tests::database::Database;
use tests::producer::{Load, Progress, produce};
use tests::recording::Recording;
use tests::sink::{Answer, Received, Sink};
use tests::{audit, on_each_database, wait};

on_each_database!(
    a_run_without_interference_breaks_no_promise,
    a_deleted_event_breaks_the_durability_promise,
    an_event_made_due_again_breaks_the_duplicates_promise,
    a_changed_body_breaks_the_bytes_promise,
    a_shortened_lease_breaks_the_lease_promise,
);

const EVENTS: usize = 20;

async fn a_run_without_interference_breaks_no_promise(database: Database) {
    let broken =
        broken_by(database, |_| Answer::status(200), |_| true, "select 1", "select 1").await;
    assert_eq!(broken, BTreeSet::new());
}

async fn a_deleted_event_breaks_the_durability_promise(database: Database) {
    // Without the trigger, the deletion is not recorded as that of retention.
    let delete = "delete from events where id = (select id from events order by id limit 1)";
    let postgres = format!("drop trigger audit_pruned on events; {delete}");
    let sqlite = format!("drop trigger audit_pruned; {delete}");
    let broken = broken_by(database, |_| Answer::status(200), |_| true, &postgres, &sqlite).await;
    assert_eq!(broken, BTreeSet::from([Promise::Durability]));
}

async fn an_event_made_due_again_breaks_the_duplicates_promise(database: Database) {
    let insert = "insert into deliveries (event_id, due_at, attempt, budget_from, fence, source, status)
                  select id, received_at, 1, 0, 2, source, 'retrying' from events order by id limit 1";
    let broken = broken_by(database, |_| Answer::status(200), |_| true, insert, insert).await;
    assert!(broken.contains(&Promise::Duplicates), "{broken:?}");
}

async fn a_changed_body_breaks_the_bytes_promise(database: Database) {
    let (postgres, sqlite) =
        ("update events set body = 'changed'::bytea", "update events set body = x'00'");
    let broken =
        broken_by(database, refuses_at_first, |status| status == "retrying", postgres, sqlite)
            .await;
    assert_eq!(broken, BTreeSet::from([Promise::Bytes]));
}

async fn a_shortened_lease_breaks_the_lease_promise(database: Database) {
    let (postgres, sqlite) = (
        "update deliveries set due_at = due_at - interval '1 hour'",
        "update deliveries set due_at = due_at - 3600000000",
    );
    let broken =
        broken_by(database, |_| slow(), |status| status == "processing", postgres, sqlite).await;
    assert!(broken.contains(&Promise::Lease), "{broken:?}");
}

fn refuses_at_first(received: &Received) -> Answer {
    Answer::status(if received.attempt == 1 { 503 } else { 200 })
}

fn slow() -> Answer {
    Answer::status(200).after(Duration::from_secs(1))
}

/// Runs a small load, waits until every unfinished event has an expected status, makes the change
/// in the database, and lets the run end. Returns the broken promises.
async fn broken_by(
    database: Database,
    behaviour: fn(&Received) -> Answer,
    status: fn(&str) -> bool,
    postgres: &str,
    sqlite: &str,
) -> BTreeSet<Promise> {
    let run = Recording::begin(database).await;
    let sink = run.sink(behaviour).await;
    let service = run.service(&configuration(&sink)).await;
    let load = Load { sources: &["github"], posts: EVENTS, duplicates: 0, connections: 4 };
    produce(run.clone(), vec![service.target()], load, Progress::default()).await;
    sink.reaches(EVENTS).await;
    wait::until("every unfinished event to have an expected status", || async {
        let owed = audit::statuses(run.database()).await;
        if owed.iter().all(|owed| status(owed)) { Ok(()) } else { Err(format!("{owed:?}")) }
    })
    .await;

    let mischief = if matches!(run.database(), Database::Postgres(_)) { postgres } else { sqlite };
    run.database().execute(mischief).await;
    run.all_ended().await;
    run.violations(run.elapsed()).await.1.into_iter().map(|violation| violation.promise).collect()
}

fn configuration(sink: &Sink) -> String {
    format!(
        "[defaults]\ninitial_delay = \"2s\"\n[sources.github]\ndestination = \"{}\"\n",
        sink.url("/github")
    )
}
