//! The worker loop: carries out what [`surehook_core::worker::Worker`] decides. One future, no spawn: deliveries and
//! store calls are futures that it holds, and dropping the loop drops them all.

use crate::doorbell::Doorbell;
use crate::handover::{Handed, Handover};
use crate::metrics::Metrics;
use crate::ports::{Clock, Downstream, Store, StoreError};
use futures::future::{BoxFuture, Fuse, FusedFuture};
use futures::stream::{FusedStream, FuturesUnordered};
use futures::{FutureExt, StreamExt, select_biased};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use surehook_core::breaker::Breaker;
use surehook_core::event::{Outcome, Reason, Status};
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::verdict::Reply;
use surehook_core::worker::exchange::{Claims, Settlement};
use surehook_core::worker::{Action, Delivery, Input, Ticket, Worker};

/// How long a shutdown may take, counted from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Deliveries that are still in flight then are cut off.
    pub cut_off_at: Instant,
    /// The loop ends then at the latest.
    pub give_up_at: Instant,
}

/// What the loop works with.
pub struct Ports {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The way to the downstreams.
    pub downstream: Arc<dyn Downstream>,
    /// The clock that `worker` was made with.
    pub clock: Arc<dyn Clock>,
    /// Rung by whoever made something due.
    pub doorbell: Arc<Doorbell>,
    /// The way by which this process's intake hands over what it stored.
    pub handover: Arc<Handover>,
    /// Told where the breakers stand.
    pub metrics: Arc<Metrics>,
}

/// What the store answers to a batch of settlements: the events whose settlement was stale.
type SettleResult = Result<Vec<EventId>, StoreError>;

/// Runs a worker until it is done. Each item of `drains` begins the shutdown, or shortens it.
///
/// Dropping this future is a crash: everything that is held comes back when its lease ends.
pub async fn run(
    mut worker: Worker,
    ports: Ports,
    drains: impl FusedStream<Item = Drain> + Unpin + Send,
) {
    let Ports { store, downstream, clock, doorbell, handover, metrics } = ports;
    let mut drains = drains;
    let mut deliveries: FuturesUnordered<BoxFuture<'_, (Ticket, Reply)>> = FuturesUnordered::new();
    let mut claim: Fuse<BoxFuture<'_, Result<Claims, StoreError>>> = Fuse::terminated();
    let mut settle: Fuse<BoxFuture<'_, (Vec<Settlement>, SettleResult)>> = Fuse::terminated();
    loop {
        while let Some(action) = worker.poll(clock.now()) {
            match action {
                Action::Deliver(delivery) => {
                    deliveries.push(deliver(downstream.as_ref(), clock.as_ref(), delivery))
                }
                Action::Claim(demands) => {
                    debug_assert!(claim.is_terminated(), "one claim at a time");
                    claim = store.claim(demands).fuse();
                }
                Action::Settle(batch) => {
                    debug_assert!(settle.is_terminated(), "one batch at a time");
                    let written = store.settle(batch.clone());
                    settle = written.map(|result| (batch, result)).boxed().fuse();
                }
                Action::Offer { source, room, bytes, lease } => {
                    handover.offer(source, room, bytes, lease)
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
        let mut wake = match worker.wake_at() {
            Some(wake) => clock.sleep_until(wake.at).fuse(),
            None => Fuse::terminated(),
        };
        // What is rare comes first, so that a stream of replies cannot starve it.
        let inputs = select_biased! {
            drain = drains.select_next_some() => {
                let mut inputs = handed(handover.close());
                inputs.push(Input::ShutDown { cut_off_at: drain.cut_off_at, give_up_at: drain.give_up_at });
                inputs
            }
            (batch, result) = settle => vec![settled(&batch, result)],
            result = claim => vec![claimed(result)],
            sources = doorbell.heard().fuse() => vec![Input::Woken(sources)],
            all = handover.handed().fuse() => handed(all),
            (ticket, reply) = deliveries.select_next_some() => vec![Input::Finished { ticket, reply }],
            () = wake => Vec::new(),
        };
        let now = clock.now();
        for input in inputs {
            worker.handle(now, input);
        }
        // What else has ended meanwhile is taken in together.
        while let Some(Some((ticket, reply))) = deliveries.next().now_or_never() {
            worker.handle(now, Input::Finished { ticket, reply });
        }
    }
}

fn deliver<'a>(
    downstream: &'a dyn Downstream,
    clock: &'a dyn Clock,
    delivery: Delivery,
) -> BoxFuture<'a, (Ticket, Reply)> {
    let Delivery { ticket, claim, deadline } = delivery;
    let timeout = deadline.since(clock.now());
    downstream.send(&claim, timeout).map(move |reply| (ticket, reply)).boxed()
}

fn handed(all: Vec<Handed>) -> Vec<Input> {
    all.into_iter().map(|Handed { since, claims }| Input::Handed { since, claims }).collect()
}

fn claimed(result: Result<Claims, StoreError>) -> Input {
    match result {
        Ok(claims) => {
            for buried in &claims.buried {
                let (event_id, source, attempt) = (buried.event, &buried.source, buried.attempt);
                tracing::warn!(%event_id, %source, attempt, "dead-lettered unsent: no attempts left");
            }
            Input::Claimed(claims)
        }
        Err(error) => {
            tracing::warn!(%error, "claiming failed; it is tried again");
            Input::ClaimFailed
        }
    }
}

fn settled(batch: &[Settlement], result: SettleResult) -> Input {
    match result {
        Ok(stale) => {
            let stale: BTreeSet<EventId> = stale.into_iter().collect();
            for settlement in batch {
                log_settled(settlement, stale.contains(&settlement.event));
            }
            Input::Settled
        }
        Err(error) => {
            tracing::warn!(%error, settlements = batch.len(), "settling failed; it is tried again while the leases last");
            Input::SettleFailed
        }
    }
}

/// One line for each transition, with where the event comes from and where it goes.
fn log_settled(settlement: &Settlement, stale: bool) {
    // Queued or retrying: the store knows whether its budget is untouched.
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
        tracing::info!(event_id = %event, %source, attempt, verdict, status_code, took_ms, "settlement refused: the event has moved on, or an earlier try of it was written");
        return;
    }
    match outcome {
        Outcome::Delivered => line!(debug, Some(Status::Delivered), "delivered"),
        Outcome::Retry { after } => line!(
            info,
            Some(Status::Retrying),
            retry_in_ms = millis(*after),
            "not delivered; tried again later"
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
            tracing::warn!(%source, breaker = state, "the downstream fails again and again: nothing is sent for a while");
        }
        Breaker::HalfOpen => {
            tracing::info!(%source, breaker = state, "one event is sent to see whether the downstream is back")
        }
        Breaker::Ramping { .. } => {
            tracing::info!(%source, breaker = state, "the downstream is back: deliveries become more step by step")
        }
        Breaker::Closed { .. } => {
            tracing::info!(%source, breaker = state, "the downstream is well")
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn reason_in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::Permanent => "the downstream refused it for good",
        Reason::Exhausted => "its last attempt failed",
        Reason::Lost => "its last attempt was lost",
    }
}

fn log_abandoned(settlement: &Settlement) {
    let Settlement { event, source, attempt, .. } = settlement;
    tracing::warn!(event_id = %event, %source, attempt, "the attempt's end could not be written in time; the event is claimable again and may be delivered twice");
}
