//! One process: the routes and the loops, put together from a configuration and the ports, from its start to the end
//! of its shutdown. Production and simulation both run this; they differ in the ports, in how connections are
//! accepted, and in how a task is spawned.

use crate::config::{Config, Role};
use crate::doorbell::Doorbell;
use crate::handover::Handover;
use crate::health::{Health, Loop};
use crate::http::{App, SourceIntake};
use crate::intake::{Limits, Ports as IntakePorts, intake};
use crate::metrics::{Metered, Metrics};
use crate::ports::{Clock, Downstream, Ids, Store};
use crate::worker::{Drain, Ports as WorkerPorts};
use crate::{retention, worker};
use futures::channel::mpsc;
use futures::future::{BoxFuture, Fuse, FusedFuture, Shared};
use futures::stream::{FusedStream, StreamExt};
use futures::{FutureExt, select_biased};
use std::sync::Arc;
use std::time::Duration;
use surehook_core::worker::{Settings, Worker};
use tokio::sync::oneshot;

/// The world, as one process sees it.
pub struct Ports {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The way to the downstreams.
    pub downstream: Arc<dyn Downstream>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where events get their ids.
    pub ids: Arc<dyn Ids>,
    /// Any number that differs from other processes': it sets their waits apart.
    pub seed: u64,
}

/// A task that runs beside this one. Its result tells whether it came to its end or broke.
pub type Task = BoxFuture<'static, Result<(), Broken>>;

/// A task ended by a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// Why a process ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// A loop ended or panicked. A process that answers `202` while its worker is dead must not live.
    #[error("the {} loop ended unexpectedly: {why}", .which.as_str())]
    Loop {
        /// Which.
        which: Loop,
        /// How.
        why: String,
    },
    /// Connections can no longer be accepted.
    #[error("the HTTP server ended unexpectedly: {0}")]
    Server(String),
}

/// How the world runs what a process consists of.
pub trait Host {
    /// Starts a task that goes on beside this one.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Task;

    /// Accepts connections and serves the routes on them. Once `stop` completes it accepts no more, lets the requests
    /// that are being answered finish until about `patience` later, and ends.
    fn serve(
        &self,
        app: Arc<App>,
        stop: Shared<BoxFuture<'static, ()>>,
        patience: Duration,
    ) -> Task;
}

/// Runs one process until a signal has come and the shutdown is over.
///
/// The first signal begins the shutdown, which takes `config.drain_timeout` at the most: the process is not ready, takes
/// no new requests, finishes its deliveries, writes down what came back, and gives back what it has not sent. Another
/// signal cuts that short.
///
/// # Errors
///
/// [`Ended`] if a part of the process stopped by itself.
pub async fn run(
    config: &Config,
    ports: Ports,
    host: &impl Host,
    mut signals: impl FusedStream<Item = ()> + Unpin,
) -> Result<(), Ended> {
    let clock = Arc::clone(&ports.clock);
    let health = Arc::new(Health::default());
    let doorbell = Arc::new(Doorbell::default());
    let handover = Arc::new(Handover::default());
    let metrics = Metrics::new(config.sources.keys().cloned());
    let store: Arc<dyn Store> =
        Arc::new(Metered::new(ports.store, Arc::clone(&metrics), Arc::clone(&clock)));
    let (stop_intake, intake_stopped) = oneshot::channel::<()>();
    let (mut drain, drains) = mpsc::channel(4);

    let limits = Limits {
        max_queued: config.intake.max_queued,
        max_queued_bytes: config.intake.max_queued_bytes,
        max_body: config.intake.max_body,
        sources: config.sources.len(),
    };
    let intake_ports = IntakePorts {
        store: Arc::clone(&store),
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
        store: Arc::clone(&store),
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
            store: Arc::clone(&store),
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
            retention::run(store, Arc::clone(&clock), config.retention, config.delivered_payload)
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
        "shutting down: no new requests, finishing what is under way"
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
                tracing::warn!("told again to shut down: deliveries in flight are cut off");
                let now = clock.now();
                // Never later than it was: however many signals come, they do not prolong it.
                let give_up_at = order.give_up_at.min(now + AFTER_SECOND_SIGNAL);
                order = Drain { cut_off_at: now, give_up_at };
                let _ = drain.try_send(order);
            }
            () = clock.sleep_until(order.give_up_at).fuse() => {
                tracing::warn!("the drain timeout is over; what is unfinished comes back when its lease ends");
                break;
            }
        }
    }
    tracing::info!(took_ms = clock.now().since(began).as_millis(), "shut down");
    Ok(())
}

/// Waits for a part of the process that is shutting down, and answers how it ended; `None` if it was never started.
async fn join<T>(task: &mut Fuse<BoxFuture<'static, T>>) -> Option<T> {
    if task.is_terminated() { None } else { Some(task.await) }
}

/// How long a second signal leaves for writing down what was cut off.
const AFTER_SECOND_SIGNAL: Duration = Duration::from_secs(1);

/// How the time of a shutdown is spent, from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shutdown {
    /// Until then requests and deliveries may finish.
    cut_off: Duration,
    /// Until then what came back is written down. A little before the end, so that the process ends in time.
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
    fn a_shutdown_leaves_time_to_write_down_what_came_back() {
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
