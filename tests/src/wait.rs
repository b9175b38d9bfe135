//! Waiting for a condition: by polling until a deadline, never by a fixed sleep.

use std::future::Future;
use std::time::{Duration, Instant};

/// The time limit for every step of these tests that is not itself about time.
pub const TIMEOUT: Duration = Duration::from_secs(30);

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Polls until the result is `Ok`, and returns its value.
///
/// # Panics
///
/// After [`TIMEOUT`], with a description of the condition and the last result.
pub async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    ask: impl FnMut() -> F,
) -> T {
    within(TIMEOUT, what, ask).await
}

/// As [`until`], with another time limit.
///
/// # Panics
///
/// After `time_limit`, with a description of the condition and the last result.
pub async fn within<T, F: Future<Output = Result<T, String>>>(
    time_limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if begun.elapsed() > time_limit => {
                panic!("waited {time_limit:?} for {what}; last seen: {last}")
            }
            Err(_) => tokio::time::sleep(BETWEEN_LOOKS).await,
        }
    }
}
