//! A run of many minutes under load, second by second: accepted events, delivered events, and the
//! activity of the database.
//!
//! A window of a few seconds contains no autovacuum and no checkpoint, so it cannot show their
//! effect on deliveries.

use super::downstream::Sink;
use super::offer::{Offer, Until};
use crate::database::{Database, connect};
use crate::http::Client;
use sqlx::{AssertSqlSafe, PgConnection};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The time limit for the last deliveries after the last post.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(3);

/// The number of seconds over which the rate is averaged that the backlog is compared with.
const RATE_WINDOW: usize = 10;

#[derive(Clone, Debug)]
pub struct Endurance {
    /// How long events are posted.
    pub time: Duration,
    /// When the downstream answers 503, relative to the start.
    pub outage: Option<Range<Duration>>,
}

/// The state at the end of one second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Second {
    /// Seconds since the start.
    pub at: u64,
    /// Events accepted in this second.
    pub accepted: u64,
    /// Events delivered in this second.
    pub delivered: u64,
    /// Events accepted and not yet delivered.
    pub owed: u64,
    /// Claims that finished in this second.
    pub claims: u64,
    /// The mean duration of these claims, in milliseconds.
    pub claim_ms: f64,
    /// Autovacuums of `deliveries` since the start; 0 on SQLite.
    pub autovacuums: u64,
    /// Checkpoints since the start; 0 on SQLite.
    pub checkpoints: u64,
    /// Write-ahead log written in this second, in MiB; 0 on SQLite.
    pub log_mib: f64,
}

/// All seconds of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub seconds: Vec<Second>,
    /// Posts that were not answered with `202`.
    pub refused: u64,
}

impl Endurance {
    /// Posts as `offer` specifies for the whole time, and waits until everything is delivered.
    /// Calls `each` with each second.
    ///
    /// # Panics
    ///
    /// If deliveries do not end in time.
    pub async fn run(
        &self,
        offer: &Offer,
        sink: &Sink,
        database: &Database,
        mut each: impl FnMut(&Second),
    ) -> Trace {
        let mut server = Server::of(database).await;
        let metrics = format!("http://{}/metrics", offer.targets[0]);
        let client = Client::default();
        let offer =
            Offer { until: Until::Over(self.time), accepted: Arc::default(), ..offer.clone() };
        let accepted_so_far = Arc::clone(&offer.accepted);
        sink.take();
        let first = server.counters().await;
        let mut log_before = first.log_bytes;
        let mut claims_before = claims(&client, &metrics).await;
        let posting = tokio::spawn(async move { offer.run().await });
        let begun = Instant::now();
        let mut trace = Trace::default();
        let (mut accepted_before, mut delivered_before) = (0, 0);
        for at in 1.. {
            sleep_until(begun + Duration::from_secs(at)).await;
            if let Some(outage) = &self.outage {
                sink.refuse_all(outage.contains(&begun.elapsed()));
            }
            let is_over = posting.is_finished();
            // Read `taken` first. Otherwise an event that is delivered between the two reads looks
            // as if it had never been accepted.
            let delivered = sink.taken();
            let accepted = accepted_so_far.load(Ordering::Relaxed);
            let claims_now = claims(&client, &metrics).await;
            let counters = server.counters().await;
            let ended = claims_now.0 - claims_before.0;
            let second = Second {
                at,
                accepted: accepted - accepted_before,
                delivered: delivered - delivered_before,
                owed: accepted.saturating_sub(delivered),
                claims: ended,
                claim_ms: if ended > 0 {
                    (claims_now.1 - claims_before.1) / ended as f64 * 1e3
                } else {
                    0.0
                },
                autovacuums: counters.autovacuums - first.autovacuums,
                checkpoints: counters.checkpoints - first.checkpoints,
                log_mib: (counters.log_bytes - log_before) as f64 / f64::from(1 << 20),
            };
            log_before = counters.log_bytes;
            each(&second);
            trace.seconds.push(second);
            (accepted_before, delivered_before, claims_before) = (accepted, delivered, claims_now);
            if is_over && delivered >= accepted {
                break;
            }
            assert!(
                begun.elapsed() < self.time + DRAIN_TIMEOUT,
                "{} events are still owed\n{}",
                second.owed,
                trace.tail(30)
            );
        }
        let load = posting.await.expect("the load generator does not panic");
        assert_eq!(load.accepted, accepted_before);
        trace.refused = load.others.values().sum();
        trace
    }
}

impl Second {
    /// The names of the columns of [`Self::line`].
    pub const HEADER: &str =
        "second accepted delivered     owed claims claim_ms autovacuums checkpoints log_mib";

