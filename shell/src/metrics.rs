//! What a process counts and measures of itself, for `GET /metrics` and for the list of the sources.
//!
//! The store is measured at its port, by [`Metered`], which stands between the loops and the database: the loops know
//! nothing of it. Labels are the names of configured sources, or come from fixed lists, so that nobody outside can make
//! more of them.

use crate::http::problem::Kind;
use crate::ports::{
    Clock, Connections, Erased, EventRecord, NewEvent, Pruned, Redriven, Retention, Store,
    StoreError,
};
use crate::search::{EventFilter, EventPage, PageSize, RedrivenPage, SourceRecord, Span};
use futures::FutureExt;
use futures::future::BoxFuture;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surehook_core::admission::Stored;
use surehook_core::breaker::Breaker;
use surehook_core::id::EventId;
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_core::verdict::Verdict;
use surehook_core::worker::exchange::{Claims, Demand, Settlement};

/// The media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = prometheus::TEXT_FORMAT;

/// The log lines of this process that were lost. Logging begins before anything else is counted.
#[must_use]
pub fn log_lines_lost() -> IntCounter {
    static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
        let help = "Log lines that were lost because the log's output did not take them.";
        IntCounter::new("surehook_log_lines_lost_total", help).expect("a right name")
    });
    LOST.clone()
}

/// All figures of one process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    refused: IntCounterVec,
    batch: Histogram,
    calls: HistogramVec,
    failed_calls: IntCounterVec,
    claimed: IntCounterVec,
    buried: IntCounterVec,
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
    /// The configured sources; others are of no account here.
    standings: Mutex<BTreeMap<SourceName, Standing>>,
    /// Whoever reads the gauges of the database sets them first.
    reading: Mutex<()>,
}

/// What this process knows of one source since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its breaker.
    pub breaker: Breaker,
    /// When its downstream took an event last.
    pub last_success: Option<Instant>,
    /// When a delivery failed last.
    pub last_failure: Option<Instant>,
}

