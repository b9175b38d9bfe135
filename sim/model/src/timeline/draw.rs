//! The drawing: an SVG with a column for each lane, time downwards, and the text of each row on the
//! right.

use super::axis::{Axis, LINE, Place};
use super::links::Link;
use super::page::escaped;
use super::spans::{Band, BandKind, Lease};
use super::story::{Moment, MomentKind, Row, Story};
use super::words::{Lane, seconds, words};
use crate::history::{Fault, What};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use surehook_core::id::EventId;

const TIMES: f64 = 84.0;
const WIDE: f64 = 104.0;
const NARROW: f64 = 72.0;
const WORDS: f64 = 700.0;
/// Letters in a line of the text column; they fit into it in any common font.
const LETTERS: usize = 94;
const LETTERS_IN_BOLD: usize = 84;
/// Minimum distance between dimmed arrows of the same lanes.
const PALE_APART: f64 = 4.0;
/// Bars that are drawn next to each other before they overlap.
const SLOTS: usize = 5;

/// The drawing and the headings of its columns.
pub(super) struct Drawing {
    pub(super) svg: String,
    pub(super) heads: Vec<Head>,
    pub(super) width: f64,
}

/// A column's heading and its position.
pub(super) struct Head {
    pub(super) lane: Lane,
    pub(super) x: f64,
    pub(super) width: f64,
}

pub(super) fn draw(story: &Story<'_>, most: usize) -> Drawing {
    let rows = story.rows(most);
    let lines: Vec<Vec<String>> = rows.iter().map(row_lines).collect();
    let place = |(row, lines): (&Row<'_>, &Vec<String>)| Place {
        at: if let Row::Moment(moment) = row { Some(moment.at) } else { None },
        lines: lines.len(),
    };
    let axis = Axis::of(&rows.iter().zip(&lines).map(place).collect::<Vec<_>>());
    let arrows = &story.links.arrows;
    let heads = columns(story, &rows, arrows);
    let right = heads.last().map_or(TIMES, |head| head.x + head.width / 2.0);
    let of_entry = rows.iter().zip(&axis.rows).filter_map(|(row, y)| match row {
        Row::Moment(Moment { entry: Some(entry), .. }) => Some((*entry, *y)),
        Row::Moment(_) | Row::LeftOut(_) => None,
    });
    let of_entry = of_entry.collect();
    let width = right + WORDS;
    let mut canvas = Canvas { story, axis, of_entry, heads, right, svg: String::new() };
    canvas.ground(&rows);
    for band in &story.bands {
        canvas.band(band);
    }
    canvas.leases();
    let (full, dim): (Vec<&Link>, Vec<&Link>) =
        arrows.iter().partition(|link| canvas.is_told(link));
    let mut last: BTreeMap<(&Lane, &Lane, bool), f64> = BTreeMap::new();
    for link in dim {
        let y = canvas.y(link.from.0);
        let place = last.entry((&link.from.1, &link.to.1, link.arrived)).or_insert(f64::MIN);
        if y - *place >= PALE_APART {
            *place = y;
            canvas.link(link, true);
        }
    }
    for link in full {
        canvas.link(link, false);
    }
    canvas.words(&rows, &lines);
    let height = canvas.axis.height + LINE;
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         role=\"img\" aria-label=\"Timeline\">\n{HATCH}{}</svg>\n",
        canvas.svg
    );
    Drawing { svg, heads: canvas.heads, width }
}

const HATCH: &str = "<defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
    patternTransform=\"rotate(45)\"><rect class=\"hatch\" width=\"2\" height=\"6\"/></pattern></defs>\n";

fn row_lines(row: &Row<'_>) -> Vec<String> {
    match row {
        Row::LeftOut(count) => vec![format!("··· {count} left out ···")],
        Row::Moment(moment) => {
            let letters = if matches!(moment.kind, MomentKind::Broken(_)) {
                LETTERS_IN_BOLD
            } else {
                LETTERS
            };
            wrapped(&format!("{}{}", row_head(moment), moment.text), letters)
        }
    }
}

/// The prefix that names the actor.
fn row_head(moment: &Moment) -> String {
    match (moment.kind, &moment.lane) {
        (MomentKind::Broken(_), _) | (_, Lane::World) => String::new(),
        (MomentKind::Step | MomentKind::Fault, lane) => format!("{lane}: "),
    }
}

