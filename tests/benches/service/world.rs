//! The measured system: its own database, processes of the program, and a downstream.

use crate::gauge::Gauge;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tests::database::{Database, connect};
use tests::load::{Manners, Offer, Sink, Until};
use tests::postgres::{Cluster, Settings};
use tests::program::{Environment, OTHER_PROGRAM, Service};
use tokio::time::sleep;

/// The server's settings that differ from the defaults. No checkpoint falls into a measurement.
/// After the first checkpoints the segments of the log are recycled, as on a server in production.
/// Creating a segment takes tens of milliseconds, for which every commit waits.
pub(crate) const SETTINGS: [(&str, &str); 7] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "2GB"),
    ("max_wal_size", "32GB"),
    ("min_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
    ("shared_preload_libraries", "pg_stat_statements"),
];

pub(crate) fn start_server() -> Cluster {
    let more = SETTINGS
        .iter()
        .filter(|(name, _)| *name != "fsync")
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    Cluster::start(Settings { fsync: true, more, ..Settings::default() })
}

/// Starts a server for runs of many minutes, with the default autovacuum and checkpoints.
pub(crate) fn start_enduring_server() -> Cluster {
    let more = [
        ("shared_buffers", "2GB"),
        ("max_wal_size", "8GB"),
        ("shared_preload_libraries", "pg_stat_statements"),
    ];
    let more = more.map(|(name, value)| (name, value.to_owned())).into();
    Cluster::start(Settings { fsync: true, more, ..Settings::default() })
}

/// The setup of a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) on: On,
    pub(crate) processes: usize,
    pub(crate) sources: usize,
    pub(crate) role: &'static str,
    pub(crate) manners: Manners,
    /// How long delivered events are kept.
    pub(crate) kept: &'static str,
    /// Where the idempotency key is.
    pub(crate) key: &'static str,
    /// The path of the program, if it is not the one that is measured.
    pub(crate) other_program: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    Postgres,
    Sqlite,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            on: On::Postgres,
            processes: 1,
            sources: 1,
            role: "all",
            manners: Manners::default(),
            kept: "7d",
            key: "header:Idempotency-Key",
            other_program: None,
        }
    }
}

pub(crate) struct World<'a> {
    cluster: &'a Cluster,
    pub(crate) database: Database,
    pub(crate) services: Vec<Service>,
    pub(crate) sink: Sink,
    plan: Plan,
}

impl<'a> World<'a> {
    pub(crate) async fn start(cluster: &'a Cluster, plan: Plan) -> Self {
        let database = match plan.on {
            On::Postgres => Database::Postgres(cluster.create_database().await),
            On::Sqlite => Database::sqlite(),
        };
        Self::start_on(cluster, database, plan).await
    }

    pub(crate) async fn start_on(cluster: &'a Cluster, database: Database, plan: Plan) -> Self {
        if let Database::Postgres(url) = &database {
            let script = "create extension if not exists pg_stat_statements; select pg_stat_statements_reset(); checkpoint;";
            sqlx::raw_sql(script)
                .execute(&mut connect(url).await)
                .await
                .expect("the server counts statements");
        }
        let sink = Sink::start(plan.manners).await;
        let mut services = Vec::new();
        let environment: Environment = match plan.other_program {
            Some(path) => Box::leak(Box::new([(OTHER_PROGRAM, path)])),
            None => &[],
        };
        for _ in 0..plan.processes {
            let configuration = configuration(&plan, &sink);
            services.push(Service::start_in(environment, &database.url(), &configuration).await);
        }
        // Connections are opened and statements prepared before anything is measured.
        let world = Self { cluster, database, services, sink, plan };
        let warm_up = Offer { until: Until::Posts(500), is_json: true, ..world.offer(16) };
        let warmed = warm_up.run().await;
        assert_eq!(warmed.accepted, 500, "{:?}", warmed.others);
        if plan.role == "all" {
            world.sink.until_taken(500, Duration::from_secs(30)).await;
        }
        sleep(Duration::from_millis(500)).await;
        world.sink.take();
        world
    }

    /// The default offer: bodies of 1 KiB, as fast as responses arrive.
    pub(crate) fn offer(&self, connections: usize) -> Offer {
        Offer {
            targets: self.targets(),
            sources: self.plan.sources,
            connections,
            body: 1024,
            is_json: false,
            duplicates: 0,
            until: Until::Over(Duration::from_secs(1)),
            rate: None,
            accepted: Arc::default(),
        }
    }

    fn targets(&self) -> Vec<SocketAddr> {
        self.services.iter().map(Service::address).collect()
    }

    pub(crate) fn gauge(&self) -> Gauge<'_> {
        let postgres = match &self.database {
            Database::Postgres(url) => Some((self.cluster, url.as_str())),
            Database::Sqlite(_) => None,
        };
        Gauge { services: &self.services, postgres }
    }
}

fn configuration(plan: &Plan, sink: &Sink) -> String {
    let mut text = format!(
        "role = \"{}\"\n[retention]\ndelivered = \"{}\"\n[defaults]\nconcurrency = 64\ninitial_delay = \"100ms\"\nidempotency_key = \"{}\"\n",
        plan.role, plan.kept, plan.key
    );
    for source in 0..plan.sources {
        text +=
            &format!("[sources.s{source}]\ndestination = \"http://{}/s{source}\"\n", sink.address);
    }
    text
}
