//! Promise *Bounded*, for memory: the events that a process holds for its deliveries never have
//! more bytes than `max_held_bytes` and one event.

use super::{Promise, Violation, violation};
use crate::history::{Held, Run};

pub(super) fn judge(run: &Run) -> Vec<Violation> {
    let too_much = run
        .held
        .iter()
        .filter(|(_, Held { bytes, largest, .. })| *bytes > run.max_held_bytes + largest);
    too_much
        .map(|(process, Held { at, bytes, largest })| {
            let what = format!(
                "{process} holds events of {bytes} bytes, but at most {} are allowed, and one event of {largest}",
                run.max_held_bytes
            );
            violation(Promise::Memory, *at, what, [])
        })
        .collect()
}
