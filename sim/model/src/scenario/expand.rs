//! Expands a seed into a scenario by swarm testing: each kind of workload and of fault is on or off
//! for the whole run. Otherwise frequent kinds would hide rare combinations.

use super::{
    Behaviour, BehaviourAt, Call, DatabaseKind, Fault, FaultAt, HandshakeAt, Kept, MAX_BODY_BYTES,
    Node, Post, Question, Role, Scenario, Settings, Source, StoreFault, Variant,
};
use fastrand::Rng;
use std::ops::Range;

const YEAR_MS: i64 = 365 * 24 * 3600 * 1000;

/// The scenario of a seed. A change of this code changes the scenarios of seeds; to keep a
/// scenario, save it as a file.
#[must_use]
pub fn expand(seed: u64) -> Scenario {
    let mut rng = Rng::with_seed(seed ^ 0x5eed_0f5c_e9a2_1055);
    let swarm = Swarm::draw(&mut rng);
    let processes = rng.usize(1..=3);
    let drain_timeout_ms = if rng.bool() { rng.u64(100..2_000) } else { rng.u64(2_000..20_000) };
    let heal_at_ms = rng.u64(600_000..640_000);
    let mut sources: Vec<Source> =
        (0..rng.usize(1..=3)).map(|n| source(&mut rng, &swarm, n, heal_at_ms)).collect();
    let mut posts = posts(&mut rng, &swarm, processes, sources.len(), heal_at_ms);
    let mut faults = faults(&mut rng, &swarm, processes, sources.len(), heal_at_ms, &posts);
    // Drawn from a separate generator, so that these faults do not change the rest of a seed's
    // scenario.
    let mut rng = Rng::with_seed(seed ^ 0x0b2e_a4e2_0f1c_3d5a);
    for source in &mut sources {
        limits(&mut rng, source, heal_at_ms);
    }
    if rng.u8(..) < 60 {
        let source = rng.usize(0..sources.len());
        let near = posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
        let at_ms = near.saturating_sub(rng.u64(0..2_000));
        faults.push(FaultAt {
            at_ms,
            what: Fault::PauseSource { source, for_ms: rng.u64(5_000..90_000) },
        });
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x7e3d_91b4_2c58_f06b);
    if rng.u8(..) < 70 {
        for _ in 0..rng.usize(1..=3) {
            // Soon after a post, so that late settlements are still in flight.
            let near =
                posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
            let at_ms = (near + rng.u64(0..60_000)).min(heal_at_ms - 1);
            faults.push(FaultAt {
                at_ms,
                what: Fault::Redrive { source: rng.usize(0..sources.len()), delivered: rng.bool() },
            });
        }
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x5d27_c8e1_640b_93fa);
    if rng.u8(..) < 50 {
        discards(&mut rng, &posts, processes, sources.len(), heal_at_ms, &mut faults);
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x41c6_4e6d_9d2c_5680);
    if rng.u8(..) < 30 {
        let at_ms = rng.u64(0..heal_at_ms - 60_000);
        faults.push(FaultAt {
            at_ms,
            what: Fault::ClaimsSlow { by_ms: rng.u64(500..5_000), for_ms: rng.u64(10_000..60_000) },
        });
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // Separate generators for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x51a9_d0c4_7be2_3f86);
    let database = match rng.u8(..) {
        0..80 => DatabaseKind::SynchronousStandby,
        80..96 => DatabaseKind::AsynchronousStandby,
        96..120 if processes == 1 => DatabaseKind::OneWriter,
        _ => DatabaseKind::Alone,
    };
    if database.has_standby() {
        replication(&mut rng, &posts, &mut faults);
    }
    let mut rng = Rng::with_seed(seed ^ 0x2c47_f31e_98d0_6ba5);
    let roles = roles(&mut rng, processes);
    let kept = Kept {
        delivered_ms: rng.u64(20_000..240_000),
        dead_lettered_ms: rng.u64(20_000..240_000),
        payload_ms: rng.u64(5_000..120_000),
    };
    operators(&mut rng, &posts, processes, sources.len(), heal_at_ms, &mut faults);
    faults.sort_by_key(|fault| fault.at_ms);
    let clocks_ahead_ms = if rng.u8(..) < 64 {
        (0..processes).map(|_| rng.i64(-YEAR_MS..YEAR_MS)).collect()
    } else {
        Vec::new()
    };
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x6d15_03f8_b27c_94ea);
    if !faults.is_empty() && rng.u8(..) < 60 {
        clock_steps(&mut rng, &posts, processes, heal_at_ms, &mut faults);
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x39f4_c81e_05ad_72b3);
    let mut variants = Vec::new();
    if rng.u8(..) < 90 {
        let may_lack = usize::from(!roles.is_empty()) + 1..processes;
        variants =
            different_settings(&mut rng, &posts, processes, may_lack, sources.len(), &mut faults);
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x4b1e_7a90_d36c_58f2);
    if rng.u8(..) < 70 {
        let may_lack = usize::from(!roles.is_empty()) + 1..processes;
        let sources = sources.len();
        reloads(&mut rng, &posts, processes, &may_lack, sources, &mut variants, &mut faults);
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x5d90_27be_1c64_a3f8);
    if !faults.is_empty() && rng.u8(..) < 50 {
        partly_accepted(&mut rng, &mut posts, heal_at_ms, &mut faults);
        faults.sort_by_key(|fault| fault.at_ms);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x3fb8_6a71_c05e_d249);
    for source in &mut sources {
        source.redrive_on_replay = rng.bool();
    }
    let mut rng = Rng::with_seed(seed ^ 0x74c1_19f6_ae35_0d8b);
    let handshakes = handshakes(&mut rng, processes, sources.len(), heal_at_ms);
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x1f7b_60d9_a4c3_e852);
    match rng.u8(..) {
        0..70 => {
            large_bodies(&mut rng, &mut sources, processes, heal_at_ms, &mut posts, &mut faults);
        }
        70..130 if sources.len() > 1 => {
            slow_producers(&mut rng, sources.len(), processes, heal_at_ms, &mut posts, &faults);
        }
        _ => {}
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x62e8_4b0d_f719_3ca5);
    if rng.u8(..) < 50 {
        bad_rows(&mut rng, sources.len(), processes, heal_at_ms, &mut posts, &faults);
    }
    // A separate generator for the same reason.
    let mut rng = Rng::with_seed(seed ^ 0x4d83_e0a7_5b16_c92f);
    let shutdown_grace_ms = if rng.bool() { 0 } else { rng.u64(10..5_000) };
    posts_during_drains(&mut rng, sources.len(), heal_at_ms, &mut posts, &faults);
    posts.sort_by_key(|post| post.at_ms);
    faults.sort_by_key(|fault| fault.at_ms);
    let (why, catches, kept) = (String::new(), None, Some(kept));
    Scenario {
        why,
        catches,
        seed,
        processes,
        drain_timeout_ms,
        shutdown_grace_ms,
        database,
        roles,
        clocks_ahead_ms,
        kept,
        sources,
        variants,
        posts,
        handshakes,
        faults,
        heal_at_ms,
    }
}

