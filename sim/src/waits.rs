//! Records what each process is waiting for at a port, so that a stuck run can report it.

use crate::recorder::elapsed;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use surehook_core::id::{Attempt, EventId};

/// The number of timers that are reported for each process, the next ones first.
const TIMERS_TOLD: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The store's reply to a call.
    Call(&'static str),
    /// A downstream's response.
    Reply(EventId, Attempt),
    /// A time of the run.
    Until(Duration),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(call) => write!(f, "the database's reply to {call}"),
            Self::Reply(event, attempt) => {
                write!(f, "the response to attempt {attempt} of event {event}")
            }
            Self::Until(at) => write!(f, "a timer at {:.3}s", at.as_secs_f64()),
        }
    }
}

/// All waits of the processes of a run.
#[derive(Clone, Default)]
pub(crate) struct Waits(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    /// In the order of their starts: the process, the start, and the kind.
    waiting: BTreeMap<u64, (usize, Duration, Wait)>,
}

impl Waits {
    /// Records that a process waits, until the returned guard is dropped.
    pub(crate) fn begin(&self, process: usize, wait: Wait) -> Waiting {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, (process, elapsed(), wait));
        Waiting { waits: self.clone(), number }
    }

    /// The current waits of a process as text: every call and response with its start, and the next
    /// timers.
    pub(crate) fn of(&self, process: usize) -> Vec<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine: Vec<(Duration, Wait)> = state
            .waiting
            .values()
            .filter(|(of, ..)| *of == process)
            .map(|&(_, at, wait)| (at, wait))
            .collect();
        let is_timer = |wait: &Wait| matches!(wait, Wait::Until(_));
        let mut timers: Vec<Wait> = mine.iter().map(|(_, wait)| *wait).filter(is_timer).collect();
        timers.sort_by_key(|timer| if let Wait::Until(at) = timer { *at } else { Duration::MAX });
        let others = mine.iter().filter(|(_, wait)| !is_timer(wait));
        others
            .map(|(at, wait)| format!("{wait}, since {:.3}s", at.as_secs_f64()))
            .chain(timers.iter().take(TIMERS_TOLD).map(ToString::to_string))
            .collect()
    }
}

/// A guard: the process waits until it is dropped.
pub(crate) struct Waiting {
    waits: Waits,
    number: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waits.0.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&self.number);
    }
}
