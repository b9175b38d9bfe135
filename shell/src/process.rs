//! One process: creates the routes and the loops from a configuration and the ports, and runs them
//! until the shutdown is complete. Production and simulation both run this code. They differ in the
//! ports, in how connections are accepted, and in how tasks are spawned.

use crate::config::{Config, Role};
use crate::doorbell::Doorbell;
use crate::handover::Handover;
use crate::health::{Health, Loop};
use crate::http::{App, Bodies, Configured, Relays, SourceIntake};
use crate::http_server::MAX_BUFFER_BYTES;
use crate::intake::{IntakePorts, Limits, intake};
use crate::logs::millis;
use crate::metrics::{Metered, Metrics};
use crate::ports::{
    Clock, Downstream, EventStore, Ids, MaintenanceStore, OperatorStore, Relay, Retention,
};
use crate::worker::{Order, WorkerPorts};
use crate::{due_times, retention, snapshots, worker};
use futures::channel::mpsc;
use futures::future::{BoxFuture, Fuse, FusedFuture, Shared, join3, pending};
use futures::stream::{FusedStream, FuturesUnordered, StreamExt};
use futures::{FutureExt, select_biased};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::due::Bound;
use surehook_core::shutdown::{self, Action, End, Input, Part, Shutdown};
use surehook_core::source::{Policy, SourceName};
use surehook_core::worker::{Settings, Worker};
use tokio::sync::{oneshot, watch};

/// Connects one process to its environment.
pub struct ProcessPorts {
    pub events: Arc<dyn EventStore>,
    pub operators: Arc<dyn OperatorStore>,
    pub maintenance: Arc<dyn MaintenanceStore>,
    pub downstream: Arc<dyn Downstream>,
    pub relay: Arc<dyn Relay>,
    pub clock: Arc<dyn Clock>,
    /// Generates the ids of events.
    pub ids: Arc<dyn Ids>,
    /// Seed of the random waits. Processes need different seeds, so that they do not wait in step.
    pub seed: u64,
}

/// A task that runs concurrently. Its result says whether it ended normally or failed.
pub type Task = BoxFuture<'static, Result<(), Broken>>;

/// A task failed, for example by a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// Why a process ended without a signal.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// A loop ended or panicked. The process must end too, because it must not answer `202` while
    /// its worker has stopped.
    #[error("the {} loop ended unexpectedly: {why}", .which.as_str())]
    Loop { which: Loop, why: String },
    /// The HTTP server stopped, so connections are no longer accepted.
    #[error("the HTTP server ended unexpectedly: {0}")]
    Server(String),
}

/// Spawns the tasks of a process and accepts its connections: on tokio in production, or in the
/// simulated environment.
pub trait Host {
    /// Starts a task that runs concurrently with the caller.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Task;

    /// Accepts connections and serves the routes on them. When `stop` completes, it accepts no more
    /// connections, lets requests in flight continue for the time in its result, and ends.
    fn serve(&self, app: Arc<App>, stop: Stop) -> Task;
}

/// What a process does on request from outside.
#[derive(Debug)]
pub enum Command {
    /// Continue with this configuration. The settings that [`Config::reloaded`] names are not
    /// read.
    Reload(Arc<Config>),
    /// Shut down.
    ShutDown,
}

/// Completes when the listener closes. Its result is how long requests in flight may continue.
pub type Stop = Shared<BoxFuture<'static, Duration>>;