/// Some runs have different roles: at least one process accepts and one delivers.
fn roles(rng: &mut Rng, processes: usize) -> Vec<Role> {
    if processes < 2 || rng.u8(..) >= 70 {
        return Vec::new();
    }
    let third = *rng.choice(&[Role::All, Role::Intake, Role::Worker]).expect("not empty");
    [Role::Intake, Role::Worker, third][..processes].to_vec()
}

/// The kinds of workload and faults that are on in a run.
struct Swarm {
    bursts: bool,
    duplicates: bool,
    reused_keys: bool,
    hang_ups: bool,
    poison: bool,
    slow_downstreams: bool,
    bad_downstreams: bool,
    kills: bool,
    pauses: bool,
    drains: bool,
    cuts: bool,
    weather: bool,
    store_faults: bool,
    database_faults: bool,
    clock_jumps: bool,
}

impl Swarm {
    fn draw(rng: &mut Rng) -> Self {
        let calm = rng.u8(..) < 20; // without any fault, nothing may be lost, late or duplicated
        let mut on = |share: u8| rng.u8(..) < share;
        Self {
            bursts: on(128),
            duplicates: on(128),
            reused_keys: on(100),
            hang_ups: on(80) && !calm,
            poison: on(40),
            slow_downstreams: on(60),
            bad_downstreams: on(160),
            kills: on(128) && !calm,
            pauses: on(90) && !calm,
            drains: on(90) && !calm,
            cuts: on(100) && !calm,
            weather: on(80) && !calm,
            store_faults: on(128) && !calm,
            database_faults: on(100) && !calm,
            clock_jumps: on(30) && !calm,
        }
    }
}

