//! Replays of dead letters, for sources with `redrive_on_replay`.

use crate::world::{Mode, Setup, World, assert_problem, header, json, name};
use futures::FutureExt;
use serde_json::json;
use surehook::ports::OperatorStore;
use surehook_core::event::Status;
use surehook_model::scenario::Call;

fn world(redrive_on_replay: bool) -> World {
    World::start(Setup { redrive_on_replay, ..Setup::default() })
}

async fn status(world: &World, id: surehook_core::id::EventId) -> Status {
    world.store.database.find(id).await.unwrap().unwrap().status
}

#[tokio::test]
async fn a_replay_of_a_dead_letter_queues_it_again() {
    let world = world(true);
    let id = world.dead_lettered("k1").await;
    world.app.doorbell.heard().await;
    let again = world.post("k1", b"body").await;
    assert_eq!(
        (again.status().as_u16(), header(again.headers(), "idempotent-replayed")),
        (202, Some("true"))
    );
    assert_eq!(json(&again), json!({"event_id": id.to_string(), "status": "queued"}));
    assert_eq!(header(again.headers(), "surehook-event-id"), Some(&*id.to_string()));
    assert_eq!(status(&world, id).await, Status::Queued);
    assert_eq!(world.app.doorbell.heard().await, [name("plain")]);
    assert_eq!(world.store.stored().len(), 1);
    let shown = json(&world.get(&format!("/events/{id}")).await);
    assert_eq!(shown["actions"][0]["action"], "redriven_by_replay");
}

#[tokio::test]
async fn without_the_setting_a_replay_of_a_dead_letter_changes_nothing() {
    let world = world(false);
    let id = world.dead_lettered("k1").await;
    let again = world.post("k1", b"body").await;
    assert_eq!(json(&again), json!({"event_id": id.to_string(), "status": "dead_lettered"}));
    assert_eq!(status(&world, id).await, Status::DeadLettered);
    assert_eq!(world.store.calls(Call::Redrive), 0);
}

#[tokio::test]
async fn replays_of_other_events_redrive_nothing() {
    let world = world(true);
    for (key, expected) in
        [("k1", Status::Queued), ("k2", Status::Retrying), ("k3", Status::Delivered)]
    {
        let id = world.accepted(key).await;
        world.store.put(id, expected, vec![]);
        let again = world.post(key, b"body").await;
        assert_eq!(json(&again)["status"], expected.as_str());
        assert_eq!(status(&world, id).await, expected);
    }
    let dead = world.dead_lettered("k4").await;
    assert_problem(&world.post("k4", b"another body").await, 422, "key-reused");
    assert_eq!(status(&world, dead).await, Status::DeadLettered);
    assert_eq!(world.store.calls(Call::Redrive), 0);
}

#[tokio::test]
async fn a_replay_is_not_acknowledged_if_its_redrive_fails() {
    let world = world(true);
    let id = world.dead_lettered("k1").await;
    for (mode, slug) in [
        (Mode::Unavailable, "database-unavailable"),
        (Mode::Conflict, "database-unavailable"),
        (Mode::Unknown, "database-timeout"),
    ] {
        world.store.set_redriving(mode);
        assert_problem(&world.post("k1", b"body").await, 503, slug);
        assert_eq!(status(&world, id).await, Status::DeadLettered);
    }
    world.store.set_redriving(Mode::Works);
    assert_eq!(json(&world.post("k1", b"body").await)["status"], "queued");
}

#[tokio::test]
async fn of_two_concurrent_replays_one_redrives_and_both_are_acknowledged() {
    let world = world(true);
    let id = world.dead_lettered("k1").await;
    world.store.set_redriving(Mode::Hangs);
    let mut first = std::pin::pin!(world.post("k1", b"body"));
    let mut second = std::pin::pin!(world.post("k1", b"body"));
    while world.store.calls(Call::Redrive) < 2 {
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    world.store.set_redriving(Mode::Works);
    for response in [first.await, second.await] {
        assert_eq!(json(&response), json!({"event_id": id.to_string(), "status": "queued"}));
    }
    let found = world.store.database.find(id).await.unwrap().unwrap();
    assert_eq!((found.status, found.budget_from), (Status::Queued, Some(0)));
}

#[tokio::test]
async fn an_event_that_is_deleted_during_its_replay_is_not_acknowledged() {
    let world = world(true);
    let id = world.dead_lettered("k1").await;
    world.store.set_redriving(Mode::Hangs);
    let mut replay = std::pin::pin!(world.post("k1", b"body"));
    while world.store.calls(Call::Redrive) < 1 {
        assert!(replay.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    world.store.database.transact(|tables, _| tables.delete(id));
    world.store.set_redriving(Mode::Works);
    assert_problem(&replay.await, 503, "database-unavailable");
    let new = world.post("k1", b"body").await;
    assert_eq!(
        (header(new.headers(), "idempotent-replayed"), world.store.stored().len()),
        (None, 1)
    );
}