/// Runs one process until it must shut down and the shutdown is complete.
///
/// A reload takes effect at once for new requests, and for the next delivery of each event. Nothing
/// is interrupted: requests and deliveries in flight end as they began. During the shutdown, there
/// are no reloads.
///
/// The first [`Command::ShutDown`] starts the shutdown, which takes at most `config.shutdown_grace` and
/// `config.drain_timeout`. The process is not ready, but continues to accept events. It finishes its
/// deliveries, settles their results, and releases the events that it has not sent. Then it closes
/// its listener and finishes the requests in flight. A second one shortens the shutdown.
///
/// # Errors
///
/// [`Ended`] if a part of the process stopped by itself.
pub async fn run(
    mut config: Arc<Config>,
    ports: ProcessPorts,
    host: &impl Host,
    mut commands: impl FusedStream<Item = Command> + Unpin,
) -> Result<(), Ended> {
    let clock = Arc::clone(&ports.clock);
    let health = Arc::new(Health::default());
    let doorbell = Arc::new(Doorbell::default());
    let handover = Arc::new(Handover::default());
    let metrics = Metrics::new(config.sources.keys().cloned());
    let events: Arc<dyn EventStore> =
        Arc::new(Metered::new(ports.events, Arc::clone(&metrics), Arc::clone(&clock)));
    let maintenance: Arc<dyn MaintenanceStore> =
        Arc::new(Metered::new(ports.maintenance, Arc::clone(&metrics), Arc::clone(&clock)));
    let (stop_intake, intake_stopped) = oneshot::channel::<()>();
    let (to_worker, orders) = mpsc::unbounded();
    let intake_ports = IntakePorts {
        store: Arc::clone(&events),
        clock: Arc::clone(&clock),
        doorbell: Arc::clone(&doorbell),
        handover: Arc::clone(&handover),
        health: Arc::clone(&health),
    };
    let (handle, intake_loop) = intake(limits(&config), intake_ports, intake_stopped.map(|_| ()));
    let takes_events = config.role != Role::Worker;
    let delivers = config.role != Role::Intake;

    let app = Arc::new(App {
        configured: watch::Sender::new(Arc::new(configured(&config))),
        intake: takes_events.then_some(handle),
        operators: ports.operators,
        maintenance: Arc::clone(&maintenance),
        metrics: Arc::clone(&metrics),
        delivers,
        clock: Arc::clone(&clock),
        ids: ports.ids,
        health: Arc::clone(&health),
        doorbell: Arc::clone(&doorbell),
        relays: Relays::new(ports.relay),
        bodies: Bodies::default(),
    });
    let spawn = |which: Loop, task: BoxFuture<'static, ()>| {
        let alive = health.watch(which);
        let watched = async move {
            let _alive = alive;
            task.await;
        };
        host.spawn(which.as_str(), watched.boxed())
            .map(move |result| (which, result))
            .boxed()
            .fuse()
    };
    let mut intake_task =
        if takes_events { spawn(Loop::Intake, intake_loop.boxed()) } else { Fuse::terminated() };
    let mut worker_task = if delivers {
        let max_held_bytes = config.worker.max_held_bytes;
        let settings = Settings { seed: ports.seed, max_held_bytes, ..Settings::default() };
        let worker = Worker::new(clock.now(), settings, policies(&config));
        let ports = WorkerPorts {
            store: events,
            downstream: ports.downstream,
            clock: Arc::clone(&clock),
            doorbell,
            handover,
            metrics: Arc::clone(&metrics),
        };
        spawn(Loop::Worker, worker::run(worker, ports, orders).boxed())
    } else {
        Fuse::terminated()
    };
    let (kept, bounds) =
        (watch::Sender::new(kept(&config)), watch::Sender::new(self::bounds(&config)));
    let mut maintenance_task = if delivers {
        let (store, timer) = (Arc::clone(&maintenance), Arc::clone(&clock));
        let pruning = with_each(kept.subscribe(), move |(retention, delivered_payload)| {
            retention::run(Arc::clone(&store), Arc::clone(&timer), retention, delivered_payload)
        });
        let holding = snapshots::run(Arc::clone(&maintenance), Arc::clone(&clock));
        let timer = Arc::clone(&clock);
        let capping = with_each(bounds.subscribe(), move |bounds| {
            due_times::run(Arc::clone(&maintenance), Arc::clone(&timer), bounds)
        });
        spawn(Loop::Pruning, join3(pruning, capping, holding).map(drop).boxed())
    } else {
        Fuse::terminated()
    };
    let (stop, stopped) = oneshot::channel::<Duration>();
    let mut server = host
        .serve(Arc::clone(&app), stopped.map(Result::unwrap_or_default).boxed().shared())
        .fuse();

    loop {
        let command = select_biased! {
            ended = intake_task => return Err(unexpected(ended)),
            ended = worker_task => return Err(unexpected(ended)),
            ended = maintenance_task => return Err(unexpected(ended)),
            ended = server => return Err(Ended::Server(ended.map_or_else(|broken| broken.0, |()| "it stopped".to_owned()))),
            command = commands.select_next_some() => command,
        };
        match command {
            Command::ShutDown => break,
            Command::Reload(new) => config = new,
        }
        metrics.configure(config.sources.keys().cloned());
        if let Some(intake) = &app.intake {
            intake.limit(limits(&config));
        }
        let sources = policies(&config).collect();
        let max_held_bytes = config.worker.max_held_bytes;
        let _ = to_worker.unbounded_send(Order::Reconfigure { sources, max_held_bytes });
        replace(&kept, self::kept(&config));
        replace(&bounds, self::bounds(&config));
        app.configured.send_replace(Arc::new(configured(&config)));
    }

    let began = clock.now();
    tracing::info!(
        drain_timeout_ms = millis(config.drain_timeout),
        shutdown_grace_ms = millis(config.shutdown_grace),
        "shutting down: not ready; finishing deliveries in flight, and accepting requests until then"
    );
    let mut parts: FuturesUnordered<BoxFuture<'_, (Part, Option<Ended>)>> = FuturesUnordered::new();
    let failed = |ended: Result<(), Broken>| ended.err().map(|broken| Ended::Server(broken.0));
    parts.push(server.map(move |ended| (Part::Server, failed(ended))).boxed());
    for (part, task) in [(Part::Intake, intake_task), (Part::Worker, worker_task)] {
        let failed = |(which, ended): (Loop, Result<(), Broken>)| {
            ended.err().map(|broken| Ended::Loop { which, why: broken.0 })
        };
        if !task.is_terminated() {
            parts.push(task.map(move |ended| (part, failed(ended))).boxed());
        }
    }
    let running = [
        Some(Part::Server),
        takes_events.then_some(Part::Intake),
        delivers.then_some(Part::Worker),
    ];
    let limits =
        shutdown::Limits { drain_timeout: config.drain_timeout, grace: config.shutdown_grace };
    let (mut shutdown, mut actions) = Shutdown::begin(began, limits, running.into_iter().flatten());
    let (mut stop, mut stop_intake) = (Some(stop), Some(stop_intake));
    let mut failures: BTreeMap<Part, Ended> = BTreeMap::new();
    let end = 'shutdown: loop {
        for action in actions {
            match action {
                Action::BecomeUnready => health.drain(),
                Action::Drain(deadlines) => {
                    let _ = to_worker.unbounded_send(Order::ShutDown(deadlines));
                }
                Action::CloseListener { answer_by } => {
                    let time_left = answer_by.since(clock.now());
                    tracing::info!(
                        time_left_ms = millis(time_left),
                        "closing the listener; finishing requests in flight"
                    );
                    let _ = stop.take().map(|stop| stop.send(time_left));
                }
                Action::StopIntake => {
                    let _ = stop_intake.take().map(|stop| stop.send(()));
                }
                Action::Done(end) => break 'shutdown end,
            }
        }
        let (mut ended, mut is_signalled) = (Vec::new(), false);
        select_biased! {
            part = parts.select_next_some() => ended.push(part),
            command = commands.select_next_some() => match command {
                Command::ShutDown => {
                    tracing::warn!("second shutdown signal; aborting deliveries in flight");
                    is_signalled = true;
                }
                Command::Reload(_) => tracing::warn!("configuration not reloaded: the process is shutting down"),
            },
            () = clock.sleep_until(shutdown.wake_at()).fuse() => {}
        }
        // Reports all other parts that have ended in the same step.
        while let Some(Some(part)) = parts.next().now_or_never() {
            ended.push(part);
        }
        let now = clock.now();
        for (part, failure) in ended {
            shutdown.handle(now, Input::Ended { part, is_broken: failure.is_some() });
            failures.extend(failure.map(|failure| (part, failure)));
        }
        if is_signalled {
            shutdown.handle(now, Input::Signal);
        }
        actions = std::iter::from_fn(|| shutdown.poll(now)).collect();
    };
    match end {
        End::Complete => {}
        End::Broken(part) => return failures.remove(&part).map_or(Ok(()), Err),
        End::TimedOut => {
            tracing::warn!(
                "drain timeout reached; unfinished events become claimable when their leases end"
            );
        }
    }
    tracing::info!(took_ms = millis(clock.now().since(began)), "shut down");
    Ok(())
}