fn source(rng: &mut Rng, swarm: &Swarm, n: usize, heal_at_ms: u64) -> Source {
    let initial_delay_ms = rng.u64(100..3_000);
    let mut source = Source {
        name: format!("source-{n}"),
        timeout_ms: rng.u64(500..8_000),
        concurrency: rng.u32(1..=8),
        max_attempts: rng.u32(1..=8),
        initial_delay_ms,
        max_delay_ms: initial_delay_ms * rng.u64(1..=16),
        rate: 0,
        breaker_failures: 0,
        breaker_refusals: 0,
        breaker_open_ms: 0,
        first_wins: rng.u8(..) < 40,
        redrive_on_replay: false,
        behaves: Vec::new(),
    };
    if swarm.slow_downstreams && rng.u8(..) < 200 {
        let after_ms = rng.u64(10..source.timeout_ms * 3 / 4);
        source.behaves.push(BehaviourAt { at_ms: 0, how: Behaviour::TakesLate { after_ms } });
    }
    if swarm.bad_downstreams && rng.u8(..) < 170 {
        let mut at_ms = rng.u64(0..heal_at_ms / 2);
        for _ in 0..rng.usize(1..=4) {
            source.behaves.push(BehaviourAt { at_ms, how: behaviour(rng, source.timeout_ms) });
            at_ms += rng.u64(2_000..40_000);
            if rng.bool() {
                source.behaves.push(BehaviourAt { at_ms, how: Behaviour::Takes });
                at_ms += rng.u64(2_000..40_000);
            }
        }
    }
    source
}

/// Requests of operators, faults of the calls that they and retention make, and rows that are
/// locked from a console.
fn operators(
    rng: &mut Rng,
    posts: &[Post],
    processes: usize,
    sources: usize,
    heal_at_ms: u64,
    faults: &mut Vec<FaultAt>,
) {
    // Calm runs have no faults, but operators send requests in them too.
    let is_calm = faults.is_empty();
    for _ in 0..rng.usize(0..=6) {
        let what = match rng.u8(0..6) {
            0..3 => Question::Ready,
            3 => Question::List,
            4 => Question::Sources,
            _ => Question::RedriveAll(rng.usize(0..sources)),
        };
        let down: Vec<u64> = faults
            .iter()
            .filter(|fault| matches!(fault.what, Fault::DatabaseDown { .. }))
            .map(|fault| fault.at_ms + 3_000)
            .collect();
        let at_ms = rng
            .choice(&down)
            .copied()
            .filter(|_| what == Question::Ready)
            .unwrap_or_else(|| rng.u64(0..heal_at_ms));
        faults
            .push(FaultAt { at_ms, what: Fault::Asked { process: rng.usize(0..processes), what } });
    }
    if is_calm {
        return;
    }
    if rng.u8(..) < 80 {
        for _ in 0..rng.usize(1..=5) {
            let calls = [
                Call::Find,
                Call::List,
                Call::RedriveAll,
                Call::Sources,
                Call::Prune,
                Call::Prune,
                Call::Erase,
                Call::Ping,
                Call::Probe,
            ];
            let call = *rng.choice(&calls).expect("not empty");
            let how = store_fault(rng);
            let what =
                Fault::Store { process: rng.usize(0..processes), call, nth: rng.u32(1..=4), how };
            faults.push(FaultAt { at_ms: rng.u64(0..heal_at_ms), what });
        }
    }
    if rng.u8(..) < 60 {
        let near = posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
        let what =
            Fault::RowsLocked { source: rng.usize(0..sources), for_ms: rng.u64(500..15_000) };
        faults.push(FaultAt { at_ms: near + rng.u64(0..100), what });
    }
}

