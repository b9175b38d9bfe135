//! The results: as text, as Markdown and as JSON.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One line of a table: a cell of the matrix, and its figures.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) cell: String,
    figures: Vec<(&'static str, Vec<f64>)>,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
}

impl Row {
    /// Adds the figure of one run.
    pub(crate) fn add(&mut self, name: &'static str, value: f64) {
        match self.figures.iter_mut().find(|figure| figure.0 == name) {
            Some(figure) => figure.1.push(value),
            None => self.figures.push((name, vec![value])),
        }
    }

    fn line(&self) -> String {
        let figures = self.figures.iter().map(|(name, runs)| format!("{name} {}", shown(runs)));
        format!("{:<10} {:<28} {}", self.group, self.cell, figures.collect::<Vec<_>>().join("  "))
    }
}

impl Report {
    /// Returns the row of this name, and creates it if it does not exist.
    pub(crate) fn row(&mut self, group: &'static str, cell: impl Into<String>) -> &mut Row {
        let cell = cell.into();
        let at =
            self.rows.iter().position(|row| row.group == group && row.cell == cell).unwrap_or_else(
                || {
                    self.rows.push(Row { group, cell, figures: Vec::new() });
                    self.rows.len() - 1
                },
            );
        &mut self.rows[at]
    }

    /// The median of a figure, if it was measured.
    pub(crate) fn median(&self, group: &str, cell: &str, name: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.group == group && row.cell == cell)?;
        row.figures.iter().find(|figure| figure.0 == name).map(|figure| median(&figure.1))
    }

    /// Prints the rows of a group when they are complete.
    pub(crate) fn print(&self, group: &str) {
        self.rows
            .iter()
            .filter(|row| row.group == group)
            .for_each(|row| println!("{}", row.line()));
    }

    /// As Markdown: one table for each group.
    pub(crate) fn markdown(&self, head: &str) -> String {
        let mut text = format!(
            "{head}\nEach figure is the median of its runs, with minimum and maximum in brackets.\n"
        );
        let mut groups: Vec<&'static str> = self.rows.iter().map(|row| row.group).collect();
        groups.dedup();
        for group in groups {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.group == group).collect();
            let mut names: Vec<&'static str> = Vec::new();
            for (name, _) in rows.iter().flat_map(|row| &row.figures) {
                if !names.contains(name) {
                    names.push(name);
                }
            }
            write!(text, "\n## {group}\n\n| |").expect("memory");
            for name in &names {
                write!(text, " {name} |").expect("memory");
            }
            text += "\n|---|";
            text += &"--:|".repeat(names.len());
            for row in rows {
                write!(text, "\n| {} |", row.cell).expect("memory");
                for name in &names {
                    let runs = row
                        .figures
                        .iter()
                        .find(|figure| figure.0 == *name)
                        .map(|figure| shown(&figure.1));
                    write!(text, " {} |", runs.unwrap_or_default()).expect("memory");
                }
            }
            text += "\n";
        }
        text
    }

    /// As JSON: every run of every figure.
    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            let figures: BTreeMap<_, _> =
                row.figures.iter().map(|(name, runs)| (*name, runs)).collect();
            json!({"group": row.group, "cell": row.cell, "figures": figures})
        };
        json!(self.rows.iter().map(row).collect::<Vec<_>>())
    }
}

fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

fn shown(runs: &[f64]) -> String {
    let (least, most) = runs
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), &run| (least.min(run), most.max(run)));
    let middle = figure(median(runs));
    if runs.len() < 2 { middle } else { format!("{middle} ({}–{})", figure(least), figure(most)) }
}

/// Three significant digits, or an integer for values of 100 and more.
fn figure(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = if magnitude >= 100.0 || magnitude == 0.0 {
        0
    } else if magnitude >= 10.0 {
        1
    } else if magnitude >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}")
}
