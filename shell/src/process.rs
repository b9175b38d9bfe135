//! One process: creates the routes and the loops from a configuration and the ports, and runs them
//! until the shutdown is complete. Production and simulation both run this code. They differ in the
//! ports, in how connections are accepted, and in how tasks are spawned.

use crate::config::{Config, Role};
use crate::doorbell::Doorbell;
use crate::handover::Handover;
use crate::health::{Health, Loop};
use crate::http::{App, SourceIntake};
use crate::intake::{IntakePorts, Limits, intake};
use crate::metrics::{Metered, Metrics};
use crate::ports::{Clock, Downstream, EventStore, Ids, MaintenanceStore, OperatorStore};
use crate::worker::{Drain, WorkerPorts};
use crate::{retention, worker};
use futures::channel::mpsc;
use futures::future::{BoxFuture, Fuse, FusedFuture, Shared};
use futures::stream::{FusedStream, StreamExt};
use futures::{FutureExt, select_biased};
use std::sync::Arc;
use std::time::Duration;
use surehook_core::worker::{Settings, Worker};
use tokio::sync::oneshot;

/// Connects one process to its environment.
pub struct ProcessPorts {
    pub events: Arc<dyn EventStore>,
    pub operators: Arc<dyn OperatorStore>,
    pub maintenance: Arc<dyn MaintenanceStore>,
    pub downstream: Arc<dyn Downstream>,
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
    /// connections, lets requests in flight continue for about `patience`, and ends.
    fn serve(
        &self,
        app: Arc<App>,
        stop: Shared<BoxFuture<'static, ()>>,
        patience: Duration,
    ) -> Task;
}

