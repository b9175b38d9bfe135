//! `surehook demo`: the service with a database in a temporary folder, and a downstream that can be
//! switched to fail. A new user can see the life of an event within five minutes. All data is
//! temporary.

use crate::cli::DemoArgs;
use crate::config::{Config, DatabaseUrl, Destination, Source};
use crate::http_server::{self, ServerLimits};
use crate::serve::{ServeError, advice, serve};
use http::StatusCode;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use surehook_core::backoff::Backoff;
use surehook_core::forwarding::{ATTEMPT_HEADER, EVENT_ID_HEADER};
use surehook_core::source::{Policy, SourceName};
use tokio::net::TcpListener;
use warp::reply::with_status;
use warp::{Filter, Reply};

/// Why the demo did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The temporary folder for the database cannot be created.
    #[error(
        "cannot create a temporary folder for the database: {0}; set TMPDIR to a writable folder"
    )]
    Folder(std::io::Error),
    /// The demo cannot listen on the address of its downstream.
    #[error(
        "cannot listen on {address} for the demo's downstream: {error}; {}",
        advice(error, "--sink")
    )]
    Sink { address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Runs the demo until a signal stops it, and deletes its database.
///
/// # Errors
///
/// [`DemoError`].
pub async fn run(args: &DemoArgs) -> Result<(), DemoError> {
    let folder =
        tempfile::Builder::new().prefix("surehook-demo-").tempdir().map_err(DemoError::Folder)?;
    let sink = TcpListener::bind(args.sink)
        .await
        .map_err(|error| DemoError::Sink { address: args.sink, error })?;
    let sink_address =
        sink.local_addr().map_err(|error| DemoError::Sink { address: args.sink, error })?;
    let limits = ServerLimits {
        max_connections: 64,
        header_read_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(75),
    };
    let downstream = TowerToHyperService::new(warp::service(downstream()));
    let serving =
        tokio::spawn(http_server::serve(sink, downstream, limits, std::future::pending()));
    let config = config(args.listen, sink_address, folder.path());
    let again = config.clone();
    let served = serve(
        config,
        move || Ok(again.clone()),
        |address| {
            invite(address, sink_address);
        },
    )
    .await;
    serving.abort();
    Ok(served?)
}

/// The configuration of the demo. Its policy has short delays, so that a person does not have to
/// wait.
fn config(listen: SocketAddr, sink: SocketAddr, folder: &Path) -> Config {
    let policy = Policy {
        timeout: Duration::from_secs(2),
        max_attempts: 4,
        backoff: Backoff {
            initial_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(4),
            ..Backoff::default()
        },
        ..Policy::default()
    };
    let destination =
        format!("http://{sink}/").parse().expect("a URL with a socket address is valid");
    let source = Source { policy, ..Source::new(Destination::new(destination)) };
    Config {
        listen,
        database: DatabaseUrl::new(format!("sqlite:{}", folder.join("surehook.db").display())),
        drain_timeout: Duration::from_secs(5),
        sources: [(SourceName::parse("demo").expect("`demo` is a valid source name"), source)]
            .into(),
        ..Config::default()
    }
}

/// A downstream with a switch: `PUT /mode/ok`, `/mode/fail` (503) or `/mode/reject` (422).
fn downstream()
-> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone + Send + Sync + 'static {
    let answer = Arc::new(AtomicU16::new(StatusCode::OK.as_u16()));
    let switch = Arc::clone(&answer);
    let mode = warp::path!("mode" / String).and(warp::put()).map(move |mode: String| {
        let status = match mode.as_str() {
            "ok" => StatusCode::OK,
            "fail" => StatusCode::SERVICE_UNAVAILABLE,
            "reject" => StatusCode::UNPROCESSABLE_ENTITY,
            _ => {
                return with_status(
                    "the modes are ok, fail and reject\n".to_owned(),
                    StatusCode::NOT_FOUND,
                );
            }
        };
        switch.store(status.as_u16(), Ordering::Relaxed);
        with_status(format!("from now on the demo's downstream answers {status}\n"), StatusCode::OK)
    });
    let deliveries = warp::post()
        .and(warp::header::optional::<String>(EVENT_ID_HEADER))
        .and(warp::header::optional::<String>(ATTEMPT_HEADER))
        .and(warp::body::bytes())
        .map(move |event_id: Option<String>, attempt: Option<String>, body: bytes::Bytes| {
            let status =
                StatusCode::from_u16(answer.load(Ordering::Relaxed)).unwrap_or(StatusCode::OK);
            let (event_id, attempt) = (event_id.unwrap_or_default(), attempt.unwrap_or_default());
            tracing::info!(
                event_id,
                attempt,
                bytes = body.len(),
                answer = status.as_u16(),
                "the demo's downstream received an event"
            );
            with_status(format!("the demo's downstream says {status}\n"), status)
        });
    let nothing = warp::any().map(|| {
        with_status("post an event here, or PUT /mode/ok\n".to_owned(), StatusCode::NOT_FOUND)
    });
    mode.or(deliveries).unify().or(nothing).unify()
}

/// Prints what to try. Called when the service listens.
fn invite(address: SocketAddr, sink: SocketAddr) {
    println!(
        "The demo runs on {address}, its downstream on {sink}. In another terminal:\n\n  \
         curl -i {address}/webhooks/demo -H 'Idempotency-Key: order-1' -d '{{\"order\": 1}}'\n  \
         curl -s {address}/events/EVENT_ID\n  \
         curl -X PUT {sink}/mode/fail      # or ok, or reject\n\n\
         README.md has the full walkthrough. Ctrl-C stops the demo and deletes its database."
    );
}
