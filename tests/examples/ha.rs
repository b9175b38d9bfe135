//! `make ha`: three PostgreSQL servers under Patroni, two processes of the program, and a load. The
//! leader is killed ten times. Prints for each kill how long no post was answered with `202`, and
//! the fate of the events. Fails if an acknowledged event is missing, or another promise is broken.
//!
//! `cargo run -p tests --example ha -- 3` kills three times.

use sqlx::Connection;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use surehook_model::history::{At, Run};
use tests::database::{self, Database};
use tests::postgres::patroni::{Death, LOOP_WAIT, Patroni, RETRY_TIMEOUT, TTL};
use tests::producer::{Load, Progress, produce};
use tests::program::Service;
use tests::recording::Recording;
use tests::sink::{Answer, Sink};
use uuid::Uuid;

const KILLS: usize = 10;

/// The load around each kill.
const LOAD: Load = Load {
    sources: &["github", "stripe", "shopify"],
    posts: 3_000,
    duplicates: 300,
    connections: 32,
};

/// One kill, and the load around it.
struct Kill {
    death: Death,
    killed: String,
    leads_then: String,
    timeline: u64,
    at: At,
    load_over: At,
    healed: At,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let kills =
        std::env::args().nth(1).map_or(KILLS, |kills| kills.parse().expect("a number of kills"));
    let begun = Instant::now();
    let mut patroni = Patroni::start().await;
    let (mut leader, timeline) = patroni.whole().await;
    println!(
        "the cluster of three servers is ready after {:.1?}: {leader} leads on timeline {timeline}",
        begun.elapsed()
    );
    let mut connection = database::connect(&patroni.url("postgres")).await;
    sqlx::query("create database surehook")
        .execute(&mut connection)
        .await
        .expect("a database can be made");
    connection.close().await.expect("the connection can be closed");

    let run = Recording::begin(Database::Postgres(patroni.url("surehook"))).await;
    let sink = run.sink(Answer::refusing_a_third_at_first).await;
    let configuration = sink.three_impatient_sources("500ms", "");
    let services = [run.service(&configuration).await, run.service(&configuration).await];
    let mut told = Vec::new();
    for number in 0..kills {
        let death = if number % 2 == 0 { Death::Machine } else { Death::Server };
        let progress = Progress::default();
        let targets = services.iter().map(Service::target).collect();
        let producers = tokio::spawn(produce(run.clone(), targets, LOAD, progress.clone()));
        progress.reaches(LOAD.posts / 4).await;
        let killed = leader.clone();
        let killing = async {
            let at = run.elapsed();
            tokio::task::block_in_place(|| patroni.kill(&killed, death));
            assert!(progress.answered() < LOAD.posts, "the load ended before the kill");
            producers.await.expect("every post is accepted in the end");
            let load_over = run.elapsed();
            let (leads_then, timeline) = patroni.heal().await;
            Kill { death, killed, leads_then, timeline, at, load_over, healed: run.elapsed() }
        };
        let kill = run.while_database_is("without its leader", killing).await;
        println!(
            "kill {} after {:.0?}: {} was killed, {} leads now",
            number + 1,
            begun.elapsed(),
            kill.killed,
            kill.leads_then
        );
        leader.clone_from(&kill.leads_then);
        told.push(kill);
    }
    let judged = run.judge().await;
    report(&judged, &sink, &told, begun.elapsed());
}

/// Prints the table.
///
/// # Panics
///
/// If an event is lost.
fn report(run: &Run, sink: &Sink, kills: &[Kill], took: Duration) {
    let accepted: Vec<At> =
        run.answers().filter(|(_, answer)| answer.status_code == 202).map(|(at, _)| at).collect();
    let refused = run.answers().filter(|(_, answer)| answer.status_code == 503).count();
    let taken = sink.taken();
    let acknowledged: BTreeSet<Uuid> =
        run.answers().filter_map(|(_, answer)| Some(answer.event?.as_uuid())).collect();
    let lost: Vec<&Uuid> = acknowledged.iter().filter(|event| !taken.contains_key(event)).collect();
    let again: usize = taken.values().map(|times| times - 1).sum();

    println!();
    println!(
        "| kill | target | old leader | new leader | timeline | without a `202` | three servers again after |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut gaps = Vec::new();
    for (number, kill) in kills.iter().enumerate() {
        let Kill { death, killed, leads_then, timeline, at, load_over, healed } = kill;
        let of = match death {
            Death::Machine => "server and Patroni",
            Death::Server => "server",
        };
        let gap = longest_gap(&accepted, *at, *load_over);
        println!(
            "| {} | {of} | {killed} | {leads_then} | {timeline} | {gap:.1?} | {:.1?} |",
            number + 1,
            *healed - *at
        );
        gaps.push(gap);
    }
    gaps.sort();
    println!();
    println!(
        "Patroni: ttl {TTL:?}, loop_wait {LOOP_WAIT:?}, retry_timeout {RETRY_TIMEOUT:?}, synchronous_mode_strict"
    );
    if let [least, .., most] = gaps.as_slice() {
        println!("without a `202`: {least:.1?} to {most:.1?}, median {:.1?}", gaps[gaps.len() / 2]);
    }
    println!(
        "{} events acknowledged, {refused} posts answered 503, {took:.0?} in total",
        acknowledged.len()
    );
    println!(
        "{} kills, {} events lost, {again} delivered again with an explanation",
        kills.len(),
        lost.len()
    );
    assert!(
        lost.is_empty(),
        "events were acknowledged but never accepted by the downstream: {lost:?}"
    );
}

/// The longest time between two acceptances that overlaps the time between `from` and `to`.
fn longest_gap(accepted: &[At], from: At, to: At) -> Duration {
    let gaps = accepted
        .windows(2)
        .filter(|pair| pair[1] > from && pair[0] < to)
        .map(|pair| pair[1] - pair[0]);
    gaps.max().expect("posts were accepted after the kill, or the load would not have ended")
}
