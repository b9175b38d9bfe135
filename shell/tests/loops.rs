//! A process must end when one of its loops dies. Otherwise it would still answer `202` and deliver
//! nothing.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, FusedStream, StreamExt};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook::clock::TokioClock;
use surehook::config::{Config, Destination, Source};
use surehook::health::Loop;
use surehook::http::App;
use surehook::ids::SystemIds;
use surehook::ports::{Downstream, Relay, RelayFailed, Relayed, StoreError};
use surehook::process::{Broken, Command, Ended, Host, ProcessPorts, Stop, Task, run};
use surehook_core::source::SourceName;
use surehook_core::verdict::{DeliveryError, Reply};
use surehook_core::worker::claims::Claim;
use surehook_model::memory::MemoryStore;
use surehook_model::scenario::Call;
use tokio::time::Instant;

/// Long enough that a shutdown requested at the start has begun.
const MOMENT: Duration = Duration::from_millis(100);

/// The longest time until a process ends.
const LONGEST: Duration = Duration::from_secs(20);

/// A store that panics in the calls of one loop, a moment after the call, and is unavailable for
/// all others.
fn panics(which: Loop) -> MemoryStore {
    MemoryStore::new().before_each(move |call| {
        async move {
            if call == Call::Claim {
                tokio::time::sleep(MOMENT).await;
            }
            match (which, call) {
                (Loop::Worker, Call::Claim) => panic!("the claim breaks"),
                (Loop::Pruning, Call::Prune) => panic!("the pruning breaks"),
                _ => Err(StoreError::Unavailable("not here".to_owned())),
            }
        }
        .boxed()
    })
}

struct Nowhere;

impl Relay for Nowhere {
    fn relay(
        &self,
        _: &SourceName,
        _: Relayed,
    ) -> BoxFuture<'static, Result<http::Response<Bytes>, RelayFailed>> {
        async { Err(RelayFailed::NoResponse(DeliveryError::ConnectionRefused)) }.boxed()
    }
}

impl Downstream for Nowhere {
    fn send(&self, _: &Claim, _: Duration) -> BoxFuture<'static, Reply> {
        async { Reply::Failed(DeliveryError::ConnectionRefused) }.boxed()
    }
}

struct Tasks;

impl Host for Tasks {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Task {
        let task = tokio::spawn(task);
        async move { task.await.map_err(|error| Broken(format!("{name}: {error}"))) }.boxed()
    }

    fn serve(&self, app: Arc<App>, stop: Stop) -> Task {
        async move {
            let _serving = app;
            stop.await;
            Ok(())
        }
        .boxed()
    }
}

/// The result of a process whose store panics in the calls of this loop, with these shutdown
/// signals.
async fn ended(which: Loop, signals: impl FusedStream<Item = ()> + Unpin) -> Result<(), Ended> {
    ended_on(&Tasks, which, signals).await
}

/// As [`ended`], on this host.
async fn ended_on(
    host: &impl Host,
    which: Loop,
    signals: impl FusedStream<Item = ()> + Unpin,
) -> Result<(), Ended> {
    let store = Arc::new(panics(which));
    let ports = ProcessPorts {
        events: store.clone(),
        operators: store.clone(),
        maintenance: store,
        downstream: Arc::new(Nowhere),
        relay: Arc::new(Nowhere),
        clock: Arc::new(TokioClock::new()),
        ids: Arc::new(SystemIds),
        seed: 1,
    };
    let commands = signals.map(|()| Command::ShutDown);
    tokio::time::timeout(LONGEST, run(Arc::new(config()), ports, host, commands))
        .await
        .expect("the process ends without being stopped")
}

fn config() -> Config {
    let source = Source::new(Destination::new("http://localhost/".parse().unwrap()));
    let name = SourceName::parse("orders").unwrap();
    let drain_timeout = Duration::from_secs(12);
    Config { sources: [(name, source)].into(), drain_timeout, ..Config::default() }
}

#[tokio::test]
async fn a_worker_that_panics_ends_the_process_with_an_error() {
    let Err(Ended::Loop { which: Loop::Worker, why }) =
        ended(Loop::Worker, stream::pending()).await
    else {
        panic!("the end of the worker is not reported")
    };
    assert!(why.contains("panic"), "{why}");
}

#[tokio::test]
async fn a_retention_loop_that_panics_ends_the_process_with_an_error() {
    assert!(matches!(
        ended(Loop::Pruning, stream::pending()).await,
        Err(Ended::Loop { which: Loop::Pruning, .. })
    ));
}

#[tokio::test]
async fn a_worker_that_panics_during_the_shutdown_is_reported() {
    let told_at_once = stream::iter([()]).chain(stream::pending()).fuse();
    assert!(matches!(
        ended(Loop::Worker, told_at_once).await,
        Err(Ended::Loop { which: Loop::Worker, .. })
    ));
}

#[tokio::test]
async fn an_orderly_shutdown_is_not_an_error() {
    let told_at_once = stream::iter([()]).chain(stream::pending()).fuse();
    assert!(ended(Loop::Intake, told_at_once).await.is_ok());
}

/// A server that never ends. It records how long its requests may continue, and whether the process
/// was draining when it was stopped.
#[derive(Default)]
struct HangingServer(Arc<Mutex<Option<(Duration, bool)>>>);

impl Host for HangingServer {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Task {
        Tasks.spawn(name, task)
    }

    fn serve(&self, app: Arc<App>, stop: Stop) -> Task {
        let seen = Arc::clone(&self.0);
        async move {
            let time_left = stop.await;
            *seen.lock().unwrap() = Some((time_left, app.health.is_draining()));
            std::future::pending().await
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "the time of the test is virtual")]
async fn a_server_that_hangs_is_not_waited_for_beyond_the_drain_timeout() {
    let told_at_once = stream::iter([()]).chain(stream::pending()).fuse();
    let (host, begun) = (HangingServer::default(), Instant::now());
    assert!(ended_on(&host, Loop::Intake, told_at_once).await.is_ok());
    let (took, longest) = (begun.elapsed(), config().drain_timeout);
    assert!(took <= longest && took >= longest / 2, "{took:?}");
    let (answers, is_draining) = host.0.lock().unwrap().expect("the server was stopped");
    assert!(is_draining, "the process is not ready before its server stops");
    assert!(answers < took, "after {answers:?}, time is left for the intake");
}
