//! Columns and ages as kubectl prints them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Rows under a head, each column as wide as its widest cell, three blanks between.
#[must_use]
pub fn render(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut out = line(&mut head.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// How long ago, in kubectl's short form.
#[must_use]
pub fn age(time: Option<&Time>, now: Timestamp) -> String {
    let Some(time) = time else { return "<unknown>".into() };
    let s = now.duration_since(time.0).as_secs().max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    match s {
        0..120 => format!("{s}s"),
        _ if m < 10 && s % 60 > 0 => format!("{m}m{}s", s % 60),
        _ if h < 3 => format!("{m}m"),
        _ if h < 8 && m % 60 > 0 => format!("{h}h{}m", m % 60),
        _ if h < 48 => format!("{h}h"),
        _ if d < 8 && h % 24 > 0 => format!("{d}d{}h", h % 24),
        _ => format!("{d}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_even() {
        let rows = [vec!["a".into(), "long cell".into(), String::new()], vec!["bcd".into(), "x".into(), "y".into()]];
        assert_eq!(render(&["N", "TWO", "C"], &rows), "N     TWO         C\na     long cell\nbcd   x           y\n");
    }

    #[test]
    fn ages_are_short() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (130, "2m10s"),
            (600, "10m"),
            (7200, "120m"),
            (11_400, "3h10m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (900_000, "10d"),
        ];
        for (ago, text) in cases {
            let then = Time(Timestamp::from_second(10_000_000 - ago).unwrap());
            assert_eq!(age(Some(&then), now), text);
        }
        assert_eq!(age(None, now), "<unknown>");
    }
}
