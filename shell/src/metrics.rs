//! The metrics of one process, for `GET /metrics` and for the list of sources.
//!
//! [`Metered`] wraps the ports to the database that the loops use, and measures each call, so the
//! loops contain no code for this. The routes for operators measure a call where they wait for it.
//! Labels are names of configured sources, or values of fixed lists. So requests cannot create new
//! label values.

use crate::health::Loop;
use crate::http::problem::ProblemKind;
use crate::ports::{
    Clock, Connections, Erased, EventStore, MaintenanceStore, NewEvent, Pruned, Retention,
    SnapshotHolder, StoreCall, StoreError, refused,
};
use crate::search::SourceRecord;
use crate::version;
use futures::FutureExt;
use http::StatusCode;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, exponential_buckets,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::admission::Stored;
use surehook_core::breaker::Breaker;
use surehook_core::due::Bound;
use surehook_core::event::{Outcome, Reason};
use surehook_core::id::{EventId, Fence};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{Claim, Claims, DeadLettered, Demand, Settlement};

/// The label of a call that may have been committed.
const UNKNOWN: &str = "unknown";

/// The media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = prometheus::TEXT_FORMAT;

/// The counter of lost log lines. It is global, because logging starts before the other metrics
/// exist.
#[must_use]
pub fn log_lines_lost() -> IntCounter {
    static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
        let help =
            "Log lines that were dropped because the log could not be written or was not read.";
        IntCounter::new("surehook_log_lines_lost_total", help).expect("the metric name is valid")
    });
    LOST.clone()
}

/// The values of the label `outcome`.
const OUTCOMES: [&str; 2] = ["accepted", "replayed"];

/// The values of the label `status` of the events that retention deleted. A discarded dead letter is
/// not counted as one: an operator has looked at it.
const PRUNED: [&str; 3] = ["delivered", "dead_lettered", "discarded"];

/// All metrics of one process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    refused: IntCounterVec,
    relayed: IntCounterVec,
    batch: Histogram,
    calls: HistogramVec,
    failed_calls: IntCounterVec,
    claimed: IntCounterVec,
    dead_lettered: IntCounterVec,
    pruned: IntCounterVec,
    last_received: IntGaugeVec,
    deliveries: IntCounterVec,
    stale: IntCounterVec,
    delivery: HistogramVec,
    accepted_to_delivered: HistogramVec,
    backlog: IntGaugeVec,
    behind: prometheus::GaugeVec,
    paused: IntGaugeVec,
    breaker: IntGaugeVec,
    loops: IntGaugeVec,
    connections: IntGaugeVec,
    connections_limit: IntGaugeVec,
    /// The configured sources. Other sources are ignored.
    standings: Mutex<BTreeMap<SourceName, Standing>>,
    /// Held from setting the gauges until they are read, so that two callers do not mix.
    reading: Mutex<()>,
}

/// What this process knows of one source since the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub breaker: Breaker,
    /// When the downstream last accepted an event.
    pub last_success: Option<Instant>,
    /// When a delivery last failed.
    pub last_failure: Option<Instant>,
}

