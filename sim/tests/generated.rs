//! Scenarios that proptest makes: it looks where the swarm of seeds does not, and shrinks what it finds.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sim::{report, rerun, run};
use surehook_model::scenario::{
    Behaviour, BehaviourAt, Call, Fault, FaultAt, Node, Post, Scenario, Source, StoreFault,
};

const PROCESSES: usize = 2;
const HEAL_AT_MS: u64 = 40_000;

fn behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        Just(Behaviour::Takes),
        (400..=599u16, prop::option::of(0..20u64)).prop_map(|(status_code, retry_after_s)| {
            Behaviour::Answers { status_code, retry_after_s }
        }),
        Just(Behaviour::FailsFirst),
        Just(Behaviour::Flaps),
        (0..4_000u64).prop_map(|after_ms| Behaviour::TakesLate { after_ms }),
        Just(Behaviour::Hangs),
        Just(Behaviour::BreaksOff),
        Just(Behaviour::Refuses),
    ]
}

fn source() -> impl Strategy<Value = Source> {
    let behaves = prop::collection::vec(
        (0..HEAL_AT_MS, behaviour()).prop_map(|(at_ms, how)| BehaviourAt { at_ms, how }),
        0..4,
    );
    let limits = (0..4u32, 500..5_000u32, 0..10u32);
    (300..3_000u64, 1..4u32, 1..6u32, 50..1_000u64, any::<bool>(), behaves, limits).prop_map(
        |(
            timeout_ms,
            concurrency,
            max_attempts,
            initial_delay_ms,
            first_wins,
            mut behaves,
            (breaker_failures, breaker_open_ms, rate),
        )| {
            behaves.sort_by_key(|behaves| behaves.at_ms);
            let max_delay_ms = initial_delay_ms * 8;
            Source {
                name: "only".to_owned(),
                timeout_ms,
                concurrency,
                max_attempts,
                initial_delay_ms,
                max_delay_ms,
                rate,
                breaker_failures,
                breaker_open_ms,
                first_wins,
                behaves,
            }
        },
    )
}

fn post() -> impl Strategy<Value = Post> {
    (
        0..HEAL_AT_MS,
        0..PROCESSES,
        0..8u64,
        0..3u64,
        0..100usize,
        1..3u32,
        prop::option::weighted(0.1, 0..30u64),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(at_ms, process, key, body, size, copies, hangs_up_ms, poison)| Post {
            at_ms,
            source: 0,
            process,
            key: format!("key-{key}"),
            body,
            size,
            copies,
            hangs_up_ms,
            poison,
        })
}

fn fault() -> impl Strategy<Value = FaultAt> {
    let process = 0..PROCESSES;
    let call =
        prop_oneof![Just(Call::Accept), Just(Call::Look), Just(Call::Claim), Just(Call::Settle)];
    let how = prop_oneof![
        Just(StoreFault::Refuse),
        Just(StoreFault::FailBeforeCommit),
        Just(StoreFault::FailAfterCommit),
        Just(StoreFault::Conflict),
        (50..8_000u64).prop_map(|by_ms| StoreFault::Slow { by_ms }),
    ];
    let what = prop_oneof![
        (process.clone(), 10..3_000u64)
            .prop_map(|(process, down_ms)| Fault::Kill { process, down_ms }),
        (10..3_000u64).prop_map(|down_ms| Fault::KillAll { down_ms }),
        (process.clone(), 100..30_000u64)
            .prop_map(|(process, for_ms)| Fault::Pause { process, for_ms }),
        (process.clone(), 0..2_000u64)
            .prop_map(|(process, down_ms)| Fault::Drain { process, down_ms }),
        (0..2_000u64).prop_map(|down_ms| Fault::RollingRestart { down_ms }),
        (process.clone(), any::<bool>(), 100..15_000u64).prop_map(
            |(process, both_ways, for_ms)| Fault::Cut {
                from: Node::Process(process),
                to: Node::Database,
                both_ways,
                for_ms
            }
        ),
        (process, call, 1..4u32, how).prop_map(|(process, call, nth, how)| Fault::Store {
            process,
            call,
            nth,
            how
        }),
        (100..10_000u64).prop_map(|for_ms| Fault::DatabaseDown { for_ms }),
        Just(Fault::DatabaseFailover),
        any::<bool>().prop_map(|delivered| Fault::Redrive { source: 0, delivered }),
    ];
    (0..HEAL_AT_MS, what).prop_map(|(at_ms, what)| FaultAt { at_ms, what })
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let posts = prop::collection::vec(post(), 1..20);
    let faults = prop::collection::vec(fault(), 0..8);
    (any::<u64>(), source(), posts, faults, 100..5_000u64).prop_map(
        |(seed, source, posts, mut faults, drain_timeout_ms)| {
            faults.sort_by_key(|fault| fault.at_ms);
            Scenario {
                seed,
                processes: PROCESSES,
                drain_timeout_ms,
                faults,
                heal_at_ms: HEAL_AT_MS,
                ..Scenario::of(vec![source], posts)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2_000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn every_generated_scenario_keeps_every_promise(scenario in scenario()) {
        let outcome = run(&scenario, None);
        prop_assert!(outcome.violations.is_empty(), "{}", report(&scenario, &outcome, &rerun(&scenario, false, None)));
    }
}