    #[must_use]
    pub fn line(&self) -> String {
        let Self { at, accepted, delivered, owed, claims, claim_ms, .. } = self;
        let Self { autovacuums, checkpoints, log_mib, .. } = self;
        format!(
            "{at:6} {accepted:8} {delivered:9} {owed:8} {claims:6} {claim_ms:8.2} {autovacuums:11} {checkpoints:11} {log_mib:7.1}"
        )
    }
}

impl Trace {
    /// The largest number of events owed at the end of a second in `span`, divided by the rate of
    /// accepted events at that time.
    #[must_use]
    pub fn most_owed_in_seconds(&self, span: Range<u64>) -> f64 {
        let seconds =
            self.seconds.iter().enumerate().filter(|(_, second)| span.contains(&second.at));
        seconds.map(|(index, second)| second.owed as f64 / self.rate_at(index)).fold(0.0, f64::max)
    }

    /// The first second, from `from` on, at whose end the backlog is at most one second of
    /// events.
    #[must_use]
    pub fn caught_up_at(&self, from: u64) -> Option<u64> {
        let caught_up = |(index, second): &(usize, &Second)| {
            second.at >= from && second.owed as f64 <= self.rate_at(*index)
        };
        self.seconds.iter().enumerate().find(caught_up).map(|(_, second)| second.at)
    }

    /// Events delivered a second, on average over the first `seconds`.
    #[must_use]
    pub fn delivered_rate(&self, seconds: usize) -> f64 {
        let part = &self.seconds[..seconds.min(self.seconds.len())];
        part.iter().map(|second| second.delivered).sum::<u64>() as f64 / part.len().max(1) as f64
    }

    /// Autovacuums of `deliveries` during the run.
    #[must_use]
    pub fn autovacuums(&self) -> u64 {
        self.seconds.last().map_or(0, |second| second.autovacuums)
    }

    /// The last lines, as text.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let mut text = format!("{}\n", Second::HEADER);
        for second in &self.seconds[self.seconds.len().saturating_sub(lines)..] {
            writeln!(text, "{}", second.line()).expect("memory");
        }
        text
    }

    /// The rate of accepted events around one second, over seconds in which events were accepted.
    fn rate_at(&self, index: usize) -> f64 {
        let window = self.seconds[..=index]
            .iter()
            .rev()
            .filter(|second| second.accepted > 0)
            .take(RATE_WINDOW);
        let (count, sum) =
            window.fold((0_u64, 0), |(count, sum), second| (count + 1, sum + second.accepted));
        (sum as f64 / count.max(1) as f64).max(1.0)
    }
}

/// The number of claims that have finished, and the sum of their durations in seconds.
async fn claims(client: &Client, metrics: &str) -> (u64, f64) {
    let answer = client.get(metrics).await.expect("the program answers");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let value = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(name) && line.contains("call=\"claim\""));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0").to_owned()
    };
    let count = value("surehook_store_call_seconds_count").parse().expect("a count");
    (count, value("surehook_store_call_seconds_sum").parse().expect("seconds"))
}

/// The database server's own counters. SQLite has none.
struct Server(Option<PgConnection>);

/// All since the server's cluster was made.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Of the table `deliveries`.
    autovacuums: u64,
    checkpoints: u64,
    log_bytes: u64,
}

impl Server {
    async fn of(database: &Database) -> Self {
        Self(match database {
            Database::Postgres(url) => Some(connect(url).await),
            Database::Sqlite(_) => None,
        })
    }

    async fn counters(&mut self) -> Counters {
        let Some(connection) = &mut self.0 else { return Counters::default() };
        // PostgreSQL 17 counts checkpoints in a view of their own.
        let checkpoints =
            if connection.server_version_num().is_some_and(|version| version >= 170_000) {
                "select num_timed + num_requested from pg_stat_checkpointer"
            } else {
                "select checkpoints_timed + checkpoints_req from pg_stat_bgwriter"
            };
        let counters = format!(
            "select
                (select autovacuum_count from pg_stat_user_tables where relname = 'deliveries'),
                ({checkpoints}),
                pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
        );
        let (autovacuums, checkpoints, log_bytes): (i64, i64, i64) =
            sqlx::query_as(AssertSqlSafe(counters))
                .fetch_one(connection)
                .await
                .expect("the counters can be read");
        Counters {
            autovacuums: autovacuums.unsigned_abs(),
            checkpoints: checkpoints.unsigned_abs(),
            log_bytes: log_bytes.unsigned_abs(),
        }
    }
}
