//! Waiting for something to become true: by asking again and again until a deadline, never by sleeping and hoping.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything in these tests may take that is not itself about time.
pub const PATIENCE: Duration = Duration::from_secs(30);

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Asks until the answer is `Ok`, and gives back what it holds.
///
/// # Panics
///
/// After [`PATIENCE`], with what was waited for and the last answer.
pub async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    ask: impl FnMut() -> F,
) -> T {
    within(PATIENCE, what, ask).await
}

/// As [`until`], with a deadline of its own.
///
/// # Panics
///
/// After `patience`, with what was waited for and the last answer.
pub async fn within<T, F: Future<Output = Result<T, String>>>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) if begun.elapsed() > patience => {
                panic!("waited {patience:?} for {what}; last seen: {last}")
            }
            Err(_) => tokio::time::sleep(BETWEEN_LOOKS).await,
        }
    }
}