impl Metrics {
    /// Creates the metrics of a process with these sources, all at zero.
    #[must_use]
    #[expect(
        clippy::missing_panics_doc,
        reason = "the names, labels and buckets are constants and valid"
    )]
    pub fn new(sources: impl IntoIterator<Item = SourceName>) -> Arc<Self> {
        let registry = Registry::new();
        let seconds = || exponential_buckets(0.001, 2.0, 15).expect("the buckets increase");
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(
                &registry,
                IntCounterVec::new(Opts::new(name, help), labels)
                    .expect("the metric name is valid"),
            )
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            registered(
                &registry,
                IntGaugeVec::new(Opts::new(name, help), labels).expect("the metric name is valid"),
            )
        };
        let times = |name: &str, help: &str, labels: &[&str]| {
            registered(
                &registry,
                HistogramVec::new(HistogramOpts::new(name, help).buckets(seconds()), labels)
                    .expect("the metric name is valid"),
            )
        };
        // From a millisecond to 70 minutes, because an event waits while its downstream is down.
        let hours = exponential_buckets(0.001, 4.0, 12).expect("the buckets increase");
        let batch = HistogramOpts::new(
            "surehook_commit_batch_events",
            "Events sent to the database in one batch.",
        );
        let batch = batch.buckets(exponential_buckets(1.0, 2.0, 9).expect("the buckets increase"));
        let behind = Opts::new(
            "surehook_backlog_age_seconds",
            "Age of the oldest due event in seconds; 0 if no event is due.",
        );
        registered(&registry, log_lines_lost());
        register_process(&registry);
        let build =
            Opts::new("surehook_build_info", "1, with the version and the commit of this program.");
        let build = build.const_label("version", version::VERSION);
        let build = build.const_label("commit", version::COMMIT);
        registered(&registry, IntGauge::with_opts(build).expect("the metric name is valid")).set(1);
        let metrics = Self {
            requests: counter(
                "surehook_webhooks_total",
                "Webhooks that were acknowledged: new events, or replays.",
                &["source", "outcome"],
            ),
            refused: counter(
                "surehook_webhooks_refused_total",
                "Webhooks answered with an error, by problem type.",
                &["source", "problem"],
            ),
            relayed: counter(
                "surehook_relayed_total",
                "Relayed requests, by the status code of the response.",
                &["source", "status"],
            ),
            batch: registered(
                &registry,
                Histogram::with_opts(batch).expect("the metric name is valid"),
            ),
            calls: times(
                "surehook_store_call_seconds",
                "Duration of successful calls to the database, each one transaction.",
                &["call"],
            ),
            failed_calls: counter(
                "surehook_store_calls_failed_total",
                "Calls to the database that failed or have an unknown outcome.",
                &["call", "error"],
            ),
            claimed: counter(
                "surehook_claimed_events_total",
                "Events claimed for a delivery.",
                &["source"],
            ),
            dead_lettered: counter(
                "surehook_dead_lettered_total",
                "Events that were dead-lettered, by reason; discarded ones count again.",
                &["source", "reason"],
            ),
            pruned: counter(
                "surehook_pruned_events_total",
                "Events that were deleted after their retention, by status.",
                &["status"],
            ),
            last_received: gauge(
                "surehook_last_received_timestamp_seconds",
                "When this process last acknowledged a webhook of the source, as a Unix time; 0: not since its start.",
                &["source"],
            ),
            deliveries: counter(
                "surehook_deliveries_total",
                "Finished and settled deliveries, by verdict.",
                &["source", "verdict"],
            ),
            stale: counter(
                "surehook_stale_settlements_total",
                "Settlements refused because of a stale fence.",
                &["source"],
            ),
            delivery: times(
                "surehook_delivery_seconds",
                "Duration of deliveries, from the connection to the last byte of the response.",
                &["source"],
            ),
            accepted_to_delivered: registered(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "surehook_accepted_to_delivered_seconds",
                        "Time from storing an event to the response that accepts it.",
                    )
                    .buckets(hours),
                    &["source"],
                )
                .expect("the metric name is valid"),
            ),
            backlog: gauge(
                "surehook_backlog_events",
                "Undelivered events in the database, by status, counted up to 1000; without discarded ones.",
                &["source", "status"],
            ),
            behind: registered(
                &registry,
                prometheus::GaugeVec::new(behind, &["source"]).expect("the metric name is valid"),
            ),
            paused: gauge("surehook_source_paused", "1 while the source is paused.", &["source"]),
            breaker: gauge(
                "surehook_breaker_state",
                "1 for the current state of this process's circuit breaker of the source.",
                &["source", "state"],
            ),
            loops: gauge(
                "surehook_loop_alive",
                "1 while the loop runs; 0 after it has ended, and the process must be restarted.",
                &["loop"],
            ),
            connections: gauge(
                "surehook_database_connections_in_use",
                "Database connections in use, by connection pool.",
                &["pool"],
            ),
            connections_limit: gauge(
                "surehook_database_connections_limit",
                "Maximum number of database connections, by connection pool.",
                &["pool"],
            ),
            standings: Mutex::default(),
            reading: Mutex::new(()),
            registry,
        };
        for status in PRUNED {
            metrics.pruned.with_label_values(&[status]);
        }
        metrics.configure(sources);
        Arc::new(metrics)
    }

    /// Replaces the configured sources. Creates each series of each of them, so that an alert sees
    /// the first increase of a counter. Only the status codes of relayed requests are not known
    /// before. The counters of a source that is no longer configured are kept until the process ends.
    pub fn configure(&self, sources: impl IntoIterator<Item = SourceName>) {
        let mut standings = self.standings();
        let mut before = std::mem::take(&mut *standings);
        let new = Standing { breaker: Breaker::NEW, last_success: None, last_failure: None };
        let of_now = sources.into_iter().map(|source| {
            let standing = before.remove(&source).unwrap_or(new);
            (source, standing)
        });
        standings.extend(of_now);
        // An alert compares this time with the present.
        for source in before.keys() {
            let _ = self.last_received.remove_label_values(&[source.as_str()]);
        }
        for source in standings.keys().map(SourceName::as_str) {
            for outcome in OUTCOMES {
                self.requests.with_label_values(&[source, outcome]);
            }
            for kind in ProblemKind::ALL.iter().filter(|kind| kind.is_of_webhooks()) {
                self.refused.with_label_values(&[source, kind.slug()]);
            }
            for reason in Reason::ALL {
                self.dead_lettered.with_label_values(&[source, reason.as_str()]);
            }
            for verdict in [Verdict::Delivered, Verdict::Transient, Verdict::Permanent] {
                self.deliveries.with_label_values(&[source, verdict.as_str()]);
            }
            for counter in [&self.claimed, &self.stale] {
                counter.with_label_values(&[source]);
            }
            for histogram in [&self.delivery, &self.accepted_to_delivered] {
                histogram.with_label_values(&[source]);
            }
            self.last_received.with_label_values(&[source]);
        }
    }

    fn standings(&self) -> MutexGuard<'_, BTreeMap<SourceName, Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a source. `None` if the source is not configured.
    #[must_use]
    pub fn standing(&self, source: &str) -> Option<Standing> {
        self.standings().get(source).copied()
    }

    /// Records the new state of a circuit breaker.
    pub fn breaker(&self, source: &SourceName, breaker: Breaker) {
        if let Some(standing) = self.standings().get_mut(source) {
            standing.breaker = breaker;
        }
    }

    /// Counts a webhook that was acknowledged.
    pub fn taken(&self, source: &SourceName, replayed: bool) {
        let outcome = OUTCOMES[usize::from(replayed)];
        self.requests.with_label_values(&[source.as_str(), outcome]).inc();
        let standings = self.standings();
        // A request that began before a reload can end after its source was removed.
        if standings.contains_key(source) {
            let now = jiff::Timestamp::now().as_second();
            self.last_received.with_label_values(&[source.as_str()]).set(now);
        }
    }

    /// Counts a webhook that was answered with an error. `source` is from the path, and is the
    /// label only if it is configured. Returns the label.
    pub fn refused<'a>(&self, source: &'a str, kind: ProblemKind) -> &'a str {
        let known = if self.standings().contains_key(source) { source } else { "" };
        self.refused.with_label_values(&[known, kind.slug()]).inc();
        known
    }

    /// Counts a relayed request. `status` is that of the response to the producer.
    pub fn relayed(&self, source: &SourceName, status: StatusCode) {
        self.relayed.with_label_values(&[source.as_str(), status.as_str()]).inc();
    }

    /// All metrics in Prometheus' text format. `work` is the data of the sources, if the database
    /// provides it. `loops` are the loops of this process, each with whether it runs. `connections`
    /// are its connections to the database.
    pub fn text(
        &self,
        work: Option<&[SourceRecord]>,
        loops: &[(&str, bool)],
        connections: &[Connections],
    ) -> Vec<u8> {
        let _alone = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for vec in [&self.backlog, &self.paused, &self.breaker, &self.loops] {
            vec.reset();
        }
        self.behind.reset();
        // A process that does not deliver has no circuit breakers.
        let delivers = loops.iter().any(|(name, _)| *name == Loop::Worker.as_str());
        for (source, standing) in self.standings().iter().filter(|_| delivers) {
            for state in ["closed", "open", "half_open", "ramping"] {
                let is_so = i64::from(standing.breaker.as_str() == state);
                self.breaker.with_label_values(&[source.as_str(), state]).set(is_so);
            }
        }
        for record in work.unwrap_or_default() {
            let counts = [
                ("queued", record.queued),
                ("processing", record.processing),
                ("retrying", record.retrying),
                ("dead_lettered", record.dead_lettered),
            ];
            for (status, count) in counts {
                self.backlog
                    .with_label_values(&[record.source.as_str(), status])
                    .set(i64::from(count));
            }
            self.behind
                .with_label_values(&[&record.source])
                .set(record.behind.unwrap_or_default().as_secs_f64());
            self.paused
                .with_label_values(&[&record.source])
                .set(i64::from(record.paused_since.is_some()));
        }
        for (name, alive) in loops {
            self.loops.with_label_values(&[*name]).set(i64::from(*alive));
        }
        for Connections { pool, in_use, limit } in connections {
            let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            self.connections.with_label_values(&[*pool]).set(number(*in_use));
            self.connections_limit.with_label_values(&[*pool]).set(number(*limit));
        }
        let mut text = Vec::new();
        // Writing to memory does not fail, and all metric families are valid.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }

    /// Waits for a call to the database, and records its duration or its failure. `name` is its
    /// label. If the caller stops waiting, that is recorded as a failure with an unknown outcome.
    pub(crate) async fn measured<T>(
        &self,
        clock: &dyn Clock,
        name: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = clock.now();
        let mut waiting = Waiting { metrics: self, name, has_result: false };
        let result = call.await;
        waiting.has_result = true;
        let took = clock.now().since(began);
        match &result {
            Ok(_) => self.calls.with_label_values(&[name]).observe(took.as_secs_f64()),
            Err(error) => {
                let class = match error {
                    StoreError::Unavailable(_) => "unavailable",
                    StoreError::Conflict(_) => "conflict",
                    StoreError::Rejected(_) => "rejected",
                    StoreError::Unknown(_) => UNKNOWN,
                };
                self.failed_calls.with_label_values(&[name, class]).inc();
            }
        }
        result
    }

    /// Counts events that an operator discarded. `source` is the label only if it is configured.
    pub fn discarded(&self, source: &str, events: u32) {
        let known = if self.standings().contains_key(source) { source } else { "" };
        let counter = self.dead_lettered.with_label_values(&[known, Reason::Discarded.as_str()]);
        counter.inc_by(u64::from(events));
    }

    fn dead_lettered(&self, source: &SourceName, reason: Reason) {
        self.dead_lettered.with_label_values(&[source.as_str(), reason.as_str()]).inc();
    }

    fn settled(&self, ended: &[Ended], stale: &BTreeSet<(EventId, Fence)>, now: Instant) {
        let mut standings = self.standings();
        for Ended { settlement, reason, source, verdict, took, age } in ended {
            if stale.contains(settlement) {
                self.stale.with_label_values(&[source.as_str()]).inc();
                continue;
            }
            if let Some(reason) = reason {
                self.dead_lettered(source, *reason);
            }
            self.deliveries.with_label_values(&[source.as_str(), verdict.as_str()]).inc();
            self.delivery.with_label_values(&[source.as_str()]).observe(took.as_secs_f64());
            if *verdict == Verdict::Delivered {
                self.accepted_to_delivered
                    .with_label_values(&[source.as_str()])
                    .observe(age.as_secs_f64());
            }
            if let Some(standing) = standings.get_mut(source) {
                match verdict {
                    Verdict::Delivered => standing.last_success = Some(now),
                    Verdict::Transient | Verdict::Permanent | Verdict::Lost => {
                        standing.last_failure = Some(now);
                    }
                }
            }
        }
    }
}

