//! Where the next claim of a source starts in the index of due times.
//!
//! A claimed row leaves a dead entry at the front of that index. A database that keeps dead entries
//! as long as any transaction is open would read all of them again in each claim.
//!
//! Rows are claimed in the order of their due times. So the only rows left before the last claimed
//! row are those that were not visible then: their transaction had not committed, or a transaction
//! that was later rolled back had locked them. They are rarely due more than
//! [`lag`](CursorSettings::lag) earlier than the last claimed row. So claims start that far before
//! that row, and at the front only once in each period. A period is at least
//! [`period`](CursorSettings::period) long. If a claim from the front takes long, because the dead
//! entries are many, the period after it is longer, so that such claims take a small part of the
//! time.
//!
//! There are two rules for all inputs. A claim from the cursor takes the same rows as a claim from
//! the front would, if each row becomes visible within the lag after its due time. And a row that
//! becomes visible later is passed over for at most one period, even if the database's clock jumps.

use crate::source::SourceName;
use crate::time::Instant;
use alloc::collections::BTreeMap;
use core::time::Duration;

/// A due time, in microseconds since 1970 by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DueTime(i64);

impl DueTime {
    /// The due time that the database stores as this number of microseconds.
    #[must_use]
    pub fn from_micros(since_1970: i64) -> Self {
        Self(since_1970)
    }

    /// The microseconds since 1970.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// The due time `duration` earlier than this one.
    fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// Where claims start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorSettings {
    /// How much longer a row may wait that was not visible when it became due.
    pub period: Duration,
    /// A period lasts at least this many times as long as the claim from the front at its start.
    pub front_share: u32,
    /// The longest period.
    pub longest_period: Duration,
    /// How far before the last claimed row a claim starts. The due time of a new row is the start
    /// of its statement, and the row becomes visible when the statement commits: almost always
    /// sooner than this.
    pub lag: Duration,
}

impl Default for CursorSettings {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(5),
            front_share: 50,
            longest_period: Duration::from_mins(1),
            lag: Duration::from_secs(1),
        }
    }
}

/// The cursor of each source, for the claims of one process. At most one claim is in flight, as the
/// [worker](crate::worker) guarantees.
#[derive(Clone, Debug, Default)]
pub struct Cursors {
    settings: CursorSettings,
    by_source: BTreeMap<SourceName, Cursor>,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    period_began: Instant,
    period: Duration,
    /// When the claim from the front was sent that has not returned.
    front_sent: Option<Instant>,
    /// The latest due time of a row that was claimed in this period. `None` until the claim that
    /// started at the front has returned a row.
    reached: Option<DueTime>,
}

impl Cursors {
    /// Creates cursors of which each is at the front.
    #[must_use]
    pub fn new(settings: CursorSettings) -> Self {
        Self { settings, by_source: BTreeMap::new() }
    }

    /// The due time from which a claim of this source starts, if it is sent at `now`. `None` means
    /// the front.
    pub fn start(&mut self, now: Instant, source: &SourceName) -> Option<DueTime> {
        let CursorSettings { period, lag, .. } = self.settings;
        let begun = Cursor { period_began: now, period, front_sent: None, reached: None };
        let cursor = self.by_source.entry(source.clone()).or_insert(begun);
        if now.since(cursor.period_began) >= cursor.period {
            *cursor = begun;
        }
        let start = cursor.reached.map(|reached| reached.before(lag));
        cursor.front_sent = if start.is_none() { Some(now) } else { None };
        start
    }

    /// A claim has claimed a row of this source. `due` is the row's due time before the claim.
    pub fn claimed(&mut self, source: &SourceName, due: DueTime) {
        if let Some(cursor) = self.by_source.get_mut(source) {
            cursor.reached = cursor.reached.max(Some(due));
        }
    }

