//! Where the next claim of a source starts in the index of due times.
//!
//! A claimed row leaves a dead entry in that index, at the front. PostgreSQL removes dead entries
//! only when no transaction can see them any more. While any transaction stays open, they
//! accumulate, and each claim would read all of them again.
//!
//! Rows are claimed in the order of their due times. So the only rows left before the last claimed
//! row are those that were not visible then: their transaction had not committed, or a transaction
//! that was later rolled back had locked them. They are rarely due more than [`LAG`] earlier than
//! the last claimed row. So the claims of a busy source start [`LAG`] before that row, and at the
//! front only once in each [`PERIOD`]. A source that is not busy leaves few dead entries, so its
//! claims always start at the front.

use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::source::SourceName;
use tokio::time::Instant;

/// Microseconds since 1970, as the database stores times.
pub(super) type Micros = i64;

/// How much longer a row may wait that was not visible when it became due.
const PERIOD: Duration = Duration::from_secs(5);

/// A source is busy if at least this many of its rows were claimed in one period.
const BUSY_ROWS: usize = 500;

/// How far before the last claimed row a claim of a busy source starts. A statement's time is its
/// start, and its rows become visible when it commits, in all but bad cases sooner than this.
const LAG: Micros = 1_000_000;

/// The scan state of each source.
#[derive(Default)]
pub(super) struct Scans(BTreeMap<SourceName, Scan>);

struct Scan {
    period_began: Instant,
    /// Rows that were claimed in this period.
    rows: usize,
    was_busy: bool,
    /// The latest due time of a row that was claimed in this period.
    reached: Option<Micros>,
}

impl Scans {
    /// The due time from which the next claim of a source starts. `None` means the front.
    pub(super) fn begin(&mut self, source: &SourceName, now: Instant) -> Option<Micros> {
        let scan = self.0.get_mut(source)?;
        if now.duration_since(scan.period_began) >= PERIOD {
            *scan = Scan {
                period_began: now,
                rows: 0,
                was_busy: scan.rows >= BUSY_ROWS,
                reached: None,
            };
        }
        scan.reached.filter(|_| scan.was_busy).map(|reached| reached - LAG)
    }

    /// Records that a row of a source with the due time `due` was claimed.
    pub(super) fn claimed(&mut self, source: &SourceName, due: Micros, now: Instant) {
        let begun = Scan { period_began: now, rows: 0, was_busy: false, reached: None };
        let scan = self.0.entry(source.clone()).or_insert(begun);
        scan.rows += 1;
        scan.reached = scan.reached.max(Some(due));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;

    fn source() -> SourceName {
        SourceName::parse("orders").expect("a valid name")
    }

    fn claim(scans: &mut Scans, rows: usize, due: Micros, now: Instant) {
        for _ in 0..rows {
            scans.claimed(&source(), due, now);
        }
    }

    #[tokio::test]
    async fn claims_of_a_source_that_is_not_busy_start_at_the_front() {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        for period in 0..4 {
            let now = begun + PERIOD * period;
            assert_eq!(scans.begin(&source(), now), None);
            claim(&mut scans, BUSY_ROWS - 1, 100 * SECOND, now);
            assert_eq!(scans.begin(&source(), now), None);
        }
    }

    #[tokio::test]
    async fn claims_of_a_busy_source_start_at_the_front_once_in_a_period() {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        claim(&mut scans, BUSY_ROWS, 100 * SECOND, begun);
        assert_eq!(
            scans.begin(&source(), begun),
            None,
            "a source is busy only after a period with many rows"
        );
        let later = begun + PERIOD;
        assert_eq!(scans.begin(&source(), later), None, "a period starts at the front");
        claim(&mut scans, 1, 200 * SECOND, later);
        claim(&mut scans, 1, 150 * SECOND, later);
        assert_eq!(scans.begin(&source(), later), Some(199 * SECOND));
        assert_eq!(
            scans.begin(&source(), later + PERIOD),
            None,
            "the next period starts at the front, too"
        );
    }

    #[tokio::test]
    async fn after_an_empty_claim_the_next_one_starts_at_the_front() {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        claim(&mut scans, BUSY_ROWS, 100 * SECOND, begun);
        let later = begun + PERIOD;
        assert_eq!(scans.begin(&source(), later), None);
        assert_eq!(scans.begin(&source(), later), None);
    }
}
