//! The cells of the matrix: what each one sets up, offers and measures.

use crate::baseline;
use crate::endurance;
use crate::gauge::{Spent, flushes};
use crate::report::{Report, Row};
use crate::world::{On, Plan, World, start_server};
use sqlx::AssertSqlSafe;
use std::time::Duration;
use tests::database::{Database, connect};
use tests::http::Client;
use tests::load::{Load, Manners, Offer, Received, Until, all_accepted};
use tests::postgres::Cluster;
use tokio::time::{Instant, sleep};

/// The number of log segments that a server creates before anything is measured. They fit within
/// `min_wal_size`, so the server keeps them.
const SEGMENTS: u32 = 400;
/// The number of events in a backlog.
const BACKLOG: u64 = 200_000;
/// The time limit for the delivery of any backlog.
const TIMEOUT: Duration = Duration::from_mins(3);
/// The numbers of connections at which the intake is measured, each with the number of pgbench
/// clients that it is compared with.
const CONNECTIONS: [(usize, usize); 4] = [(1, 1), (16, 16), (64, 64), (256, 64)];

pub(crate) struct Bench {
    runs: u32,
    time: Duration,
    endurance: endurance::Wanted,
    /// The path of the build that is compared with this one.
    pub(crate) other_program: Option<&'static str>,
    cluster: Cluster,
    bare: String,
    report: Report,
}

impl Bench {
    pub(crate) async fn new(runs: u32, time: Duration, endurance: endurance::Wanted) -> Self {
        let cluster = start_server();
        break_in(&cluster).await;
        let bare = cluster.create_database().await;
        Self {
            runs,
            time,
            endurance,
            other_program: None,
            cluster,
            bare,
            report: Report::default(),
        }
    }

    pub(crate) fn into_report(self) -> Report {
        self.report
    }

    pub(crate) async fn measure(&mut self, group: &'static str) {
        self.cluster.execute("checkpoint").await;
        match group {
            "intake" => self.intake(group, On::Postgres).await,
            "drain" => self.drain(group, On::Postgres).await,
            "sustained" => self.sustained(group, On::Postgres).await,
            "rest" => self.rest(group).await,
            "idle" => self.idle(group).await,
            "duplicates" => self.duplicates(group).await,
            "failures" => self.failures(group).await,
            "bodies" => self.bodies(group).await,
            "keys" => self.keys(group).await,
            "sources" => self.sources(group).await,
            "memory" => self.memory(group).await,
            "processes" => self.processes(group).await,
            "sqlite" => {
                self.intake(group, On::Sqlite).await;
                self.drain(group, On::Sqlite).await;
                self.sustained(group, On::Sqlite).await;
            }
            "compare" => self.compare(group).await,
            "planning" => self.planning(group).await,
            "scaling" => self.scaling(group).await,
            "steady" => endurance::steady(&mut self.report, group, &self.endurance).await,
            "pruning" => self.pruning(group).await,
            "segments" => self.segments(group).await,
            "growth" => self.growth(group).await,
            "endurance" => endurance::measure(&mut self.report, group, &self.endurance).await,
            other => panic!("no group {other}"),
        }
        self.report.print(group);
    }

    /// The intake alone, compared with single-row inserts by the same number of clients. Each run
    /// measures both, one after the other.
    async fn intake(&mut self, group: &'static str, on: On) {
        let world =
            World::start(&self.cluster, Plan { on, role: "intake", ..Plan::default() }).await;
        for (connections, clients) in CONNECTIONS {
            for _ in 0..self.runs {
                let flushes = flushes();
                let inserts =
                    baseline::single_rows(&self.cluster, &self.bare, clients, self.time).await;
                let before = world.gauge().read().await;
                let load = all_accepted(&Offer {
                    until: Until::Over(self.time),
                    ..world.offer(connections)
                })
                .await;
                let spent = world.gauge().since(before).await;
                let row = self.report.row(group, format!("intake, {connections} connections"));
                row.add("flushes/s", flushes);
                row.add("inserts/s", inserts.rate);
                row.add("insert ms", inserts.latency_ms);
                acknowledged(row, &load);
                row.add("÷ inserts", load.rate() / inserts.rate);
                took(row, &spent, load.accepted, on);
            }
        }
        if on == On::Postgres {
            for _ in 0..self.runs {
                let inserts = baseline::single_rows(&self.cluster, &self.bare, 16, self.time).await;
                let hundreds = baseline::hundreds(&self.bare, self.time).await;
                let row = self
                    .report
                    .row(group, "without the service: 100 rows per insert, 4 connections");
                row.add("flushes/s", flushes());
                row.add("inserts/s", inserts.rate);
                row.add("rows/s", hundreds);
            }
        }
    }

