//! A simulated process: the production service on simulated ports.

use crate::bugs::Bug;
use crate::clock::{SimClock, SimIds};
use crate::configuration::{config, policies};
use crate::database::Disk;
use crate::downstream::SimDownstream;
use crate::effects::Effects;
use crate::held::HeldBytes;
use crate::net;
use crate::recorder::{Recorder, elapsed};
use crate::store::RemoteStore;
use futures::channel::{mpsc, oneshot};
use futures::future::{BoxFuture, ready};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, select_biased};
use http::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use madsim::rand::Rng;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use surehook::config::Config;
use surehook::http::problem::ProblemKind;
use surehook::http::{App, RouteSet, service};
use surehook::ports::{
    Clock, Erased, EventStore, MaintenanceStore, NewEvent, Pruned, Relay, Retention, StoreCall,
    StoreError,
};
use surehook::process::{Broken, Command, Host, ProcessPorts, Stop, Task};
use surehook_core::admission::Stored;
use surehook_core::due::Bound;
use surehook_core::id::EventId;
use surehook_core::operators::Access;
use surehook_core::source::{SETTLE_GRACE, WAIT_ALLOWANCE};
use surehook_core::worker::claims::{Claims, Demand, Settlement};
use surehook_model::history::Fault;
use surehook_model::scenario::Scenario;
use tokio::sync::watch;
use warp::reply::Reply;

/// A process, which can be restarted any number of times.
pub(crate) struct Process {
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) scenario: Arc<Scenario>,
    /// How far its wall clock is ahead of the true time.
    pub(crate) clock_ahead_ms: i64,
    pub(crate) disk: Arc<Disk>,
    pub(crate) downstreams: BTreeMap<String, SocketAddr>,
    pub(crate) recorder: Recorder,
    pub(crate) effects: Arc<Effects>,
    pub(crate) bug: Option<Bug>,
    pub(crate) control: Mutex<Control>,
}

/// The state of a process, and the channel that sends signals to it.
#[derive(Default)]
pub(crate) struct Control {
    /// Whether it runs.
    pub(crate) up: bool,
    /// The sender of its signals, while it runs.
    signals: Option<mpsc::UnboundedSender<Signal>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Signal {
    Terminate,
    Hangup,
}

impl Process {
    pub(crate) fn control(&self) -> std::sync::MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::Terminate);
    }

    /// Sends SIGHUP.
    pub(crate) fn reload(&self) {
        self.signal(Signal::Hangup);
    }

    fn signal(&self, signal: Signal) {
        if let Some(signals) = &self.control().signals {
            let _ = signals.unbounded_send(signal);
        }
    }

    /// Reads the configuration again.
    fn reloads(&self, present: &Arc<Config>, reloaded: &watch::Sender<Duration>) -> Command {
        let now = elapsed();
        self.recorder.reloaded(&self.name, policies(&self.scenario, self.index, now));
        reloaded.send_replace(now);
        Command::Reload(if self.bug == Some(Bug::ReloadIgnored) {
            Arc::clone(present)
        } else {
            Arc::new(config(&self.scenario, self.index, now, self.bug))
        })
    }

    /// Runs one process from its start to the end of its shutdown. Killing its node drops this
    /// future at any point.
    pub(crate) async fn boot(self: Arc<Self>) {
        let (sender, mut signals) = mpsc::unbounded();
        *self.control() = Control { up: true, signals: Some(sender) };
        let now = elapsed();
        let since = if self.bug == Some(Bug::RestartKeepsSettings) { Duration::ZERO } else { now };
        let mut config = config(&self.scenario, self.index, since, self.bug);
        self.recorder.started(&self.name, policies(&self.scenario, self.index, now));
        let clock: Arc<dyn Clock> =
            Arc::new(SimClock::boot(self.index, self.recorder.waits().clone()));
        let reloaded = watch::Sender::new(now);
        let held = HeldBytes::new(self.name.clone(), self.recorder.clone());
        let store = RemoteStore::connect(
            Arc::clone(&self.disk),
            self.name.clone(),
            Arc::clone(&self.effects),
            self.index,
            Arc::clone(&held),
        );
        let store = Arc::new(store.await);
        let (bug, gave_up) = (self.bug, AtomicBool::new(false));
        let buggy = Arc::new(BuggyStore { store: Arc::clone(&store), bug, gave_up });
        let downstream = SimDownstream {
            process: self.name.clone(),
            addresses: self.downstreams.clone(),
            recorder: self.recorder.clone(),
            effects: Arc::clone(&self.effects),
            index: self.index,
            held,
            reloaded: reloaded.subscribe(),
            bug: self.bug,
        };
        let downstream = Arc::new(downstream);
        let ports = ProcessPorts {
            events: buggy.clone(),
            operators: store,
            maintenance: buggy,
            relay: Arc::clone(&downstream) as Arc<dyn Relay>,
            downstream,
            clock,
            ids: Arc::new(SimIds { ahead_ms: self.clock_ahead_ms }),
            seed: if self.bug == Some(Bug::LeakedEntropy) {
                real_entropy()
            } else {
                madsim::rand::thread_rng().r#gen()
            },
        };
        let (begins, begun) = oneshot::channel();
        let host = SimHost {
            name: self.name.clone(),
            address: self.address,
            recorder: self.recorder.clone(),
            shutdown_begins: begun.map(|_: Result<(), _>| Duration::MAX).boxed().shared(),
            reloaded: reloaded.subscribe(),
            bug: self.bug,
        };
        if self.bug == Some(Bug::ShutdownGivesUpEarly) {
            config.drain_timeout /= 8;
        }
        let config = Arc::new(config);
        let ended = if self.bug == Some(Bug::ShutdownDropsInFlight) {
            let (_keep, never) = mpsc::unbounded();
            select_biased! {
                ended = Box::pin(surehook::process::run(config, ports, &host, never)).fuse() => ended,
                () = async { while signals.next().await != Some(Signal::Terminate) {} }.fuse() => Ok(()),
            }
        } else {
            let mut begins = Some(begins);
            let told = |signal| match signal {
                Signal::Terminate => {
                    drop(begins.take());
                    Command::ShutDown
                }
                Signal::Hangup if begins.is_none() => Command::Reload(Arc::clone(&config)),
                Signal::Hangup => self.reloads(&config, &reloaded),
            };
            let commands = signals.map(told);
            surehook::process::run(Arc::clone(&config), ports, &host, commands).await
        };
        if let Err(ended) = ended {
            panic!("{} exited unexpectedly: {ended}", self.name);
        }
        *self.control() = Control::default();
        self.recorder.fault(Fault::Exited { process: self.name.clone() });
    }
}

