//! Grammar of CronJob schedules: five fields, or a word that stands for them.
//!
//! Only says whether a text is a schedule, and if not why, in the words of the library that upstream uses; when a
//! schedule fires is the controller's business.

/// A field: its bounds and the names of its values.
struct Field {
    min: u64,
    max: u64,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Field; 5] = [
    Field { min: 0, max: 59, names: &[] },
    Field { min: 0, max: 23, names: &[] },
    Field { min: 1, max: 31, names: &[] },
    Field { min: 1, max: 12, names: MONTHS },
    Field { min: 0, max: 6, names: DAYS },
];
const WORDS: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Checks a schedule.
///
/// # Errors
/// Why it is none.
pub(super) fn check(text: &str) -> Result<(), String> {
    let mut spec = text;
    if spec.is_empty() {
        return Err("empty spec string".into());
    }
    if let Some(rest) = spec.strip_prefix("TZ=").or_else(|| spec.strip_prefix("CRON_TZ=")) {
        let (zone, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        if !is_zone(zone) {
            return Err(format!("provided bad location {zone}: unknown time zone {zone}"));
        }
        spec = rest.trim();
    }
    if spec.starts_with('@') {
        return word(spec);
    }
    let fields: Vec<&str> = spec.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (text, field) in fields.iter().zip(&FIELDS) {
        for part in text.split(',').filter(|p| !p.is_empty()) {
            range(part, field)?;
        }
    }
    Ok(())
}

/// Whether a time zone of this name is known.
pub(super) fn is_zone(name: &str) -> bool {
    matches!(name, "" | "UTC") || jiff::tz::TimeZone::get(name).is_ok()
}

fn word(spec: &str) -> Result<(), String> {
    if WORDS.contains(&spec) {
        return Ok(());
    }
    match spec.strip_prefix("@every ") {
        Some(d) => duration(d).map_err(|e| format!("failed to parse duration {spec}: {e}")),
        None => Err(format!("unrecognized descriptor: {spec}")),
    }
}

/// Checks a length of time such as `1h30m`.
fn duration(text: &str) -> Result<(), String> {
    const UNITS: &[&str] = &["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
    let quoted = crate::invalid::quote_str(text);
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(());
    }
    if rest.is_empty() {
        return Err(format!("time: invalid duration {quoted}"));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        if !number.bytes().any(|b| b.is_ascii_digit()) || number.matches('.').count() > 1 {
            return Err(format!("time: invalid duration {quoted}"));
        }
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, after) = tail.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {quoted}"));
        }
        if !UNITS.contains(&unit) {
            return Err(format!("time: unknown unit {} in duration {quoted}", crate::invalid::quote_str(unit)));
        }
        rest = after;
    }
    Ok(())
}

fn range(text: &str, field: &Field) -> Result<(), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
        (field.min, field.max)
    } else {
        let start = value(ends[0], field)?;
        match ends.as_slice() {
            [_] => (start, start),
            [_, high] => (start, value(high, field)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            if ends.len() == 1 {
                end = field.max;
            }
            number(step)?
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if start < field.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", field.min));
    }
    if end > field.max {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", field.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

fn value(text: &str, field: &Field) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match field.names.iter().position(|n| *n == lower) {
        Some(i) => Ok(field.min + i as u64),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    match text.parse::<i64>() {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => Ok(n.unsigned_abs()),
        Err(_) => {
            let quoted = crate::invalid::quote_str(text);
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: invalid syntax"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn grammar() {
        for (text, why) in [
            ("*/5 0-6 1,15 jan-MAR sun", ""),
            ("? ? ? ? ?", ""),
            ("@every 1h30m", ""),
            ("@daily", ""),
            ("CRON_TZ=UTC 0 0 * * *", ""),
            ("0 0 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every 5x", "failed to parse duration @every 5x: time: unknown unit \"x\" in duration \"5x\""),
            ("TZ=No/Where 0 0 * * *", "provided bad location No/Where: unknown time zone No/Where"),
        ] {
            assert_eq!(check(text).err().unwrap_or_default(), why, "{text}");
        }
    }
}
