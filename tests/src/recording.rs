//! The history of a run of the real program, in the form that the simulation's oracles read: what
//! producers and downstreams observed, what the database committed, and which faults occurred when.
//! At the end the same oracles judge it.
//!
//! Three clocks are used here: the test's, the database's, and that of the triggers. All are this
//! machine's.
//!
//! Events inside the program are inferred from what is observable. A delivery is assumed to begin
//! when its request arrives and to end when it is answered, and is attributed to the process of the
//! claim in the database. A kill takes some time, during which the process may still send and
//! settle, so it is recorded when the process is gone. A request can be read from its socket after
//! its sender has died. Its response is assumed to arrive only if no kill had begun since the claim.

use crate::audit;
use crate::database::Database;
use crate::failure::Failure;
use crate::program::{Environment, Service};
use crate::sink::{Answer, Received, Sink};
use crate::wait;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use surehook::config::{Config, NoSecrets, Overrides};
use surehook::search::EventRecord;
use surehook_core::admission::OnKeyReuse;
use surehook_core::id::{Attempt, EventId};
use surehook_core::source::Policy;
use surehook_core::verdict::DeliveryError;
use surehook_model::history::{At, Change, Entry, Fault, PostId, RequestId, Run, Sending, What};
use surehook_model::oracles::{self, Violation};

/// The time limit until all accepted events have ended, after the last fault.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A commit is later than its statement by less than this. A read of an event can fall between the
/// two.
const COMMITS_WITHIN: Duration = Duration::from_secs(2);

/// SQLite's store reads the time before the triggers do, and theirs is rounded up. The difference
/// is less than this.
const SQLITE_IS_LATE_BY: Duration = Duration::from_millis(50);

/// The triggers of SQLite round the time up by less than this.
const SQLITE_ROUNDS_BY: Duration = Duration::from_millis(1);

/// The time of the run at its beginning, so that entries that are moved to an earlier time do not
/// fall on zero.
const LEAD: Duration = Duration::from_millis(500);

/// The number of connections that the store has. More reads would wait for a connection, with a
/// producer's timeout.
const READS_AT_ONCE: usize = 2;

/// A run in progress. Its clones refer to the same run.
#[derive(Clone, Debug)]
pub struct Recording(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: Database,
    begun: Instant,
    begun_at: Timestamp,
    entries: Mutex<Vec<Entry>>,
    kills: Mutex<Vec<Kill>>,
    named: AtomicU64,
    services: AtomicUsize,
    told: Mutex<Told>,
    failure: Failure,
}

/// The kill of a process. It happens between the two times.
#[derive(Clone, Debug)]
struct Kill {
    process: String,
    begun_at: At,
    ended_at: At,
}

/// The configuration of the sources, as passed to the services.
#[derive(Clone, Debug, Default)]
struct Told {
    policies: BTreeMap<String, Policy>,
    first_wins: BTreeSet<String>,
    redrives_on_replay: BTreeSet<String>,
}

impl Recording {
    /// Migrates a database to the program's schema and begins to record its changes.
    ///
    /// # Panics
    ///
    /// If the database does not exist, or has another schema.
    pub async fn begin(database: Database) -> Self {
        surehook::store::open(&database.url())
            .expect("a test's own URL")
            .migrate()
            .await
            .expect("an empty database takes the schema");
        audit::install(&database).await;
        Self(Arc::new(Inner {
            database,
            begun: Instant::now()
                .checked_sub(LEAD)
                .expect("the machine has been up for longer than LEAD"),
            begun_at: Timestamp::now() - LEAD,
            entries: Mutex::default(),
            kills: Mutex::default(),
            named: AtomicU64::new(0),
            services: AtomicUsize::new(0),
            told: Mutex::default(),
            failure: Failure::default(),
        }))
    }