    /// The claim of this source has returned at `now`.
    pub fn returned(&mut self, now: Instant, source: &SourceName) {
        let CursorSettings { period, front_share, longest_period, .. } = self.settings;
        let Some(cursor) = self.by_source.get_mut(source) else { return };
        if let Some(sent) = cursor.front_sent.take() {
            let share = now.since(sent).saturating_mul(front_share);
            cursor.period = share.clamp(period, longest_period.max(period));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000;
    const SETTINGS: CursorSettings = CursorSettings {
        period: Duration::from_secs(5),
        front_share: 10,
        longest_period: Duration::from_mins(1),
        lag: Duration::from_secs(1),
    };

    fn source() -> SourceName {
        SourceName::parse("orders").unwrap()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(seconds))
    }

    fn due(micros: i64) -> DueTime {
        DueTime::from_micros(micros)
    }

    #[test]
    fn claims_start_at_the_front_once_in_a_period() {
        let mut cursors = Cursors::new(SETTINGS);
        for period in [0, 5, 10] {
            assert_eq!(cursors.start(at(period), &source()), None, "a period starts at the front");
            cursors.claimed(&source(), due(200 * SECOND));
            cursors.claimed(&source(), due(150 * SECOND));
            assert_eq!(cursors.start(at(period), &source()), Some(due(199 * SECOND)));
            assert_eq!(cursors.start(at(period + 4), &source()), Some(due(199 * SECOND)));
        }
    }

    #[test]
    fn constant_claims_do_not_prolong_a_period() {
        let mut cursors = Cursors::new(SETTINGS);
        let mut at_the_front = Vec::new();
        for second in 0..20 {
            if cursors.start(at(second), &source()).is_none() {
                at_the_front.push(second);
            }
            cursors.claimed(&source(), due(100 * SECOND));
            cursors.returned(at(second), &source());
        }
        assert_eq!(at_the_front, [0, 5, 10, 15]);
    }

    #[test]
    fn a_slow_claim_from_the_front_makes_its_period_longer_and_no_other() {
        let mut cursors = Cursors::new(SETTINGS);
        assert_eq!(cursors.start(at(0), &source()), None);
        cursors.claimed(&source(), due(100 * SECOND));
        cursors.returned(at(2), &source());
        // A slow claim from the cursor changes nothing.
        assert_ne!(cursors.start(at(2), &source()), None);
        cursors.returned(at(12), &source());
        assert_ne!(cursors.start(at(19), &source()), None);
        assert_eq!(cursors.start(at(20), &source()), None, "ten times two seconds have passed");
        cursors.claimed(&source(), due(100 * SECOND));
        cursors.returned(at(20), &source());
        assert_ne!(cursors.start(at(24), &source()), None);
        assert_eq!(cursors.start(at(25), &source()), None, "this one was fast");
        cursors.claimed(&source(), due(100 * SECOND));
        cursors.returned(at(40), &source());
        assert_ne!(cursors.start(at(84), &source()), None);
        assert_eq!(cursors.start(at(85), &source()), None, "a period lasts at most a minute");
    }

    #[test]
    fn after_an_empty_claim_the_next_one_starts_at_the_front() {
        let mut cursors = Cursors::new(SETTINGS);
        assert_eq!(cursors.start(at(5), &source()), None);
        cursors.returned(at(5), &source());
        assert_eq!(cursors.start(at(5), &source()), None);
    }

    #[test]
    fn the_rows_of_one_source_do_not_move_the_cursor_of_another() {
        let (mut cursors, other) = (Cursors::new(SETTINGS), SourceName::parse("other").unwrap());
        assert_eq!(cursors.start(at(5), &source()), None);
        assert_eq!(cursors.start(at(5), &other), None);
        cursors.claimed(&source(), due(100 * SECOND));
        assert_eq!(cursors.start(at(6), &source()), Some(due(99 * SECOND)));
        assert_eq!(cursors.start(at(6), &other), None);
    }

    #[test]
    fn the_earliest_and_the_latest_due_times_do_not_overflow() {
        let settings = CursorSettings { lag: Duration::MAX, ..SETTINGS };
        let mut cursors = Cursors::new(settings);
        assert_eq!(cursors.start(at(5), &source()), None);
        cursors.claimed(&source(), due(i64::MIN));
        assert_eq!(cursors.start(at(6), &source()), Some(due(i64::MIN)));
    }

    /// A row of the model table. It can be claimed from the later of its two times.
    #[derive(Clone, Copy, Debug)]
    struct Row {
        due: i64,
        visible_at: i64,
    }

    /// One source's rows, the time, and the cursor. Times are in microseconds.
    struct Table {
        now: i64,
        /// How far the database's clock is ahead of the process's clock.
        ahead: i64,
        rows: Vec<Row>,
        cursors: Cursors,
    }

    /// What happens next.
    #[derive(Clone, Debug)]
    enum Step {
        /// Rows are inserted. For each: how long ago its statement started, and how long its
        /// transaction still takes.
        Insert(Vec<(i64, i64)>),
        Pass(i64),
        Claim {
            limit: usize,
        },
        /// The claim fails: it claims nothing.
        FailedClaim,
        /// The database's clock jumps.
        Jump(i64),
    }

    impl Table {
        fn new() -> Self {
            Self { now: 100 * SECOND, ahead: 0, rows: Vec::new(), cursors: Cursors::new(SETTINGS) }
        }

        fn process_time(&self) -> Instant {
            Instant::from_origin(Duration::from_micros(u64::try_from(self.now).unwrap()))
        }

        /// The rows that can be claimed now, in the order of their due times.
        fn claimable(&self, from: Option<DueTime>) -> Vec<Row> {
            let mut rows: Vec<Row> = self
                .rows
                .iter()
                .copied()
                .filter(|row| row.due <= self.now + self.ahead && row.visible_at <= self.now)
                .filter(|row| from.is_none_or(|from| row.due >= from.micros()))
                .collect();
            rows.sort_by_key(|row| row.due);
            rows
        }

        /// Runs a step. Returns the due times that a claim took and those that it would have taken
        /// from the front.
        fn step(&mut self, step: &Step) -> Option<(Vec<i64>, Vec<i64>)> {
            match step {
                Step::Insert(rows) => {
                    let (now, ahead) = (self.now, self.ahead);
                    self.rows.extend(rows.iter().map(|(ago, still)| Row {
                        due: now + ahead - ago,
                        visible_at: now + still,
                    }));
                }
                Step::Pass(duration) => self.now += duration,
                Step::FailedClaim => {
                    let _ = self.cursors.start(self.process_time(), &source());
                }
                Step::Jump(by) => self.ahead += by,
                Step::Claim { limit } => {
                    let from = self.cursors.start(self.process_time(), &source());
                    let dues = |rows: Vec<Row>| -> Vec<i64> {
                        rows.iter().take(*limit).map(|row| row.due).collect()
                    };
                    let (taken, from_front) =
                        (dues(self.claimable(from)), dues(self.claimable(None)));
                    for due in &taken {
                        let index = self
                            .rows
                            .iter()
                            .position(|row| row.due == *due && row.visible_at <= self.now)
                            .unwrap();
                        self.rows.swap_remove(index);
                        self.cursors.claimed(&source(), DueTime::from_micros(*due));
                    }
                    self.cursors.returned(self.process_time(), &source());
                    return Some((taken, from_front));
                }
            }
            None
        }
    }

    /// Steps with transactions of at most `longest` microseconds, and with clock jumps if
    /// `jumps` is set.
    fn steps(longest: i64, jumps: bool) -> impl Strategy<Value = Vec<Step>> {
        let row = (0..=longest)
            .prop_flat_map(move |took| (0..=took).prop_map(move |still| (took - still, still)));
        let jump = if jumps { -600 * SECOND..600 * SECOND } else { 0..1 };
        let step = prop_oneof![
            3 => proptest::collection::vec(row, 1..4).prop_map(Step::Insert),
            4 => (0..2 * SECOND).prop_map(Step::Pass),
            6 => (1usize..5).prop_map(|limit| Step::Claim { limit }),
            1 => Just(Step::FailedClaim),
            1 => jump.prop_map(Step::Jump),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        // If no transaction takes longer than the lag, the cursor passes over no row.
        #[test]
        fn a_claim_from_the_cursor_takes_what_a_claim_from_the_front_would(steps in steps(SECOND, false)) {
            let mut table = Table::new();
            for step in &steps {
                if let Some((taken, from_front)) = table.step(step) {
                    prop_assert_eq!(taken, from_front);
                }
            }
        }

        // However long transactions take, and whatever the database's clock does, no due row is
        // passed over for longer than a period.
        #[test]
        fn no_due_row_is_passed_over_for_longer_than_a_period(steps in steps(60 * SECOND, true)) {
            let mut table = Table::new();
            for step in &steps {
                table.step(step);
            }
            table.step(&Step::Pass(5 * SECOND));
            table.step(&Step::Claim { limit: usize::MAX });
            prop_assert!(table.claimable(None).is_empty());
        }
    }

    #[test]
    fn the_properties_reach_claims_that_start_behind_the_front() {
        // The second claim uses the cursor. It passes over a row whose transaction took longer than
        // the lag.
        let mut table = Table::new();
        let row = |ago, still| Step::Insert(alloc::vec![(ago, still)]);
        let claim = Step::Claim { limit: 9 };
        table.step(&Step::Insert(alloc::vec![(0, 0)]));
        table.step(&claim);
        table.step(&row(2 * SECOND, 0));
        let (taken, from_front) = table.step(&claim).unwrap();
        assert_eq!((taken.len(), from_front.len()), (0, 1));
    }
}
