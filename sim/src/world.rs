//! A simulated world: all nodes of one scenario, the faults at their times, and the judgement at
//! the end.

use crate::bugs::Bug;
use crate::configuration::{kept, max_held_bytes};
use crate::database::{self, Disk};
use crate::downstream;
use crate::effects::{Effects, Side};
use crate::net;
use crate::process::{Control, Process};
use crate::producer::{self, Producers, process_name, sleep_until};
use crate::recorder::{Recorder, elapsed};
use crate::timer::{sleep, timeout};
use futures::StreamExt;
use http::{Method, Request};
use http_body_util::Full;
use madsim::Config as Madsim;
use madsim::net::NetSim;
use madsim::runtime::{Handle, NodeHandle, Runtime};
use madsim::task::NodeId;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use surehook_core::event::DiscardScope;
use surehook_model::database::Database;
use surehook_model::history::{Fault as Recorded, Run, What};
use surehook_model::oracles::{Promise, Violation, judge, time_to_end};
use surehook_model::scenario::{DatabaseKind, Fault, Node, Question, Role, Scenario, Source};

/// The network's delays without a fault.
const LATENCY: std::ops::Range<Duration> = Duration::from_micros(200)..Duration::from_millis(5);

/// How long an operator waits for a response.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(8);

/// The result of one run.
#[derive(Debug)]
pub struct Outcome {
    /// The history. Empty if the run panicked.
    pub run: Run,
    /// The violations, sorted by time.
    pub violations: Vec<Violation>,
    /// The database at the end.
    pub tables: Database,
    /// The number of effects that passed a port.
    pub effects: u64,
}

/// Runs a scenario, with or without a planted bug, and judges it.
///
/// Each run has its own thread, because the simulator keeps state by thread, such as the order of
/// hash maps.
#[must_use]
pub fn run(scenario: &Scenario, bug: Option<Bug>) -> Outcome {
    let (scenario, seed) = (scenario.clone(), scenario.seed);
    let thread = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || {
        let mut config = Madsim::default();
        config.net.send_latency = LATENCY;
        let mut runtime = Runtime::with_seed_and_config(seed, config);
        runtime.set_time_limit(Duration::from_hours(6));
        runtime.block_on(live(scenario, bug))
    });
    match thread.expect("a thread can be started").join() {
        Ok((run, tables, effects)) => Outcome { violations: judge(&run), run, tables, effects },
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = format!("panic: {}", text.unwrap_or_else(|| "no message".to_owned()));
            let violation = Violation {
                promise: Promise::NoPanic,
                at: Duration::ZERO,
                what,
                events: Vec::new(),
            };
            Outcome {
                run: Run::default(),
                violations: vec![violation],
                tables: Database::default(),
                effects: 0,
            }
        }
    }
}

impl Outcome {
    /// A digest of the history and of the database at the end. The same seed gives the same digest.
    #[must_use]
    pub fn trace(&self) -> String {
        let mut digest = Sha256::new();
        for entry in &self.run.entries {
            digest.update(format!("{entry:?}\n"));
        }
        digest.update(format!("{:?}", self.tables));
        let mut hex = format!("{}:", self.run.entries.len());
        digest
            .finalize()
            .iter()
            .take(16)
            .for_each(|byte| write!(hex, "{byte:02x}").expect("writing to a string cannot fail"));
        hex
    }
}

/// The parts of a world that faults can affect.
struct World {
    scenario: Scenario,
    recorder: Recorder,
    disk: Arc<Disk>,
    processes: Vec<(Arc<Process>, NodeHandle)>,
    database: NodeId,
    downstreams: Vec<NodeId>,
    producers: NodeId,
}

