//! The time axis of the drawing: downwards, a line for each row, idle time squeezed into marked gaps.

use super::words::span;
use crate::history::At;
use std::time::Duration;

/// From one line of text to the next.
pub(super) const LINE: f64 = 19.0;
/// A silence that is marked, with its length, and drawn no longer however long it was.
const SILENCE: Duration = Duration::from_secs(2);
const GAP: f64 = 30.0;
/// What a shorter pause may add between two rows.
const PAUSE: f64 = 12.0;

/// Where each row and each time is, from the top.
pub(super) struct Axis {
    /// The middle of each row's first line.
    pub(super) rows: Vec<f64>,
    pub(super) gaps: Vec<Gap>,
    pub(super) height: f64,
    times: Vec<(At, f64)>,
}

/// A stretch in which time is squeezed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gap {
    /// Its middle.
    pub(super) y: f64,
    pub(super) text: String,
}

/// What the axis needs to know of a row.
pub(super) struct Place {
    /// `None` for one that stands for rows that are left out.
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

    /// Where a time is: at the first row of that time, or in proportion between the rows around it.
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
