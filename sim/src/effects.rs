//! Numbers the effects of all processes that pass a port, so that a crash can be placed just before
//! or after any of them.

use futures::StreamExt;
use futures::channel::mpsc;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The effects of one simulated run.
pub(crate) struct Effects {
    passed: AtomicU64,
    crashes: Mutex<Vec<(u64, Side)>>,
    crashed: mpsc::UnboundedSender<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Before,
    After,
}

impl Effects {
    /// Returns the effects, and a stream of the processes that must crash now, by index.
    pub(crate) fn new() -> (Self, impl futures::Stream<Item = usize> + Unpin) {
        let (crashed, processes) = mpsc::unbounded();
        (Self { passed: AtomicU64::new(0), crashes: Mutex::default(), crashed }, processes.boxed())
    }

    /// Plans a crash of the process that causes effect number `effect`, counted from 1.
    pub(crate) fn plan(&self, effect: u64, side: Side) {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).push((effect, side));
    }

    /// The number of effects so far.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Passes one effect of a process. If its crash is planned, the future stays pending, because
    /// the process is about to be killed.
    pub(crate) async fn pass<T>(&self, process: usize, effect: impl Future<Output = T>) -> T {
        let number = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        self.crash_if_planned(process, number, Side::Before).await;
        let result = effect.await;
        self.crash_if_planned(process, number, Side::After).await;
        result
    }

    async fn crash_if_planned(&self, process: usize, number: u64, side: Side) {
        let planned =
            self.crashes.lock().unwrap_or_else(PoisonError::into_inner).contains(&(number, side));
        if planned {
            let _ = self.crashed.unbounded_send(process);
            futures::future::pending::<()>().await;
        }
    }
}
