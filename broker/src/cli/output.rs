//! Printing: standard output, aligned tables, sizes and times, text that is safe on a terminal.

use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use clap::ValueEnum;
use serde_json::Value;

/// How results are printed: for people, or as a JSON document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Text,
    Json,
}

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write to standard output")]
pub(super) struct WriteError(#[source] pub(super) io::Error);

/// Buffered standard output.
#[derive(Debug)]
pub(super) struct Output {
    stdout: BufWriter<Stdout>,
    is_terminal: bool,
}

impl Output {
    pub(super) fn stdout() -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        Self { stdout: BufWriter::new(stdout), is_terminal }
    }

    /// Whether a person reads it directly.
    pub(super) const fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.stdout.write_all(bytes).map_err(WriteError)
    }

    pub(super) fn flush(&mut self) -> Result<(), WriteError> {
        self.stdout.flush().map_err(WriteError)
    }

    /// Writes and flushes a JSON document.
    pub(super) fn json(&mut self, value: &Value) -> Result<(), WriteError> {
        self.write(format!("{value:#}\n").as_bytes())?;
        self.flush()
    }

    /// Writes and flushes text.
    pub(super) fn text(&mut self, text: &str) -> Result<(), WriteError> {
        self.write(text.as_bytes())?;
        self.flush()
    }
}

/// Rows of cells under headings; columns are as wide as their widest cell.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns of numbers, aligned to the right.
    numbers: Vec<bool>,
}

impl Table {
    /// Headings; those that end in `#` stand over numbers and are printed without it.
    pub(super) fn new(headings: &[&str]) -> Self {
        let numbers = headings.iter().map(|heading| heading.ends_with('#')).collect();
        let headings = headings.iter().map(|heading| heading.trim_end_matches('#').to_owned()).collect();
        Self { rows: vec![headings], numbers }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.numbers.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), number) in row.iter().zip(&widths).zip(&self.numbers) {
                if *number {
                    write!(line, "{cell:>width$}  ")?;
                } else {
                    write!(line, "{cell:<width$}  ")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A size with three digits or so.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut size = n as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// Things a second: whole ones from ten on.
pub(super) fn rate(n: f64) -> String {
    if n == 0.0 || n >= 9.95 { format!("{n:.0}") } else { format!("{n:.1}") }
}

/// Wall-clock time in UTC; `-` for none.
pub(super) fn time(micros: u64) -> String {
    i64::try_from(micros)
        .ok()
        .filter(|micros| *micros != 0)
        .and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok())
        .map_or_else(|| "-".to_owned(), |timestamp| timestamp.to_string())
}

/// A duration in its largest whole unit; `-` for none.
pub(super) fn millis(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { crate::config::show_duration(std::time::Duration::from_millis(n)) }
}

/// A latency, given in nanoseconds, in the unit that fits it.
pub(super) fn nanos(n: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let seconds = n as f64 / 1e9;
    if n < 1_000_000 {
        format!("{:.0} us", seconds * 1e6)
    } else if n < 1_000_000_000 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

/// A limit; `-` for none.
pub(super) fn limit(n: u64) -> String {
    if n == 0 { "-".to_owned() } else { n.to_string() }
}

/// Text that others chose, without control characters, so that it can't steer the terminal.
pub(super) fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&["NAME", "DEPTH#", "FILTER"]);
        table.row(vec!["traffic".into(), "1234".into(), "sensor/+/data".into()]);
        table.row(vec!["ü".into(), "0".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME     DEPTH  FILTER\n\
             traffic   1234  sensor/+/data\n\
             ü            0\n"
        );
    }

    #[test]
    fn sizes_times_and_limits() {
        assert_eq!(
            [0, 1023, 1024, 1_048_576, 10 << 30].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "10.0 GiB"]
        );
        assert_eq!([999_000, 1_500_000, 2_500_000_000].map(nanos), ["999 us", "1.50 ms", "2.50 s"]);
        assert_eq!([0.0, 0.25, 9.94, 9.96, 12345.6].map(rate), ["0", "0.2", "9.9", "10", "12346"]);
        assert_eq!(time(0), "-");
        assert_eq!(time(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
        assert_eq!(time(u64::MAX), "-");
        assert_eq!([0, 30_000].map(millis), ["-", "30s"]);
        assert_eq!([0, 7].map(limit), ["-", "7"]);
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\tb\u{1b}[2Jc\n"), "a\tb\\u{1b}[2Jc\\n");
    }
}