/// Runs a world from its first node to its last entry.
async fn live(scenario: Scenario, bug: Option<Bug>) -> (Run, Database, u64) {
    let recorder = Recorder::new(&scenario);
    let disk = Disk::new(scenario.database, recorder.clone(), bug);
    let healed_at = Duration::from_millis(scenario.heal_at_ms);
    let handle = Handle::current();

    let (effects, mut crashed) = Effects::new();
    let effects = Arc::new(effects);
    let mut down_for = Duration::ZERO;
    for fault in &scenario.faults {
        if let Fault::Crash { effect, after, down_ms } = fault.what {
            effects.plan(effect, if after { Side::After } else { Side::Before });
            down_for = Duration::from_millis(down_ms);
        }
    }

    let for_node = Arc::clone(&disk);
    let database = handle
        .create_node()
        .name("database")
        .ip(net::DATABASE.ip())
        .init(move || database::serve(Arc::clone(&for_node)))
        .build();
    let downstreams: Vec<NodeHandle> = scenario
        .sources
        .iter()
        .enumerate()
        .map(|(n, source)| {
            let (source, recorder) = (source.clone(), recorder.clone());
            let at = net::downstream(n);
            let init = move || downstream::serve(at, source.clone(), healed_at, recorder.clone());
            handle
                .create_node()
                .name(format!("downstream of {}", scenario.sources[n].name))
                .ip(at.ip())
                .init(init)
                .build()
        })
        .collect();
    let for_processes = Arc::new(scenario.clone());
    let processes: Vec<(Arc<Process>, NodeHandle)> = (0..scenario.processes)
        .map(|n| {
            let process = Arc::new(Process {
                index: n,
                name: process_name(n),
                address: net::process(n),
                scenario: Arc::clone(&for_processes),
                clock_ahead_ms: scenario.clocks_ahead_ms.get(n).copied().unwrap_or_default(),
                disk: Arc::clone(&disk),
                downstreams: scenario
                    .sources
                    .iter()
                    .enumerate()
                    .map(|(n, source)| (source.name.clone(), net::downstream(n)))
                    .collect(),
                recorder: recorder.clone(),
                effects: Arc::clone(&effects),
                bug,
                control: Mutex::new(Control::default()),
            });
            let for_node = Arc::clone(&process);
            let node = handle
                .create_node()
                .name(&process.name)
                .ip(process.address.ip())
                .init(move || Arc::clone(&for_node).boot())
                .build();
            (process, node)
        })
        .collect();
    let producers_node = handle.create_node().name("producers").ip(net::producers()).build();
    let producers = Arc::new(Producers {
        scenario: scenario.clone(),
        processes: processes.iter().map(|(process, _)| process.address).collect(),
        intakes: (0..scenario.processes)
            .filter(|process| scenario.role(*process) != Role::Worker)
            .collect(),
        recorder: recorder.clone(),
    });
    let posting = producers_node.spawn(producer::run(producers));

    let world = Arc::new(World {
        recorder: recorder.clone(),
        disk: Arc::clone(&disk),
        processes,
        database: database.id(),
        downstreams: downstreams.iter().map(NodeHandle::id).collect(),
        producers: producers_node.id(),
        scenario,
    });
    let mut under_way = Vec::new();
    let crashing = Arc::clone(&world);
    under_way.push(madsim::task::spawn(async move {
        while let Some(process) = crashed.next().await {
            let world = Arc::clone(&crashing);
            madsim::task::spawn(async move {
                world.kill(process);
                sleep(down_for).await;
                world.start(process).await;
            });
        }
    }));
    for fault in world.scenario.faults.clone() {
        let world = Arc::clone(&world);
        under_way.push(madsim::task::spawn(async move {
            sleep_until(Duration::from_millis(fault.at_ms)).await;
            world.apply(fault.what).await;
        }));
    }
    for source in world.scenario.sources.clone() {
        let recorder = recorder.clone();
        under_way.push(madsim::task::spawn(tell_behaviour(source, recorder)));
    }
    sleep_until(healed_at).await;
    under_way.iter().for_each(madsim::task::JoinHandle::abort);
    world.heal().await;

    let events = world.scenario.posts.len();
    let longest = recorder
        .policies()
        .slowest()
        .values()
        .map(|policy| time_to_end(policy, events))
        .max()
        .unwrap_or_default();
    let end_by = healed_at + longest + Duration::from_secs(5);
    while elapsed() < end_by && !(posting.is_finished() && disk.is_settled()) {
        sleep(Duration::from_millis(500)).await;
        // A process that was draining when the faults ended is started again when it has ended.
        world.start_all().await;
    }
    sleep(Duration::from_secs(3)).await;

    let tables = disk.tables();
    let run = Run {
        policies: recorder.policies().clone(),
        first_wins: world
            .scenario
            .sources
            .iter()
            .filter(|source| source.first_wins)
            .map(|source| source.name.clone())
            .collect(),
        redrives_on_replay: world
            .scenario
            .sources
            .iter()
            .filter(|source| source.redrive_on_replay)
            .map(|source| source.name.clone())
            .collect(),
        kept: kept(&world.scenario),
        max_held_bytes: max_held_bytes(&world.scenario),
        held: recorder.most_held(),
        failover_may_lose: world.scenario.database == DatabaseKind::AsynchronousStandby,
        commits_within: Duration::ZERO,
        drain_timeout: Some(Duration::from_millis(world.scenario.drain_timeout_ms)),
        entries: recorder.take(),
        events: disk.records(),
        healed_at,
        ended_at: elapsed(),
        waits: (0..world.processes.len())
            .map(|index| (process_name(index), recorder.waits().of(index)))
            .collect(),
    };
    (run, tables, effects.passed())
}

