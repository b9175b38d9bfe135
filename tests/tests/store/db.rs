//! The database of one test: its store, further handles on it as other processes have them, and
//! direct access that bypasses the store to move times back, count rows and break things.

use crate::wrong::{LeakyStore, Wrong, WrongDatabase};
use bytes::Bytes;
use jiff::Timestamp;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use std::sync::Arc;
use std::time::{Duration, Instant};
use surehook::ports::{EventStore, MaintenanceStore, NewEvent, Store};
use surehook::search::EventRecord;
use surehook::store::{self, OpenStore, PostgresStore};
use surehook_core::admission::{Fingerprint, Stored};
use surehook_core::cursor::CursorSettings;
use surehook_core::event::Outcome;
use surehook_core::id::EventId;
use surehook_core::key::IdempotencyKey;
use surehook_core::source::SourceName;
use surehook_core::verdict::Verdict;
use surehook_core::worker::claims::{AttemptRecord, Claim, Demand, Settlement};
use surehook_model::memory::MemoryStore;
use tempfile::TempDir;
use tests::conformance::Schema;
use tests::postgres::pgbouncer::{self, Mode, Pooler};
use uuid::Uuid;

pub(crate) const LEASE: Duration = Duration::from_mins(1);

pub(crate) struct Db {
    pub(crate) store: Arc<dyn Store>,
    /// Empty for the in-memory model database.
    pub(crate) url: String,
    pub(crate) raw: Raw,
    pub(crate) folder: Option<TempDir>,
    /// What the store connects through, if it does not connect to the server.
    _pooler: Option<Pooler>,
    /// How the store breaks the port's contract; `None` for a correct store.
    broken: Option<Broken>,
}

/// A store whose claims start at the front, because tests move rows back by hand.
pub(crate) fn open(url: &str) -> OpenStore {
    let at_the_front = CursorSettings {
        period: Duration::ZERO,
        longest_period: Duration::ZERO,
        ..CursorSettings::default()
    };
    match store::open(url).unwrap() {
        OpenStore::Postgres(_) => {
            OpenStore::Postgres(Arc::new(PostgresStore::with_cursors(url, at_the_front).unwrap()))
        }
        sqlite @ OpenStore::Sqlite(_) => sqlite,
    }
}

#[derive(Clone)]
pub(crate) enum Raw {
    Postgres(PgPool),
    Sqlite(SqlitePool),
    Memory(Arc<MemoryStore>),
}

#[derive(Clone)]
enum Broken {
    Memory(Wrong),
    Database(WrongDatabase),
}

impl Db {
    /// A fresh database with the schema.
    pub(crate) async fn postgres() -> Self {
        let db = match Schema::create().await {
            Some(Schema { url, direct }) => {
                Self { store: open(&url).store(), url, ..Self::postgres_at(direct) }
            }
            None => Self::postgres_at(tests::postgres::shared().create_database().await),
        };
        db.open().migrate().await.unwrap();
        db
    }

    /// As [`Self::postgres`], but `make conformance` does not lead it through a pooler.
    pub(crate) async fn postgres_directly() -> Self {
        let db = match Schema::create().await {
            Some(Schema { direct, .. }) => Self::postgres_at(direct),
            None => Self::postgres_at(tests::postgres::shared().create_database().await),
        };
        db.open().migrate().await.unwrap();
        db
    }

    /// The database that a URL names, without changes.
    pub(crate) fn postgres_at(url: String) -> Self {
        let raw =
            Raw::Postgres(PgPoolOptions::new().max_connections(4).connect_lazy(&url).unwrap());
        let store = open(&url).store();
        Self { store, url, raw, folder: None, _pooler: None, broken: None }
    }

