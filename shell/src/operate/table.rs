//! Tables that fit their terminal. If a table is too wide, its flexible columns get narrower, and
//! then the least important columns are left out. Output that is no terminal has no width: nothing
//! is cut.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement};
use console::{measure_text_width, truncate_str};

/// The spaces between two columns.
const GAP: usize = 2;

/// The width of the terminal on standard output; `None` if it is no terminal.
pub(super) fn terminal_width() -> Option<usize> {
    console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns))
}

/// A table of lines, without a border.
pub(super) fn plain(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    table
}

pub(super) fn written(table: &comfy_table::Table) -> String {
    // Each cell has one space on both sides.
    let line = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n";
    table.lines().map(line).collect()
}

/// One column.
pub(super) struct Column {
    header: &'static str,
    cells: Vec<String>,
    /// Columns with a lower rank are cut and left out first. [`Self::ESSENTIAL`] ones always stay.
    rank: u8,
    /// The narrowest that it can get. `None`: it is shown completely or not at all.
    least: Option<usize>,
    is_number: bool,
}

impl Column {
    const ESSENTIAL: u8 = u8::MAX;

    /// A column that is always shown completely.
    pub(super) fn new(header: &'static str, cells: impl Iterator<Item = String>) -> Self {
        let cells = cells.collect();
        Self { header, cells, rank: Self::ESSENTIAL, least: None, is_number: false }
    }

    /// The same column, which can be left out. Columns with a lower rank are left out first.
    pub(super) fn ranked(self, rank: u8) -> Self {
        Self { rank, ..self }
    }

    /// The same column, whose cells can be cut to this width.
    pub(super) fn at_least(self, width: usize) -> Self {
        Self { least: Some(width), ..self }
    }

    /// The same column, aligned to the right.
    pub(super) fn of_numbers(self) -> Self {
        Self { is_number: true, ..self }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| measure_text_width(cell));
        cells.max().unwrap_or(0).max(self.header.len())
    }

    fn least(&self) -> usize {
        self.least.map_or(self.width(), |least| least.max(self.header.len()).min(self.width()))
    }
}

/// The table, no wider than `width` as far as that is possible.
pub(super) fn fitted(mut columns: Vec<Column>, width: Option<usize>) -> String {
    if let Some(width) = width {
        fit(&mut columns, width);
    }
    let mut table = plain(&columns.iter().map(|column| column.header).collect::<Vec<_>>());
    let rows = columns.first().map_or(0, |column| column.cells.len());
    for row in 0..rows {
        table.add_row(columns.iter().map(|column| &column.cells[row]));
    }
    for (column, shown) in columns.iter().zip(table.column_iter_mut()) {
        if column.is_number {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    written(&table)
}

fn fit(columns: &mut Vec<Column>, width: usize) {
    let total = |widths: &mut dyn Iterator<Item = usize>| {
        widths.map(|width| width + GAP).sum::<usize>().saturating_sub(GAP)
    };
    while total(&mut columns.iter().map(Column::least)) > width {
        let droppable =
            columns.iter().enumerate().filter(|(_, column)| column.rank < Column::ESSENTIAL);
        let Some((lowest, _)) = droppable.min_by_key(|(_, column)| column.rank) else { break };
        columns.remove(lowest);
    }
    let mut excess = total(&mut columns.iter().map(Column::width)).saturating_sub(width);
    let mut by_rank: Vec<&mut Column> = columns.iter_mut().collect();
    by_rank.sort_by_key(|column| column.rank);
    for column in by_rank {
        let cut = excess.min(column.width() - column.least());
        if cut > 0 {
            let most = column.width() - cut;
            for cell in &mut column.cells {
                *cell = truncate_str(cell, most, "…").into_owned();
            }
            excess -= cut;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let of =
            |header, cells: [&str; 2]| Column::new(header, cells.map(str::to_owned).into_iter());
        vec![
            of("ID", ["0123456789", "0123456789"]),
            of("N", ["7", "700"]).ranked(1).of_numbers(),
            of("KEY", ["a long key", "東京東京東京"]).ranked(3).at_least(5),
            of("WHY", ["no", "because of this"]).ranked(2).at_least(4),
        ]
    }

    fn at(width: Option<usize>) -> String {
        fitted(columns(), width)
    }

    #[test]
    fn without_a_terminal_nothing_is_cut() {
        let whole = "\
ID            N  KEY           WHY
0123456789    7  a long key    no
0123456789  700  東京東京東京  because of this
";
        assert_eq!(at(None), whole);
        assert_eq!(at(Some(46)), whole);
    }

    #[test]
    fn cells_are_cut_by_rank_before_columns_are_left_out() {
        let cut = "\
ID            N  KEY           WHY
0123456789    7  a long key    no
0123456789  700  東京東京東京  because …
";
        assert_eq!(at(Some(40)), cut);
        let cut = "\
ID            N  KEY    WHY
0123456789    7  a lo…  no
0123456789  700  東京…  bec…
";
        assert_eq!(at(Some(28)), cut);
        let cut = "\
ID          KEY        WHY
0123456789  a long k…  no
0123456789  東京東京…  bec…
";
        assert_eq!(at(Some(27)), cut);
        assert_eq!(at(Some(12)), "ID\n0123456789\n0123456789\n");
        assert_eq!(at(Some(1)), "ID\n0123456789\n0123456789\n", "an id is never cut");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_while_the_essential_columns_fit() {
        for width in 10..60 {
            for line in at(Some(width)).lines() {
                assert!(measure_text_width(line) <= width, "{width}: {line}");
            }
        }
    }
}
