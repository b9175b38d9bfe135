//! A worker between a store and downstreams that answer as they please, held to its promises at each action.

mod world;

use arbitrary::{Result, Unstructured};
use std::time::Duration;
use world::World;

const SOURCES: usize = 3;
/// The longest case, in steps.
const STEPS: usize = 300;

/// A worker's surroundings, and what happens to it in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The slots of each source.
    pub concurrency: [u32; SOURCES],
    /// So many failures in a row open each source's breaker; 0: it has none.
    pub breaker_failures: [u32; SOURCES],
    /// So many deliveries of each source may begin in a second; 0: any number.
    pub rate: [u32; SOURCES],
    /// The memory for events.
    pub max_held_bytes: usize,
    /// In this order.
    pub steps: Vec<Step>,
}

/// One thing that happens to the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Time passes, and the driver wakes the worker when it wants to be woken.
    Pass(Duration),
    /// The driver is late: time passes, and only then is the worker polled.
    Late(Duration),
    /// This source is named as having something new; the last number names one that the worker does not have.
    Wake(usize),
    /// The claim under way is answered.
    AnswerClaim {
        /// With so many events of each source, as far as they were asked for.
        give: [u32; SOURCES],
        /// One event in so many has no attempts left and comes as buried; 0: none.
        bury_every: u32,
        /// The bytes of each event's body.
        size: usize,
    },
    /// The claim under way fails.
    FailClaim,
    /// So many events of each source are stored, as far as there is room by the worker's offers.
    Store {
        /// Of each source.
        give: [u32; SOURCES],
        /// The bytes of each event's body.
        size: usize,
    },
    /// What was stored is handed over.
    Hand,
    /// A delivery ends.
    Finish {
        /// Which of those in flight.
        which: usize,
        /// The response's; `None`: it ran into its time-out.
        status_code: Option<u16>,
        /// What the response asked for.
        retry_after: Option<Duration>,
    },
    /// A delivery could not be sent, for want of a resource of the process.
    NotSent {
        /// Which of those in flight.
        which: usize,
    },
    /// An answer comes for a delivery that is not in flight any more.
    FinishAgain,
    /// The settlement under way is written.
    AnswerSettle,
    /// The settlement under way fails.
    FailSettle,
    /// The process is told to stop.
    ShutDown {
        /// Deliveries are cut off then.
        cut_off_in: Duration,
        /// The end.
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
        // Half of the workers run short of memory.
        let short = bytes.ratio(1, 2).unwrap_or(false);
        let max_held_bytes =
            if short { bytes.int_in_range(1..=5_000).unwrap_or(1) } else { 64 << 20 };
        // Half of the sources have a breaker, and a quarter a rate.
        let mut one_in = |odds: u32, most: u32| match bytes.ratio(1, odds) {
            Ok(true) => bytes.int_in_range(1..=most).unwrap_or(0),
            Ok(false) | Err(_) => 0,
        };
        let breaker_failures = [one_in(2, 4), one_in(2, 4), one_in(2, 4)];
        let rate = [one_in(4, 20), one_in(4, 20), one_in(4, 20)];
        let mut steps = Vec::new();
        while !bytes.is_empty() && steps.len() < STEPS {
            steps.extend(step(&mut bytes));
        }
        Self { concurrency, breaker_failures, rate, max_held_bytes, steps }
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
                bury_every: bytes.int_in_range(0..=7)?,
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
        26 => Step::FinishAgain,
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

/// Lets all of it happen to a worker, and then lets the world heal. The worker never exceeds a source's slots, delivers
/// a claim twice, settles what it does not hold, starts what its lease cannot cover, forgets a claim, sends past an open
/// breaker or a rate or while deliveries are suspended, charges an event that was not sent, or disagrees with itself about when it is due; and it comes to its end.
///
/// # Panics
///
/// If it does not.
pub fn check(case: &Case) {
    let mut world = World::new(case);
    world.drain();
    for step in &case.steps {
        world.step(step.clone());
    }
    world.finish_all();
}