/// Operators discard events of a source, and some then redrive all that is left.
fn discards(
    rng: &mut Rng,
    posts: &[Post],
    processes: usize,
    sources: usize,
    heal_at_ms: u64,
    faults: &mut Vec<FaultAt>,
) {
    for _ in 0..rng.usize(1..=3) {
        let near = posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
        let at_ms = (near + rng.u64(0..60_000)).min(heal_at_ms - 1);
        let source = rng.usize(0..sources);
        let what = match rng.u8(0..4) {
            0 => Fault::Asked {
                process: rng.usize(0..processes),
                what: Question::DiscardAll(source),
            },
            1 => Fault::Discard { source, waiting: true },
            _ => Fault::Discard { source, waiting: false },
        };
        faults.push(FaultAt { at_ms, what });
        if rng.bool() {
            let what = if rng.bool() {
                Fault::Redrive { source, delivered: false }
            } else {
                let what = Question::RedriveAll(source);
                Fault::Asked { process: rng.usize(0..processes), what }
            };
            let at_ms = (at_ms + rng.u64(10..20_000)).min(heal_at_ms - 1);
            faults.push(FaultAt { at_ms, what });
        }
    }
}

fn store_fault(rng: &mut Rng) -> StoreFault {
    match rng.u8(0..6) {
        0 => StoreFault::Refuse,
        1 => StoreFault::FailBeforeCommit,
        2 | 3 => StoreFault::FailAfterCommit,
        4 => StoreFault::Conflict,
        _ => StoreFault::Slow { by_ms: rng.u64(50..8_000) },
    }
}

/// The standby is disconnected for a while. Commits then hang, become visible without it, or are
/// lost in a failover.
fn replication(rng: &mut Rng, posts: &[Post], faults: &mut Vec<FaultAt>) {
    for _ in 0..rng.usize(1..=2) {
        // Just before or soon after a post, so that its claim and settlement are affected.
        let post = posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
        let at_ms = if rng.bool() {
            post.saturating_sub(rng.u64(0..200))
        } else {
            post + rng.u64(0..3_000)
        };
        let for_ms = rng.u64(500..20_000);
        faults.push(FaultAt { at_ms, what: Fault::StandbyAway { for_ms } });
        if rng.u8(..) < 200 {
            let what = if rng.u8(..) < 170 { Fault::PrimaryRestart } else { Fault::CancelCommits };
            faults.push(FaultAt { at_ms: at_ms + rng.u64(0..for_ms / 2), what });
        }
        if rng.u8(..) < 180 {
            faults.push(FaultAt {
                at_ms: at_ms + rng.u64(for_ms / 2..for_ms),
                what: Fault::DatabaseFailover,
            });
        }
    }
}

/// The database's clock is set back by hours or forward by minutes to hours; or it is set back and
/// corrected, or set forward and then back. A step that caps due times may fail.
///
/// A due time that was set before a step back stays ahead by the step. No step is so small that
/// such a time lies just within the horizon, some 62 minutes: the event would wait for it.
fn clock_steps(
    rng: &mut Rng,
    posts: &[Post],
    processes: usize,
    heal_at_ms: u64,
    faults: &mut Vec<FaultAt>,
) {
    const MINUTE_MS: i64 = 60_000;
    let post = posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
    let within = if rng.bool() { 60 } else { 5_000 };
    let first = (post + rng.u64(0..within)).min(heal_at_ms - 1);
    let second = (first + rng.u64(1_000..60_000)).min(heal_at_ms - 1);
    let back = rng.i64(-360 * MINUTE_MS..-120 * MINUTE_MS);
    let steps = match rng.u8(0..6) {
        0..3 => vec![(first, back)],
        3 => vec![(first, rng.i64(MINUTE_MS..360 * MINUTE_MS))],
        4 => vec![(first, back), (second, -back)],
        _ => vec![(first, rng.i64(MINUTE_MS..45 * MINUTE_MS)), (second, back)],
    };
    let step = |(at_ms, by_ms)| FaultAt { at_ms, what: Fault::DatabaseClock { by_ms } };
    faults.extend(steps.into_iter().map(step));
    if rng.u8(..) < 80 {
        let (process, how) = (rng.usize(0..processes), store_fault(rng));
        let what = Fault::Store { process, call: Call::CapDueTimes, nth: 1, how };
        faults.push(FaultAt { at_ms: first, what });
    }
}