/// Runs a loop with the newest settings. It is dropped and run again whenever they change.
async fn with_each<S: Clone, F: Future<Output = ()>>(
    mut settings: watch::Receiver<S>,
    run: impl Fn(S) -> F,
) {
    loop {
        let present = settings.borrow_and_update().clone();
        let changed = settings.changed().then(|changed| async move {
            if changed.is_err() {
                // The process is about to drop this loop.
                pending::<()>().await;
            }
        });
        select_biased! {
            () = run(present).fuse() => return,
            () = changed.fuse() => {}
        }
    }
}

/// Replaces a value. Its receivers are notified only if it differs.
fn replace<S: PartialEq>(sender: &watch::Sender<S>, new: S) {
    sender.send_if_modified(|present| {
        let differs = *present != new;
        *present = new;
        differs
    });
}

fn limits(config: &Config) -> Limits {
    // Headers and query are counted, too. Without room for them, a body of exactly `max_body` would
    // never be accepted if the limit of all requests is not larger.
    let max_request = config.largest_body().saturating_add(MAX_BUFFER_BYTES);
    Limits {
        max_queued: config.intake.max_queued,
        max_queued_bytes: config.intake.max_queued_bytes.max(max_request),
        max_request,
        sources: config.sources.len(),
    }
}

fn policies(config: &Config) -> impl Iterator<Item = (SourceName, Policy)> {
    config.sources.iter().map(|(name, source)| (name.clone(), source.policy.clone()))
}

