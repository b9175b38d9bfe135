//! Waiting for a time of the run.
//!
//! madsim's timers cannot be cancelled, and each poll of its `Sleep` registers another one. A task that is
//! polled often with a distant deadline would be woken as often when that is reached, even if it had
//! stopped waiting long before. Here a wait registers one timer, and that wakes nothing once the wait has
//! ended.

use futures::FutureExt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// Waits for this time, and for 1 ms at least.
#[expect(clippy::disallowed_methods, reason = "this is the one place that uses it")]
pub(crate) fn sleep(duration: Duration) -> Sleep {
    Sleep::new(madsim::time::sleep(duration))
}

/// Waits until this time, and for 1 ms at least.
#[expect(clippy::disallowed_methods, reason = "this is the one place that uses it")]
pub(crate) fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::new(madsim::time::sleep_until(deadline))
}

/// The future did not complete in time.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Waits for a future for this time, and for 1 ms at least.
pub(crate) async fn timeout<T>(
    duration: Duration,
    future: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    let mut future = std::pin::pin!(future.fuse());
    let mut sleep = sleep(duration).fuse();
    futures::select_biased! {
        result = future => Ok(result),
        () = sleep => Err(Elapsed),
    }
}

/// A wait for a time of the run.
#[must_use = "futures do nothing unless they are polled"]
pub(crate) struct Sleep {
    timer: madsim::time::Sleep,
    is_registered: bool,
    task: Arc<Task>,
}

/// The task that waits, while it waits.
#[derive(Default)]
struct Task(Mutex<Option<Waker>>);

impl Task {
    fn set(&self, waker: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), waker)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if let Some(waker) = self.set(None) {
            waker.wake();
        }
    }
}

impl Sleep {
    fn new(timer: madsim::time::Sleep) -> Self {
        Self { timer, is_registered: false, task: Arc::default() }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.timer.is_elapsed() {
            return Poll::Ready(());
        }
        self.task.set(Some(context.waker().clone()));
        if self.is_registered {
            return Poll::Pending;
        }
        self.is_registered = true;
        let waker = Waker::from(Arc::clone(&self.task));
        self.timer.poll_unpin(&mut Context::from_waker(&waker))
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.task.set(None);
    }
}

impl hyper::rt::Sleep for Sleep {}

#[cfg(test)]
mod tests {
    use super::*;
    use madsim::runtime::Runtime;

    #[test]
    fn a_wait_wakes_its_task_once_and_not_after_its_end() {
        Runtime::new().block_on(async {
            let mut distant = sleep(Duration::from_secs(9));
            for _ in 0..5 {
                let _ = timeout(Duration::from_millis(10), &mut distant).await;
            }
            for _ in 0..5 {
                timeout(Duration::from_secs(5), sleep(Duration::from_millis(10)))
                    .await
                    .expect("10 ms are less than 5 s");
            }
            let mut polls = 0;
            futures::future::poll_fn(|context| {
                polls += 1;
                distant.poll_unpin(context)
            })
            .await;
            assert_eq!(polls, 2, "one to begin, and one at the end");
        });
    }
}
