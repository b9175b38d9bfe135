//! `/health` and `/ready`.

use crate::world::{Mode, Setup, World, assert_problem, header, json, request_for};
use futures::future::join_all;
use serde_json::json;
use std::time::Duration;
use surehook::health::{Alive, Loop};
use surehook::http::Route;
use surehook::ports::StoreError;
use surehook_model::scenario::Call;
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn a_working_process_is_healthy_and_ready() {
    let world = World::start(Setup::default());
    let _alive = world.app.health.watch(Loop::Worker);
    let (health, ready) = (world.get("/health").await, world.get("/ready").await);
    assert_eq!((health.status().as_u16(), json(&health)), (200, json!({"status": "ok"})));
    assert_eq!((ready.status().as_u16(), json(&ready)), (200, json!({"status": "ready"})));
}

#[tokio::test]
async fn health_never_uses_the_database() {
    let world = World::start(Setup::default());
    world.store.set(Mode::Hangs);
    assert_eq!(world.get("/health").await.status(), 200);
    assert_eq!(world.store.calls(Call::Ping), 0);
}

#[tokio::test]
async fn a_process_with_a_dead_loop_is_not_ready_and_names_it() {
    let world = World::start(Setup::default());
    let health = world.app.health.clone();
    let died = tokio::spawn(async move {
        let _alive = health.watch(Loop::Worker);
        panic!("for the test");
    });
    assert!(died.await.unwrap_err().is_panic());
    let response = world.get("/ready").await;
    assert_problem(&response, 503, "loop-ended");
    assert!(json(&response)["detail"].as_str().unwrap().contains("worker"));
    assert_eq!(world.get("/health").await.status(), 200);
}

#[tokio::test]
async fn a_draining_process_is_not_ready_and_serves_all_other_routes() {
    let world = World::start(Setup::default());
    let undrained = World::start(Setup::default());
    world.app.health.drain();
    for route in Route::ALL {
        let (method, path) = request_for(*route);
        let response = world.request(method, &path, &[], b"").await;
        assert_eq!(header(response.headers(), "connection"), Some("close"), "{path}");
        if route.path() == "/ready" {
            assert_problem(&response, 503, "shutting-down");
        } else {
            let before = undrained.request(method, &path, &[], b"").await;
            assert_eq!(response.status(), before.status(), "{path}");
        }
    }
    assert_eq!(world.post("k1", b"").await.status(), 202);
    assert_eq!(world.store.stored().len(), 1);
    assert_problem(&world.get("/nowhere").await, 404, "unknown-route");
}

