//! The worker loop: performs the actions of [`surehook_core::worker::Worker`]. It is one future and
//! spawns nothing: deliveries and store calls are futures that it holds. Dropping the loop drops
//! them all.

use crate::alarm::Alarm;
use crate::doorbell::Doorbell;
use crate::handover::{Handed, Handover};
use crate::logs::millis;
use crate::metrics::Metrics;
use crate::ports::{Clock, Downstream, EventStore, StoreCall, StoreError, refused};
use futures::future::{BoxFuture, Fuse, FusedFuture, pending};
use futures::stream::{FusedStream, FuturesUnordered};
use futures::{FutureExt, StreamExt, select_biased};
use std::pin::pin;
use std::sync::Arc;
use surehook_core::breaker::Breaker;
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::EventId;
use surehook_core::shutdown::Deadlines;
use surehook_core::source::{Policy, SourceName};
use surehook_core::verdict::Reply;
use surehook_core::worker::claims::{Claims, DeadLettered, Settlement};
use surehook_core::worker::{Action, Dispatch, Input, Ticket, Worker};

/// The dependencies of the worker loop.
pub struct WorkerPorts {
    pub store: Arc<dyn EventStore>,
    pub downstream: Arc<dyn Downstream>,
    /// The clock whose time `worker` was created with.
    pub clock: Arc<dyn Clock>,
    /// Signals the sources that have events to claim: new, redriven, or of a resumed source.
    pub doorbell: Arc<Doorbell>,
    /// Passes events that this process claimed on insert.
    pub handover: Arc<Handover>,
    /// Records the state of each circuit breaker.
    pub metrics: Arc<Metrics>,
}

/// The result of a batch of settlements: the events whose settlement was stale.
type SettleResult = Result<Vec<EventId>, StoreError>;

/// What the process tells its worker.
#[derive(Clone, Debug)]
pub enum Order {
    /// The configuration was read again. These are its sources and the limit of its memory.
    Reconfigure { sources: Vec<(SourceName, Policy)>, max_held_bytes: usize },
    /// Shut down, or shorten the shutdown.
    ShutDown(Deadlines),
}

/// Runs a worker until it is done.
///
/// Dropping this future has the effect of a crash: its claimed events become claimable when their
/// leases end.
pub async fn run(
    mut worker: Worker,
    ports: WorkerPorts,
    mut orders: impl FusedStream<Item = Order> + Unpin + Send,
) {
    let WorkerPorts { store, downstream, clock, doorbell, handover, metrics } = ports;
    let mut deliveries: FuturesUnordered<BoxFuture<'_, (Ticket, Reply)>> = FuturesUnordered::new();
    // A set of which all futures were polled wakes its task again. One that is never woken prevents that.
    deliveries.push(pending().boxed());
    let mut alarm = Alarm::new(Arc::clone(&clock));
    let mut claim: Fuse<StoreCall<'_, Claims>> = Fuse::terminated();
    let mut settle: Fuse<BoxFuture<'_, (Vec<Settlement>, SettleResult)>> = Fuse::terminated();
    loop {
        while let Some(action) = worker.poll(clock.now()) {
            match action {
                Action::Deliver(delivery) => {
                    deliveries.push(deliver(downstream.as_ref(), clock.as_ref(), delivery));
                }
                Action::Claim(demands) => {
                    debug_assert!(claim.is_terminated(), "at most one claim is in flight");
                    claim = store.claim(demands).fuse();
                }
                Action::Settle(batch) => {
                    debug_assert!(
                        settle.is_terminated(),
                        "at most one batch of settlements is in flight"
                    );
                    let written = store.settle(batch.clone());
                    settle = written.map(|result| (batch, result)).boxed().fuse();
                }
                Action::Offer { source, room, bytes, lease } => {
                    handover.offer(source, room, bytes, lease);
                }
                Action::Abandoned(settlements) => settlements.iter().for_each(log_abandoned),
                Action::Suspended { wait } => {
                    tracing::warn!(
                        resume_in_ms = millis(wait),
                        "deliveries suspended: this process lacks file descriptors or memory; unsent events are released"
                    );
                }
                Action::Breaker(source, breaker) => {
                    log_breaker(&source, breaker);
                    metrics.breaker(&source, breaker);
                }
                Action::Done => return,
            }
        }
        let wake = alarm.at_latest(worker.wake_at().map(|wake| wake.at));
        // Branches are polled in this order. Rare inputs come first, so that a stream of replies
        // cannot starve them.
        let inputs = select_biased! {
            order = orders.select_next_some() => ordered(order, &handover),
            (batch, result) = settle => vec![settled(&batch, result)],
            result = claim => vec![claimed(result)],
            sources = doorbell.heard().fuse() => vec![Input::Woken(sources)],
            all = handover.handed().fuse() => handed(all),
            (ticket, reply) = deliveries.select_next_some() => vec![Input::Finished { ticket, reply }],
            () = pin!(wake.fuse()) => Vec::new(),
        };
        let now = clock.now();
        for input in inputs {
            worker.handle(now, input);
        }
        // Handles all other finished deliveries in the same step.
        while let Some(Some((ticket, reply))) = deliveries.next().now_or_never() {
            worker.handle(now, Input::Finished { ticket, reply });
        }
    }
}