/// A burst of new keys and repetitions of an earlier key goes to one process, whose reads of
/// existing keys fail. So a batch inserts its new events, and the rest of its accept fails.
fn partly_accepted(
    rng: &mut Rng,
    posts: &mut Vec<Post>,
    heal_at_ms: u64,
    faults: &mut Vec<FaultAt>,
) {
    let healthy: Vec<&Post> = posts.iter().filter(|post| !post.poison).collect();
    let Some(earlier) = healthy.get(rng.usize(0..healthy.len().max(1))) else { return };
    let at_ms = (earlier.at_ms + rng.u64(1_000..10_000)).min(heal_at_ms - 1);
    let repeated = Post { at_ms, copies: 1, hangs_up_ms: None, ..(*earlier).clone() };
    for n in 0..rng.u64(4..10) {
        posts.push(Post { key: format!("burst-{n}"), body: 1_000 + n, ..repeated.clone() });
        posts.push(repeated.clone());
    }
    posts.sort_by_key(|post| post.at_ms);
    faults.extend((1..=4).map(|nth| {
        let (process, call, how) = (repeated.process, Call::Look, StoreFault::Refuse);
        FaultAt { at_ms: at_ms - 1, what: Fault::Store { process, call, nth, how } }
    }));
}

/// A time without faults in the 100 s before it and the 40 s after it. `None` if there is no such
/// time. The oracle for isolation judges only such times.
fn quiet_moment(rng: &mut Rng, faults: &[FaultAt], heal_at_ms: u64) -> Option<u64> {
    const BEFORE_MS: u64 = 100_000;
    const AFTER_MS: u64 = 40_000;
    let is_noise = |fault: &&FaultAt| {
        !matches!(
            fault.what,
            Fault::Asked { .. }
                | Fault::Redrive { .. }
                | Fault::Discard { .. }
                | Fault::PauseSource { .. }
        )
    };
    let (mut quiet, mut from) = (Vec::new(), 2_000);
    let starts = faults.iter().filter(is_noise).map(|fault| fault.at_ms);
    for start in starts.chain([heal_at_ms]) {
        let until = start.saturating_sub(AFTER_MS);
        if from < until {
            quiet.push(from..until);
        }
        from = from.max(start + BEFORE_MS);
    }
    rng.choice(quiet).map(|span| rng.u64(span))
}

/// When a burst begins: in most runs at a quiet moment, otherwise near a post.
fn burst_at(rng: &mut Rng, posts: &[Post], faults: &[FaultAt], heal_at_ms: u64) -> u64 {
    let near = posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post| post.at_ms);
    let is_near = rng.u8(..) < 60;
    quiet_moment(rng, faults, heal_at_ms).filter(|_| !is_near).unwrap_or(near)
}

/// A burst of large bodies for one source. Either the source is paused during the burst, so that
/// all of them are due at once, or its downstream hangs while small bodies come for the other
/// sources. These fit into the memory that is reserved for each source. The whole burst fits into
/// the memory for requests.
fn large_bodies(
    rng: &mut Rng,
    sources: &mut [Source],
    processes: usize,
    heal_at_ms: u64,
    posts: &mut Vec<Post>,
    faults: &mut Vec<FaultAt>,
) {
    let source = rng.usize(0..sources.len());
    let process = rng.usize(0..processes);
    let begins = burst_at(rng, posts, faults, heal_at_ms);
    for n in 0..rng.u64(8..16) {
        let at_ms = (begins + rng.u64(0..500)).min(heal_at_ms - 1);
        let size = rng.usize(MAX_BODY_BYTES / 4..MAX_BODY_BYTES);
        posts.push(Post { source, process, size, ..Post::nth(1_000 + n, at_ms) });
    }
    let large = &mut sources[source];
    large.concurrency = rng.u32(6..=12);
    if rng.bool() {
        let what = Fault::PauseSource { source, for_ms: rng.u64(1_000..5_000) };
        faults.push(FaultAt { at_ms: begins.saturating_sub(rng.u64(0..100)), what });
        return;
    }
    (large.timeout_ms, large.breaker_failures) = (rng.u64(6_000..8_000), 0);
    let ends = begins + rng.u64(15_000..30_000);
    large.behaves.push(BehaviourAt { at_ms: begins, how: Behaviour::Hangs });
    large.behaves.push(BehaviourAt { at_ms: ends, how: Behaviour::Takes });
    large.behaves.sort_by_key(|behaves| behaves.at_ms);
    for n in 0..if sources.len() > 1 { rng.u64(6..12) } else { 0 } {
        let at_ms = rng.u64(begins..ends).min(heal_at_ms - 1);
        let source = (source + rng.usize(1..sources.len())) % sources.len();
        let process = rng.usize(0..processes);
        posts.push(Post { source, process, ..Post::nth(1_500 + n, at_ms) });
    }
}

