//! Tables of text: two spaces between columns, numbers to the right, no lines.

use std::borrow::Cow;

/// Which side a column leans to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

use Align::{Left, Right};

/// Rows under headings.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(Align, &'static str)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; those that start with `>` are of columns to the right.
    pub fn new(headings: &[&'static str]) -> Self {
        let column = |heading: &&'static str| match heading.strip_prefix('>') {
            Some(heading) => (Right, heading),
            None => (Left, *heading),
        };
        Table { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as there are headings.
    pub fn row<const N: usize>(&mut self, cells: [Cow<'_, str>; N]) {
        debug_assert_eq!(N, self.columns.len(), "a row fits its table");
        self.rows.push(cells.into_iter().map(Cow::into_owned).collect());
    }

    /// The table as text, each line ended.
    pub fn render(&self) -> String {
        let widths = self.widths();
        let headings: Vec<String> = self.columns.iter().map(|(_, name)| name.to_string()).collect();
        let mut text = String::new();
        for cells in std::iter::once(&headings).chain(&self.rows) {
            text.push_str(self.line(cells, &widths).trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> =
            self.columns.iter().map(|(_, heading)| heading.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, width), (align, _)) in cells.iter().zip(widths).zip(&self.columns) {
            line.push_str(&match align {
                Left => format!("{cell:<width$}  "),
                Right => format!("{cell:>width$}  "),
            });
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_space() {
        let mut table = Table::new(&["name", ">size", "note"]);
        table.row(["a".into(), "1 KiB".into(), "".into()]);
        table.row(["máquina".into(), "100 MiB".into(), "x".into()]);
        assert_eq!(
            table.render(),
            "name        size  note\n\
             a          1 KiB\n\
             máquina  100 MiB  x\n"
        );
    }
}