/// Records the changes of a downstream's behaviour.
async fn tell_behaviour(source: Source, recorder: Recorder) {
    for behaves in source.behaves {
        sleep_until(Duration::from_millis(behaves.at_ms)).await;
        recorder.fault(Recorded::Downstream {
            source: source.name.clone(),
            what: format!("{:?}", behaves.how),
            broken: behaves.how.is_broken(),
        });
    }
}

impl World {
    /// Starts a fault, and ends it after its duration.
    async fn apply(&self, fault: Fault) {
        let millis = Duration::from_millis;
        let net = NetSim::current();
        match fault {
            Fault::Kill { process, down_ms } => {
                self.kill(process);
                sleep(millis(down_ms)).await;
                self.start(process).await;
            }
            Fault::Crash { .. } => {} // planned at the start; it happens at its effect
            Fault::KillAll { down_ms } => {
                (0..self.processes.len()).for_each(|process| self.kill(process));
                sleep(millis(down_ms)).await;
                for process in 0..self.processes.len() {
                    self.start(process).await;
                }
            }
            Fault::Pause { process, for_ms } => {
                let (process, node) = &self.processes[process];
                self.recorder.fault(Recorded::Paused {
                    process: process.name.clone(),
                    duration: millis(for_ms),
                });
                Handle::current().pause(node.id());
                sleep(millis(for_ms)).await;
                Handle::current().resume(node.id());
            }
            Fault::Reload { process } => self.processes[process].0.reload(),
            Fault::Drain { process, down_ms } => self.drain(process, millis(down_ms)).await,
            Fault::RollingRestart { down_ms } => {
                for process in 0..self.processes.len() {
                    self.drain(process, millis(down_ms)).await;
                }
            }
            Fault::Cut { from, to, both_ways, for_ms } => {
                self.recorder.fault(Recorded::Network {
                    what: format!(
                        "cut from {} to {}{}",
                        self.name(from),
                        self.name(to),
                        if both_ways { ", both ways" } else { "" }
                    ),
                    duration: millis(for_ms),
                });
                let (from, to) = (self.id(from), self.id(to));
                net.clog_link(from, to);
                if both_ways {
                    net.clog_link(to, from);
                }
                sleep(millis(for_ms)).await;
                net.unclog_link(from, to);
                net.unclog_link(to, from);
            }
            Fault::Loss { permille, for_ms } => {
                self.recorder.fault(Recorded::Network {
                    what: format!("{permille} of 1000 packets are lost"),
                    duration: millis(for_ms),
                });
                net.update_config(|config| config.packet_loss_rate = f64::from(permille) / 1000.0);
                sleep(millis(for_ms)).await;
                net.update_config(|config| config.packet_loss_rate = 0.0);
            }
            Fault::Latency { max_ms, for_ms } => {
                self.recorder.fault(Recorded::Network {
                    what: format!("packets take up to {max_ms} ms"),
                    duration: millis(for_ms),
                });
                net.update_config(|config| config.send_latency = LATENCY.start..millis(max_ms));
                sleep(millis(for_ms)).await;
                net.update_config(|config| config.send_latency = LATENCY);
            }
            Fault::Store { process, call, nth, how } => {
                self.disk.plan(process_name(process), call, nth, how); // recorded at its call
            }
            Fault::DatabaseDown { for_ms } => {
                self.recorder.fault(database_fault("down".to_owned(), None, millis(for_ms)));
                self.disk.set_up(false);
                sleep(millis(for_ms)).await;
                self.disk.set_up(true);
            }
            Fault::DatabaseFailover => {
                self.recorder.fault(database_fault(
                    "failover: all connections break".to_owned(),
                    None,
                    Duration::ZERO,
                ));
                self.disk.fail_over();
            }
            Fault::StandbyAway { for_ms } => {
                self.recorder.fault(database_fault(
                    "the standby is disconnected".to_owned(),
                    None,
                    millis(for_ms),
                ));
                self.disk.cut_standby_off();
                sleep(millis(for_ms)).await;
                self.disk.reattach_standby();
            }
            Fault::PrimaryRestart => {
                self.recorder.fault(database_fault(
                    "crash and recovery: all connections break".to_owned(),
                    None,
                    Duration::ZERO,
                ));
                self.disk.restart();
            }
            Fault::CancelCommits => {
                self.recorder.fault(database_fault(
                    "commits that wait for the standby are cancelled".to_owned(),
                    None,
                    Duration::ZERO,
                ));
                self.disk.cancel_commits();
            }
            Fault::DatabaseSlow { by_ms, for_ms } => {
                self.recorder.fault(database_fault(
                    format!("each step takes {by_ms} ms longer"),
                    None,
                    millis(for_ms),
                ));
                self.disk.set_slow(millis(by_ms));
                sleep(millis(for_ms)).await;
                self.disk.set_slow(Duration::ZERO);
            }
            Fault::ClaimsSlow { by_ms, for_ms } => {
                self.recorder.fault(database_fault(
                    format!("each claim takes {by_ms} ms longer"),
                    None,
                    millis(for_ms),
                ));
                self.disk.set_claims_slow(millis(by_ms));
                sleep(millis(for_ms)).await;
                self.disk.set_claims_slow(Duration::ZERO);
            }
            Fault::PauseSource { source, for_ms } => {
                let name = &self.scenario.sources[source].name;
                let answered = |paused| {
                    self.recorder.fault(Recorded::SourcePaused { source: name.clone(), paused });
                };
                if self.disk.bug == Some(Bug::PauseAnsweredEarly) {
                    answered(true);
                    sleep(millis(1_000)).await;
                }
                self.disk.pause(name, true).await;
                answered(true);
                sleep(millis(for_ms)).await;
                // A resume can take effect long before it is answered, for example when its commit
                // waits for a standby, and the primary restarts.
                answered(false);
                self.disk.pause(name, false).await;
            }
            Fault::Redrive { source, delivered } => {
                self.disk.redrive(&self.scenario.sources[source].name, delivered).await;
            }
            Fault::Discard { source, waiting } => {
                let scope = DiscardScope::of_source(!waiting);
                self.disk.discard(&self.scenario.sources[source].name, scope).await;
            }
            Fault::RowsLocked { source, for_ms } => {
                let name = &self.scenario.sources[source].name;
                self.recorder.fault(database_fault(
                    format!("the rows of {name} are locked"),
                    None,
                    millis(for_ms),
                ));
                self.disk.lock_rows(name, millis(for_ms)).await;
            }
            Fault::Asked { process, what } => self.ask(process, what).await,
            Fault::DatabaseClock { by_ms } => {
                self.recorder.fault(database_fault(
                    format!("the clock jumps by {by_ms} ms"),
                    None,
                    Duration::ZERO,
                ));
                self.disk.jump_clock(by_ms);
            }
        }
    }