    /// A process that does not deliver accepts a backlog. Then a process that delivers starts and
    /// drains it.
    async fn drain(&mut self, group: &'static str, on: On) {
        let mut world =
            World::start(&self.cluster, Plan { on, role: "intake", ..Plan::default() }).await;
        for run in 0..self.runs {
            let flushes = flushes();
            let inserts = baseline::single_rows(&self.cluster, &self.bare, 64, self.time).await;
            all_accepted(&Offer { until: Until::Posts(BACKLOG), ..world.offer(64) }).await;
            let service = &mut world.services[0];
            service.signal(nix::sys::signal::Signal::SIGTERM);
            service.wait(Duration::from_mins(1)).await;
            world.sink.take();
            world.services[0].restart_as("all").await;
            let before = world.gauge().read().await;
            let warmed_up = if run == 0 { 500 } else { 0 };
            world.sink.until_taken(BACKLOG + warmed_up, TIMEOUT).await;
            let spent = world.gauge().since(before).await;
            let resident = world.gauge().resident_mib();
            let received = world.sink.take();
            let row = self.report.row(group, format!("drain of {BACKLOG}"));
            row.add("flushes/s", flushes);
            row.add("inserts/s", inserts.rate);
            row.add("delivered/s", received.rate());
            row.add("÷ inserts", received.rate() / inserts.rate);
            took(row, &spent, received.taken, on);
            row.add("resident MiB", resident);
            let service = &mut world.services[0];
            service.signal(nix::sys::signal::Signal::SIGTERM);
            service.wait(Duration::from_mins(1)).await;
            service.restart_as("intake").await;
        }
    }

    /// Intake and delivery together: the peak rate that both can sustain, and their behaviour at
    /// fractions of it.
    async fn sustained(&mut self, group: &'static str, on: On) {
        let world = World::start(&self.cluster, Plan { on, ..Plan::default() }).await;
        let mut peak_rates = Vec::new();
        for _ in 0..self.runs {
            let flushes = flushes();
            let inserts = baseline::single_rows(&self.cluster, &self.bare, 64, self.time).await;
            let peak_rate = self.peak_rate(&world).await;
            peak_rates.push(peak_rate);
            let flat_out =
                end_to_end(&world, &Offer { until: Until::Over(self.time), ..world.offer(64) })
                    .await;
            let row = self.report.row(group, "end to end, peak rate");
            row.add("flushes/s", flushes);
            row.add("inserts/s", inserts.rate);
            row.add("posts/s", peak_rate);
            row.add("delivered/s, as fast as answers come", flat_out.received.rate());
            row.add("÷ inserts", flat_out.received.rate() / inserts.rate);
        }
        peak_rates.sort_by(f64::total_cmp);
        let peak_rate = peak_rates[peak_rates.len() / 2];
        for percent in [25, 50, 90] {
            for _ in 0..self.runs {
                let flushes = flushes();
                let offer = Offer {
                    rate: Some(peak_rate * f64::from(percent) / 100.0),
                    until: Until::Over(self.time * 2),
                    ..world.offer(64)
                };
                let run = end_to_end(&world, &offer).await;
                let insert_p99 = if on == On::Postgres && percent == 50 {
                    let rate = peak_rate / 2.0;
                    let (cluster, bare) = (&self.cluster, &self.bare);
                    Some(baseline::insert_p99_ms(cluster, bare, 64, rate, self.time * 2).await)
                } else {
                    None
                };
                let row =
                    self.report.row(group, format!("end to end, {percent} % of the peak rate"));
                row.add("flushes/s", flushes);
                run.add_to(row, on);
                if let Some(insert_p99) = insert_p99 {
                    row.add("insert p99 ms", insert_p99);
                    row.add("ack p99 ÷ insert p99", run.load.quantile_ms(0.99) / insert_p99);
                }
            }
        }
    }