    /// The database of this run.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.0.database
    }

    /// The folder for the traces of this run if it fails.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.0.failure
    }

    /// Starts a process of the program on this run's database, and waits until it is ready. The
    /// first is called `service-1`. See [`Service::start`].
    ///
    /// # Panics
    ///
    /// If it does not become ready, or the configuration is invalid.
    pub async fn service(&self, configuration: &str) -> Service {
        self.service_by(|url| url, configuration).await
    }

    /// As [`Self::service`], with these variables in its environment.
    ///
    /// # Panics
    ///
    /// As [`Self::service`].
    pub async fn service_in(&self, environment: Environment, configuration: &str) -> Service {
        self.start(environment, |url| url, configuration).await
    }

    /// As [`Self::service`], with the database URL that `way` makes from the original.
    ///
    /// # Panics
    ///
    /// As [`Self::service`].
    pub async fn service_by(
        &self,
        way: impl FnOnce(String) -> String,
        configuration: &str,
    ) -> Service {
        self.start(&[], way, configuration).await
    }

    async fn start(
        &self,
        environment: Environment,
        way: impl FnOnce(String) -> String,
        configuration: &str,
    ) -> Service {
        let (name, url) = self.prepare(way, configuration).await;
        Service::recorded(self, name, environment, &url, configuration).await
    }

    /// The name of the next process, and the URL of its database. Records the policies of its sources.
    async fn prepare(
        &self,
        way: impl FnOnce(String) -> String,
        configuration: &str,
    ) -> (String, String) {
        let name = format!("service-{}", self.0.services.fetch_add(1, Ordering::Relaxed) + 1);
        let url = way(self.0.database.url_of(&name).await);
        let config = Config::parse(
            "surehook.toml",
            configuration.as_bytes(),
            &Overrides::default(),
            &NoSecrets,
        );
        for (source, settings) in config.unwrap_or_else(|error| panic!("{error}")).sources {
            let mut told = lock(&self.0.told);
            if settings.on_key_reuse == OnKeyReuse::FirstWins {
                told.first_wins.insert(source.to_string());
            }
            if settings.redrive_on_replay {
                told.redrives_on_replay.insert(source.to_string());
            }
            told.policies.insert(source.to_string(), settings.policy);
        }
        (name, url)
    }

    /// As [`Self::service`], with socket activation: the listening socket outlives each process.
    ///
    /// # Panics
    ///
    /// As [`Self::service`].
    pub async fn activated_service(&self, configuration: &str) -> Service {
        let (name, url) = self.prepare(|url| url, configuration).await;
        Service::activated(self, name, &url, configuration).await
    }

    /// Starts a downstream whose requests and responses are part of this run. See [`Sink::start`].
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub async fn sink(
        &self,
        behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    ) -> Sink {
        Sink::recorded(Some(self.clone()), behaviour).await
    }

    /// The time since the run began.
    #[must_use]
    pub fn elapsed(&self) -> At {
        self.0.begun.elapsed()
    }

    /// Records something that happens now.
    pub fn record(&self, what: What) {
        self.record_at(self.elapsed(), what);
    }

    /// Records something that happened earlier and is known only now.
    pub fn record_at(&self, at: At, what: What) {
        lock(&self.0.entries).push(Entry { at, what });
    }

    /// Records that a fault begins or ends now.
    pub fn fault(&self, fault: Fault) {
        self.record(What::Fault(fault));
    }

    /// Records that `kill` kills the process.
    pub fn while_killed(&self, process: &str, kill: impl FnOnce()) {
        let begun_at = self.elapsed();
        kill();
        let ended_at = self.elapsed();
        let process = process.to_owned();
        lock(&self.0.kills).push(Kill { process: process.clone(), begun_at, ended_at });
        self.record_at(ended_at, What::Fault(Fault::Killed { process }));
    }

    /// Records that the database is faulty until `broken` completes.
    pub async fn while_database_is<T>(&self, what: &str, broken: impl Future<Output = T>) -> T {
        let at = self.elapsed();
        let result = broken.await;
        let fault =
            Fault::Database { what: what.to_owned(), process: None, duration: self.elapsed() - at };
        self.record_at(at, What::Fault(fault));
        result
    }

    /// Records that the network between processes, database, producers or downstreams is faulty
    /// until `bad` completes, or that the load exceeds the capacity.
    pub async fn while_network_is<T>(&self, what: &str, bad: impl Future<Output = T>) -> T {
        let at = self.elapsed();
        let result = bad.await;
        self.record_at(
            at,
            What::Fault(Fault::Network { what: what.to_owned(), duration: self.elapsed() - at }),
        );
        result
    }

    /// A new id for a producer's request.
    #[must_use]
    pub fn post_id(&self) -> PostId {
        PostId(self.0.named.fetch_add(1, Ordering::Relaxed))
    }

    /// A new id for a request to a downstream.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        RequestId(self.0.named.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits until every event has ended, and runs the oracles.
    ///
    /// # Panics
    ///
    /// If an event does not end in time, or a promise is broken. The message names the folder with
    /// the history.
    pub async fn judge(&self) -> Run {
        self.judge_within(TIMEOUT).await
    }

    /// As [`Self::judge`], with another time limit.
    ///
    /// # Panics
    ///
    /// As [`Self::judge`].
    pub async fn judge_within(&self, time_limit: Duration) -> Run {
        let healed_at = self.elapsed();
        self.all_ended_within(time_limit).await;
        let (run, violations) = self.violations(healed_at).await;
        if !violations.is_empty() {
            let folder = self.0.failure.keep_run(&run, &violations);
            let first: Vec<String> = violations.iter().take(5).map(ToString::to_string).collect();
            panic!(
                "{} promises were broken; the history is in {}:\n{}",
                violations.len(),
                folder.display(),
                first.join("\n")
            );
        }
        run
    }

    /// Waits until every event has ended.
    ///
    /// # Panics
    ///
    /// If one does not end in time.
    pub async fn all_ended(&self) {
        self.all_ended_within(TIMEOUT).await;
    }

    async fn all_ended_within(&self, time_limit: Duration) {
        wait::within(time_limit, "every event to end", || async {
            let outstanding = audit::statuses(&self.0.database).await;
            if outstanding.is_empty() {
                Ok(())
            } else {
                Err(format!("{} events have not ended", outstanding.len()))
            }
        })
        .await;
    }

    /// Everything that happened, in order of time, and the broken promises, whether or not every
    /// event has ended. There are no faults after `healed_at`.
    ///
    /// # Panics
    ///
    /// If the database cannot be read.
    pub async fn violations(&self, healed_at: At) -> (Run, Vec<Violation>) {
        let run = self.run(healed_at).await;
        let violations = oracles::judge(&run);
        (run, violations)
    }

    /// Keeps what producers and downstreams observed in a run that was not judged. A judged run
    /// with violations is already kept in full.
    pub fn keep(&self) {
        if self.0.failure.has_run() {
            return;
        }
        let mut entries = lock(&self.0.entries).clone();
        entries.sort_by_key(|entry| entry.at);
        self.0.failure.keep_run(&Run { entries, ended_at: self.elapsed(), ..Run::default() }, &[]);
    }

    async fn run(&self, healed_at: At) -> Run {
        let (late, rounded) = if matches!(self.0.database, Database::Sqlite(_)) {
            (SQLITE_IS_LATE_BY, SQLITE_ROUNDS_BY)
        } else {
            (Duration::ZERO, Duration::ZERO)
        };
        let mut claims = BTreeMap::new();
        let mut entries = lock(&self.0.entries).clone();
        for (at, committed) in audit::read(&self.0.database).await {
            let at = Duration::try_from(at.duration_since(self.0.begun_at)).unwrap_or_default();
            // Not the time of the statement, which can be that of a process before this one, under
            // the same name.
            let claimed_at = at.saturating_sub(rounded);
            let at = at.saturating_sub(late);
            if let (Change::Claimed, Some(row)) = (committed.change, committed.after) {
                claims.insert(
                    (committed.event, row.delivery.attempt),
                    (committed.process.clone(), claimed_at),
                );
            }
            entries.push(Entry { at, what: What::Committed(committed) });
        }
        for entry in &mut entries {
            if let What::Looked { asked_at, .. } = &mut entry.what {
                *asked_at = asked_at.saturating_sub(COMMITS_WITHIN);
            }
        }
        entries.sort_by_key(|entry| entry.at);
        let events = self.events().await;
        let Told { policies, first_wins, redrives_on_replay } = lock(&self.0.told).clone();
        let kills = lock(&self.0.kills).clone();
        let entries = with_deliveries(entries, &claims, &timed_out(&events, &policies), &kills);
        Run {
            policies: policies.into_iter().collect(),
            first_wins,
            redrives_on_replay,
            commits_within: COMMITS_WITHIN,
            entries,
            events,
            healed_at,
            ended_at: self.elapsed(),
            ..Run::default()
        }
    }

    /// Every event in the database, as the program itself shows it.
    async fn events(&self) -> BTreeMap<EventId, EventRecord> {
        let store =
            surehook::store::open(&self.0.database.url()).expect("a test's own URL").store();
        let found = stream::iter(audit::events(&self.0.database).await)
            .map(|event| {
                let store = Arc::clone(&store);
                async move { store.find(event).await.map(|record| (event, record)) }
            })
            .buffered(READS_AT_ONCE);
        let found: Vec<_> = found.try_collect().await.expect("the database can be read");
        found.into_iter().filter_map(|(event, record)| Some((event, record?))).collect()
    }
}