/// A number that the seed does not determine.
fn real_entropy() -> u64 {
    u64::from(std::process::id())
}

/// Spawns madsim tasks and listens on the simulated network.
struct SimHost {
    name: String,
    address: SocketAddr,
    recorder: Recorder,
    /// Completes when the first signal arrives.
    shutdown_begins: Stop,
    /// The time of the last reload.
    reloaded: watch::Receiver<Duration>,
    bug: Option<Bug>,
}

impl Host for SimHost {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Task {
        let task = madsim::task::spawn(task);
        async move { task.await.map_err(|error| Broken(format!("{name}: {error}"))) }.boxed()
    }

    fn serve(&self, app: Arc<App>, stop: Stop) -> Task {
        let (name, address, bug) = (self.name.clone(), self.address, self.bug);
        let recorder = self.recorder.clone();
        let closes_first = bug == Some(Bug::ListenerClosesFirst);
        let stop = if closes_first { self.shutdown_begins.clone() } else { stop };
        let health = Arc::clone(&app.health);
        let reloaded = self.reloaded.clone();
        let routes = service(app, RouteSet::Everyone, Access::default());
        let service = service_fn(move |request: Request<Incoming>| {
            let has_reloaded =
                || elapsed().saturating_sub(*reloaded.borrow()) < Duration::from_secs(1);
            let problem = match bug {
                Some(Bug::DrainRefuses) if health.is_draining() => Some(ProblemKind::ShuttingDown),
                Some(Bug::ReloadRefuses) if has_reloaded() => Some(ProblemKind::Overloaded),
                _ => None,
            };
            if let Some(problem) = problem
                && request.uri().path().starts_with("/webhooks/")
            {
                let refused = problem.with("Planted bug.").into_response();
                return ready(Ok(refused)).left_future();
            }
            routes.call(request).right_future()
        });
        async move {
            let listener = net::listen(address).await;
            let mut connections = FuturesUnordered::new();
            let mut stopping = stop.clone();
            let time_left = loop {
                let accepted = select_biased! {
                    time_left = stopping => break time_left,
                    () = connections.select_next_some() => continue,
                    accepted = listener.accept().fuse() => accepted,
                };
                if let Ok((stream, _)) = accepted {
                    let mut served =
                        net::serve_until(stream, service.clone(), stop.clone()).boxed();
                    if bug == Some(Bug::OneRequestAtATime) {
                        served.as_mut().await;
                    } else {
                        connections.push(served);
                    }
                }
            };
            if !closes_first {
                recorder.fault(Fault::Closing { process: name });
            }
            drop(listener);
            let all_ended = async { while connections.next().await.is_some() {} };
            let _ = crate::timer::timeout(time_left, all_ended).await;
            Ok(())
        }
        .boxed()
    }
}