    /// Sends an operator's request to a process, from the producers' node.
    async fn ask(&self, process: usize, what: Question) {
        let (process, source) =
            (&self.processes[process].0, |index: usize| &self.scenario.sources[index].name);
        let (method, path) = match what {
            Question::Ready => (Method::GET, "/ready".to_owned()),
            Question::List => (Method::GET, "/events".to_owned()),
            Question::Sources => (Method::GET, "/sources".to_owned()),
            Question::RedriveAll(index) => {
                (Method::POST, format!("/redrive?source={}", source(index)))
            }
            Question::DiscardAll(index) => {
                (Method::POST, format!("/discard?source={}", source(index)))
            }
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "surehook")
            .body(Full::default());
        let (asked_at, address) = (elapsed(), process.address);
        let exchange = async move {
            Some(net::send(address, request.expect("the request is valid")).await.ok()?.0.status())
        };
        let node = Handle::current().get_node(self.producers).expect("the producers' node exists");
        let answered = node.spawn(timeout(OPERATOR_TIMEOUT, exchange)).await;
        if let (Ok(Ok(Some(status))), Question::Ready) = (answered, what) {
            let (process, is_ready) = (process.name.clone(), status.is_success());
            self.recorder.record(What::Ready { process, asked_at, is_ready });
        }
    }

