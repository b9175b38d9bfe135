//! Where the claims of a simulated process start: the production cursors, with the planted bug that
//! concerns them.

use crate::bugs::Bug;
use crate::recorder::elapsed;
use std::collections::BTreeMap;
use surehook_core::cursor::{Cursors, DueTime};
use surehook_core::source::SourceName;
use surehook_core::time::Instant;
use surehook_model::scenario::DatabaseKind;

/// The cursors of one process.
pub(crate) struct ClaimCursors {
    kind: DatabaseKind,
    cursors: Cursors,
    /// The latest due time of a claimed row of each source, for the planted bug.
    latest: BTreeMap<SourceName, DueTime>,
    bug: Option<Bug>,
}

impl ClaimCursors {
    pub(crate) fn new(kind: DatabaseKind, bug: Option<Bug>) -> Self {
        Self { kind, cursors: Cursors::default(), latest: BTreeMap::new(), bug }
    }

    /// Where a claim of this source starts; `None` means the front. The store on SQLite, which has
    /// one writer, always starts at the front.
    pub(crate) fn start(&mut self, source: &SourceName) -> Option<DueTime> {
        if self.kind == DatabaseKind::OneWriter {
            return None;
        }
        let from = self.cursors.start(Instant::from_origin(elapsed()), source);
        if self.bug == Some(Bug::CursorNeverReturns) {
            return self.latest.get(source).copied();
        }
        from
    }

    /// A claim has claimed a row that was due at this time.
    pub(crate) fn claimed(&mut self, source: &SourceName, due: DueTime) {
        self.cursors.claimed(source, due);
        let latest = self.latest.entry(source.clone()).or_insert(due);
        *latest = due.max(*latest);
    }

    /// A claim of this source has returned.
    pub(crate) fn returned(&mut self, source: &SourceName) {
        self.cursors.returned(Instant::from_origin(elapsed()), source);
    }
}
