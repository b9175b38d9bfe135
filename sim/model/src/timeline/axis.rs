//! The time axis of the drawing. It runs downwards with one line for each row; idle time is
//! compressed into marked gaps.

use super::words::span;
use crate::history::At;
use std::time::Duration;

/// Distance between lines of text.
pub(super) const LINE: f64 = 19.0;
/// Idle time from this length on is drawn as a gap of fixed height, marked with its length.
const SILENCE: Duration = Duration::from_secs(2);
const GAP: f64 = 30.0;
/// The most that a shorter idle time adds between two rows.
const PAUSE: f64 = 12.0;

/// The position of each row and each time, from the top.
pub(super) struct Axis {
    /// The middle of each row's first line.
    pub(super) rows: Vec<f64>,
    pub(super) gaps: Vec<Gap>,
    pub(super) height: f64,
    times: Vec<(At, f64)>,
}

/// A compressed stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gap {
    /// The middle of the gap.
    pub(super) y: f64,
    pub(super) text: String,
}

/// The input of the axis for one row.
pub(super) struct Place {
    /// `None` for a row that replaces left-out rows.
    pub(super) at: Option<At>,
    pub(super) lines: usize,
}

impl Axis {
    pub(super) fn of(places: &[Place]) -> Self {
        let mut axis = Self { rows: Vec::new(), gaps: Vec::new(), height: 0.0, times: Vec::new() };
        let (mut y, mut last) = (LINE, None);
        for place in places {
            if let (Some(at), Some(last)) = (place.at, last) {
                let idle: Duration = at.saturating_sub(last);
                if idle >= SILENCE {
                    axis.gaps.push(Gap { y: y - LINE / 2.0 + GAP / 2.0, text: span(idle) });
                    y += GAP;
                } else {
                    y += PAUSE * idle.as_secs_f64() / SILENCE.as_secs_f64();
                }
            }
            if let Some(at) = place.at {
                axis.times.push((at, y));
            }
            last = place.at.or(last);
            axis.rows.push(y);
            y += LINE * f64::from(u32::try_from(place.lines.max(1)).unwrap_or(u32::MAX));
        }
        axis.height = y;
        axis
    }

    /// The position of a time: that of the first row with this time, or interpolated between the
    /// neighbouring rows.
    pub(super) fn at(&self, at: At) -> f64 {
        let next = self.times.partition_point(|(time, _)| *time < at);
        match (next.checked_sub(1).and_then(|before| self.times.get(before)), self.times.get(next))
        {
            (_, Some((time, y))) if *time == at => *y,
            (Some((from, top)), Some((to, bottom))) => {
                let share = (at - *from).as_secs_f64() / (*to - *from).as_secs_f64();
                top + (bottom - top) * share
            }
            (Some((_, last)), None) => last + LINE / 2.0,
            (None, Some((_, first))) => first - LINE / 2.0,
            (None, None) => 0.0,
        }
    }
}