    /// The highest rate of posts at which the deliveries keep up, to within 3 %.
    async fn peak_rate(&self, world: &World<'_>) -> f64 {
        let flat_out = Offer { until: Until::Over(self.time), ..world.offer(64) };
        let (mut low, mut high) = (0.0, all_accepted(&flat_out).await.rate() * 1.1);
        settle_down(world).await;
        while (high - low) / high > 0.03 {
            let rate = f64::midpoint(low, high);
            let offer =
                Offer { rate: Some(rate), until: Until::Over(self.time), ..world.offer(64) };
            let load = all_accepted(&offer).await;
            // At the last response, the events not yet delivered must be no more than 0.1 s of
            // posts.
            let behind = load.accepted.saturating_sub(world.sink.taken()) as f64;
            let kept_up = load.rate() > rate * 0.98 && behind < rate * 0.1;
            settle_down(world).await;
            if kept_up {
                low = rate;
            } else {
                high = rate;
            }
        }
        low
    }

    async fn rest(&mut self, group: &'static str) {
        for on in [On::Postgres, On::Sqlite] {
            let world = World::start(&self.cluster, Plan { on, ..Plan::default() }).await;
            for _ in 0..self.runs {
                let flushes = flushes();
                let offer = Offer {
                    rate: Some(100.0),
                    until: Until::Over(self.time * 2),
                    ..world.offer(4)
                };
                let run = end_to_end(&world, &offer).await;
                let row = self.report.row(group, format!("100 posts/s, {on:?}"));
                row.add("flushes/s", flushes);
                run.add_to(row, on);
            }
        }
    }

    async fn idle(&mut self, group: &'static str) {
        let world = World::start(&self.cluster, Plan::default()).await;
        sleep(Duration::from_secs(10)).await;
        for _ in 0..self.runs {
            let before = world.gauge().read().await;
            sleep(self.time * 4).await;
            let spent = world.gauge().since(before).await;
            let row = self.report.row(group, "nothing to do");
            // `Gauge::since` reads these counters 1.1 s after the measured time has ended.
            row.add(
                "statements a minute",
                spent.statements / (spent.time.as_secs_f64() + 1.1) * 60.0,
            );
            row.add("service CPU %", spent.service_cores * 100.0);
            row.add("resident MiB", world.gauge().resident_mib());
        }
    }

    async fn duplicates(&mut self, group: &'static str) {
        for on in [On::Postgres, On::Sqlite] {
            for duplicates in [10, 90] {
                let world =
                    World::start(&self.cluster, Plan { on, role: "intake", ..Plan::default() })
                        .await;
                for _ in 0..self.runs {
                    let flushes = flushes();
                    let load = all_accepted(&Offer {
                        duplicates,
                        until: Until::Over(self.time),
                        ..world.offer(64)
                    })
                    .await;
                    let row = self.report.row(group, format!("{duplicates} % duplicates, {on:?}"));
                    row.add("flushes/s", flushes);
                    acknowledged(row, &load);
                }
            }
        }
    }

    async fn failures(&mut self, group: &'static str) {
        for on in [On::Postgres, On::Sqlite] {
            let manners = Manners { refused_at_first: 30, ..Manners::default() };
            let world = World::start(&self.cluster, Plan { on, manners, ..Plan::default() }).await;
            for _ in 0..self.runs {
                let flushes = flushes();
                let peak_rate = self.peak_rate(&world).await;
                let row = self.report.row(group, format!("30 % refused at first, {on:?}"));
                row.add("flushes/s", flushes);
                row.add("posts/s", peak_rate);
            }
        }
    }