/// How long events are kept, and the payloads of delivered ones.
fn kept(config: &Config) -> (Retention, Duration) {
    (config.retention, config.delivered_payload)
}

fn bounds(config: &Config) -> Vec<Bound> {
    config.sources.iter().map(|(name, source)| Bound::new(name.clone(), &source.policy)).collect()
}

fn configured(config: &Config) -> Configured {
    let intake = |source: &crate::config::Source| SourceIntake {
        max_body: source.max_body,
        idempotency_key: source.idempotency_key.clone(),
        on_key_reuse: source.on_key_reuse,
        acknowledgement: source.acknowledgement.clone(),
        redrive_on_replay: source.redrive_on_replay,
        forward_credentials: source.forward_credentials,
        forward_query: source.forward_query,
        relay: source.relay.clone(),
        relay_timeout: source.relay_timeout,
        destination: source.destination.to_string(),
        max_attempts: source.policy.max_attempts,
        retries_last: source.policy.backoff.span(source.policy.max_attempts),
        lease: source.policy.lease(),
    };
    let sources = config.sources.iter().map(|(name, source)| (name.clone(), intake(source)));
    Configured { sources: sources.collect(), body_timeout: config.intake.body_timeout }
}

fn unexpected((which, result): (Loop, Result<(), Broken>)) -> Ended {
    Ended::Loop { which, why: result.map_or_else(|broken| broken.0, |()| "it returned".to_owned()) }
}