    /// Ends all faults, including those that are still active.
    async fn heal(&self) {
        let net = NetSim::current();
        let all: Vec<NodeId> = self
            .processes
            .iter()
            .map(|(_, node)| node.id())
            .chain(self.downstreams.iter().copied())
            .chain([self.database, self.producers])
            .collect();
        for from in &all {
            for to in &all {
                net.unclog_link(*from, *to);
            }
        }
        net.update_config(|config| {
            config.packet_loss_rate = 0.0;
            config.send_latency = LATENCY;
        });
        self.disk.heal();
        for source in &self.scenario.sources {
            if self.disk.pause(&source.name, false).await {
                self.recorder
                    .fault(Recorded::SourcePaused { source: source.name.clone(), paused: false });
            }
        }
        for index in 0..self.processes.len() {
            Handle::current().resume(self.processes[index].1.id());
            self.start(index).await;
        }
        self.recorder.fault(Recorded::Healed);
    }

    fn id(&self, node: Node) -> NodeId {
        match node {
            Node::Process(index) => self.processes[index].1.id(),
            Node::Database => self.database,
            Node::Downstream(index) => self.downstreams[index],
            Node::Producers => self.producers,
        }
    }

    fn name(&self, node: Node) -> String {
        match node {
            Node::Process(index) => process_name(index),
            Node::Database => "the database".to_owned(),
            Node::Downstream(index) => {
                format!("the downstream of {}", self.scenario.sources[index].name)
            }
            Node::Producers => "the producers".to_owned(),
        }
    }

    fn kill(&self, index: usize) {
        let (process, node) = &self.processes[index];
        let mut control = process.control();
        if control.up {
            control.up = false;
            self.recorder.fault(Recorded::Killed { process: process.name.clone() });
            Handle::current().resume(node.id());
            Handle::current().kill(node.id());
        }
    }

    /// Shuts a process down, waits until it has exited, and starts it again.
    async fn drain(&self, index: usize, down_for: Duration) {
        let (process, node) = &self.processes[index];
        if !process.control().up {
            return;
        }
        self.recorder.fault(Recorded::Draining { process: process.name.clone() });
        process.terminate();
        while process.control().up {
            sleep(Duration::from_millis(20)).await;
        }
        Handle::current().kill(node.id()); // ends its remaining tasks
        sleep(down_for).await;
        self.start(index).await;
    }

    /// Starts a process if it is down. Two faults may try to start the same one.
    async fn start_all(&self) {
        for index in 0..self.processes.len() {
            if !self.processes[index].0.control().up {
                self.start(index).await;
            }
        }
    }

    async fn start(&self, index: usize) {
        let (process, node) = &self.processes[index];
        sleep(Duration::from_millis(1)).await; // lets a killed process disappear first
        if !process.control().up {
            process.control().up = true;
            Handle::current().kill(node.id());
            sleep(Duration::from_millis(1)).await;
            Handle::current().restart(node.id());
        }
    }
}

fn database_fault(what: String, process: Option<String>, duration: Duration) -> Recorded {
    Recorded::Database { what, process, duration }
}