    async fn bodies(&mut self, group: &'static str) {
        for on in [On::Postgres, On::Sqlite] {
            for (body, connections) in [(0, 64), (1 << 10, 64), (64 << 10, 64), (1 << 20, 16)] {
                let world =
                    World::start(&self.cluster, Plan { on, role: "intake", ..Plan::default() })
                        .await;
                for _ in 0..self.runs {
                    let flushes = flushes();
                    let load = all_accepted(&Offer {
                        body,
                        until: Until::Over(self.time),
                        ..world.offer(connections)
                    })
                    .await;
                    let row = self.report.row(group, format!("bodies of {body} bytes, {on:?}"));
                    row.add("flushes/s", flushes);
                    acknowledged(row, &load);
                    row.add("MB/s", load.rate() * body as f64 / 1e6);
                    row.add("resident MiB", world.gauge().resident_mib());
                }
            }
        }
    }

    /// The intake of the same JSON bodies with the idempotency key in a header, and in the body. The
    /// runs alternate.
    async fn keys(&mut self, group: &'static str) {
        for (body, connections) in [(1 << 10, 64), (256 << 10, 64)] {
            let plan = |key| Plan { key, role: "intake", ..Plan::default() };
            let in_header = World::start(&self.cluster, plan("header:Idempotency-Key")).await;
            let in_body = World::start(&self.cluster, plan("json:/id")).await;
            for run in 0..self.runs {
                let flushes = flushes();
                let mut rates = [0.0; 2];
                // The first of two runs finds a database with less in its log.
                let mut order = [(0, &in_header), (1, &in_body)];
                order.rotate_left(run as usize % 2);
                for (which, world) in order {
                    let offer = Offer {
                        body,
                        is_json: true,
                        until: Until::Over(self.time),
                        ..world.offer(connections)
                    };
                    rates[which] = all_accepted(&offer).await.rate();
                }
                let row = self.report.row(group, format!("JSON bodies of {body} bytes"));
                row.add("flushes/s", flushes);
                row.add("key in a header, posts/s", rates[0]);
                row.add("key in the body, posts/s", rates[1]);
                row.add("body ÷ header", rates[1] / rates[0]);
                row.add("key in a header, resident MiB", in_header.gauge().resident_mib());
                row.add("key in the body, resident MiB", in_body.gauge().resident_mib());
            }
        }
    }

    async fn sources(&mut self, group: &'static str) {
        for sources in [1, 10, 1000] {
            let world = World::start(&self.cluster, Plan { sources, ..Plan::default() }).await;
            for _ in 0..self.runs {
                let flushes = flushes();
                let peak_rate = self.peak_rate(&world).await;
                let row = self.report.row(group, format!("{sources} sources, end to end"));
                row.add("flushes/s", flushes);
                row.add("posts/s", peak_rate);
                row.add("resident MiB", world.gauge().resident_mib());
            }
        }
    }

    /// A thousand sources get more events than are delivered. The downstream answers at once, or late.
    async fn memory(&mut self, group: &'static str) {
        for (name, delay) in [("at once", 0), ("after 250 ms", 250), ("after 1 s", 1000)] {
            for _ in 0..self.runs {
                let manners = Manners { delay: Duration::from_millis(delay), ..Manners::default() };
                let plan = Plan { sources: 1000, manners, ..Plan::default() };
                let world = World::start(&self.cluster, plan).await;
                let offer = Offer { until: Until::Over(self.time * 4), ..world.offer(256) };
                let load = all_accepted(&offer).await;
                let delivered = world.sink.taken();
                let row = self.report.row(
                    group,
                    format!("1000 sources, load beyond the deliveries, answered {name}"),
                );
                row.add("posts/s", load.rate());
                row.add("delivered in that time/s", delivered as f64 / load.took.as_secs_f64());
                row.add("resident MiB", world.gauge().resident_mib());
            }
        }
    }

    /// A backlog for a sink that takes 50 ms for each response, so that worker slots are the
    /// bottleneck.
    async fn processes(&mut self, group: &'static str) {
        for processes in [1, 3] {
            let manners = Manners { delay: Duration::from_millis(50), ..Manners::default() };
            let world =
                World::start(&self.cluster, Plan { processes, manners, ..Plan::default() }).await;
            for _ in 0..self.runs {
                let posts = 10_000 * processes as u64;
                all_accepted(&Offer { until: Until::Posts(posts), ..world.offer(64) }).await;
                world.sink.until_taken(posts, TIMEOUT).await;
                let row = self
                    .report
                    .row(group, format!("{processes} processes, a sink that takes 50 ms"));
                row.add("delivered/s", world.sink.take().rate());
            }
        }
    }