impl Metrics {
    /// The figures of a process with these sources, all at zero.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "what is expected cannot fail")]
    pub fn new(sources: impl IntoIterator<Item = SourceName>) -> Arc<Self> {
        let registry = Registry::new();
        let seconds = || exponential_buckets(0.001, 2.0, 15).expect("buckets that rise");
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(
                &registry,
                IntCounterVec::new(Opts::new(name, help), labels).expect("a right name"),
            )
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            registered(
                &registry,
                IntGaugeVec::new(Opts::new(name, help), labels).expect("a right name"),
            )
        };
        let times = |name: &str, help: &str, labels: &[&str]| {
            registered(
                &registry,
                HistogramVec::new(HistogramOpts::new(name, help).buckets(seconds()), labels)
                    .expect("a right name"),
            )
        };
        // From a millisecond to 70 minutes: an event may wait for as long as its downstream is down.
        let hours = exponential_buckets(0.001, 4.0, 12).expect("buckets that rise");
        let batch = HistogramOpts::new(
            "surehook_commit_batch_events",
            "Events that were handed to the database in one batch.",
        );
        let batch = batch.buckets(exponential_buckets(1.0, 2.0, 9).expect("buckets that rise"));
        let behind = Opts::new(
            "surehook_backlog_age_seconds",
            "For how long the event that has been due for longest has been; 0 if none is.",
        );
        registered(&registry, log_lines_lost());
        let standing = Standing { breaker: Breaker::NEW, last_success: None, last_failure: None };
        Arc::new(Self {
            requests: counter(
                "surehook_webhooks_total",
                "Webhooks that were answered 202: accepted for the first time, or replayed.",
                &["source", "outcome"],
            ),
            refused: counter(
                "surehook_webhooks_refused_total",
                "Webhooks that were not answered 202, by the problem's type.",
                &["source", "problem"],
            ),
            batch: registered(&registry, Histogram::with_opts(batch).expect("a right name")),
            calls: times("surehook_store_call_seconds", "Calls to the database that succeeded, each one transaction.", &["call"]),
            failed_calls: counter(
                "surehook_store_calls_failed_total",
                "Calls to the database that failed, or whose outcome is unknown.",
                &["call", "error"],
            ),
            claimed: counter("surehook_claimed_events_total", "Events that were claimed for a delivery.", &["source"]),
            buried: counter(
                "surehook_buried_events_total",
                "Events that a claim found without attempts left and dead-lettered.",
                &["source"],
            ),
            deliveries: counter(
                "surehook_deliveries_total",
                "Deliveries that ended and were written down, by verdict.",
                &["source", "verdict"],
            ),
            stale: counter(
                "surehook_stale_settlements_total",
                "Settlements that were refused because the event had moved on.",
                &["source"],
            ),
            delivery: times("surehook_delivery_seconds", "Deliveries, from the connection to the last byte of the reply.", &["source"]),
            accepted_to_delivered: registered(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "surehook_accepted_to_delivered_seconds",
                        "From when an event was stored until its downstream had answered that it took it.",
                    )
                    .buckets(hours),
                    &["source"],
                )
                .expect("a right name"),
            ),
            backlog: gauge(
                "surehook_backlog_events",
                "Events in the database that have not been delivered, by status; counted to 1000.",
                &["source", "status"],
            ),
            behind: registered(&registry, prometheus::GaugeVec::new(behind, &["source"]).expect("a right name")),
            paused: gauge("surehook_source_paused", "1 while an operator holds the source back.", &["source"]),
            breaker: gauge(
                "surehook_breaker_state",
                "1 for the state in which this process's breaker of the source is.",
                &["source", "state"],
            ),
            loops: gauge("surehook_loop_alive", "1 while a loop runs, 0 once it has ended and the process has to be restarted.", &["loop"]),
            connections: gauge("surehook_database_connections_in_use", "Connections to the database that are in use.", &["lane"]),
            connections_limit: gauge("surehook_database_connections_limit", "Connections to the database that there may be.", &["lane"]),
            standings: Mutex::new(sources.into_iter().map(|source| (source, standing)).collect()),
            reading: Mutex::new(()),
            registry,
        })
    }

    fn standings(&self) -> MutexGuard<'_, BTreeMap<SourceName, Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a configured source.
    #[must_use]
    pub fn standing(&self, source: &str) -> Option<Standing> {
        self.standings().get(source).copied()
    }

    /// A breaker has another state.
    pub fn breaker(&self, source: &SourceName, breaker: Breaker) {
        if let Some(standing) = self.standings().get_mut(source) {
            standing.breaker = breaker;
        }
    }

    /// A webhook was answered `202`.
    pub fn taken(&self, source: &SourceName, replayed: bool) {
        self.requests
            .with_label_values(&[source.as_str(), if replayed { "replayed" } else { "accepted" }])
            .inc();
    }

    /// A webhook was not. `source` is what the path says; only a configured one is counted under its name.
    pub fn refused(&self, source: &str, kind: Kind) {
        let known = if self.standings().contains_key(source) { source } else { "" };
        self.refused.with_label_values(&[known, kind.slug()]).inc();
    }

    /// The text of all figures, in Prometheus' text format. `work` is that of the sources, if the database tells; the
    /// loops are those that this process has, with whether they run; the connections those that it has to the database.
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
        for (source, standing) in self.standings().iter() {
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
        for Connections { lane, in_use, limit } in connections {
            let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            self.connections.with_label_values(&[*lane]).set(number(*in_use));
            self.connections_limit.with_label_values(&[*lane]).set(number(*limit));
        }
        let mut text = Vec::new();
        // Writing to memory does not fail, and the families are all well-formed.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }

    fn called<T>(
        &self,
        call: &'static str,
        began: Instant,
        now: Instant,
        result: &Result<T, StoreError>,
    ) {
        match result {
            Ok(_) => self.calls.with_label_values(&[call]).observe(now.since(began).as_secs_f64()),
            Err(error) => {
                let class = match error {
                    StoreError::Unavailable(_) => "unavailable",
                    StoreError::Conflict(_) => "conflict",
                    StoreError::Rejected(_) => "rejected",
                    StoreError::Unknown(_) => "unknown",
                };
                self.failed_calls.with_label_values(&[call, class]).inc();
            }
        }
    }

    fn settled(&self, ended: &[Ended], stale: &BTreeSet<EventId>, now: Instant) {
        let mut standings = self.standings();
        for Ended { event, source, verdict, took, age } in ended {
            if stale.contains(event) {
                self.stale.with_label_values(&[source.as_str()]).inc();
                continue;
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
                        standing.last_failure = Some(now)
                    }
                }
            }
        }
    }
}

fn registered<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is there once");
    collector
}

/// A delivery that a settlement writes down.
struct Ended {
    event: EventId,
    source: SourceName,
    verdict: Verdict,
    took: Duration,
    age: Duration,
}

/// A store that is measured.
pub struct Metered {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

impl Metered {
    /// Measures a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Self {
        Self { store, metrics, clock }
    }

