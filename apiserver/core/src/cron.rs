//! Schedules of CronJobs: five fields, or a word that stands for them; whether a text is one, and when it fires.
//!
//! Errors are in the words of the library that upstream uses, and so are its habits: where both day fields are
//! restricted, either is enough; an hour that a change of clocks leaves out does not fire, one that it repeats fires
//! twice.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

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
/// Words, and what they stand for.
const WORDS: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
/// A schedule that does not fire within so many years never does: the 31st of February.
const YEARS_MAX: i16 = 5;

/// When something is to happen again and again.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// The time zone that the text names itself.
    zone: Option<TimeZone>,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    /// After a number of seconds, always.
    Every(i64),
    /// Values of minute, hour, day of month, month and day of week as bits; a field that takes all as [`ANY`] too.
    Fields([u64; 5]),
}

/// Marks a field that is not restricted.
const ANY: u64 = 1 << 63;

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// Why the text is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut spec = text;
        let mut zone = None;
        if spec.is_empty() {
            return Err("empty spec string".into());
        }
        if let Some(rest) = spec.strip_prefix("TZ=").or_else(|| spec.strip_prefix("CRON_TZ=")) {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let found = self::zone(name);
            zone = Some(found.ok_or_else(|| format!("provided bad location {name}: unknown time zone {name}"))?);
            spec = rest.trim();
        }
        if spec.starts_with('@') {
            if let Some(d) = spec.strip_prefix("@every ") {
                let nanos = crate::duration::parse(d).map_err(|e| format!("failed to parse duration {spec}: {e}"))?;
                let seconds = nanos.max(0) / 1_000_000_000;
                return Ok(Self { zone, rule: Rule::Every(seconds.max(1)) });
            }
            let known = WORDS.iter().find(|(w, _)| *w == spec);
            spec = known.ok_or_else(|| format!("unrecognized descriptor: {spec}"))?.1;
        }
        let fields: Vec<&str> = spec.split_whitespace().collect();
        if fields.len() != FIELDS.len() {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        }
        let mut bits = [0; 5];
        for ((text, field), bits) in fields.iter().zip(&FIELDS).zip(&mut bits) {
            for part in text.split(',').filter(|p| !p.is_empty()) {
                *bits |= range(part, field)?;
            }
        }
        Ok(Self { zone, rule: Rule::Fields(bits) })
    }

    /// The first time after `after`; `zone` counts where the text names none. None when there is no such time.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let bits = match self.rule {
            Rule::Every(seconds) => return Timestamp::from_second(after.as_second().checked_add(seconds)?).ok(),
            Rule::Fields(bits) => bits,
        };
        let zone = self.zone.as_ref().unwrap_or(zone);
        let minute = after.as_second().div_euclid(60).checked_add(1)?;
        let mut t = Timestamp::from_second(minute.checked_mul(60)?).ok()?.to_zoned(zone.clone());
        let last = t.year() + YEARS_MAX;
        while t.year() <= last {
            let has = |field: usize, value: i8| bits[field] & (1 << value) != 0;
            if !has(3, t.month()) {
                let first = t.date().first_of_month().checked_add(Span::new().months(1)).ok()?;
                t = first.to_zoned(zone.clone()).ok()?;
            } else if !day(&bits, &t) {
                t = t.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?;
            } else if !has(1, t.hour()) {
                let rest = 3600 - i64::from(t.minute()) * 60 - i64::from(t.second());
                t = t.checked_add(Span::new().seconds(rest)).ok()?;
            } else if !has(0, t.minute()) {
                let rest = 60 - i64::from(t.second());
                t = t.checked_add(Span::new().seconds(rest)).ok()?;
            } else {
                return Some(t.timestamp());
            }
        }
        None
    }
}

fn day(bits: &[u64; 5], t: &Zoned) -> bool {
    let of_month = bits[2] & (1 << t.day()) != 0;
    let of_week = bits[4] & (1 << t.weekday().to_sunday_zero_offset()) != 0;
    if (bits[2] | bits[4]) & ANY != 0 { of_month && of_week } else { of_month || of_week }
}

/// The time zone of a name.
#[must_use]
pub fn zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => Some(TimeZone::UTC),
        _ => TimeZone::get(name).ok(),
    }
}

/// Whether a time zone of this name is known.
#[must_use]
pub fn is_zone(name: &str) -> bool {
    zone(name).is_some()
}

/// The values of a part of a field, as bits.
fn range(text: &str, field: &Field) -> Result<u64, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let all = matches!(ends[0], "*" | "?");
    let (start, mut end) = if all {
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
    let mut bits = if all && step == 1 { ANY } else { 0 };
    let mut v = start;
    while v <= end {
        bits |= 1 << v;
        v = v.saturating_add(step);
    }
    Ok(bits)
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
    use super::*;

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
            assert_eq!(Schedule::parse(text).err().unwrap_or_default(), why, "{text}");
        }
    }

    #[test]
    fn firing() {
        let utc = TimeZone::UTC;
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for (text, zone, after, want) in [
            ("* * * * *", &utc, "2026-03-01T10:20:30Z", "2026-03-01T10:21:00Z"),
            ("* * * * *", &utc, "2026-03-01T10:20:00Z", "2026-03-01T10:21:00Z"),
            ("*/20 9-17/4 * * *", &utc, "2026-03-01T13:41:00Z", "2026-03-01T17:00:00Z"),
            ("0 0 29 2 *", &utc, "2025-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", &utc, "2025-01-01T00:00:00Z", ""),
            ("0 0 * * mon", &utc, "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z"),
            // Either day is enough when both are restricted; a step on all values restricts.
            ("0 0 13 * 5", &utc, "2026-03-01T00:00:00Z", "2026-03-06T00:00:00Z"),
            ("0 0 */2 * 5", &utc, "2026-03-01T00:00:00Z", "2026-03-03T00:00:00Z"),
            ("0 0 * * 5", &utc, "2026-03-01T00:00:00Z", "2026-03-06T00:00:00Z"),
            ("@hourly", &utc, "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", &utc, "2026-03-01T10:20:30Z", "2026-03-01T11:50:30Z"),
            ("@every 1ms", &utc, "2026-03-01T10:20:30Z", "2026-03-01T10:20:31Z"),
            ("30 8 * * *", &berlin, "2026-07-01T00:00:00Z", "2026-07-01T06:30:00Z"),
            ("CRON_TZ=Asia/Tokyo 0 9 * * *", &berlin, "2026-07-01T00:00:00Z", "2026-07-02T00:00:00Z"),
            ("TZ=Asia/Tokyo 0 9 * * *", &berlin, "2026-06-30T23:59:00Z", "2026-07-01T00:00:00Z"),
            // Clocks go forward at two: half past two is left out that day. They go back at three.
            ("30 2 * * *", &berlin, "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
            ("30 2 * * *", &berlin, "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", &berlin, "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"),
        ] {
            let next = Schedule::parse(text).unwrap().next(after.parse().unwrap(), zone);
            assert_eq!(next.map(|t| t.to_string()).unwrap_or_default(), want, "{text} after {after}");
        }
    }
}
