//! Where the next claim of a source begins to look.
//!
//! A claimed row leaves a dead entry in the index of what is due, at its old place, which is the front. PostgreSQL
//! takes such entries away only once no transaction can still see them. While somebody leaves a transaction open, they
//! gather, and each claim would read all of them again.
//!
//! Rows are claimed in the order in which they are due. So behind the last row that was claimed there is nothing left
//! but rows that were not visible then: inserted by a transaction that had not committed, or locked by one that was
//! rolled back. They lie close behind, and rarely farther than [`LAG`]. A busy source's claims therefore begin that
//! far behind the last row, and at the front only once in each [`PERIOD`]. A source that is not busy leaves few dead
//! entries: its claims always begin at the front.

use std::collections::BTreeMap;
use std::time::Duration;
use surehook_core::source::SourceName;
use tokio::time::Instant;

/// Microseconds since 1970, as the database keeps time.
pub(super) type Micros = i64;

/// How long a row that was not visible when its time came may stay behind.
const PERIOD: Duration = Duration::from_secs(5);

/// A source is busy if so many of its rows were claimed in a period.
const BUSY_ROWS: usize = 500;

/// A statement's time is when it began. What it writes is visible when it commits, in all but bad cases sooner than
/// this.
const LAG: Micros = 1_000_000;

/// The sources' claims.
#[derive(Default)]
pub(super) struct Scans(BTreeMap<SourceName, Scan>);

struct Scan {
    period_began: Instant,
    /// Rows claimed in this period.
    rows: usize,
    was_busy: bool,
    /// The latest due time of a row that was claimed in this period.
    reached: Option<Micros>,
}

impl Scans {
    /// From which due time on the next claim of a source is to look; `None`: from the front.
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

    /// A row of a source was claimed that was due since `due`.
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
        SourceName::parse("orders").expect("a name")
    }

    fn claim(scans: &mut Scans, rows: usize, due: Micros, now: Instant) {
        for _ in 0..rows {
            scans.claimed(&source(), due, now);
        }
    }

    #[tokio::test]
    async fn a_source_that_is_not_busy_is_always_read_from_the_front() {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        for period in 0..4 {
            let now = begun + PERIOD * period;
            assert_eq!(scans.begin(&source(), now), None);
            claim(&mut scans, BUSY_ROWS - 1, 100 * SECOND, now);
            assert_eq!(scans.begin(&source(), now), None);
        }
    }

    #[tokio::test]
    async fn a_busy_source_is_read_from_the_front_once_in_a_period_and_else_from_just_behind_the_last_row()
     {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        claim(&mut scans, BUSY_ROWS, 100 * SECOND, begun);
        assert_eq!(scans.begin(&source(), begun), None, "whether it is busy shows after a period");
        let later = begun + PERIOD;
        assert_eq!(scans.begin(&source(), later), None, "a period begins at the front");
        claim(&mut scans, 1, 200 * SECOND, later);
        claim(&mut scans, 1, 150 * SECOND, later);
        assert_eq!(scans.begin(&source(), later), Some(199 * SECOND));
        assert_eq!(scans.begin(&source(), later + PERIOD), None, "and so does the next");
    }

    #[tokio::test]
    async fn a_claim_that_finds_nothing_at_the_front_leaves_the_next_to_look_there_too() {
        let (mut scans, begun) = (Scans::default(), Instant::now());
        claim(&mut scans, BUSY_ROWS, 100 * SECOND, begun);
        let later = begun + PERIOD;
        assert_eq!(scans.begin(&source(), later), None);
        assert_eq!(scans.begin(&source(), later), None);
    }
}
