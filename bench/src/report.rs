//! What was measured, as a table.

use std::fmt::Write as _;
use std::time::Duration;

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// What is wanted.
    pub(crate) goal: String,
    /// What came out.
    pub(crate) measured: String,
    /// The same done by a peer, or the limit of the machine, in the same run.
    pub(crate) peer: String,
}

/// The table, printed line by line as it grows and as a whole at the end.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a line.
    pub(crate) fn row(
        &mut self,
        what: impl Into<String>,
        goal: &str,
        measured: impl Into<String>,
        peer: impl Into<String>,
    ) {
        let row = Row { what: what.into(), goal: goal.into(), measured: measured.into(), peer: peer.into() };
        eprintln!("  {} | goal {} | {} | {}", row.what, row.goal, row.measured, row.peer);
        self.rows.push(row);
    }

    /// The whole table in Markdown.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let mut out =
            String::from("| what | goal | measured | peer or limit in the same run |\n| --- | --- | --- | --- |\n");
        for r in &self.rows {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "| {} | {} | {} | {} |", r.what, r.goal, r.measured, r.peer);
        }
        out
    }
}

/// Times of single operations, exact.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<u32>);

impl Times {
    /// Remembers one, in whole microseconds.
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds another's.
    pub(crate) fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The share `part` (0 to 1) took at most this many milliseconds; 0 without any.
    pub(crate) fn at(&mut self, part: f64) -> f64 {
        self.0.sort_unstable();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = (self.0.len().saturating_sub(1) as f64 * part) as usize;
        self.0.get(index).map_or(0.0, |us| f64::from(*us) / 1e3)
    }

    /// `p50 / p99 / worst` in milliseconds.
    pub(crate) fn summary(&mut self) -> String {
        format!("p50 {:.2} ms, p99 {:.2} ms, worst {:.1} ms", self.at(0.5), self.at(0.99), self.at(1.0))
    }
}

/// Bytes as MiB.
#[must_use]
pub(crate) fn mib(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let b = bytes as f64;
    b / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let mut t = Times::default();
        assert_eq!(t.at(0.5), 0.0);
        for ms in (1..=100).rev() {
            t.add(Duration::from_millis(ms));
        }
        assert_eq!((t.at(0.0), t.at(0.5), t.at(0.99), t.at(1.0)), (1.0, 50.0, 99.0, 100.0));
    }
}