/// Slow producers of one source send more than fits into a process's memory for requests, while
/// fast producers of other sources send small bodies to the same process.
fn slow_producers(
    rng: &mut Rng,
    sources: usize,
    processes: usize,
    heal_at_ms: u64,
    posts: &mut Vec<Post>,
    faults: &[FaultAt],
) {
    let (source, process) = (rng.usize(0..sources), rng.usize(0..processes));
    let begins = burst_at(rng, posts, faults, heal_at_ms);
    for n in 0..rng.u64(20..32) {
        let at_ms = (begins + rng.u64(0..1_500)).min(heal_at_ms - 1);
        let trickles_ms = Some(rng.u64(2_500..8_000));
        let slow = Post::nth(2_000 + n, at_ms);
        posts.push(Post { source, process, size: MAX_BODY_BYTES, trickles_ms, ..slow });
    }
    for n in 0..rng.u64(10..20) {
        let at_ms = (begins + rng.u64(0..6_000)).min(heal_at_ms - 1);
        let source = (source + rng.usize(1..sources)) % sources;
        posts.push(Post { source, process, ..Post::nth(3_000 + n, at_ms) });
    }
}

/// The posts of a few sources arrive at one process at the same moment, and the database rejects
/// some of their rows. So bad rows are in a batch with good ones.
fn bad_rows(
    rng: &mut Rng,
    sources: usize,
    processes: usize,
    heal_at_ms: u64,
    posts: &mut Vec<Post>,
    faults: &[FaultAt],
) {
    let process = rng.usize(0..processes);
    let at_ms = burst_at(rng, posts, faults, heal_at_ms).min(heal_at_ms - 1);
    for n in 0..rng.u64(5..12) {
        let (source, poison) = (rng.usize(0..sources), n % 4 == 2);
        posts.push(Post { source, process, poison, ..Post::nth(4_000 + n, at_ms) });
    }
}

/// Producers post to a process while it shuts down.
fn posts_during_drains(
    rng: &mut Rng,
    sources: usize,
    heal_at_ms: u64,
    posts: &mut Vec<Post>,
    faults: &[FaultAt],
) {
    let drains: Vec<(u64, usize)> = faults
        .iter()
        .filter_map(|fault| match fault.what {
            Fault::Drain { process, .. } => Some((fault.at_ms, process)),
            Fault::RollingRestart { .. } => Some((fault.at_ms, 0)),
            _ => None,
        })
        .collect();
    let Some(&(begins, process)) = rng.choice(&drains) else { return };
    for n in 0..rng.u64(2..8) {
        let at_ms = (begins + rng.u64(0..3_000)).min(heal_at_ms - 1);
        let source = rng.usize(0..sources);
        posts.push(Post { source, process, ..Post::nth(5_000 + n, at_ms) });
    }
}

/// Some processes have other settings of a source than the others, or lack it. Others change their
/// settings at a restart. The processes in `may_lack` are not the only ones of their role.
fn different_settings(
    rng: &mut Rng,
    posts: &[Post],
    processes: usize,
    may_lack: Range<usize>,
    sources: usize,
    faults: &mut Vec<FaultAt>,
) -> Vec<Variant> {
    let is_calm = faults.iter().all(|fault| matches!(fault.what, Fault::Asked { .. }));
    let mut variants = Vec::new();
    for _ in 0..rng.usize(1..=4) {
        let (process, source) = (rng.usize(0..processes), rng.usize(0..sources));
        let mut from_ms = 0;
        if !is_calm && rng.bool() {
            // A restart before or soon after a post, while there is work.
            let near =
                posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
            from_ms = near + rng.u64(0..5_000);
            let down_ms = rng.u64(10..3_000);
            let what = if rng.bool() {
                Fault::Drain { process, down_ms }
            } else {
                Fault::Kill { process, down_ms }
            };
            faults.push(FaultAt { at_ms: from_ms, what });
        }
        let settings = settings(rng, may_lack.contains(&process));
        variants.push(Variant { process, source, from_ms, settings });
    }
    variants.sort_by_key(|variant| variant.from_ms);
    variants
}

/// Settings of a source that differ from the scenario's.
fn settings(rng: &mut Rng, may_lack: bool) -> Settings {
    if may_lack && rng.u8(..) < 100 {
        return Settings::Absent;
    }
    Settings::Own {
        timeout_ms: rng.u64(500..8_000),
        concurrency: rng.u32(1..=8),
        max_attempts: rng.u32(1..=8),
    }
}

