//! A definition as a picture for people: boxes and arrows for a terminal ([`text()`]), or SVG ([`svg()`]), both coloured
//! by how a run fared. Pure functions, so that the same definition and status always give the same bytes.
//!
//! States are put in layers by their longest way from the start; transitions that lead back are not drawn as lines in
//! the text but named in the box that they leave. Machines inside Parallel and Map are pictures inside their box.

mod layers;
mod sketch;
mod svg;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

pub use svg::svg;
pub use text::{Colors, text};

/// How far a state is in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It runs now.
    Running,
    /// It waits to be retried.
    Retrying,
    /// It was left well.
    Succeeded,
    /// It failed, and a catcher took over.
    Caught,
    /// It failed.
    Failed,
    /// It was stopped.
    Aborted,
}

impl Phase {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Caught => "caught",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// How one state fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateStatus {
    /// How far it is.
    pub phase: Phase,
    /// The time spent in it, all visits together.
    pub duration: Option<Duration>,
    /// How often it was entered.
    pub count: u64,
}

/// The states that a run has come to, by name. Names are unique over nested machines.
pub type Status = BTreeMap<String, StateStatus>;

/// A duration in the unit that suits it.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds, time.as_micros()) {
        (_, micros @ 0..1_000) => format!("{micros} µs"),
        (_, micros @ 1_000..10_000) => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        (0, micros) => format!("{} ms", micros / 1_000),
        (1..60, _) => format!("{seconds}.{} s", time.subsec_millis() / 100),
        (60..3_600, _) => format!("{} min {} s", seconds / 60, seconds % 60),
        (3_600..86_400, _) => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// The second line of a box: type, time, visits.
fn details(type_name: &str, status: Option<&StateStatus>) -> String {
    let mut out = type_name.to_owned();
    if let Some(status) = status {
        if let Some(time) = status.duration {
            out.push_str(" · ");
            out.push_str(&duration(time));
        }
        if status.count > 1 {
            out.push_str(&format!(" · ×{}", status.count));
        }
    }
    out
}

/// The columns that a character takes in a terminal: two for those of East Asian scripts and pictures.
fn columns_of(c: char) -> usize {
    let wide = matches!(u32::from(c),
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60
        | 0xffe0..=0xffe6 | 0x1f300..=0x1f64f | 0x1f900..=0x1f9ff | 0x20000..=0x3fffd);
    if wide { 2 } else { 1 }
}

/// The columns that a text takes in a terminal.
fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// A text of at most that many columns.
fn shorten(text: &str, most: usize) -> String {
    if columns(text) <= most {
        return text.to_owned();
    }
    let mut used = 1;
    let kept = text.chars().take_while(|c| {
        used += columns_of(*c);
        used <= most
    });
    kept.chain(['…']).collect()
}