/// The attempts that are recorded as timed out and did last for the timeout. A response that the
/// downstream wrote did not arrive in time.
fn timed_out(
    events: &BTreeMap<EventId, EventRecord>,
    policies: &BTreeMap<String, Policy>,
) -> BTreeSet<(EventId, Attempt)> {
    let mut timed_out = BTreeSet::new();
    for record in events.values() {
        let Some(policy) = policies.get(&record.source) else { continue };
        for attempt in &record.history {
            let is_slow = attempt.error.as_deref() == Some(DeliveryError::Timeout.as_str());
            if is_slow && attempt.took.is_some_and(|took| took >= policy.timeout) {
                timed_out.insert((record.id, attempt.attempt));
            }
        }
    }
    timed_out
}

/// How long before its process was killed a delivery is recorded whose request was read later.
const BEFORE_A_KILL: Duration = Duration::from_nanos(1);

/// The entries, and for each request that a downstream received, the delivery that it belongs to.
fn with_deliveries(
    entries: Vec<Entry>,
    claims: &BTreeMap<(EventId, Attempt), (String, At)>,
    timed_out: &BTreeSet<(EventId, Attempt)>,
    kills: &[Kill],
) -> Vec<Entry> {
    let is_replied =
        |what: &What| if let What::Replied { request, .. } = what { Some(*request) } else { None };
    let replied: BTreeSet<RequestId> =
        entries.iter().filter_map(|entry| is_replied(&entry.what)).collect();
    let mut requests: BTreeMap<RequestId, (String, EventId, Attempt)> = BTreeMap::new();
    let mut all = Vec::with_capacity(entries.len() * 2);
    for entry in entries {
        let at = entry.at;
        match &entry.what {
            What::Received(received) => {
                let (request, event, attempt) =
                    (received.request, received.event, received.attempt);
                let claim = claims.get(&(event, attempt));
                let process = claim.map(|(process, _)| process.clone());
                // A request can be read from the socket after its process was killed, and even
                // after another one was started under the same name. It was sent before the kill.
                let killed_at = claim.and_then(|(process, claimed_at)| {
                    let ends = kills_since(kills, process, *claimed_at).map(|kill| kill.ended_at);
                    ends.min().filter(|ended_at| *ended_at <= at)
                });
                let sent_at = killed_at.map_or(at, |at| at.saturating_sub(BEFORE_A_KILL));
                if let Some(process) = process.clone() {
                    let sending =
                        Sending { process, source: received.source.clone(), event, attempt };
                    all.push(Entry { at: sent_at, what: What::Sending(sending) });
                }
                all.push(entry);
                match process {
                    Some(process) if killed_at.is_some() => all.push(Entry {
                        at: sent_at,
                        what: What::Sent { process, event, attempt, status_code: None },
                    }),
                    Some(process) if replied.contains(&request) => {
                        requests.insert(request, (process, event, attempt));
                    }
                    // The time at which the process gave up waiting is not observable.
                    Some(process) => all.push(Entry {
                        at,
                        what: What::Sent { process, event, attempt, status_code: None },
                    }),
                    None => {}
                }
            }
            What::Replied { request, status_code, .. } => {
                let delivery = requests.remove(request);
                let status_code = *status_code;
                all.push(entry);
                if let Some((process, event, attempt)) = delivery {
                    let claimed_at = claims[&(event, attempt)].1;
                    let is_dying =
                        kills_since(kills, &process, claimed_at).any(|kill| kill.begun_at <= at);
                    let is_heard = !is_dying && !timed_out.contains(&(event, attempt));
                    let status_code = is_heard.then_some(status_code);
                    all.push(Entry {
                        at,
                        what: What::Sent { process, event, attempt, status_code },
                    });
                }
            }
            _ => all.push(entry),
        }
    }
    all.sort_by_key(|entry| entry.at);
    all
}