/// The metrics of the process itself: memory, processor time and file descriptors.
fn register_process(registry: &Registry) {
    #[cfg(target_os = "linux")]
    registry
        .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
        .expect("each metric is registered once");
    #[cfg(not(target_os = "linux"))]
    let _ = registry;
}

fn registered<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> C {
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}

/// A call to the database, while its caller waits for it. Dropped without a result, it is counted as failed.
struct Waiting<'a> {
    metrics: &'a Metrics,
    name: &'static str,
    has_result: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.has_result {
            self.metrics.failed_calls.with_label_values(&[self.name, UNKNOWN]).inc();
        }
    }
}

/// A finished delivery that a settlement records.
struct Ended {
    settlement: (EventId, Fence),
    /// Why the event is dead-lettered now, if it is.
    reason: Option<Reason>,
    source: SourceName,
    verdict: Verdict,
    took: Duration,
    age: Duration,
}

/// Measures the calls of a port to the database.
pub struct Metered<P: ?Sized> {
    port: Arc<P>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

impl<P: ?Sized> Metered<P> {
    #[must_use]
    pub fn new(port: Arc<P>, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Self {
        Self { port, metrics, clock }
    }
}

impl EventStore for Metered<dyn EventStore> {
    fn accepts_at_once(&self) -> usize {
        self.port.accepts_at_once()
    }