/// Runs one process until a signal arrives and the shutdown is complete.
///
/// The first signal starts the shutdown, which takes at most `config.drain_timeout`. The process is
/// not ready, accepts no new requests, finishes its deliveries, settles their results, and releases
/// the events that it has not sent. A second signal shortens the shutdown.
///
/// # Errors
///
/// [`Ended`] if a part of the process stopped by itself.
pub async fn run(
    config: &Config,
    ports: ProcessPorts,
    host: &impl Host,
    mut signals: impl FusedStream<Item = ()> + Unpin,
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
    let (mut drain, drains) = mpsc::channel(4);

    let limits = Limits {
        max_queued: config.intake.max_queued,
        max_queued_bytes: config.intake.max_queued_bytes,
        max_body: config.intake.max_body,
        sources: config.sources.len(),
    };
    let intake_ports = IntakePorts {
        store: Arc::clone(&events),
        clock: Arc::clone(&clock),
        doorbell: Arc::clone(&doorbell),
        handover: Arc::clone(&handover),
        health: Arc::clone(&health),
    };
    let (handle, intake_loop) = intake(limits, intake_ports, intake_stopped.map(|_| ()));
    let takes_events = config.role != Role::Worker;
    let delivers = config.role != Role::Intake;

    let app = Arc::new(App {
        sources: sources(config),
        intake: takes_events.then_some(handle),
        operators: ports.operators,
        maintenance: Arc::clone(&maintenance),
        metrics: Arc::clone(&metrics),
        delivers,
        clock: Arc::clone(&clock),
        ids: ports.ids,
        health: Arc::clone(&health),
        max_body: config.intake.max_body,
        body_timeout: config.intake.body_timeout,
        doorbell: Arc::clone(&doorbell),
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
        let policies =
            config.sources.iter().map(|(name, source)| (name.clone(), source.policy.clone()));
        let worker = Worker::new(clock.now(), settings, policies);
        let ports = WorkerPorts {
            store: events,
            downstream: ports.downstream,
            clock: Arc::clone(&clock),
            doorbell,
            handover,
            metrics,
        };
        spawn(Loop::Worker, worker::run(worker, ports, drains).boxed())
    } else {
        Fuse::terminated()
    };
    let mut pruning_task = if delivers {
        spawn(
            Loop::Pruning,
            retention::run(
                maintenance,
                Arc::clone(&clock),
                config.retention,
                config.delivered_payload,
            )
            .boxed(),
        )
    } else {
        Fuse::terminated()
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let time = Shutdown::of(config.drain_timeout);
    let mut server = host.serve(app, stopped.map(|_| ()).boxed().shared(), time.cut_off).fuse();

    select_biased! {
        ended = intake_task => return Err(unexpected(ended)),
        ended = worker_task => return Err(unexpected(ended)),
        ended = pruning_task => return Err(unexpected(ended)),
        ended = server => return Err(Ended::Server(ended.map_or_else(|broken| broken.0, |()| "it stopped".to_owned()))),
        () = signals.select_next_some() => {}
    }

    let began = clock.now();
    tracing::info!(
        drain_timeout_ms = config.drain_timeout.as_millis(),
        "shutting down: no new requests; finishing requests and deliveries in flight"
    );
    health.drain();
    let mut order = Drain { cut_off_at: began + time.cut_off, give_up_at: began + time.give_up };
    let _ = drain.try_send(order);
    let _ = stop.send(());
    let finish = async {
        join(&mut server).await.transpose().map_err(|broken| Ended::Server(broken.0))?;
        let _ = stop_intake.send(());
        for task in [&mut intake_task, &mut worker_task] {
            if let Some((which, Err(broken))) = join(task).await {
                return Err(Ended::Loop { which, why: broken.0 });
            }
        }
        Ok(())
    };
    let mut finish = std::pin::pin!(finish.fuse());
    loop {
        select_biased! {
            finished = finish => {
                finished?;
                break;
            }
            () = signals.select_next_some() => {
                tracing::warn!("second shutdown signal; aborting deliveries in flight");
                let now = clock.now();
                // Never later than before: further signals do not extend the shutdown.
                let give_up_at = order.give_up_at.min(now + AFTER_SECOND_SIGNAL);
                order = Drain { cut_off_at: now, give_up_at };
                let _ = drain.try_send(order);
            }
            () = clock.sleep_until(order.give_up_at).fuse() => {
                tracing::warn!("drain timeout reached; unfinished events become claimable when their leases end");
                break;
            }
        }
    }
    tracing::info!(took_ms = clock.now().since(began).as_millis(), "shut down");
    Ok(())
}

/// Waits for a part of the process that is shutting down. Returns its result, or `None` if it was
/// never started.
async fn join<T>(task: &mut Fuse<BoxFuture<'static, T>>) -> Option<T> {
    if task.is_terminated() { None } else { Some(task.await) }
}

/// After a second signal, the time to settle the deliveries that were cut off.
const AFTER_SECOND_SIGNAL: Duration = Duration::from_secs(1);

/// How the time of a shutdown is divided. Both durations are counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shutdown {
    /// Requests and deliveries may finish until then.
    cut_off: Duration,
    /// Results are settled until then. It is a little before the end of the drain timeout, so that
    /// the process ends in time.
    give_up: Duration,
}

impl Shutdown {
    fn of(drain_timeout: Duration) -> Self {
        let reserve = (drain_timeout / 4).min(Duration::from_secs(3));
        Self { cut_off: drain_timeout - reserve, give_up: drain_timeout - reserve / 8 }
    }
}

fn sources(
    config: &Config,
) -> std::collections::BTreeMap<surehook_core::source::SourceName, SourceIntake> {
    let intake = |source: &crate::config::Source| SourceIntake {
        idempotency_header: source.idempotency_header.clone(),
        on_key_reuse: source.on_key_reuse,
        forward_credentials: source.forward_credentials,
        max_attempts: source.policy.max_attempts,
        lease: source.policy.lease(),
    };
    config.sources.iter().map(|(name, source)| (name.clone(), intake(source))).collect()
}

fn unexpected((which, result): (Loop, Result<(), Broken>)) -> Ended {
    Ended::Loop { which, why: result.map_or_else(|broken| broken.0, |()| "it returned".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_leaves_time_to_settle_results() {
        for drain_timeout in [
            Duration::ZERO,
            Duration::from_millis(10),
            Duration::from_secs(1),
            Duration::from_secs(30),
            Duration::from_hours(1),
        ] {
            let Shutdown { cut_off, give_up } = Shutdown::of(drain_timeout);
            assert!(cut_off <= give_up && give_up <= drain_timeout, "{drain_timeout:?}");
        }
        assert_eq!(Shutdown::of(Duration::from_secs(30)).cut_off, Duration::from_secs(27));
    }
}