/// Processes read their configuration again while there is work. They find other settings, and
/// sources that are new or gone. The processes in `may_lack` are not the only ones of their role.
fn reloads(
    rng: &mut Rng,
    posts: &[Post],
    processes: usize,
    may_lack: &Range<usize>,
    sources: usize,
    variants: &mut Vec<Variant>,
    faults: &mut Vec<FaultAt>,
) {
    for _ in 0..rng.usize(1..=8) {
        let (process, source) = (rng.usize(0..processes), rng.usize(0..sources));
        let near = posts.get(rng.usize(0..posts.len().max(1))).map_or(0, |post: &Post| post.at_ms);
        // Half of them while the post is stored and delivered.
        let at_ms = near + if rng.bool() { rng.u64(0..60) } else { rng.u64(0..5_000) };
        let settings = settings(rng, may_lack.contains(&process));
        variants.push(Variant { process, source, from_ms: at_ms, settings });
        faults.push(FaultAt { at_ms, what: Fault::Reload { process } });
    }
    variants.sort_by_key(|variant| variant.from_ms);
}

/// Half of the sources have a breaker that failures open, a sixth have one that refusals open, and a
/// sixth have a rate.
fn limits(rng: &mut Rng, source: &mut Source, heal_at_ms: u64) {
    if rng.bool() {
        source.breaker_failures = rng.u32(1..=6);
        source.breaker_open_ms = rng.u32(1_000..30_000);
    }
    if rng.u8(..) < 40 {
        source.breaker_refusals = rng.u32(1..=4);
        source.breaker_open_ms = rng.u32(1_000..30_000);
        // A faulty release refuses everything, and is replaced by another.
        let at_ms = rng.u64(0..heal_at_ms / 2);
        let how = Behaviour::Answers { status_code: 422, retry_after_s: None };
        source.behaves.push(BehaviourAt { at_ms, how });
        let at_ms = at_ms + rng.u64(2_000..60_000);
        source.behaves.push(BehaviourAt { at_ms, how: Behaviour::Takes });
        source.behaves.sort_by_key(|behaves| behaves.at_ms);
    }
    if rng.u8(..) < 40 {
        source.rate = rng.u32(1..=20);
    }
}

fn behaviour(rng: &mut Rng, timeout_ms: u64) -> Behaviour {
    match rng.u8(0..11) {
        0 => Behaviour::Answers { status_code: 503, retry_after_s: None },
        1 => Behaviour::Answers { status_code: 429, retry_after_s: Some(rng.u64(0..60)) },
        2 => Behaviour::Answers { status_code: 422, retry_after_s: None },
        3 => Behaviour::Answers { status_code: 302, retry_after_s: None },
        4 => Behaviour::FailsFirst,
        5 => Behaviour::Flaps,
        6 => Behaviour::TakesLate { after_ms: rng.u64(timeout_ms / 8..timeout_ms * 2) },
        7 => Behaviour::Hangs,
        8 => Behaviour::BreaksOff,
        9 => Behaviour::NeverEnds,
        _ => Behaviour::Refuses,
    }
}

fn posts(
    rng: &mut Rng,
    swarm: &Swarm,
    processes: usize,
    sources: usize,
    heal_at_ms: u64,
) -> Vec<Post> {
    let mut posts: Vec<Post> = Vec::new();
    let mut at_ms = 0;
    for n in 0..rng.u64(5..60) {
        at_ms += if swarm.bursts && rng.u8(..) < 200 {
            rng.u64(0..20)
        } else {
            rng.u64(0..heal_at_ms / 30)
        };
        if at_ms >= heal_at_ms {
            break;
        }
        let mut post = Post {
            at_ms,
            source: rng.usize(0..sources),
            process: rng.usize(0..processes),
            key: format!("key-{n}"),
            body: n,
            size: rng.usize(0..400),
            copies: if swarm.duplicates && rng.u8(..) < 80 { rng.u32(2..=4) } else { 1 },
            hangs_up_ms: (swarm.hang_ups && rng.u8(..) < 60).then(|| rng.u64(0..40)),
            trickles_ms: None,
            poison: swarm.poison && rng.u8(..) < 50,
        };
        if swarm.duplicates
            && rng.u8(..) < 50
            && let Some(earlier) = posts.get(rng.usize(0..posts.len().max(1)))
        {
            post = Post { at_ms, process: post.process, ..earlier.clone() };
        }
        if swarm.reused_keys
            && rng.u8(..) < 50
            && let Some(earlier) = posts.get(rng.usize(0..posts.len().max(1)))
        {
            post.key.clone_from(&earlier.key); // the same key with a different body, possibly for another source
        }
        posts.push(post);
    }
    posts
}

