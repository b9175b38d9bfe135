//! A role that may have two connections, fewer than a process has kinds of work. Each kind gets its
//! turn: posts are stored, events delivered, questions answered, and the process is ready.

use std::time::Duration;
use tests::database::Database;
use tests::http::Client;
use tests::postgres::shared;
use tests::program::Service;
use tests::sink::{Answer, Sink};
use tests::wait;

const POSTS: usize = 120;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_with_two_connections_serves_everything() {
    let url = shared().create_database().await;
    let name = url.rsplit('/').next().expect("a URL names its database");
    for statement in [
        "create role few login connection limit 2".to_owned(),
        format!("alter database {name} owner to few"),
    ] {
        shared().execute(&statement).await;
    }
    Database::Postgres(url.clone()).execute("alter schema public owner to few").await;
    let sink = Sink::start(|_| Answer::status(200)).await;
    let configuration = sink.three_impatient_sources("2s", "");
    let service = Service::start(&url.replacen("//postgres@", "//few@", 1), &configuration).await;
    let client = Client::default();
    let post = |number: usize| {
        let (client, url) = (client.clone(), service.url("/webhooks/github"));
        async move {
            let key = format!("key-{number}");
            wait::until("a post to be accepted", || async {
                let answer = client.post(&url, &[("idempotency-key", &key)], "{}").await?;
                if answer.status_code == 202 { Ok(()) } else { Err(format!("{answer:?}")) }
            })
            .await;
        }
    };
    let posting = async {
        for batch in 0..POSTS / 8 {
            futures::future::join_all((0..8).map(|number| post(batch * 8 + number))).await;
        }
    };
    // While posts use the connections, operators and load balancers get theirs in time.
    let asking = async {
        for path in ["/events?limit=5", "/ready", "/sources", "/ready", "/events?limit=5", "/ready"]
        {
            let answer = client.get(&service.url(path)).await.expect("an answer");
            assert_eq!(answer.status_code, 200, "{path}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::join!(posting, asking);

    sink.reaches(POSTS).await;
    assert_eq!(sink.taken().len(), POSTS);
}