/// The ports to the database that the loops use, with those planted bugs that are located between
/// the loops and the database.
struct BuggyStore {
    store: Arc<RemoteStore>,
    bug: Option<Bug>,
    gave_up: AtomicBool,
}

impl BuggyStore {
    fn lease(&self, lease: Duration) -> Duration {
        match self.bug {
            Some(Bug::ShortLease) => lease / 10,
            Some(Bug::LeaseWithoutGrace) => lease - SETTLE_GRACE - WAIT_ALLOWANCE,
            _ => lease,
        }
    }
}

impl EventStore for BuggyStore {
    fn accepts_at_once(&self) -> usize {
        self.store.accepts_at_once()
    }

    fn accept(&self, mut batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        for lease in batch.iter_mut().filter_map(|event| event.lease.as_mut()) {
            *lease = self.lease(*lease);
        }
        match self.bug {
            Some(Bug::AckBeforeCommit) => {
                let store = Arc::clone(&self.store);
                let stored = vec![Stored::Inserted; batch.len()];
                madsim::task::spawn(async move { store.accept(batch).await });
                async move { Ok(stored) }.boxed()
            }
            Some(Bug::UnknownTakenForFailed) => async move {
                match self.store.accept(batch.clone()).await {
                    Err(StoreError::Unknown(_)) => {
                        let others = batch
                            .into_iter()
                            .map(|event| NewEvent {
                                id: surehook::ports::Ids::fresh(&SimIds { ahead_ms: 0 }),
                                ..event
                            })
                            .collect();
                        self.store.accept(others).await
                    }
                    answer => answer,
                }
            }
            .boxed(),
            Some(Bug::BatchFailsAsAWhole) => async move {
                match self.store.accept(batch).await {
                    Err(StoreError::Rejected(why)) => Err(StoreError::Unavailable(why)),
                    answer => answer,
                }
            }
            .boxed(),
            Some(Bug::IntakeGivesUp) => async move {
                if self.gave_up.load(Relaxed) {
                    return Err(StoreError::Unavailable(
                        "an earlier call failed (planted bug)".to_owned(),
                    ));
                }
                let answer = self.store.accept(batch).await;
                if let Err(StoreError::Unavailable(_)) = answer {
                    self.gave_up.store(true, Relaxed);
                }
                answer
            }
            .boxed(),
            _ => self.store.accept(batch),
        }
    }

    fn claim(&self, mut demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        for demand in &mut demands {
            demand.lease = self.lease(demand.lease);
        }
        self.store.claim(demands)
    }

    fn settle(&self, mut batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        if self.bug == Some(Bug::DropFailedSettlement) {
            return async move { Ok(self.store.settle(batch).await.unwrap_or_default()) }.boxed();
        }
        if self.bug == Some(Bug::SettlesHalfABatch) {
            batch.truncate(batch.len().div_ceil(2));
        }
        self.store.settle(batch)
    }
}

impl MaintenanceStore for BuggyStore {
    fn prune(
        &self,
        mut retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        match self.bug {
            Some(Bug::PruneTooEarly) => {
                (retention.delivered, retention.dead_lettered) =
                    (retention.delivered / 2, retention.dead_lettered / 2);
            }
            Some(Bug::DeadLettersKeptForEver) => retention.dead_lettered = Duration::MAX,
            _ => {}
        }
        async move {
            if self.bug == Some(Bug::RetentionGivesUp) && self.gave_up.load(Relaxed) {
                return Ok(Pruned {
                    deleted: 0,
                    dead_lettered: 0,
                    discarded: 0,
                    reached: surehook_core::retention::Reached::END,
                });
            }
            let pruned = self.store.prune(retention, after, limit).await;
            if self.bug == Some(Bug::RetentionGivesUp) && pruned.is_err() {
                self.gave_up.store(true, Relaxed);
            }
            pruned
        }
        .boxed()
    }

    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased> {
        self.store.erase(kept, after, limit)
    }

    fn cap_due_times(&self, mut bounds: Vec<Bound>, limit: u32) -> StoreCall<'_, u64> {
        match self.bug {
            Some(Bug::DueTimesNotCapped) => bounds.clear(),
            Some(Bug::CappedToNow) => {
                for bound in &mut bounds {
                    bound.lease = Duration::ZERO;
                }
            }
            _ => {}
        }
        self.store.cap_due_times(bounds, limit)
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        if self.bug == Some(Bug::ReadyWhatever) {
            return futures::future::ready(Ok(())).boxed();
        }
        self.store.ping()
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        if self.bug == Some(Bug::ReadyWhatever) {
            return futures::future::ready(Ok(())).boxed();
        }
        self.store.probe(event)
    }
}