/// Breaks a text at spaces into lines of at most `letters` letters; a longer word gets its own
/// line.
pub(super) fn wrapped(text: &str, letters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > letters {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// A column for each lane; lanes with entries that are shown get wide ones.
fn columns(story: &Story<'_>, rows: &[Row<'_>], arrows: &[Link]) -> Vec<Head> {
    let mut busy: BTreeSet<Lane> = BTreeSet::new();
    let mut told: BTreeSet<usize> = BTreeSet::new();
    for row in rows {
        if let Row::Moment(moment) = row
            && moment.kind == MomentKind::Step
        {
            busy.insert(moment.lane.clone());
            told.extend(moment.entry);
        }
    }
    for link in
        arrows.iter().filter(|link| told.contains(&link.from.0) || told.contains(&link.to.0))
    {
        busy.extend([link.from.1.clone(), link.to.1.clone()]);
    }
    let entries =
        story.run.entries.iter().map(|entry| super::words::lane(&story.index, &entry.what));
    let lanes: BTreeSet<Lane> =
        entries.chain([Lane::World, Lane::Database]).chain(busy.iter().cloned()).collect();
    let mut x = TIMES;
    let heads = lanes.into_iter().map(|lane| {
        let width = if busy.contains(&lane) { WIDE } else { NARROW };
        x += width;
        Head { lane, x: x - width / 2.0, width }
    });
    heads.collect()
}

struct Canvas<'c, 'a> {
    story: &'c Story<'a>,
    axis: Axis,
    /// The vertical positions of the entries that have a row.
    of_entry: BTreeMap<usize, f64>,
    heads: Vec<Head>,
    right: f64,
    svg: String,
}

impl Canvas<'_, '_> {
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.svg.write_fmt(text).expect("writing to a string cannot fail");
        self.svg.push('\n');
    }

    fn x(&self, lane: &Lane) -> f64 {
        self.heads.iter().find(|head| head.lane == *lane).map_or(TIMES, |head| head.x)
    }

    fn y(&self, entry: usize) -> f64 {
        self.of_entry
            .get(&entry)
            .copied()
            .unwrap_or_else(|| self.axis.at(self.story.run.entries[entry].at))
    }

    /// Draws the lines of lanes and rows, the gaps, and the background of violations.
    fn ground(&mut self, rows: &[Row<'_>]) {
        let (right, bottom) = (self.right, self.axis.height);
        for place in self.heads.iter().map(|head| head.x).collect::<Vec<_>>() {
            self.put(format_args!("<path class=\"lane\" d=\"M{place:.1} 0V{bottom:.1}\"/>"));
        }
        for gap in self.axis.gaps.clone() {
            let (y, middle) = (gap.y, TIMES - 12.0);
            self.put(format_args!(
                "<rect class=\"gap\" x=\"0\" y=\"{:.1}\" width=\"{right:.1}\" height=\"14\"/>",
                y - 7.0
            ));
            self.put(format_args!(
                "<text class=\"gap\" x=\"{middle:.1}\" y=\"{:.1}\">⋮ {}</text>",
                y + 4.0,
                escaped(&gap.text)
            ));
        }
        for (row, y) in rows.iter().zip(self.axis.rows.clone()) {
            match row {
                Row::Moment(moment) if matches!(moment.kind, MomentKind::Broken(_)) => {
                    let bottom = LINE * f64::from(u32::try_from(row_lines(row).len()).unwrap_or(1));
                    let top = y - LINE / 2.0;
                    self.put(format_args!(
                        "<rect class=\"broken\" x=\"0\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{bottom:.1}\"/>",
                        right + WORDS
                    ));
                }
                Row::Moment(Moment { entry: Some(entry), .. })
                    if matches!(
                        self.story.run.entries[*entry].what,
                        What::Fault(Fault::Healed)
                    ) =>
                {
                    self.put(format_args!(
                        "<path class=\"healed\" d=\"M{TIMES} {y:.1}H{right:.1}\"/>"
                    ));
                }
                Row::Moment(_) | Row::LeftOut(_) => {
                    self.put(format_args!(
                        "<path class=\"row\" d=\"M{TIMES} {y:.1}H{right:.1}\"/>"
                    ));
                }
            }
        }
    }

    fn band(&mut self, band: &Band) {
        let beside = self.story.bands.iter().filter(|other| {
            other.lane == band.lane && other.entry < band.entry && other.to > band.from
        });
        let shift = 7.0 * f64::from(u32::try_from(beside.count().min(3)).unwrap_or(3));
        let x = self.x(&band.lane) - 9.0 + shift
            - if band.kind == BandKind::Database { 26.0 } else { 0.0 };
        let (top, bottom) = (self.y(band.entry), self.axis.at(band.to));
        let height = (bottom - top).max(3.0);
        let title = escaped(&self.story.index.plain(&format!(
            "{}: {}, {} to {}",
            band.lane,
            band.what,
            seconds(band.from),
            seconds(band.to)
        )));
        let class = band.kind.as_str();
        self.put(format_args!(
            "<g class=\"band {class}\"><rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"18\" height=\"{height:.1}\"/>\
             <rect class=\"over\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"18\" height=\"{height:.1}\"/><title>{title}</title></g>"
        ));
        if height > 70.0 {
            let (x, y) = (x + 13.0, top + height.min(160.0) / 2.0);
            self.put(format_args!("<text class=\"side\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{class}</text>"));
        }
    }

    fn leases(&mut self) {
        let mut ends: Vec<std::time::Duration> = Vec::new();
        let shown: Vec<&Lease> = self
            .story
            .leases
            .iter()
            .filter(|lease| self.story.is_in_full(&[lease.event]))
            .collect();
        for lease in shown {
            let free =
                ends.iter().position(|end| *end <= lease.from).unwrap_or(ends.len()).min(SLOTS - 1);
            ends.resize(ends.len().max(free + 1), lease.to);
            ends[free] = lease.to;
            let x =
                self.x(&Lane::Database) + 6.0 + 12.0 * f64::from(u32::try_from(free).unwrap_or(0))
                    - if free > 3 { 60.0 } else { 0.0 };
            let top = self.y(lease.entry);
            let bottom =
                lease.settled.map_or_else(|| self.axis.at(lease.to), |settled| self.y(settled));
            let height = (bottom - top).max(4.0);
            let end = if lease.settled.is_some() { "settled" } else { "not settled" };
            let short = self.story.index.short(lease.event);
            let title = format!(
                "{short} #{} leased to {} from {} to {}, {end}",
                lease.attempt,
                lease.process,
                seconds(lease.from),
                seconds(lease.to)
            );
            let open = if lease.settled.is_some() { "" } else { " open" };
            let (class, title) =
                (self.class(&[lease.event]), escaped(&self.story.index.plain(&title)));
            self.put(format_args!(
                "<g class=\"lease{open} {class}\" data-e=\"{short}\"><rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"11\" height=\"{height:.1}\" \
                 rx=\"2\"/><title>{title}</title></g>"
            ));
            if height > 50.0 {
                let (x, y) = (x + 9.0, top + height.min(140.0) / 2.0);
                self.put(format_args!(
                    "<text class=\"side\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{short} #{}</text>",
                    lease.attempt
                ));
            }
        }
    }

    fn is_told(&self, link: &Link) -> bool {
        self.of_entry.contains_key(&link.from.0) || self.of_entry.contains_key(&link.to.0)
    }

    fn link(&mut self, link: &Link, dim: bool) {
        let (from, to) = (self.x(&link.from.1), self.x(&link.to.1));
        let (top, bottom) = (self.y(link.from.0), self.y(link.to.0));
        let what = &self.story.run.entries[link.to.0].what;
        let at = self.story.run.entries[link.to.0].at;
        let events = self.story.index.touched(what);
        let title = escaped(&self.story.index.plain(&format!(
            "{} {}",
            seconds(at),
            words(&self.story.index, what)
        )));
        let names: Vec<String> =
            events.iter().map(|event| self.story.index.short(*event)).collect();
        let lost = if link.arrived { "" } else { " lost" };
        let class = if dim { "dim".to_owned() } else { self.class(&events) };
        // An arrow that did not arrive ends half-way with a cross.
        let reach = if link.arrived { 1.0 } else { 0.55 };
        let (x, y) = (from + (to - from) * reach, top + (bottom - top) * reach);
        let tip = if link.arrived {
            head(from, top, x, y)
        } else {
            format!("M{:.1} {:.1}l9 9m0 -9l-9 9", x - 4.5, y - 4.5)
        };
        self.put(format_args!(
            "<g class=\"link {class}{lost}\" data-e=\"{}\"><path d=\"M{from:.1} {top:.1}L{x:.1} {y:.1}\"/><path class=\"tip\" \
             d=\"{tip}\"/><title>{title}</title></g>",
            names.join(" ")
        ));
        if !dim {
            let level = link.from.0 == link.to.0;
            let share = if link.arrived && level { 0.5 } else { 0.28 };
            let (x, y) = (from + (to - from) * share, top + (bottom - top) * share - 3.0);
            self.put(format_args!(
                "<text class=\"label {class}{lost}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
                escaped(&link.label)
            ));
        }
    }

    fn words(&mut self, rows: &[Row<'_>], lines: &[Vec<String>]) {
        for ((row, lines), y) in rows.iter().zip(lines).zip(self.axis.rows.clone()) {
            let left = self.right + 10.0;
            let (class, names, anchor) = match row {
                Row::LeftOut(_) => ("gone".to_owned(), Vec::new(), String::new()),
                Row::Moment(moment) => {
                    let time = TIMES - 12.0;
                    self.put(format_args!(
                        "<text class=\"time\" x=\"{time:.1}\" y=\"{:.1}\">{}</text>",
                        y + 4.0,
                        seconds(moment.at)
                    ));
                    if moment.kind != (MomentKind::Step) || moment.entry.is_none() {
                        let (x, kind) = (
                            self.x(&moment.lane),
                            if moment.kind == MomentKind::Step { "mark" } else { "mark fault" },
                        );
                        let kind = if matches!(moment.kind, MomentKind::Broken(_)) {
                            "mark red"
                        } else {
                            kind
                        };
                        self.put(format_args!(
                            "<path class=\"{kind}\" d=\"M{:.1} {y:.1}l5 -5 5 5 -5 5z\"/>",
                            x - 5.0
                        ));
                    } else {
                        let (x, class) = (self.x(&moment.lane), self.class(&moment.events));
                        self.put(format_args!(
                            "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.2\"/>"
                        ));
                    }
                    let names =
                        moment.events.iter().map(|event| self.story.index.short(*event)).collect();
                    match moment.kind {
                        MomentKind::Broken(number) => {
                            ("words red".to_owned(), names, format!(" id=\"v{number}\""))
                        }
                        MomentKind::Fault => ("words fault".to_owned(), names, String::new()),
                        MomentKind::Step => {
                            (format!("words {}", self.class(&moment.events)), names, String::new())
                        }
                    }
                }
            };
            let head = if let Row::Moment(moment) = row { row_head(moment) } else { String::new() };
            self.put(format_args!(
                "<text class=\"{class}\"{anchor} data-e=\"{}\">",
                names.join(" ")
            ));
            for (number, line) in lines.iter().enumerate() {
                let y = y + 4.0 + LINE * f64::from(u32::try_from(number).unwrap_or(0));
                let indent = if number == 0 { 0.0 } else { 14.0 };
                let (who, rest) = line.split_at(if number == 0 && line.starts_with(&head) {
                    head.len()
                } else {
                    0
                });
                let (who, rest) = (escaped(who), escaped(rest));
                self.put(format_args!("<tspan x=\"{:.1}\" y=\"{y:.1}\"><tspan class=\"who\">{who}</tspan>{rest}</tspan>", left + indent));
            }
            self.put(format_args!("</text>"));
        }
    }

    /// The CSS class with the colour of an event that is shown in full.
    fn class(&self, events: &[EventId]) -> String {
        self.story.colour(events).map_or_else(|| "c".to_owned(), |colour| format!("c c{colour}"))
    }
}

/// The path of an arrow's head.
fn head(from_x: f64, from_y: f64, x: f64, y: f64) -> String {
    let (dx, dy) = (x - from_x, y - from_y);
    let length = (dx * dx + dy * dy).sqrt().max(0.1);
    let (ux, uy) = (dx / length * 8.0, dy / length * 8.0);
    let (left_x, left_y) = (x - ux - uy * 0.45, y - uy + ux * 0.45);
    let (right_x, right_y) = (x - ux + uy * 0.45, y - uy - ux * 0.45);
    format!("M{left_x:.1} {left_y:.1}L{x:.1} {y:.1}L{right_x:.1} {right_y:.1}")
}