    /// As [`Self::postgres`], but the store reaches it through a pooler in transaction mode. The
    /// pooler has fewer sessions than the store has connections.
    pub(crate) async fn pooled() -> Self {
        let db = Self::postgres().await;
        let pooler = pgbouncer::start(tests::postgres::shared(), Mode::Transaction, 3, "").await;
        let url = pooler.through(&db.url);
        Self { store: open(&url).store(), url, _pooler: Some(pooler), ..db }
    }

    /// A fresh database with the schema.
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("surehook.db").display());
        let opened = store::open(&url).unwrap();
        opened.migrate().await.unwrap();
        let raw =
            Raw::Sqlite(SqlitePoolOptions::new().max_connections(2).connect_lazy(&url).unwrap());
        let store = opened.store();
        Self { store, url, raw, folder: Some(folder), _pooler: None, broken: None }
    }

    /// The model database, empty.
    #[expect(clippy::unused_async, reason = "it has the signature of the others")]
    pub(crate) async fn memory() -> Self {
        let memory = Arc::new(MemoryStore::new());
        Self {
            store: Arc::clone(&memory) as _,
            url: String::new(),
            raw: Raw::Memory(memory),
            folder: None,
            _pooler: None,
            broken: None,
        }
    }

    /// The model database behind a store that breaks a promise.
    pub(crate) async fn wrong(wrong: Wrong) -> Self {
        let db = Self { broken: Some(Broken::Memory(wrong)), ..Self::memory().await };
        Self { store: db.another(), ..db }
    }

    /// A SQLite database of which one port breaks a promise: see [`Self::events`] and
    /// [`Self::maintenance`].
    pub(crate) async fn wrong_database(wrong: WrongDatabase) -> Self {
        Self { broken: Some(Broken::Database(wrong)), ..Self::sqlite().await }
    }

    /// The store as another process opens it.
    pub(crate) fn open(&self) -> OpenStore {
        open(&self.url)
    }

    pub(crate) fn another(&self) -> Arc<dyn Store> {
        match (&self.raw, &self.broken) {
            (Raw::Memory(memory), Some(Broken::Memory(wrong))) => wrong.store(Arc::clone(memory)),
            (Raw::Memory(memory), _) => Arc::clone(memory) as _,
            _ => self.open().store(),
        }
    }

    /// The port of the store for events. It breaks a promise on a database that is made for this.
    pub(crate) fn events(&self) -> Arc<dyn EventStore> {
        let store = self.store.clone();
        match self.broken {
            Some(Broken::Database(WrongDatabase::DroppedCallsStayOpen)) => {
                Arc::new(LeakyStore::new(store, &self.url))
            }
            _ => store,
        }
    }

    /// A handle's port for maintenance. It breaks a promise on a database that is made for this.
    pub(crate) fn maintenance(&self, store: &Arc<dyn Store>) -> Arc<dyn MaintenanceStore> {
        match self.broken {
            Some(Broken::Database(WrongDatabase::AlwaysInOrder)) => Arc::new(MemoryStore::new()),
            _ => store.clone(),
        }
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let result = match &self.raw {
            Raw::Postgres(pool) => {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map(|_| ())
            }
            Raw::Sqlite(pool) => sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map(|_| ()),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        };
        result.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Whether a check of a table refuses a statement.
    pub(crate) async fn is_refused_by_a_check(&self, sql: &str) -> bool {
        let statement = sqlx::raw_sql(AssertSqlSafe(sql));
        let result = match &self.raw {
            Raw::Postgres(pool) => statement.execute(pool).await.map(drop),
            Raw::Sqlite(pool) => statement.execute(pool).await.map(drop),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        };
        match result {
            Ok(()) => false,
            Err(sqlx::Error::Database(error)) if error.is_check_violation() => true,
            Err(error) => panic!("{sql}: {error}"),
        }
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql);
        match &self.raw {
            Raw::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
            Raw::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        }
    }

    pub(crate) async fn count(&self, table: &str) -> i64 {
        if let Raw::Memory(memory) = &self.raw {
            let tables = memory.tables();
            let rows = match table {
                "events" => tables.events.len(),
                "deliveries" => tables.deliveries.len(),
                "attempts" => tables.attempts.len(),
                "actions" => tables.actions.len(),
                other => panic!("there is no table {other}"),
            };
            return rows.try_into().unwrap();
        }
        self.number(&format!("select count(*) from {table}")).await
    }

    /// The bytes of the stored query, headers and body of an event.
    pub(crate) async fn payload_size(&self, event: EventId) -> i64 {
        let length = match &self.raw {
            Raw::Postgres(_) => "octet_length",
            Raw::Sqlite(_) => "length",
            Raw::Memory(memory) => {
                return memory.tables().events[&event].event.size().try_into().unwrap();
            }
        };
        let size = ["query", "headers", "body"].map(|column| format!("{length}({column})"));
        let id = self.id(event);
        self.number(&format!(
            "select cast({} as bigint) from events where id = {id}",
            size.join(" + ")
        ))
        .await
    }

    /// An id as an SQL literal.
    pub(crate) fn id(&self, event: EventId) -> String {
        match self.raw {
            Raw::Postgres(_) => format!("'{event}'::uuid"),
            Raw::Sqlite(_) => format!("x'{}'", event.as_uuid().simple()),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        }
    }

    /// An SQL expression for a time column moved into the past.
    fn earlier(&self, column: &str, by: Duration) -> String {
        match self.raw {
            Raw::Postgres(_) => format!("{column} - interval '{} microseconds'", by.as_micros()),
            Raw::Sqlite(_) => format!("{column} - {}", by.as_micros()),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        }
    }

    /// Moves the due time of an event's row into the past.
    pub(crate) async fn make_due(&self, event: EventId, by: Duration) {
        if let Raw::Memory(memory) = &self.raw {
            return memory.transact(|tables, _| {
                tables
                    .deliveries
                    .get_mut(&event)
                    .into_iter()
                    .for_each(|row| move_back(&mut row.due_at, by));
            });
        }
        let due_at = self.earlier("due_at", by);
        self.execute(&format!(
            "update deliveries set due_at = {due_at} where event_id = {}",
            self.id(event)
        ))
        .await;
    }

    /// Moves all times of an event into the past.
    pub(crate) async fn age(&self, event: EventId, by: Duration) {
        if let Raw::Memory(memory) = &self.raw {
            return memory.transact(|tables, _| {
                tables.events.get_mut(&event).into_iter().for_each(|row| row.received_at -= by);
                tables
                    .deliveries
                    .get_mut(&event)
                    .into_iter()
                    .for_each(|row| move_back(&mut row.due_at, by));
                tables.ended.get_mut(&event).into_iter().for_each(|at| *at -= by);
                tables
                    .attempts
                    .iter_mut()
                    .filter(|((of, _), _)| *of == event)
                    .for_each(|(_, entry)| entry.ended_at -= by);
                tables
                    .actions
                    .iter_mut()
                    .filter(|((of, _), _)| *of == event)
                    .for_each(|(_, entry)| entry.at -= by);
            });
        }
        let id = self.id(event);
        for (table, key, columns) in [
            ("events", "id", &["received_at"][..]),
            ("deliveries", "event_id", &["due_at", "ended_at"]),
            ("attempts", "event_id", &["ended_at"]),
            ("actions", "event_id", &["at"]),
        ] {
            for column in columns {
                let value = self.earlier(column, by);
                self.execute(&format!("update {table} set {column} = {value} where {key} = {id}"))
                    .await;
            }
        }
    }

    /// The smallest id of a time in the past.
    pub(crate) fn first_id(&self, age: Duration) -> EventId {
        let now = match &self.raw {
            Raw::Memory(memory) => memory.now(),
            Raw::Postgres(_) | Raw::Sqlite(_) => Timestamp::now(),
        };
        EventId::first_at((now - age).as_millisecond().try_into().unwrap())
    }

    /// The fence of an event's row, and the seconds until it is due.
    pub(crate) async fn fence_and_due(&self, event: EventId) -> (u64, Option<i64>) {
        let (due, id) = match self.raw {
            Raw::Postgres(_) => {
                ("extract(epoch from due_at - clock_timestamp())::bigint", self.id(event))
            }
            Raw::Sqlite(_) => ("due_at / 1000000 - unixepoch('now')", self.id(event)),
            Raw::Memory(ref memory) => {
                return memory.transact(|tables, now| {
                    let row = tables.deliveries[&event];
                    (
                        row.delivery.fence.0,
                        row.due_at.map(|due_at| due_at.duration_since(now).as_secs()),
                    )
                });
            }
        };
        let sql = format!("select fence, {due} from deliveries where event_id = {id}");
        let sql = AssertSqlSafe(sql);
        let (fence, due): (i64, Option<i64>) = match &self.raw {
            Raw::Postgres(pool) => sqlx::query_as(sql).fetch_one(pool).await.unwrap(),
            Raw::Sqlite(pool) => sqlx::query_as(sql).fetch_one(pool).await.unwrap(),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        };
        (fence.try_into().unwrap(), due)
    }

    /// Waits until no connection of the store is in a transaction. Panics after 10 s.
    pub(crate) async fn wait_for_no_transaction(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let is_free = match &self.raw {
                Raw::Postgres(_) => {
                    let open = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'surehook' and xact_start is not null";
                    self.number(open).await == 0
                }
                Raw::Sqlite(pool) => {
                    sqlx::raw_sql("pragma busy_timeout = 0; begin immediate; rollback")
                        .execute(pool)
                        .await
                        .is_ok()
                }
                Raw::Memory(_) => true,
            };
            if is_free {
                return;
            }
            assert!(Instant::now() < deadline, "a transaction is still open after 10 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A statement that stores `events` delivered events, spread over the day that begins at
    /// `midnight`, in microseconds since 1970. Their keys are in random order.
    pub(crate) fn delivered_on(&self, midnight: i64, events: i64) -> String {
        let step = 24 * 3600 * 1_000_000 / events;
        let numbers = format!(
            "with recursive numbers(n) as (select cast(0 as bigint) union all select n + 1 from numbers where n < {events} - 1)"
        );
        let at = format!("({midnight} + n * {step})");
        let (id, at, key, bytes) = match self.raw {
            Raw::Postgres(_) => (
                format!(
                    "(lpad(to_hex({at} / 1000), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid"
                ),
                format!("timestamptz 'epoch' + {at} * interval '1 microsecond'"),
                format!("md5(({midnight} + n)::text)"),
                "convert_to(repeat('b', 1000), 'UTF8')",
            ),
            Raw::Sqlite(_) => (
                format!("unhex(printf('%012x70008000%012x', {at} / 1000, n))"),
                at,
                "lower(hex(randomblob(16)))".to_owned(),
                "cast(printf('%01000d', n) as blob)",
            ),
            Raw::Memory(_) => panic!("{NO_SQL}"),
        };
        let fingerprint = if matches!(self.raw, Raw::Postgres(_)) {
            "sha256(n::text::bytea)"
        } else {
            "randomblob(32)"
        };
        let empty = if matches!(self.raw, Raw::Postgres(_)) { "''::bytea" } else { "x''" };
        format!(
            "insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
             {numbers} select {id}, 'orders', {key}, {fingerprint}, {at}, {empty}, {bytes} from numbers;
             insert into attempts (event_id, attempt, ended_at, took_us, verdict, status_code, excerpt)
             {numbers} select {id}, 1, {at}, 1000, 'delivered', 200, {empty} from numbers"
        )
    }

    /// Makes the space of deleted rows reusable. SQLite does this automatically.
    pub(crate) async fn reuse_space(&self) {
        if matches!(self.raw, Raw::Postgres(_)) {
            self.execute("vacuum events").await;
            self.execute("vacuum attempts").await;
        }
    }

    /// The size of the tables and their indexes on disk in bytes, including free space within them.
    pub(crate) async fn size(&self) -> i64 {
        self.number(match self.raw {
            Raw::Postgres(_) => "select (pg_total_relation_size('events') + pg_total_relation_size('attempts'))::bigint",
            Raw::Sqlite(_) => "select page_count * page_size from pragma_page_count, pragma_page_size",
            Raw::Memory(_) => panic!("{NO_SQL}"),
        })
        .await
    }

    /// Accepts one event, claims it, and returns the claim.
    pub(crate) async fn claimed(&self, key: &str) -> Claim {
        self.accepted(key).await;
        self.claim_one(key).await
    }

    /// Accepts one new event with its key as the name of its source, so that it can be claimed
    /// alone.
    pub(crate) async fn accepted(&self, key: &str) -> EventId {
        let event = event_of(key, key);
        let id = event.id;
        assert_eq!(self.store.accept(vec![event]).await, Ok(vec![Stored::Inserted]));
        id
    }

    /// Claims the only due event of a source.
    pub(crate) async fn claim_one(&self, source: &str) -> Claim {
        let mut claims = self.store.claim(vec![demand(source, 10)]).await.unwrap();
        assert_eq!((claims.claimed.len(), claims.dead_lettered.len()), (1, 0));
        claims.claimed.remove(0)
    }

    pub(crate) async fn settle(&self, claim: &Claim, outcome: Outcome) {
        assert_eq!(self.store.settle(vec![settlement(claim, outcome)]).await, Ok(vec![]));
    }

    pub(crate) async fn found(&self, event: EventId) -> EventRecord {
        self.store.find(event).await.unwrap().expect("the event exists")
    }
}

const NO_SQL: &str = "the model database has no SQL";

fn move_back(time: &mut Option<Timestamp>, by: Duration) {
    *time = time.map(|time| time - by);
}

pub(crate) fn source(name: &str) -> SourceName {
    SourceName::parse(name).unwrap()
}

pub(crate) fn event_of(source_name: &str, key: &str) -> NewEvent {
    let body = Bytes::from(format!("{{\"key\":\"{key}\"}}"));
    NewEvent {
        id: EventId::from_uuid(Uuid::now_v7()),
        source: source(source_name),
        key: IdempotencyKey::parse(key.as_bytes()).unwrap(),
        fingerprint: Fingerprint::of(&body),
        query: Bytes::from_static(b"sig=a%2Bb&n='1'"),
        headers: Bytes::from_static(b"content-type: application/json"),
        body,
        lease: None,
    }
}

pub(crate) fn event(key: &str) -> NewEvent {
    event_of("orders", key)
}

pub(crate) fn events(keys: std::ops::Range<u32>) -> Vec<NewEvent> {
    keys.map(|key| event(&format!("key-{key:05}"))).collect()
}

pub(crate) fn demand(source_name: &str, limit: u32) -> Demand {
    Demand { source: source(source_name), limit, bytes: usize::MAX, lease: LEASE, max_attempts: 3 }
}

pub(crate) fn record(verdict: Verdict) -> AttemptRecord {
    AttemptRecord {
        ended_ago: Duration::ZERO,
        took: Duration::from_micros(12_345),
        verdict,
        status_code: Some(503),
        error: None,
        excerpt: Bytes::from_static(b"try \0 later \xff"),
    }
}

/// A settlement with the record that normally belongs to its outcome.
pub(crate) fn settlement(claim: &Claim, outcome: Outcome) -> Settlement {
    let record = match outcome {
        Outcome::Delivered => Some(record(Verdict::Delivered)),
        Outcome::Retry { .. } | Outcome::CutOff => Some(record(Verdict::Transient)),
        Outcome::DeadLetter(_) => Some(record(Verdict::Permanent)),
        Outcome::Release => None,
    };
    claim.settled(outcome, record)
}