    fn accept(&self, batch: Vec<NewEvent>) -> StoreCall<'_, Vec<Stored>> {
        self.metrics.batch.observe(batch.len() as f64);
        let sources: Vec<SourceName> = batch.iter().map(|event| event.source.clone()).collect();
        let call = self.metrics.measured(&*self.clock, "accept", self.port.accept(batch));
        async move {
            let stored = call.await?;
            for (source, _) in sources.iter().zip(&stored).filter(|(_, stored)| stored.is_claimed())
            {
                self.metrics.claimed.with_label_values(&[source.as_str()]).inc();
            }
            Ok(stored)
        }
        .boxed()
    }

    fn claim(&self, demands: Vec<Demand>) -> StoreCall<'_, Claims> {
        let call = self.metrics.measured(&*self.clock, "claim", self.port.claim(demands));
        async move {
            let claims = call.await?;
            for Claim { source, .. } in &claims.claimed {
                self.metrics.claimed.with_label_values(&[source.as_str()]).inc();
            }
            for DeadLettered { source, reason, .. } in &claims.dead_lettered {
                self.metrics.dead_lettered(source, *reason);
            }
            Ok(claims)
        }
        .boxed()
    }

    fn settle(&self, batch: Vec<Settlement>) -> StoreCall<'_, Vec<EventId>> {
        let ended = batch.iter().filter_map(|settlement| {
            let record = settlement.record.as_ref()?;
            let reason = match settlement.outcome {
                Outcome::DeadLetter(reason) => Some(reason),
                Outcome::Delivered | Outcome::Retry { .. } | Outcome::Release | Outcome::CutOff => {
                    None
                }
            };
            Some(Ended {
                reason,
                settlement: (settlement.event, settlement.fence),
                source: settlement.source.clone(),
                verdict: record.verdict,
                took: record.took,
                age: settlement.age,
            })
        });
        let ended: Vec<Ended> = ended.collect();
        let sent: Vec<(EventId, Fence)> =
            batch.iter().map(|settlement| (settlement.event, settlement.fence)).collect();
        let call = self.metrics.measured(&*self.clock, "settle", self.port.settle(batch));
        async move {
            let stale = call.await?;
            self.metrics.settled(&ended, &refused(sent, &stale), self.clock.now());
            Ok(stale)
        }
        .boxed()
    }
}