    /// How much of the statements' time is planning. Measuring that costs time itself, so the rates of
    /// this group are lower than those of the others.
    async fn planning(&mut self, group: &'static str) {
        self.cluster.execute("alter system set pg_stat_statements.track_planning = on").await;
        self.cluster.execute("select pg_reload_conf()").await;
        let world = World::start(&self.cluster, Plan::default()).await;
        let Database::Postgres(url) = &world.database else { unreachable!("it is PostgreSQL") };
        for _ in 0..self.runs {
            let mut connection = connect(url).await;
            sqlx::raw_sql("select pg_stat_statements_reset()")
                .execute(&mut connection)
                .await
                .expect("counters can be reset");
            let run =
                end_to_end(&world, &Offer { until: Until::Over(self.time), ..world.offer(64) })
                    .await;
            let (planning, execution): (f64, f64) = sqlx::query_as(
                "select sum(total_plan_time)::float8, sum(total_exec_time)::float8
                 from pg_stat_statements where query not like '%pg_stat_statements%'",
            )
            .fetch_one(&mut connection)
            .await
            .expect("the counters can be read");
            let row = self.report.row(group, "end to end, as fast as answers come");
            row.add("delivered/s", run.received.rate());
            row.add("planning ÷ all", planning / (planning + execution));
            row.add("planning µs/event", planning * 1e3 / run.load.accepted as f64);
            row.add("execution µs/event", execution * 1e3 / run.load.accepted as f64);
        }
        self.cluster.execute("alter system reset pg_stat_statements.track_planning").await;
        self.cluster.execute("select pg_reload_conf()").await;
    }

    /// What each process adds to the cost of an event, at a rate that one process can serve easily.
    async fn scaling(&mut self, group: &'static str) {
        for processes in [1, 2, 4, 8] {
            let world = World::start(&self.cluster, Plan { processes, ..Plan::default() }).await;
            let Database::Postgres(url) = &world.database else { unreachable!("it is PostgreSQL") };
            for _ in 0..self.runs {
                let before = due_entries(url).await;
                let offer = Offer {
                    rate: Some(2000.0),
                    until: Until::Over(self.time * 2),
                    ..world.offer(64)
                };
                let run = end_to_end(&world, &offer).await;
                let after = due_entries(url).await;
                let events = run.load.accepted as f64;
                let micros = |cores: f64| cores * run.spent.time.as_secs_f64() * 1e6 / events;
                let row = self.report.row(group, format!("{processes} processes, 2,000 posts/s"));
                let (service, database) =
                    (micros(run.spent.service_cores), micros(run.spent.database_cores));
                row.add("service CPU µs/event", service);
                row.add("database CPU µs/event", database);
                row.add("CPU µs/event", service + database);
                row.add("due entries read/event", (after - before) / events);
                run.add_to(row, On::Postgres);
            }
        }
    }

    /// Two builds, both alive, loaded in turn: the one that starts changes from run to run. The speed of a
    /// machine changes within minutes, so figures of different runs cannot be compared.
    async fn compare(&mut self, group: &'static str) {
        let other_program = Some(self.other_program.expect("compare needs --with PATH"));
        for on in self.endurance.databases.clone() {
            for role in ["all", "intake"] {
                let plan = Plan { on, role, ..Plan::default() };
                let this = World::start(&self.cluster, plan).await;
                let other = World::start(&self.cluster, Plan { other_program, ..plan }).await;
                for run in 0..self.runs {
                    let mut rates = [0.0; 2];
                    let mut order = [(0, "this", &this), (1, "other", &other)];
                    order.rotate_left(run as usize % 2);
                    for (which, name, world) in order {
                        let offer = Offer { until: Until::Over(self.time), ..world.offer(64) };
                        let cell = format!("{on:?}, {role}, {name}");
                        rates[which] = if role == "all" {
                            let run = end_to_end(world, &offer).await;
                            let row = self.report.row(group, cell);
                            let rate = run.received.rate();
                            row.add("delivered/s", rate);
                            run.add_to(row, on);
                            rate
                        } else {
                            let before = world.gauge().read().await;
                            let load = all_accepted(&offer).await;
                            let spent = world.gauge().since(before).await;
                            let row = self.report.row(group, cell);
                            acknowledged(row, &load);
                            took(row, &spent, load.accepted, on);
                            load.rate()
                        };
                    }
                    let row = self.report.row(group, format!("{on:?}, {role}"));
                    row.add("this ÷ other", rates[0] / rates[1]);
                }
            }
        }
    }