#[tokio::test(start_paused = true)]
async fn a_failing_or_hanging_database_makes_the_process_unready() {
    let world = World::start(Setup::default());
    for mode in [Mode::Unavailable, Mode::Hangs, Mode::Unknown] {
        world.store.set(mode);
        sleep(Duration::from_secs(2)).await;
        let begun = Instant::now();
        assert_problem(&world.get("/ready").await, 503, "database-unavailable");
        assert!(begun.elapsed() < Duration::from_secs(2));

        world.store.set(Mode::Works);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(world.get("/ready").await.status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_readiness_checks_share_one_ping_of_the_database() {
    let world = World::start(Setup::default());
    world.store.set(Mode::Hangs);
    let asked = join_all((0..100).map(|_| world.get("/ready"))).await;
    for response in &asked {
        assert_problem(response, 503, "database-unavailable");
    }
    assert_eq!(world.store.calls(Call::Ping), 1);

    world.store.set(Mode::Works);
    sleep(Duration::from_secs(2)).await;
    for _ in 0..100 {
        assert_eq!(world.get("/ready").await.status(), 200);
    }
    assert_eq!(world.store.calls(Call::Ping), 2);
}

#[tokio::test(start_paused = true)]
async fn a_ping_continues_when_its_first_caller_is_gone() {
    let world = World::start(Setup::default());
    world.store.set(Mode::Hangs);
    {
        let mut first = std::pin::pin!(world.get("/ready"));
        assert!(futures::poll!(&mut first).is_pending());
    }
    world.store.set(Mode::Works);
    assert_eq!(world.get("/ready").await.status(), 200);
    assert_eq!(world.store.calls(Call::Ping), 1);
}

/// A process whose intake is known to work. An intake that has stored nothing yet is in doubt; its
/// first probe ends the doubt.
async fn proven() -> (World, Alive) {
    let world = World::start(Setup::default());
    let alive = world.app.health.watch(Loop::Intake);
    assert_eq!(world.get("/ready").await.status(), 200);
    assert_eq!(world.store.calls(Call::Probe), 1);
    (world, alive)
}

#[tokio::test(start_paused = true)]
async fn a_process_that_cannot_store_is_unready_until_a_probe_succeeds() {
    let (world, _alive) = proven().await;
    let probes = || world.store.calls(Call::Probe) - 1;
    for mode in [Mode::Unavailable, Mode::Unknown, Mode::Conflict] {
        let before = probes();
        world.store.set_storing(mode);
        assert_eq!(world.post("k", b"").await.status(), 503);
        for response in join_all((0..100).map(|_| world.get("/ready"))).await {
            assert_problem(&response, 503, "database-unavailable");
            assert!(
                json(&response)["detail"].as_str().unwrap().contains("new events cannot be stored")
            );
        }
        assert_eq!(probes() - before, 1, "all callers share one probe");
        sleep(Duration::from_secs(2)).await;
        assert_problem(&world.get("/ready").await, 503, "database-unavailable");

        world.store.set_storing(Mode::Works);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(world.get("/ready").await.status(), 200);
        assert_eq!(probes() - before, 3);
        assert_eq!(world.get("/ready").await.status(), 200);
        assert_eq!(probes() - before, 3, "no probe is written while the intake is known to work");
        sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_commit_makes_the_process_unready_and_starts_one_probe() {
    let (world, _alive) = proven().await;
    world.store.set_storing(Mode::Hangs);
    assert_problem(&world.post("k", b"").await, 503, "database-timeout");
    for _ in 0..3 {
        let begun = Instant::now();
        assert_problem(&world.get("/ready").await, 503, "database-unavailable");
        assert!(begun.elapsed() < Duration::from_secs(2));
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.store.calls(Call::Probe), 2, "only one probe is in flight");
    world.store.set_storing(Mode::Works);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.get("/ready").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_database_refuses_leaves_the_process_ready() {
    let (world, _alive) = proven().await;
    world.store.set_storing(Mode::Rejects);
    assert_problem(&world.post("k", b"").await, 503, "not-storable");
    assert_eq!(world.get("/ready").await.status(), 200);
    assert_eq!(world.store.calls(Call::Probe), 1);
}

/// A commit of the intake failed.
fn a_commit_failed(world: &World) {
    let now = || world.app.clock.now();
    let failed = Err::<(), _>(StoreError::Unavailable("as the test wants it".into()));
    world.app.health.storing(now(), 10).ended(now(), &failed);
}

#[tokio::test(start_paused = true)]
async fn a_failure_during_a_probe_starts_another_probe() {
    let (world, _alive) = proven().await;
    a_commit_failed(&world);
    world.store.set_storing(Mode::Hangs);
    let meanwhile = async {
        sleep(Duration::from_millis(500)).await;
        a_commit_failed(&world);
        sleep(Duration::from_millis(1)).await;
        world.store.set_storing(Mode::Works);
    };
    let (ready, ()) = futures::join!(world.get("/ready"), meanwhile);
    assert_eq!(ready.status(), 200);
    assert_eq!(world.store.calls(Call::Probe), 3, "one at the start, and two for two failures");
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_leaves_a_doubt_when_the_commit_that_caused_it_is_cancelled() {
    let (world, _alive) = proven().await;
    let commit = world.app.health.storing(world.app.clock.now(), 10);
    sleep(Duration::from_secs(2)).await;
    world.store.set_storing(Mode::Unavailable);
    assert_problem(&world.get("/ready").await, 503, "database-unavailable");
    drop(commit);
    sleep(Duration::from_secs(2)).await;
    assert_problem(&world.get("/ready").await, 503, "database-unavailable");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_commit_leaves_no_doubt() {
    let (world, _alive) = proven().await;
    drop(world.app.health.storing(world.app.clock.now(), 10));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.get("/ready").await.status(), 200);
    assert_eq!(world.store.calls(Call::Probe), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_is_followed_by_another_after_its_limit() {
    let (world, _alive) = proven().await;
    a_commit_failed(&world);
    world.store.set_storing(Mode::Hangs);
    for (pause, probes) in [(0, 1), (5, 1), (7, 2)] {
        sleep(Duration::from_secs(pause)).await;
        assert_problem(&world.get("/ready").await, 503, "database-unavailable");
        assert_eq!(world.store.calls(Call::Probe) - 1, probes, "after {pause} s more");
    }
}
