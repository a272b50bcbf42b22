//! Writes numbers, times and tables for people.

use std::io::{self, Write};

use serde_json::Value;

/// Writes JSON, indented.
pub(crate) fn json(value: &Value, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{value:#}")
}

/// Writes a table, whose columns are as wide as they have to be. The first column is aligned to the left, as are those whose
/// title ends with a space.
pub(crate) fn table(titles: &[&str], rows: &[Vec<String>], out: &mut dyn Write) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].trim_end().chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let titles_row = titles.iter().map(|title| title.trim_end().to_owned()).collect();
    for row in std::iter::once(&titles_row).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let is_left = column == 0 || titles[column].ends_with(' ');
            let padding = " ".repeat(widths[column] - cell.chars().count());
            line +=
                &if is_left { format!("{cell}{padding}  ") } else { format!("{padding}{cell}  ") };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

pub(crate) fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default())
}

/// Returns a text without control characters, which could move the cursor of a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

pub(crate) fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

pub(crate) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.1} %", 100.0 * ratio)
}

pub(crate) fn bytes(value: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = value as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.*} {}", usize::from(unit > 0 && value < 100.0), units[unit])
}

/// Writes a duration in seconds.
pub(crate) fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        0.0 => return "0".to_owned(),
        seconds if seconds < 1e-6 => (seconds * 1e9, "ns"),
        seconds if seconds < 1e-3 => (seconds * 1e6, "µs"),
        seconds if seconds < 1.0 => (seconds * 1e3, "ms"),
        seconds if seconds < 120.0 => (seconds, "s"),
        seconds if seconds < 7200.0 => (seconds / 60.0, "min"),
        seconds => (seconds / 3600.0, "h"),
    };
    format!("{value:.*} {unit}", usize::from(value < 9.95))
}

/// Writes a duration in nanoseconds, and a dash for one that was not measured.
pub(crate) fn nanos(value: &Value) -> String {
    match value.as_u64() {
        None | Some(0) => "–".to_owned(),
        Some(nanos) => time(nanos as f64 / 1e9),
    }
}

/// Writes the target of an invalidation.
pub(crate) fn target(target: &Value) -> String {
    let mut words = text(&target["class"]);
    if let Some(name) = target["text"].as_str().filter(|name| !name.is_empty()) {
        words += &format!(" {}", printable(name));
    }
    if let Some(namespace) = target["namespace"].as_str() {
        words += &format!(" in {}", printable(namespace));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_short() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([12, 1536, 200 << 20].map(bytes), ["12 B", "1.5 KiB", "200 MiB"]);
        assert_eq!(
            [0.0, 3.2e-7, 4.5e-5, 0.0123, 5.0, 600.0, 1e5].map(time),
            ["0", "320 ns", "45 µs", "12 ms", "5.0 s", "10 min", "28 h"]
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "22".to_owned()]];
        let mut out = Vec::new();
        table(&["name", "n"], &rows, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "name   n\na      1\nlong  22\n");
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