impl MaintenanceStore for Metered<dyn MaintenanceStore> {
    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> StoreCall<'_, Pruned> {
        let call = self.port.prune(retention, after, limit);
        let call = self.metrics.measured(&*self.clock, "prune", call);
        async move {
            let pruned = call.await?;
            let Pruned { deleted, dead_lettered, discarded, .. } = pruned;
            let delivered = deleted.saturating_sub(dead_lettered).saturating_sub(discarded);
            for (status, count) in PRUNED.into_iter().zip([delivered, dead_lettered, discarded]) {
                self.metrics.pruned.with_label_values(&[status]).inc_by(count);
            }
            Ok(pruned)
        }
        .boxed()
    }

    fn erase(&self, kept: Duration, after: Option<EventId>, limit: u32) -> StoreCall<'_, Erased> {
        let call = self.port.erase(kept, after, limit);
        self.metrics.measured(&*self.clock, "erase", call).boxed()
    }

    fn cap_due_times(&self, bounds: Vec<Bound>, limit: u32) -> StoreCall<'_, u64> {
        let call = self.port.cap_due_times(bounds, limit);
        self.metrics.measured(&*self.clock, "cap_due_times", call).boxed()
    }

    fn ping(&self) -> StoreCall<'_, ()> {
        self.metrics.measured(&*self.clock, "ping", self.port.ping()).boxed()
    }

    fn probe(&self, event: NewEvent) -> StoreCall<'_, ()> {
        self.metrics.measured(&*self.clock, "probe", self.port.probe(event)).boxed()
    }

    fn oldest_snapshot(&self, least: Duration) -> StoreCall<'_, Option<SnapshotHolder>> {
        let call = self.port.oldest_snapshot(least);
        self.metrics.measured(&*self.clock, "oldest_snapshot", call).boxed()
    }

    fn overgrown_log(&self) -> Option<u64> {
        self.port.overgrown_log()
    }

    fn database(&self) -> Option<&'static str> {
        self.port.database()
    }

    fn connections(&self) -> Vec<Connections> {
        self.port.connections()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TokioClock;
    use uuid::Uuid;

    fn text(metrics: &Metrics) -> String {
        String::from_utf8(metrics.text(None, &[], &[])).unwrap()
    }

    fn source(name: &str) -> SourceName {
        SourceName::parse(name).unwrap()
    }

    #[test]
    fn a_call_whose_caller_stops_waiting_has_failed() {
        let (metrics, clock) = (Metrics::new([]), TokioClock::new());
        let hangs = std::future::pending::<Result<(), StoreError>>();
        assert!(metrics.measured(&clock, "ping", hangs).now_or_never().is_none());
        let done = std::future::ready(Ok::<_, StoreError>(()));
        metrics.measured(&clock, "find", done).now_or_never().unwrap().unwrap();
        let text = text(&metrics);
        let failed = "surehook_store_calls_failed_total{call=\"ping\",error=\"unknown\"} 1\n";
        assert!(text.contains(failed), "{text}");
        assert_eq!(text.matches("surehook_store_calls_failed_total{").count(), 1, "{text}");
    }

    #[test]
    fn a_removed_source_has_no_time_of_its_last_webhook() {
        let metrics = Metrics::new(["a", "b"].map(source));
        metrics.configure([source("b")]);
        metrics.taken(&source("a"), false);
        let text = text(&metrics);
        let of = |name| {
            text.contains(&format!("surehook_last_received_timestamp_seconds{{source=\"{name}\"}}"))
        };
        assert!(!of("a") && of("b"), "{text}");
        assert!(text.contains("surehook_claimed_events_total{source=\"a\"}"), "{text}");
    }

    /// An event of which an earlier settlement is refused, in the same batch as a later one.
    #[test]
    fn of_two_settlements_of_one_event_the_refused_one_is_the_earlier() {
        let [event, other] = [1, 2].map(|n| EventId::from_uuid(Uuid::from_u128(n)));
        let batch = [(event, Fence(3)), (other, Fence(7)), (event, Fence(1))];
        let of = |events: &[EventId]| refused(batch, events);
        assert_eq!(of(&[]), [].into());
        assert_eq!(of(&[event]), [(event, Fence(1))].into());
        assert_eq!(of(&[event, event]), [(event, Fence(1)), (event, Fence(3))].into());
        assert_eq!(of(&[other, event]), [(event, Fence(1)), (other, Fence(7))].into());

        let metrics = Metrics::new([source("a")]);
        let ended = |fence, reason, verdict| Ended {
            settlement: (event, Fence(fence)),
            reason,
            source: source("a"),
            verdict,
            took: Duration::ZERO,
            age: Duration::ZERO,
        };
        let dead = ended(3, Some(Reason::Permanent), Verdict::Permanent);
        let both = [ended(1, None, Verdict::Transient), dead];
        metrics.settled(&both, &of(&[event]), Instant::ZERO);
        let text = text(&metrics);
        for line in [
            "surehook_dead_lettered_total{reason=\"permanent\",source=\"a\"} 1\n",
            "surehook_deliveries_total{source=\"a\",verdict=\"permanent\"} 1\n",
            "surehook_deliveries_total{source=\"a\",verdict=\"transient\"} 0\n",
            "surehook_stale_settlements_total{source=\"a\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
