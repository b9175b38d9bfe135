//! Detects whether the server sent a warning during a statement.
//!
//! An operator can end a commit's wait for a synchronous standby (`pg_cancel_backend`). PostgreSQL
//! then reports success and a WARNING: the transaction is committed on the primary, but possibly on
//! no standby. sqlx has no interface for notices. It only logs them, by `tracing`, while the
//! statement's future is polled. So each poll runs under our own subscriber, which records such an
//! event and forwards everything to the previous subscriber.
//!
//! The text of the warning is in the server's language, so it is not examined. The caller knows
//! whether the warning came before or after the end of the statement. After it, only a commit can
//! cause a warning.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::LazyLock;
use tracing::dispatcher::{self, Dispatch};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, NoSubscriber};
use tracing::{Event, Level, Metadata, Subscriber};

/// The target under which sqlx logs the notices of a server.
const TARGET: &str = "sqlx::postgres::notice";

/// The dispatcher of [`Watcher`]. It is registered once, because each registration invalidates the
/// interest that every log statement of the process has cached.
///
/// The second dispatcher does nothing. While only one is registered, `tracing` consults only the
/// current thread's default dispatcher when a log statement runs for the first time. If that thread
/// does not watch, sqlx's log statement would be disabled for the whole process. A cancelled wait
/// for a standby would then look like a commit.
static WATCHERS: LazyLock<[Dispatch; 2]> =
    LazyLock::new(|| [Dispatch::new(Watcher), Dispatch::new(NoSubscriber::default())]);

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// The step that is watched on this thread.
struct Watch {
    /// Where log events are forwarded.
    outer: Dispatch,
    warned: bool,
}

/// Runs a step, and returns whether the server sent a warning during it.
pub(super) fn watch<T>(step: impl FnOnce() -> T) -> (T, bool) {
    let outer = dispatcher::get_default(Dispatch::clone);
    let before = WATCH.replace(Some(Watch { outer, warned: false }));
    let [watcher, _] = &*WATCHERS;
    let done = dispatcher::with_default(watcher, step);
    let watched = WATCH.replace(before);
    (done, watched.is_some_and(|watch| watch.warned))
}

/// Runs work to its end. Returns its result and whether the server sent a warning during it.
pub(super) async fn watched<T>(work: impl Future<Output = T>) -> (T, bool) {
    let (mut work, mut warned) = (pin!(work), false);
    let done = poll_fn(|context| {
        let (polled, in_this_poll) = watch(|| work.as_mut().poll(context));
        warned |= in_this_poll;
        polled
    });
    (done.await, warned)
}

struct Watcher;

fn is_warning(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET && *metadata.level() == Level::WARN
}

fn outer() -> Option<Dispatch> {
    WATCH.with_borrow(|watch| watch.as_ref().map(|watch| watch.outer.clone()))
}

impl Subscriber for Watcher {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // `never` does not silence an event: the other subscribers still decide about it.
        if is_warning(metadata) { Interest::sometimes() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::WARN)
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Spans would outlive the step, and sqlx has none.
        !metadata.is_span()
            && (is_warning(metadata) || outer().is_some_and(|outer| outer.enabled(metadata)))
    }

    fn event(&self, event: &Event<'_>) {
        if is_warning(event.metadata()) {
            WATCH.with_borrow_mut(|watch| {
                if let Some(watch) = watch {
                    watch.warned = true;
                }
            });
        }
        if let Some(outer) = outer().filter(|outer| outer.enabled(event.metadata())) {
            outer.event(event);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_server_warning_is_detected_without_a_logger() {
        assert!(watch(|| tracing::warn!(target: TARGET, "cancelled")).1);
        assert!(!watch(|| tracing::info!(target: TARGET, "by the way")).1);
        assert!(!watch(|| tracing::warn!("of this program")).1);
        assert!(!watch(|| ()).1, "an earlier warning is not reported again");
    }

    #[test]
    fn a_warning_is_detected_after_another_thread_logged_it_first() {
        let warn = || tracing::warn!(target: TARGET, "cancelled");
        watch(|| ());
        std::thread::scope(|scope| scope.spawn(warn).join()).unwrap();
        assert!(watch(warn).1);
    }

    #[test]
    fn log_events_of_a_watched_step_reach_the_logger() {
        struct Counts(Arc<AtomicUsize>);
        impl Subscriber for Counts {
            fn enabled(&self, _: &Metadata<'_>) -> bool {
                true
            }
            fn event(&self, _: &Event<'_>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
            fn new_span(&self, _: &Attributes<'_>) -> Id {
                Id::from_u64(1)
            }
            fn record(&self, _: &Id, _: &Record<'_>) {}
            fn record_follows_from(&self, _: &Id, _: &Id) {}
            fn enter(&self, _: &Id) {}
            fn exit(&self, _: &Id) {}
        }
        let seen = Arc::new(AtomicUsize::new(0));
        let warned = tracing::subscriber::with_default(Counts(Arc::clone(&seen)), || {
            watch(|| {
                tracing::warn!(target: TARGET, "cancelled");
                tracing::info!("of this program");
            })
            .1
        });
        assert!(warned);
        assert_eq!(seen.load(Ordering::Relaxed), 2);
    }
}