    fn measured<'a, T: Send + 'a>(
        &'a self,
        call: &'static str,
        asked: BoxFuture<'a, Result<T, StoreError>>,
        learn: impl FnOnce(&Metrics, &T, Instant) + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        async move {
            let began = self.clock.now();
            let result = asked.await;
            let now = self.clock.now();
            self.metrics.called(call, began, now, &result);
            if let Ok(done) = &result {
                learn(&self.metrics, done, now);
            }
            result
        }
        .boxed()
    }
}

impl Store for Metered {
    fn connections(&self) -> Vec<Connections> {
        self.store.connections()
    }

    fn accepts_at_once(&self) -> usize {
        self.store.accepts_at_once()
    }

    fn accept(&self, batch: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        self.metrics.batch.observe(batch.len() as f64);
        let sources: Vec<SourceName> = batch.iter().map(|event| event.source.clone()).collect();
        self.measured(
            "accept",
            self.store.accept(batch),
            move |metrics, stored: &Vec<Stored>, _| {
                for (source, _) in
                    sources.iter().zip(stored).filter(|(_, stored)| **stored == Stored::Claimed)
                {
                    metrics.claimed.with_label_values(&[source.as_str()]).inc();
                }
            },
        )
    }

    fn claim(&self, demands: Vec<Demand>) -> BoxFuture<'_, Result<Claims, StoreError>> {
        self.measured("claim", self.store.claim(demands), |metrics, claims: &Claims, _| {
            for claim in &claims.claimed {
                metrics.claimed.with_label_values(&[claim.source.as_str()]).inc();
            }
            for buried in &claims.buried {
                metrics.buried.with_label_values(&[buried.source.as_str()]).inc();
            }
        })
    }

    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'_, Result<Vec<EventId>, StoreError>> {
        let ended = batch.iter().filter_map(|settlement| {
            let record = settlement.record.as_ref()?;
            Some(Ended {
                event: settlement.event,
                source: settlement.source.clone(),
                verdict: record.verdict,
                took: record.took,
                age: settlement.age,
            })
        });
        let ended: Vec<Ended> = ended.collect();
        self.measured(
            "settle",
            self.store.settle(batch),
            move |metrics, stale: &Vec<EventId>, now| {
                metrics.settled(&ended, &stale.iter().copied().collect(), now);
            },
        )
    }

    fn find(&self, event: EventId) -> BoxFuture<'_, Result<Option<EventRecord>, StoreError>> {
        self.measured("find", self.store.find(event), |_, _, _| {})
    }

    fn redrive(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        self.measured("redrive", self.store.redrive(event), |_, _, _| {})
    }

    fn redrive_delivered(&self, event: EventId) -> BoxFuture<'_, Result<Redriven, StoreError>> {
        self.measured("redrive_delivered", self.store.redrive_delivered(event), |_, _, _| {})
    }

    fn list(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
    ) -> BoxFuture<'_, Result<EventPage, StoreError>> {
        self.measured("list", self.store.list(filter, span, size), |_, _, _| {})
    }

    fn redrive_all(
        &self,
        filter: EventFilter,
        span: Span,
        size: PageSize,
        dry_run: bool,
    ) -> BoxFuture<'_, Result<RedrivenPage, StoreError>> {
        self.measured(
            "redrive_all",
            self.store.redrive_all(filter, span, size, dry_run),
            |_, _, _| {},
        )
    }

    fn sources(
        &self,
        names: Vec<SourceName>,
        count_to: u32,
    ) -> BoxFuture<'_, Result<Vec<SourceRecord>, StoreError>> {
        self.measured("sources", self.store.sources(names, count_to), |_, _, _| {})
    }

    fn pause(&self, source: SourceName, paused: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.measured("pause", self.store.pause(source, paused), |_, _, _| {})
    }

    fn prune(
        &self,
        retention: Retention,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Pruned, StoreError>> {
        self.measured("prune", self.store.prune(retention, after, limit), |_, _, _| {})
    }

    fn erase(
        &self,
        kept: Duration,
        after: Option<EventId>,
        limit: u32,
    ) -> BoxFuture<'_, Result<Erased, StoreError>> {
        self.measured("erase", self.store.erase(kept, after, limit), |_, _, _| {})
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.measured("ping", self.store.ping(), |_, (): &(), _| {})
    }

    fn probe(&self, event: NewEvent) -> BoxFuture<'_, Result<(), StoreError>> {
        self.measured("probe", self.store.probe(event), |_, (): &(), _| {})
    }
}
