//! Formats of cells.

use jiff::Timestamp;
use serde_json::Value;

use crate::selector::LabelSelector;

/// `5m30s`: time since an RFC 3339 stamp; `<unknown>` without one.
#[must_use]
pub fn age(stamp: &str, now: Timestamp) -> String {
    match stamp.parse::<Timestamp>() {
        Ok(t) => duration(now.as_second() - t.as_second()),
        Err(_) => "<unknown>".into(),
    }
}

/// Seconds for people, in upstream's steps: the longer ago, the coarser.
#[must_use]
pub fn duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let s = seconds.max(0);
    if s < 120 {
        return format!("{s}s");
    }
    let m = s / 60;
    let two = |big: i64, a: &str, small: i64, b: &str| {
        if small == 0 { format!("{big}{a}") } else { format!("{big}{a}{small}{b}") }
    };
    if m < 10 {
        return two(m, "m", s % 60, "s");
    }
    if m < 180 {
        return format!("{m}m");
    }
    let h = s / 3600;
    if h < 8 {
        return two(h, "h", m % 60, "m");
    }
    if h < 48 {
        return format!("{h}h");
    }
    let d = h / 24;
    if h < 192 {
        return two(d, "d", h % 24, "h");
    }
    if d < 730 {
        return format!("{d}d");
    }
    let y = d / 365;
    if y < 8 {
        return two(y, "y", d % 365, "d");
    }
    format!("{y}y")
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(v: &Value) -> String {
    let items: Vec<String> =
        v.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if items.is_empty() { "<none>".into() } else { items.join(",") }
}

/// A LabelSelector object in its text form.
pub(super) fn selector(v: &Value) -> String {
    if v.is_null() {
        return "<none>".into();
    }
    let s = LabelSelector::from_object(Some(v));
    if s.nothing {
        return "<error>".into();
    }
    match s.to_string().as_str() {
        "" => "<none>".into(),
        t => t.into(),
    }
}

/// Names and images of a pod template's containers.
pub(super) fn containers(spec: &Value) -> (String, String) {
    let get = |key: &str| {
        let list = spec["containers"].as_array().into_iter().flatten();
        list.filter_map(|c| c[key].as_str()).collect::<Vec<_>>().join(",")
    };
    (get("name"), get("image"))
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations() {
        for (s, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (10 * 3600, "10h"),
            (3 * 86400, "3d"),
            (3 * 86400 + 3600, "3d1h"),
            (10 * 86400, "10d"),
            (800 * 86400, "2y70d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(duration(s), want, "{s}");
        }
    }
}