/// The kills of a process that ended at this time or later.
fn kills_since<'a>(
    kills: &'a [Kill],
    process: &'a str,
    since: At,
) -> impl Iterator<Item = &'a Kill> {
    kills.iter().filter(move |kill| kill.process == process && kill.ended_at >= since)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use surehook_core::admission::Fingerprint;

    /// How long each kill takes.
    const DYING: u64 = 2;

    /// The entries of a delivery by a process that is killed and started again. The arguments are
    /// times in milliseconds. The kill ends at `killed`.
    fn recorded(claimed: u64, asked: u64, answered: u64, killed: u64, started: u64) -> Vec<Entry> {
        let at = Duration::from_millis;
        let (event, process, request) =
            (EventId::from_uuid(uuid::Uuid::nil()), "service-1".to_owned(), RequestId(1));
        let received = surehook_model::history::Received {
            request,
            source: "orders".to_owned(),
            event,
            attempt: 1,
            body: Fingerprint::of(b""),
            query: String::new(),
            headers: BTreeMap::new(),
        };
        let mut entries = vec![
            Entry { at: at(asked), what: What::Received(received) },
            Entry {
                at: at(answered),
                what: What::Replied { request, status_code: 200, retry_after: None },
            },
            Entry { at: at(killed), what: What::Fault(Fault::Killed { process: process.clone() }) },
            Entry {
                at: at(started),
                what: What::Fault(Fault::Started { process: process.clone() }),
            },
        ];
        entries.sort_by_key(|entry| entry.at);
        let kill =
            Kill { process: process.clone(), begun_at: at(killed - DYING), ended_at: at(killed) };
        let claims = BTreeMap::from([((event, 1), (process, at(claimed)))]);
        with_deliveries(entries, &claims, &BTreeSet::new(), &[kill])
    }

    /// Whether the response counts as received by the process.
    fn is_heard(claimed: u64, asked: u64, answered: u64, killed: u64, started: u64) -> bool {
        let all = recorded(claimed, asked, answered, killed, started);
        all.iter().any(|entry| matches!(entry.what, What::Sent { status_code: Some(200), .. }))
    }

    #[test]
    fn a_response_counts_only_for_a_process_alive_since_its_claim() {
        assert!(is_heard(1, 2, 3, 10, 20), "killed after the response");
        assert!(!is_heard(1, 2, 9, 10, 20), "its kill had begun before the response");
        assert!(!is_heard(1, 2, 11, 10, 20), "killed before the response");
        assert!(!is_heard(1, 11, 12, 10, 20), "killed before the request was read");
        assert!(!is_heard(1, 21, 22, 10, 20), "read after another process started under this name");
        assert!(is_heard(21, 22, 23, 10, 20), "claimed by the restarted process");
    }

    #[test]
    fn a_response_during_a_kill_ends_its_delivery_before_the_process_is_gone() {
        let all = recorded(1, 2, 9, 10, 20);
        let position = |is: fn(&What) -> bool| all.iter().position(|entry| is(&entry.what));
        let sent = position(|what| matches!(what, What::Sent { .. })).unwrap();
        let killed = position(|what| matches!(what, What::Fault(Fault::Killed { .. }))).unwrap();
        assert!(sent < killed, "the process may have sent another request in its slot: {all:#?}");
    }

    #[test]
    fn a_request_read_after_the_kill_of_its_process_was_sent_before_it() {
        for (asked, answered) in [(11, 12), (21, 22)] {
            let all = recorded(1, asked, answered, 10, 20);
            let position = |is: fn(&What) -> bool| all.iter().position(|entry| is(&entry.what));
            let sending = position(|what| matches!(what, What::Sending(_))).unwrap();
            let sent = position(|what| matches!(what, What::Sent { .. })).unwrap();
            let killed =
                position(|what| matches!(what, What::Fault(Fault::Killed { .. }))).unwrap();
            let received = position(|what| matches!(what, What::Received(_))).unwrap();
            assert!(sending < sent && sent < killed && killed < received, "{all:#?}");
        }
    }
}
