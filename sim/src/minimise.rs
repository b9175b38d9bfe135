//! Reduces a failing scenario: removes faults, posts, behaviours and processes, then shortens the
//! rest, while the *same* promise stays broken.

use crate::bugs::Bug;
use crate::world::run;
use surehook_model::oracles::Promise;
use surehook_model::scenario::{Fault, Node, Scenario};

/// The smallest scenario found within `runs` runs that breaks `promise`. `scenario` itself must
/// break it.
#[must_use]
pub fn minimise(
    scenario: &Scenario,
    bug: Option<Bug>,
    promise: Promise,
    runs: u32,
    mut tell: impl FnMut(&Scenario),
) -> Scenario {
    let mut smallest = scenario.clone();
    let mut runs_left = runs;
    loop {
        let mut progress = false;
        for candidate in Candidates::of(&smallest) {
            if runs_left == 0 {
                return smallest;
            }
            runs_left -= 1;
            if breaks(&candidate, bug, promise) {
                smallest = candidate;
                tell(&smallest);
                progress = true;
                break;
            }
        }
        if !progress {
            return smallest;
        }
    }
}

fn breaks(scenario: &Scenario, bug: Option<Bug>, promise: Promise) -> bool {
    run(scenario, bug).violations.iter().any(|violation| violation.promise == promise)
}

/// Every scenario that is one step smaller, the largest steps first.
struct Candidates {
    all: std::vec::IntoIter<Scenario>,
}

impl Candidates {
    fn of(scenario: &Scenario) -> Self {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Scenario)| {
            let mut candidate = scenario.clone();
            change(&mut candidate);
            if candidate != *scenario {
                all.push(candidate);
            }
        };
        for size in chunks(scenario.faults.len()) {
            for from in (0..scenario.faults.len()).step_by(size) {
                with(&|smaller| {
                    drop(smaller.faults.drain(from..(from + size).min(scenario.faults.len())));
                });
            }
        }
        for size in chunks(scenario.posts.len()) {
            for from in (0..scenario.posts.len()).step_by(size) {
                with(&|smaller| {
                    drop(smaller.posts.drain(from..(from + size).min(scenario.posts.len())));
                });
            }
        }
        for variant in 0..scenario.variants.len() {
            with(&|smaller| {
                smaller.variants.remove(variant);
            });
        }
        for source in 0..scenario.sources.len() {
            with(&|smaller| smaller.sources[source].behaves.clear());
            for behaves in 0..scenario.sources[source].behaves.len() {
                with(&|smaller| {
                    smaller.sources[source].behaves.remove(behaves);
                });
            }
        }
        for post in 0..scenario.posts.len() {
            with(&|smaller| {
                smaller.posts[post].copies = 1;
                smaller.posts[post].hangs_up_ms = None;
                smaller.posts[post].trickles_ms = None;
                smaller.posts[post].poison = false;
            });
            with(&|smaller| smaller.posts[post].size = 0);
        }
        // The last source and the last process, if nothing refers to them.
        let last_source = scenario.sources.len() - 1;
        let speaks_of_source = scenario.faults.iter().any(|fault| {
            matches!(fault.what,
            Fault::Cut { from, to, .. } if [from, to].contains(&Node::Downstream(last_source)))
        });
        if last_source > 0
            && !speaks_of_source
            && scenario.variants.iter().all(|variant| variant.source != last_source)
            && scenario.posts.iter().all(|post| post.source != last_source)
        {
            with(&|smaller| smaller.sources.truncate(last_source));
        }
        let last_process = scenario.processes - 1;
        if last_process > 0
            && scenario.posts.iter().all(|post| post.process != last_process)
            && scenario.variants.iter().all(|variant| variant.process != last_process)
            && !speaks_of_process(scenario, last_process)
        {
            with(&|smaller| smaller.processes = last_process);
        }
        // The time after the last fault and post adds nothing but waiting.
        let last = scenario
            .faults
            .iter()
            .map(|fault| fault.at_ms)
            .chain(scenario.posts.iter().map(|post| post.at_ms))
            .max()
            .unwrap_or(0);
        with(&|smaller| smaller.heal_at_ms = (last + 30_000).min(scenario.heal_at_ms));
        with(&|smaller| smaller.heal_at_ms = (last + 1_000).min(scenario.heal_at_ms));
        Self { all: all.into_iter() }
    }
}

impl Iterator for Candidates {
    type Item = Scenario;

    fn next(&mut self) -> Option<Scenario> {
        self.all.next()
    }
}

fn speaks_of_process(scenario: &Scenario, index: usize) -> bool {
    scenario.faults.iter().any(|fault| match &fault.what {
        Fault::Kill { process, .. }
        | Fault::Pause { process, .. }
        | Fault::Drain { process, .. }
        | Fault::Reload { process }
        | Fault::Store { process, .. } => *process == index,
        Fault::Asked { process, .. } => *process == index,
        Fault::Cut { from, to, .. } => [*from, *to].contains(&Node::Process(index)),
        _ => false,
    })
}

/// Half, a quarter, and so on down to one.
fn chunks(len: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(len / 2), |size| (*size > 1).then_some(size / 2))
        .filter(|size| *size > 0)
        .chain((len == 1).then_some(1))
}
