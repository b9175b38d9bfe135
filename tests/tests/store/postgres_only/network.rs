//! A network that swallows connections, refuses them or does not answer them.

use crate::db::{Db, event};
use futures::future::{Either, select};
use std::pin::pin;
use surehook::ports::StoreError;
use surehook::store;
use surehook_core::admission::Stored;
use tests::postgres::{self, Cluster, Settings};
use tests::proxy::Proxy;
use tests::wait;
use tokio::time::timeout;

/// The text of the statement whose response the proxy holds back.
const ACCEPT: &str = "insert into events";

/// A database with the schema, behind a proxy.
async fn behind_a_proxy() -> (Db, Proxy) {
    let cluster = postgres::shared();
    let proxy = Proxy::start(cluster.port()).await;
    let db = Db::postgres_at(proxy.through(&cluster.create_database().await));
    db.open().migrate().await.unwrap();
    (db, proxy)
}

/// The first URL, with the server of the second URL as another one.
fn two_servers(one: &str, other: &str) -> String {
    let (start, database) = one.rsplit_once('/').unwrap();
    let (host, _) = other.split_once('@').unwrap().1.split_once('/').unwrap();
    format!("{start},{host}/{database}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_on_a_swallowed_connection_ends_in_time() {
    let (db, proxy) = behind_a_proxy().await;
    let call = timeout(wait::TIMEOUT, db.store.accept(vec![event("swallowed")]));
    let ((), answer) = futures::join!(proxy.hold_the_answer_to(ACCEPT), call);
    let answer = answer.expect("the call does not wait for the network");
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
    let next = db.store.accept(vec![event("next")]).await;
    assert_eq!(next, Ok(vec![Stored::Inserted]), "it must have another connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_session_keeps_its_slot_while_the_server_does_not_answer() {
    let (db, proxy) = behind_a_proxy().await;
    let in_use = || db.store.connections().iter().map(|pool| pool.in_use).sum::<usize>();
    {
        let call = db.store.accept(vec![event("abandoned")]);
        match select(pin!(proxy.hold_the_answer_to(ACCEPT)), pin!(call)).await {
            Either::Left(((), _call)) => proxy.refuse_new_connections(),
            Either::Right((answer, _)) => panic!("the call was answered: {answer:?}"),
        }
    }
    wait::until("two questions about the session", || async {
        let refused = proxy.refused();
        if refused >= 2 { Ok(()) } else { Err(format!("{refused} questions")) }
    })
    .await;
    assert_eq!(in_use(), 1);

    proxy.forward_new_connections();
    proxy.release();
    wait::until("the slot to be free", || async {
        let in_use = in_use();
        if in_use == 0 { Ok(()) } else { Err(format!("{in_use} are in use")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_leaves_time_to_connect_to_another() {
    let cluster = postgres::shared();
    let created = cluster.create_database().await;
    store::open(&created).unwrap().migrate().await.unwrap();
    let (used, other) = (Proxy::start(cluster.port()).await, Proxy::start(cluster.port()).await);
    let url = two_servers(&used.through(&created), &other.through(&created));
    let mut answers = Vec::new();
    // A busy machine may need more time to connect than is left.
    while answers.len() < 5 {
        used.forward_new_connections();
        other.refuse_new_connections();
        let store = store::open(&url).unwrap().store();
        wait::until("the first server to be in use", || async {
            store.ping().await.map_err(|error| error.to_string())
        })
        .await;
        used.ignore_new_connections();
        other.forward_new_connections();
        let key = format!("key-{}", answers.len());
        match store.accept(vec![event(&key)]).await {
            Ok(_) => return,
            refused => answers.push(refused),
        }
    }
    panic!("no call used the other server: {answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_a_server_that_was_replaced_meanwhile_is_unknown() {
    let old = Cluster::start(Settings::default());
    let created = old.create_database().await;
    store::open(&created).unwrap().migrate().await.unwrap();
    let new = old.standby("standby", Settings::default());
    let proxy = Proxy::start(old.port()).await;
    let url = two_servers(&proxy.through(&created), &new.url(""));
    let store = store::open(&url).unwrap().store();
    assert_eq!(store.accept(vec![event("before")]).await, Ok(vec![Stored::Inserted]));
    new.promote().await;

    let replaced = async {
        proxy.hold_the_answer_to(ACCEPT).await;
        // Another pool of the store connects, and finds that there is a new primary.
        proxy.refuse_new_connections();
        wait::until("the new primary to be in use", || async {
            store.ping().await.map_err(|error| error.to_string())
        })
        .await;
        proxy.release();
    };
    let ((), answer) = futures::join!(replaced, store.accept(vec![event("late")]));
    assert!(matches!(answer, Err(StoreError::Unknown(_))), "{answer:?}");
}