    /// Acknowledgements under a steady load with a million delivered events stored: first while
    /// they are kept, then while they are pruned, until all are deleted.
    async fn pruning(&mut self, group: &'static str) {
        const STORED: u64 = 1_000_000;
        let url = self.cluster.create_database().await;
        drop(
            World::start_on(&self.cluster, Database::Postgres(url.clone()), Plan::default()).await,
        );
        fill(&url, 0..STORED, false).await;
        clean_up(&url).await;
        let left = async || -> u64 {
            let count =
                "select count(*) from events where id < '01900000-0000-7000-8000-000000000000'";
            let left: i64 = sqlx::query_scalar(count)
                .fetch_one(&mut connect(&url).await)
                .await
                .expect("events can be counted");
            left.unsigned_abs()
        };
        for (name, kept) in [("1 M stored, kept", "7d"), ("1 M stored, being pruned", "1s")] {
            let world = World::start_on(
                &self.cluster,
                Database::Postgres(url.clone()),
                Plan { kept, ..Plan::default() },
            )
            .await;
            let mut before = left().await;
            for run in 0.. {
                let flushes = flushes();
                let begun = Instant::now();
                let offer = Offer {
                    rate: Some(4000.0),
                    until: Until::Over(self.time * 2),
                    ..world.offer(64)
                };
                let load = all_accepted(&offer).await;
                let after = left().await;
                let pruned = before - after;
                before = after;
                let is_over = if kept == "7d" { run + 1 >= self.runs } else { after == 0 };
                // The last measurement is not counted, because pruning ends in the middle of it.
                if kept == "7d" || !is_over {
                    let row = self.report.row(group, name);
                    row.add("flushes/s", flushes);
                    acknowledged(row, &load);
                    row.add("pruned/s", pruned as f64 / begun.elapsed().as_secs_f64());
                }
                if is_over {
                    break;
                }
                assert!(run < 100, "{after} events are not pruned");
            }
        }
    }

    /// Half of the peak rate, offered alternately to a server that must create each segment of its
    /// log, and to one that can recycle segments.
    async fn segments(&mut self, group: &'static str) {
        let new = start_server();
        let world_of_used = World::start(&self.cluster, Plan::default()).await;
        let world_of_new = World::start(&new, Plan::default()).await;
        let half = self.peak_rate(&world_of_used).await / 2.0;
        for _ in 0..self.runs {
            for (name, world) in
                [("segments to use again", &world_of_used), ("each segment is new", &world_of_new)]
            {
                let flushes = flushes();
                let offer = Offer {
                    rate: Some(half),
                    until: Until::Over(self.time * 2),
                    ..world.offer(64)
                };
                let run = end_to_end(world, &offer).await;
                let row =
                    self.report.row(group, format!("end to end, 50 % of the peak rate, {name}"));
                row.add("flushes/s", flushes);
                run.add_to(row, On::Postgres);
            }
        }
    }