fn faults(
    rng: &mut Rng,
    swarm: &Swarm,
    processes: usize,
    sources: usize,
    heal_at_ms: u64,
    posts: &[Post],
) -> Vec<FaultAt> {
    let mut faults = Vec::new();
    let mut some = |rng: &mut Rng, on: bool, most: usize, make: &dyn Fn(&mut Rng) -> Fault| {
        for _ in 0..if on { rng.usize(1..=most) } else { 0 } {
            // Most faults start soon after a post, when there is work that they can affect.
            let (post, within) =
                (rng.usize(0..posts.len().max(1)), if rng.bool() { 60 } else { 5_000 });
            let near = posts.get(post).map(|post| post.at_ms + rng.u64(0..within));
            let at_ms = near.filter(|_| rng.u8(..) < 190).unwrap_or_else(|| rng.u64(0..heal_at_ms));
            faults.push(FaultAt { at_ms, what: make(rng) });
        }
    };
    some(rng, swarm.kills, 6, &|rng| {
        let down_ms = if rng.u8(..) < 30 { rng.u64(20_000..60_000) } else { rng.u64(10..2_000) };
        if rng.u8(..) < 60 {
            Fault::KillAll { down_ms }
        } else {
            Fault::Kill { process: rng.usize(0..processes), down_ms }
        }
    });
    some(rng, swarm.pauses, 3, &|rng| Fault::Pause {
        process: rng.usize(0..processes),
        for_ms: rng.u64(1_000..45_000),
    });
    some(rng, swarm.drains, 8, &|rng| {
        let down_ms = rng.u64(0..3_000);
        if rng.u8(..) < 80 {
            Fault::RollingRestart { down_ms }
        } else {
            Fault::Drain { process: rng.usize(0..processes), down_ms }
        }
    });
    some(rng, swarm.cuts, 4, &|rng| {
        let process = Node::Process(rng.usize(0..processes));
        let other = match rng.u8(0..4) {
            0 => Node::Producers,
            1 => Node::Downstream(rng.usize(0..sources)),
            _ => Node::Database,
        };
        let (from, to) = if rng.bool() { (process, other) } else { (other, process) };
        Fault::Cut { from, to, both_ways: rng.bool(), for_ms: rng.u64(500..30_000) }
    });
    some(rng, swarm.weather, 3, &|rng| {
        let for_ms = rng.u64(1_000..40_000);
        if rng.bool() {
            Fault::Loss { permille: rng.u16(10..300), for_ms }
        } else {
            Fault::Latency { max_ms: rng.u64(20..1_500), for_ms }
        }
    });
    some(rng, swarm.store_faults, 12, &|rng| {
        let call = *rng
            .choice(&[Call::Accept, Call::Look, Call::Claim, Call::Settle, Call::Settle])
            .expect("not empty");
        let how = store_fault(rng);
        Fault::Store { process: rng.usize(0..processes), call, nth: rng.u32(1..=6), how }
    });
    some(rng, swarm.database_faults, 3, &|rng| match rng.u8(0..3) {
        0 => Fault::DatabaseDown { for_ms: rng.u64(100..20_000) },
        1 => Fault::DatabaseFailover,
        _ => Fault::DatabaseSlow { by_ms: rng.u64(10..1_500), for_ms: rng.u64(1_000..30_000) },
    });
    some(rng, swarm.clock_jumps, 2, &|rng| Fault::DatabaseClock {
        by_ms: rng.i64(-30_000..30_000),
    });
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

/// In half of the runs, up to four handshakes.
fn handshakes(
    rng: &mut Rng,
    processes: usize,
    sources: usize,
    heal_at_ms: u64,
) -> Vec<HandshakeAt> {
    let count = if rng.bool() { rng.usize(1..=4) } else { 0 };
    let mut handshake = || HandshakeAt {
        at_ms: rng.u64(..heal_at_ms),
        source: rng.usize(..sources),
        process: rng.usize(..processes),
    };
    (0..count).map(|_| handshake()).collect()
}