/// The inputs of an order. It ends all offers.
fn ordered(order: Order, handover: &Handover) -> Vec<Input> {
    let (before, input) = match order {
        Order::Reconfigure { sources, max_held_bytes } => {
            (handover.withdraw(), Input::Reconfigured { sources, max_held_bytes })
        }
        Order::ShutDown(Deadlines { cut_off_at, give_up_at }) => {
            (handover.close(), Input::ShutDown { cut_off_at, give_up_at })
        }
    };
    let mut inputs = handed(before);
    inputs.push(input);
    inputs
}

fn deliver<'a>(
    downstream: &'a dyn Downstream,
    clock: &'a dyn Clock,
    delivery: Dispatch,
) -> BoxFuture<'a, (Ticket, Reply)> {
    let Dispatch { ticket, claim, deadline } = delivery;
    let timeout = deadline.since(clock.now());
    downstream.send(&claim, timeout).map(move |reply| (ticket, reply)).boxed()
}

fn handed(all: Vec<Handed>) -> Vec<Input> {
    all.into_iter().map(|Handed { since, claims }| Input::Handed { since, claims }).collect()
}

fn claimed(result: Result<Claims, StoreError>) -> Input {
    match result {
        Ok(claims) => {
            for dead_lettered in &claims.dead_lettered {
                let DeadLettered { event: event_id, source, attempt, reason } = dead_lettered;
                let reason = reason.as_str();
                tracing::warn!(%event_id, %source, attempt, reason, "dead-lettered by a claim: no attempts left");
            }
            Input::Claimed(claims)
        }
        Err(error) => {
            tracing::warn!(%error, "claiming failed; retrying");
            Input::ClaimFailed
        }
    }
}

fn settled(batch: &[Settlement], result: SettleResult) -> Input {
    match result {
        Ok(events) => {
            let key = |settlement: &Settlement| (settlement.event, settlement.fence);
            let stale = refused(batch.iter().map(key), &events);
            for settlement in batch {
                log_settled(settlement, stale.contains(&key(settlement)));
            }
            Input::Settled
        }
        Err(error) => {
            tracing::warn!(%error, settlements = batch.len(), "settling failed; retrying until the leases end");
            Input::SettleFailed
        }
    }
}

/// Logs one transition, with the status before and after it.
fn log_settled(settlement: &Settlement, stale: bool) {
    // Queued or retrying. Only the store knows whether the retry budget is unused.
    const WAITING: Option<Status> = None;
    let Settlement { event, source, attempt, outcome, record, .. } = settlement;
    let status_code = record.as_ref().and_then(|record| record.status_code);
    let error = record.as_ref().and_then(|record| record.error).map(tracing::field::display);
    let verdict = record.as_ref().map(|record| record.verdict.as_str());
    let took_ms = record.as_ref().map(|record| millis(record.took));
    macro_rules! line {
        ($level:ident, $to:expr, $($rest:tt)+) => {
            tracing::$level!(
                event_id = %event, %source, attempt, from = Status::Processing.as_str(), to = $to.map(Status::as_str), verdict, status_code, error, took_ms,
                $($rest)+
            )
        };
    }
    if stale {
        tracing::info!(event_id = %event, %source, attempt, verdict, status_code, took_ms, "settlement refused: stale fence (the event was claimed again, or an earlier try was committed)");
        return;
    }
    match outcome {
        Outcome::Delivered => line!(debug, Some(Status::Delivered), "delivered"),
        Outcome::Retry { after } => line!(
            info,
            Some(Status::Retrying),
            retry_in_ms = millis(*after),
            "delivery failed; retry scheduled"
        ),
        Outcome::DeadLetter(reason) => {
            line!(
                warn,
                Some(Status::DeadLettered),
                reason = reason.as_str(),
                "dead-lettered: {}",
                reason_in_words(*reason)
            );
        }
        Outcome::Release => line!(debug, WAITING, "released unsent"),
        Outcome::CutOff => line!(info, WAITING, "cut off by shutdown; claimable again"),
    }
}

fn log_breaker(source: &SourceName, breaker: Breaker) {
    let state = breaker.as_str();
    match breaker {
        Breaker::Open { .. } => {
            tracing::warn!(%source, breaker = state, "circuit breaker opened; deliveries suspended");
        }
        Breaker::HalfOpen => {
            tracing::info!(%source, breaker = state, "circuit breaker half-open; sending one probe");
        }
        Breaker::Ramping { .. } => {
            tracing::info!(%source, breaker = state, "circuit breaker recovering; increasing concurrency");
        }
        Breaker::Closed { .. } => {
            tracing::info!(%source, breaker = state, "circuit breaker closed");
        }
    }
}

fn reason_in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::Permanent => "refused permanently by the downstream",
        Reason::Exhausted => "the last attempt failed",
        Reason::Lost => "the last attempt was lost",
        Reason::Discarded => "an operator discarded it",
    }
}

fn log_abandoned(settlement: &Settlement) {
    let Settlement { event, source, attempt, .. } = settlement;
    tracing::warn!(event_id = %event, %source, attempt, "settlement abandoned: the lease or the shutdown ended before it could be written; the event may be delivered twice");
}
