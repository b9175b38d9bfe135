//! A worker between a store and downstreams with arbitrary answers. Its promises are checked at
//! each action.

mod world;

use arbitrary::{Result, Unstructured};
use std::time::Duration;
use world::World;

const SOURCES: usize = 3;
/// Limit of the steps of a case.
const STEPS: usize = 300;

/// The settings of a worker, and the steps that happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The slots of each source.
    pub concurrency: [u32; SOURCES],
    /// The number of failures in a row that opens each source's breaker; 0: no breaker.
    pub breaker_failures: [u32; SOURCES],
    pub breaker_refusals: [u32; SOURCES],
    /// Deliveries of each source that may start per second; 0: no limit.
    pub rate: [u32; SOURCES],
    /// The memory limit for events.
    pub max_held_bytes: usize,
    pub steps: Vec<Step>,
}

/// An input to the worker, or a change of its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Time passes, and the driver polls the worker at its wake times.
    Pass(Duration),
    /// The driver is late: time passes, and the worker is polled only at the end.
    Late(Duration),
    /// This source is reported to have new events. The index after the last one is a source that
    /// the worker does not have.
    Wake(usize),
    /// The claim in flight succeeds.
    AnswerClaim {
        /// The number of events of each source, limited by its demand.
        give: [u32; SOURCES],
        /// Each n-th event has no attempts left and is reported as dead_lettered; 0: none.
        dead_letter_every: u32,
        /// The bytes of each event's body.
        size: usize,
    },
    /// The claim in flight fails.
    FailClaim,
    /// Events are stored and claimed on insert, as far as the worker's offers allow.
    Store {
        /// The number of events of each source.
        give: [u32; SOURCES],
        /// The bytes of each event's body.
        size: usize,
    },
    /// The stored events are handed over.
    Hand,
    /// A delivery ends.
    Finish {
        /// Selects the delivery, modulo the number in flight.
        which: usize,
        /// The status code of the response; `None`: the delivery timed out.
        status_code: Option<u16>,
        /// The `Retry-After` of the response.
        retry_after: Option<Duration>,
    },
    /// A delivery could not be sent because the process lacks a resource.
    NotSent {
        /// Selects the delivery, modulo the number in flight.
        which: usize,
    },
    /// The settlement in flight succeeds.
    AnswerSettle,
    /// The settlement in flight fails.
    FailSettle,
    /// The process starts its shutdown.
    ShutDown {
        /// When deliveries are cut off.
        cut_off_in: Duration,
        /// When the worker must end.
        give_up_in: Duration,
    },
}

/// Runs the case that `data` describes.
///
/// # Panics
///
/// If the worker breaks a promise.
pub fn run(data: &[u8]) {
    check(&Case::read(data));
}

impl Case {
    /// The case that `data` describes. Any bytes describe one.
    #[must_use]
    pub fn read(data: &[u8]) -> Self {
        let mut bytes = Unstructured::new(data);
        let slots = |bytes: &mut Unstructured<'_>| bytes.int_in_range(1..=5).unwrap_or(1);
        let concurrency = [slots(&mut bytes), slots(&mut bytes), slots(&mut bytes)];
        // Half of the workers have little memory.
        let short = bytes.ratio(1, 2).unwrap_or(false);
        let max_held_bytes =
            if short { bytes.int_in_range(1..=5_000).unwrap_or(1) } else { 64 << 20 };
        // Half of the sources have a breaker that failures open, half one that refusals open, and a
        // quarter have a rate.
        let mut one_in = |odds: u32, most: u32| match bytes.ratio(1, odds) {
            Ok(true) => bytes.int_in_range(1..=most).unwrap_or(0),
            Ok(false) | Err(_) => 0,
        };
        let breaker_failures = [one_in(2, 4), one_in(2, 4), one_in(2, 4)];
        let rate = [one_in(4, 20), one_in(4, 20), one_in(4, 20)];
        let breaker_refusals = [one_in(2, 4), one_in(2, 4), one_in(2, 4)];
        let mut steps = Vec::new();
        while !bytes.is_empty() && steps.len() < STEPS {
            steps.extend(step(&mut bytes));
        }
        Self { concurrency, breaker_failures, breaker_refusals, rate, max_held_bytes, steps }
    }
}

fn step(bytes: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match bytes.int_in_range(0..=42)? {
        0..=3u8 => Step::Pass(millis(bytes, 3_000)?),
        4 => Step::Pass(millis(bytes, 60_000)?),
        5 | 6 => Step::Wake(bytes.int_in_range(0..=SOURCES)?),
        7..=12 => {
            let give = [
                bytes.int_in_range(0..=39)?,
                bytes.int_in_range(0..=39)?,
                bytes.int_in_range(0..=39)?,
            ];
            Step::AnswerClaim {
                give,
                dead_letter_every: bytes.int_in_range(0..=7)?,
                size: bytes.int_in_range(0..=2_000)?,
            }
        }
        13 => Step::FailClaim,
        14..=25 => Step::Finish {
            which: usize::from(bytes.arbitrary::<u8>()?),
            status_code: *bytes.choose(&[Some(200), Some(503), Some(422), None])?,
            retry_after: if bytes.ratio(1, 4)? {
                Some(Duration::from_secs(bytes.arbitrary()?))
            } else {
                None
            },
        },
        // A spurious wake-up.
        26 => Step::Late(Duration::ZERO),
        27..=32 => Step::AnswerSettle,
        33 | 34 => Step::FailSettle,
        35 => {
            let cut_off_in = millis(bytes, 10_000)?;
            Step::ShutDown { cut_off_in, give_up_in: cut_off_in + millis(bytes, 10_000)? }
        }
        36 => Step::Late(millis(bytes, 10)?),
        37..=39 => {
            let give = [
                bytes.int_in_range(0..=9)?,
                bytes.int_in_range(0..=9)?,
                bytes.int_in_range(0..=9)?,
            ];
            Step::Store { give, size: bytes.int_in_range(0..=2_000)? }
        }
        40 | 41 => Step::Hand,
        _ => Step::NotSent { which: usize::from(bytes.arbitrary::<u8>()?) },
    })
}

fn millis(bytes: &mut Unstructured<'_>, most: u64) -> Result<Duration> {
    Ok(Duration::from_millis(bytes.int_in_range(0..=most)?))
}

/// Applies all steps to a worker, then lets every call end. The worker must:
///
/// - not exceed a source's slots,
/// - not deliver a claim twice or forget a claim,
/// - not settle an event that it does not hold,
/// - not start a delivery that the lease cannot cover,
/// - not send despite an open breaker, a reached rate or suspended deliveries,
/// - not count an attempt for an event that was not sent,
/// - not disagree with itself about when it is due,
/// - and end.
///
/// # Panics
///
/// If a check fails.
pub fn check(case: &Case) {
    let mut world = World::new(case);
    world.drain();
    for step in &case.steps {
        world.step(step.clone());
    }
    world.finish_all();
}
