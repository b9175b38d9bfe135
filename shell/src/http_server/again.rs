//! Polls a future again at once if it was woken while it was polled.
//!
//! hyper wakes its own connection when the service begins to read a body, and again when the body has
//! arrived. tokio takes this for a task that yields: it queues the task, and wakes another thread to run
//! it. With one connection, these wake-ups were a third of the processor time of a post.

use futures::task::AtomicWaker;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// How often a future is polled before its task yields to others.
const MOST_POLLS: usize = 8;

const WAITING: u8 = 0;
const POLLED: u8 = 1;
const WOKEN: u8 = 2;

/// See the [module](self).
pub(super) struct Again<F> {
    future: Pin<Box<F>>,
    state: Arc<State>,
    waker: Waker,
}

#[derive(Default)]
struct State {
    stage: AtomicU8,
    task: AtomicWaker,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Always writes. A wake-up that only read the stage would not make visible to the next poll
        // what the caller wrote before it.
        if self.stage.swap(WOKEN, Ordering::AcqRel) == WAITING {
            self.task.wake();
        }
    }
}

impl<F: Future> Again<F> {
    pub(super) fn new(future: F) -> Self {
        let state = Arc::<State>::default();
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&state)), state }
    }
}

impl<F: Future> Future for Again<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, state, waker } = &mut *self;
        state.task.register(context.waker());
        for _ in 0..MOST_POLLS {
            state.stage.swap(POLLED, Ordering::AcqRel);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(output);
            }
            let waits =
                state.stage.compare_exchange(POLLED, WAITING, Ordering::AcqRel, Ordering::Acquire);
            if waits.is_ok() {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls a future once. Returns its output, and how often its task was woken until `then` returned.
    fn polled<T>(future: impl Future<Output = T>, then: impl FnOnce()) -> (Poll<T>, usize) {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let output = std::pin::pin!(future).poll(&mut Context::from_waker(&waker));
        then();
        (output, count.0.load(Ordering::Relaxed))
    }

    /// Wakes itself at its first polls.
    fn wakes_itself(times: usize) -> impl Future<Output = usize> {
        let mut polls = 0;
        poll_fn(move |context| {
            polls += 1;
            if polls > times {
                return Poll::Ready(polls);
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_again_without_waking_its_task() {
        assert_eq!(polled(Again::new(wakes_itself(3)), || {}), (Poll::Ready(4), 0));
    }

    #[test]
    fn a_future_that_always_wakes_itself_yields_to_other_tasks() {
        assert_eq!(polled(Again::new(wakes_itself(MOST_POLLS)), || {}), (Poll::Pending, 1));
    }

    #[test]
    fn later_wake_ups_wake_the_task_once() {
        let waker = Mutex::new(None);
        let waits = poll_fn(|context| {
            *waker.lock().unwrap() = Some(context.waker().clone());
            Poll::<()>::Pending
        });
        let wake = || {
            let waker = waker.lock().unwrap().take().unwrap();
            waker.wake_by_ref();
            waker.wake();
        };
        assert_eq!(polled(Again::new(waits), wake), (Poll::Pending, 1));
    }
}
