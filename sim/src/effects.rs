//! Numbers every effect that passes a port, over all processes of a world, so that a crash can be put just before or
//! just after any one of them.

use futures::StreamExt;
use futures::channel::mpsc;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The effects of a world.
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
    /// The effects, and the indexes of the processes that are to crash, as they come to their places.
    pub(crate) fn new() -> (Self, impl futures::Stream<Item = usize> + Unpin) {
        let (crashed, processes) = mpsc::unbounded();
        (Self { passed: AtomicU64::new(0), crashes: Mutex::default(), crashed }, processes.boxed())
    }

    /// Plans a crash of whichever process makes the `effect`th effect, from 1.
    pub(crate) fn plan(&self, effect: u64, side: Side) {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).push((effect, side));
    }

    /// How many effects there have been.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// One effect of a process. Where its crash is planned the future goes no further: its process is about to die.
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
