//! Commits of the primary wait for a standby that is away. The wait can end without the standby:
//! the primary restarts, or an operator cancels or terminates the session. The event is then on the
//! primary only. Its posts must not be answered with 202 before the standby has it, so that a
//! failover loses no acknowledged event.

use sqlx::{Connection, PgConnection};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tests::http::Client;
use tests::postgres::{Cluster, Settings, Stop};
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::wait;
use uuid::Uuid;

/// How long a post is retried before it counts as not acknowledged.
const INSISTS_FOR: Duration = Duration::from_secs(3);

/// How the wait ends without the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Restarted,
    Cancelled,
    Terminated,
}

const ENDINGS: [Ending; 3] = [Ending::Restarted, Ending::Cancelled, Ending::Terminated];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_that_a_silent_standby_lacks() {
    nothing_is_acknowledged_while(|standby| standby.freeze(), |standby| standby.thaw()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_that_a_dead_standby_lacks() {
    nothing_is_acknowledged_while(
        |standby| standby.stop(Stop::Immediate),
        |standby| standby.resume(),
    )
    .await;
}

async fn nothing_is_acknowledged_while(
    goes_away: impl Fn(&Cluster),
    comes_back: impl Fn(&Cluster),
) {
    let primary = Cluster::start(Settings::default());
    let standby = primary.standby("standby", Settings::default());
    let url = primary.create_database().await;
    let name = url.rsplit_once('/').expect("a URL names its database").1.to_owned();
    primary.commits_wait_for("standby").await;
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = format!("[sources.orders]\ndestination = \"{}\"\n", sink.url("/orders"));
    // One process for each ending, so that none waits for a call that hangs because of another
    // ending.
    let mut services = BTreeMap::new();
    for ending in ENDINGS {
        let service =
            Service::start(&format!("{url}?application_name={ending:?}"), &configuration).await;
        services.insert(format!("{ending:?}"), service);
    }
    let service = |ending: Ending| &services[&format!("{ending:?}")];
    let mut acknowledged: Vec<(String, Uuid)> = Vec::new();
    let before = post(service(Ending::Restarted), "before")
        .await
        .expect("a post is accepted while the standby runs");
    acknowledged.push(("before".into(), before));

    tokio::task::block_in_place(|| goes_away(&standby));
    for ending in [Ending::Cancelled, Ending::Terminated, Ending::Restarted] {
        let key = format!("{ending:?}");
        let (first, ()) = tokio::join!(post(service(ending), &key), async {
            wait_to_hang(&primary, ending).await;
            let end = match ending {
                Ending::Cancelled => "pg_cancel_backend",
                Ending::Terminated => "pg_terminate_backend",
                Ending::Restarted => {
                    tokio::task::block_in_place(|| {
                        primary.stop(Stop::Immediate);
                        primary.resume();
                    });
                    return;
                }
            };
            let hanging = format!("wait_event = 'SyncRep' and application_name = '{ending:?}'");
            primary
                .execute(&format!("select {end}(pid) from pg_stat_activity where {hanging}"))
                .await;
        });
        acknowledged.extend(first.ok().map(|event| (key.clone(), event)));
        wait::until("the event to be visible on the primary", || async {
            if is_there(&primary, &name, &key).await {
                Ok(())
            } else {
                Err("it is not visible".to_owned())
            }
        })
        .await;
        let begun = Instant::now();
        while begun.elapsed() < INSISTS_FOR {
            acknowledged
                .extend(post(service(ending), &key).await.ok().map(|event| (key.clone(), event)));
        }
    }
    assert_eq!(acknowledged.len(), 1, "acknowledged while no standby had it: {acknowledged:?}");

    // The standby comes back, and all pending events are acknowledged.
    tokio::task::block_in_place(|| comes_back(&standby));
    for ending in ENDINGS {
        let key = format!("{ending:?}");
        let event =
            wait::until("the event to be acknowledged", || post(service(ending), &key)).await;
        acknowledged.push((key, event));
    }
    tokio::task::block_in_place(|| primary.stop(Stop::Kill));
    standby.promote().await;
    for (key, event) in acknowledged {
        let mut connection = PgConnection::connect(&standby.url(&name))
            .await
            .expect("the standby has been promoted");
        let found = sqlx::query_scalar::<_, i64>("select count(*) from events where id = $1")
            .bind(event)
            .fetch_one(&mut connection)
            .await;
        assert_eq!(
            found.expect("events can be counted"),
            1,
            "{key} was acknowledged, but is missing after the failover"
        );
    }
}

/// The id of the acknowledged event, or the response if it is a `503`.
async fn post(service: &Service, key: &str) -> Result<Uuid, String> {
    let answer = Client::default()
        .post(&service.url("/webhooks/orders"), &[("idempotency-key", key)], "{}")
        .await?;
    if answer.status_code == 202 {
        return Ok(answer.json()["event_id"]
            .as_str()
            .and_then(|id| id.parse().ok())
            .expect("a 202 has the event's id"));
    }
    assert_eq!(answer.status_code, 503, "{answer:?}");
    Err(format!("{answer:?}"))
}

/// Waits until the commit of an accepted event waits for the standby.
async fn wait_to_hang(primary: &Cluster, ending: Ending) {
    let mut connection =
        PgConnection::connect(&primary.url("postgres")).await.expect("the primary runs");
    let name = format!("{ending:?}");
    loop {
        let query = "select count(*) from pg_stat_activity
            where wait_event = 'SyncRep' and application_name = $1 and query like '%insert into events%'";
        let hanging: i64 = sqlx::query_scalar(query)
            .bind(&name)
            .fetch_one(&mut connection)
            .await
            .expect("the primary runs");
        if hanging > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn is_there(cluster: &Cluster, database: &str, key: &str) -> bool {
    let Ok(mut connection) = PgConnection::connect(&cluster.url(database)).await else {
        return false;
    };
    let query = "select exists (select from events where idempotency_key = $1)";
    sqlx::query_scalar(query).bind(key).fetch_one(&mut connection).await.unwrap_or(false)
}