    /// The cost of the statements as more and more events are stored, at the same modest load.
    async fn growth(&mut self, group: &'static str) {
        let url = self.cluster.create_database().await;
        drop(
            World::start_on(&self.cluster, Database::Postgres(url.clone()), Plan::default()).await,
        );
        let mut stored = 0;
        for (name, millions, due) in [
            ("nothing stored", 0, 0),
            ("1 M stored", 1, 0),
            ("5 M stored", 5, 0),
            ("5 M stored, 1 M due", 5, 1),
        ] {
            fill(&url, stored..millions * 1_000_000, false).await;
            stored = millions * 1_000_000;
            fill(&url, stored..stored + due * 1_000_000, true).await;
            stored += due * 1_000_000;
            clean_up(&url).await;
            let world =
                World::start_on(&self.cluster, Database::Postgres(url.clone()), Plan::default())
                    .await;
            for _ in 0..self.runs {
                let flushes = flushes();
                let mut connection = connect(&url).await;
                sqlx::raw_sql("select pg_stat_statements_reset()")
                    .execute(&mut connection)
                    .await
                    .expect("counters can be reset");
                let offer =
                    Offer { rate: Some(2000.0), until: Until::Over(self.time), ..world.offer(16) };
                all_accepted(&offer).await;
                let found = look_latency(&world, &some_events(&url).await, 500).await;
                let row = self.report.row(group, name);
                row.add("flushes/s", flushes);
                for (figure, part) in [
                    ("accept µs/event", "%insert into events (id%"),
                    ("claim µs/event", "%pick as materialized%"),
                    ("settle µs/event", "%held as materialized%"),
                    ("find µs", "%tried.attempt as tried_attempt%"),
                ] {
                    let (took, rows): (f64, f64) = sqlx::query_as(
                        "select coalesce(sum(total_exec_time) * 1000, 0)::float8, coalesce(sum(greatest(rows, 1)), 1)::float8
                         from pg_stat_statements where query like $1 and query not like '%pg_stat_statements%'",
                    )
                    .bind(part)
                    .fetch_one(&mut connection)
                    .await
                    .expect("the counters can be read");
                    row.add(figure, took / rows);
                }
                row.add("GET /events/{id} ms", found);
                for (figure, path) in [
                    ("GET /events ms", "/events"),
                    ("of a source ms", "/events?source=s0"),
                    ("of a source, delivered ms", "/events?source=s0&status=delivered"),
                    ("of a source, queued ms", "/events?source=s0&status=queued"),
                    ("dead-lettered ms", "/events?status=dead_lettered"),
                    ("GET /sources ms", "/sources"),
                ] {
                    let took = look_latency(&world, &[path.to_owned()], 50).await;
                    self.report.row(group, name).add(figure, took);
                }
            }
        }
    }
}

/// How many entries of the index of due times were read so far. Dead ones are among them.
async fn due_entries(url: &str) -> f64 {
    sqlx::query_scalar(
        "select idx_tup_read::float8 from pg_stat_user_indexes where indexrelname = 'deliveries_due'",
    )
    .fetch_one(&mut connect(url).await)
    .await
    .expect("the counters can be read")
}

/// The paths of about 500 of the stored events.
async fn some_events(url: &str) -> Vec<String> {
    let sample = "select id from events tablesample system (0.5) limit 500";
    for statement in [sample, "select id from events limit 500"] {
        let events: Vec<uuid::Uuid> = sqlx::query_scalar(statement)
            .fetch_all(&mut connect(url).await)
            .await
            .expect("events can be read");
        if !events.is_empty() {
            return events.into_iter().map(|event| format!("/events/{event}")).collect();
        }
    }
    panic!("no event is stored");
}

/// The mean time of `looks` requests for these paths over HTTP, one after another, in milliseconds.
async fn look_latency(world: &World<'_>, paths: &[String], looks: u32) -> f64 {
    let client = Client::default();
    let begun = Instant::now();
    for (path, _) in paths.iter().cycle().zip(0..looks) {
        let answer = client.get(&world.services[0].url(path)).await.expect("an answer");
        assert_eq!(answer.status_code, 200, "{answer:?}");
    }
    begun.elapsed().as_secs_f64() * 1000.0 / f64::from(looks)
}

