//! Printing results: failures to print are errors, not panics.

use serde::Serialize;
use std::io::Write;

/// Prints text and a line end to stdout.
///
/// # Errors
/// When stdout cannot be written to.
pub fn text(text: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let wrote = writeln!(out, "{text}").and_then(|()| out.flush());
    wrote.map_err(|e| anyhow::Error::new(e).context("cannot write to the standard output"))
}

/// Prints one JSON object on one line to stdout.
///
/// # Errors
/// When stdout cannot be written to.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    text(serde_json::to_string(value)?)
}

/// Rows as columns: the first column flush left, the others flush right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&mut head.iter().copied());
    let rows = rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

/// A large number with an SI prefix: 168.7 G.
pub fn si(number: u64) -> String {
    for (unit, name) in [(1_000_000_000u64, "G"), (1_000_000, "M"), (1_000, "k")] {
        if number >= unit {
            return format!("{:.1} {name}", number as f64 / unit as f64);
        }
    }
    format!("{number} ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "10".into()], vec!["long".into(), "7".into()]];
        assert_eq!(super::table(&["name", "n"], &rows), "name   n\na     10\nlong   7");
        assert_eq!(super::si(168_653_000_000), "168.7 G");
    }
}