/// Stores events without the program: delivered ones, or due ones of a source that the program
/// serves.
async fn fill(url: &str, numbers: std::ops::Range<u64>, due: bool) {
    if numbers.is_empty() {
        return;
    }
    let (from, to) = (numbers.start, numbers.end);
    // An id of version 7, 10 ms apart for each event: in order, and all older than the events that
    // the load posts.
    let id = "(lpad(to_hex(1700000000000 + n * 10), 12, '0') || '7000800000000000' || lpad(to_hex(n % 65536), 4, '0'))::uuid";
    let owed = if due {
        format!(
            "insert into deliveries (event_id, source, status, attempt, budget_from, fence, due_at)
             select {id}, 's0', 'queued', 0, 0, 0, now() from generate_series({from}, {to} - 1) as n;"
        )
    } else {
        format!(
            "insert into attempts (event_id, attempt, ended_at, took_us, verdict, status_code, excerpt)
             select {id}, 1, now(), 1200, 'delivered', 200, '' from generate_series({from}, {to} - 1) as n;"
        )
    };
    let script = format!(
        "set synchronous_commit = off;
         insert into events (id, source, idempotency_key, fingerprint, received_at, headers, body)
         select {id}, 's0', 'stored-' || n, sha256(n::text::bytea), now(), convert_to('x-stored: ' || repeat('h', 336) || E'\\r\\n\\r\\n', 'UTF8'), convert_to(repeat('b', 1024), 'UTF8')
         from generate_series({from}, {to} - 1) as n;
         {owed}"
    );
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(&mut connect(url).await)
        .await
        .expect("events can be stored");
}

/// Leaves the tables as an autovacuum and a checkpoint do. Neither statement can run in a
/// transaction with others.
async fn clean_up(url: &str) {
    for statement in ["vacuum analyze", "checkpoint"] {
        sqlx::raw_sql(statement)
            .execute(&mut connect(url).await)
            .await
            .expect("the tables can be vacuumed");
    }
}

/// Waits until everything that was posted is delivered, and the sink has received nothing for a
/// while.
async fn settle_down(world: &World<'_>) {
    let deadline = Instant::now() + TIMEOUT;
    let mut before = world.sink.taken();
    loop {
        sleep(Duration::from_millis(700)).await;
        let now = world.sink.taken();
        if now == before {
            break;
        }
        before = now;
        assert!(Instant::now() < deadline, "the deliveries did not finish in time");
    }
    world.sink.take();
}

/// A load, and the deliveries that it caused.
struct Run {
    load: Load,
    received: Received,
    spent: Spent,
    resident_mib: f64,
}

async fn end_to_end(world: &World<'_>, offer: &Offer) -> Run {
    world.sink.take();
    let before = world.gauge().read().await;
    let load = all_accepted(offer).await;
    let resident_mib = world.gauge().resident_mib();
    world.sink.until_taken(load.accepted, TIMEOUT).await;
    let spent = world.gauge().since(before).await;
    Run { load, received: world.sink.take(), spent, resident_mib }
}

impl Run {
    fn add_to(&self, row: &mut Row, on: On) {
        acknowledged(row, &self.load);
        for (name, quantile) in
            [("to sink p50 ms", 0.5), ("to sink p99 ms", 0.99), ("to sink p99.9 ms", 0.999)]
        {
            row.add(name, self.received.quantile_ms(quantile));
        }
        took(row, &self.spent, self.load.accepted, on);
        row.add("resident MiB", self.resident_mib);
    }
}

fn acknowledged(row: &mut Row, load: &Load) {
    row.add("posts/s", load.rate());
    for (name, quantile) in [("ack p50 ms", 0.5), ("ack p99 ms", 0.99), ("ack p99.9 ms", 0.999)] {
        row.add(name, load.quantile_ms(quantile));
    }
}

fn took(row: &mut Row, spent: &Spent, events: u64, on: On) {
    let events = events as f64;
    if on == On::Postgres {
        row.add("statements/event", spent.statements / events);
        row.add("commits/event", spent.commits / events);
        row.add("WAL bytes/event", spent.wal_bytes / events);
        row.add("database cores", spent.database_cores);
    }
    row.add("service cores", spent.service_cores);
}

/// A server in production recycles the segments of its log. A new server fills each new
/// segment with zeros, and every commit waits for that. This stall occurs only in the first hour of
/// a server.
async fn break_in(cluster: &Cluster) {
    let fill = format!(
        "do $$ begin for n in 1..{SEGMENTS} loop perform pg_logical_emit_message(false, '', ''); perform pg_switch_wal(); end loop; end $$"
    );
    cluster.execute(&fill).await;
    cluster.execute("checkpoint").await;
}
