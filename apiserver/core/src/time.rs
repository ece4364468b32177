//! Times on the wire: RFC 3339 with seconds (`Time`) or with exactly six digits of them (`MicroTime`).
//!
//! Reading follows the rules and the error texts of the language upstream is written in, because a bad time is the
//! client's error and its text is shown to people.

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
const MICROS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Why a text is not a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// The text does not follow the layout.
    #[error("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}")]
    Layout {
        /// The whole text.
        text: String,
        /// The layout, in upstream's reference time.
        layout: &'static str,
        /// What was left when reading stopped.
        rest: String,
        /// The element that was expected there.
        element: &'static str,
    },
    /// A number is outside of its range.
    #[error("parsing time {text:?}: {what} out of range")]
    Range {
        /// The whole text.
        text: String,
        /// Which number.
        what: &'static str,
    },
    /// Something follows the time.
    #[error("parsing time {text:?}: extra text: {rest:?}")]
    Extra {
        /// The whole text.
        text: String,
        /// What follows.
        rest: String,
    },
}

/// Reads a `Time`. Fractions of a second are read; printing drops them.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    Reader { text, rest: text, layout: SECONDS }.read()
}

/// Reads a `MicroTime`: six digits of a second are required.
pub fn parse_micro(text: &str) -> Result<Timestamp, TimeError> {
    Reader { text, rest: text, layout: MICROS }.read()
}

/// Prints a `Time`.
#[must_use]
pub fn format(time: Timestamp) -> String {
    let t = TimeZone::UTC.to_datetime(time);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", t.year(), t.month(), t.day(), t.hour(), t.minute(), t.second())
}

/// Prints a `MicroTime`.
#[must_use]
pub fn format_micro(time: Timestamp) -> String {
    let seconds = format(time);
    let micros = TimeZone::UTC.to_datetime(time).subsec_nanosecond() / 1000;
    format!("{}.{micros:06}Z", &seconds[..seconds.len() - 1])
}

/// The zero of upstream's time type, which prints as `null`: the first second of year 1.
#[must_use]
pub fn is_zero(time: Timestamp) -> bool {
    time.as_second() == ZERO_SECOND && time.subsec_nanosecond() == 0
}

/// Seconds since the epoch of upstream's zero time.
pub const ZERO_SECOND: i64 = -62_135_596_800;

struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl Reader<'_> {
    fn read(mut self) -> Result<Timestamp, TimeError> {
        let year = self.number(4, "2006")?;
        self.literal("-")?;
        let month = self.number(2, "01")?;
        if !(1..=12).contains(&month) {
            return Err(self.range("month"));
        }
        self.literal("-")?;
        let day = self.number(2, "02")?;
        self.literal("T")?;
        let hour = self.number(2, "15")?;
        if hour > 23 {
            return Err(self.range("hour"));
        }
        self.literal(":")?;
        let minute = self.number(2, "04")?;
        if minute > 59 {
            return Err(self.range("minute"));
        }
        self.literal(":")?;
        let second = self.number(2, "05")?;
        if second > 59 {
            return Err(self.range("second"));
        }
        let nanos = self.fraction()?;
        let offset = self.offset()?;
        if !self.rest.is_empty() {
            return Err(TimeError::Extra { text: self.text.into(), rest: self.rest.into() });
        }
        let civil =
            DateTime::new(year as i16, month as i8, day as i8, hour as i8, minute as i8, second as i8, nanos as i32);
        let time = civil.map_err(|_| self.range("day"))?.to_zoned(TimeZone::UTC).map_err(|_| self.range("year"))?;
        time.timestamp().checked_sub(SignedDuration::from_secs(offset)).map_err(|_| self.range("year"))
    }

    fn number(&mut self, digits: usize, element: &'static str) -> Result<u32, TimeError> {
        let text = self.rest.get(..digits).filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
        let value = text.and_then(|t| t.parse().ok()).ok_or_else(|| self.expected(element))?;
        self.rest = &self.rest[digits..];
        Ok(value)
    }

    fn literal(&mut self, element: &'static str) -> Result<(), TimeError> {
        self.rest = self.rest.strip_prefix(element).ok_or_else(|| self.expected(element))?;
        Ok(())
    }

    /// Nanoseconds. The layout with seconds takes any number of digits, after a comma too.
    fn fraction(&mut self) -> Result<u32, TimeError> {
        let exact = self.layout == MICROS;
        let separators: &[char] = if exact { &['.'] } else { &['.', ','] };
        let digits = self.rest.strip_prefix(separators).unwrap_or("");
        let count = digits.bytes().take_while(u8::is_ascii_digit).count();
        if exact && count != 6 {
            return Err(self.expected(".000000"));
        }
        if count == 0 {
            return Ok(0);
        }
        self.rest = &digits[count..];
        let nanos = digits.bytes().take(count).chain(std::iter::repeat(b'0')).take(9);
        Ok(nanos.fold(0, |n, digit| n * 10 + u32::from(digit - b'0')))
    }

    /// Seconds east of Greenwich.
    fn offset(&mut self) -> Result<i64, TimeError> {
        const ELEMENT: &str = "Z07:00";
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let sign = match self.rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(self.expected(ELEMENT)),
        };
        let before = self.rest;
        let mut read = || {
            self.rest = &self.rest[1..];
            let hours = self.number(2, ELEMENT)?;
            self.literal(":")?;
            Ok((hours, self.number(2, ELEMENT)?))
        };
        let (hours, minutes) = read().map_err(|_: TimeError| Reader { rest: before, ..*self }.expected(ELEMENT))?;
        if hours > 24 {
            return Err(self.range("time zone offset hour"));
        }
        if minutes > 60 {
            return Err(self.range("time zone offset minute"));
        }
        Ok(sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60))
    }

    fn expected(&self, element: &'static str) -> TimeError {
        TimeError::Layout { text: self.text.into(), layout: self.layout, rest: self.rest.into(), element }
    }

    fn range(&self, what: &'static str) -> TimeError {
        TimeError::Range { text: self.text.into(), what }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_and_prints() {
        for (text, printed) in [
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.999Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05,5Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05+01:30", "2026-01-02T01:34:05Z"),
            ("2026-01-02T03:04:05-01:00", "2026-01-02T04:04:05Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse(text).map(format).as_deref(), Ok(printed), "{text}");
        }
        let micro = parse_micro("2026-01-02T03:04:05.000123Z").unwrap();
        assert_eq!(format_micro(micro), "2026-01-02T03:04:05.000123Z");
        assert!(is_zero(parse("0001-01-01T00:00:00Z").unwrap()) && !is_zero(micro));
    }

    #[test]
    fn errors() {
        for (text, message) in [
            (
                "yesterday",
                r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#,
            ),
            ("2026-13-02T03:04:05Z", r#"parsing time "2026-13-02T03:04:05Z": month out of range"#),
            ("2026-02-30T03:04:05Z", r#"parsing time "2026-02-30T03:04:05Z": day out of range"#),
            ("2026-02-20", r#"parsing time "2026-02-20" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#),
            (
                "2026-02-20T01:02:03",
                r#"parsing time "2026-02-20T01:02:03" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "Z07:00""#,
            ),
            ("2026-02-20T01:02:03Zx", r#"parsing time "2026-02-20T01:02:03Zx": extra text: "x""#),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
        assert!(parse_micro("2026-01-02T03:04:05Z").is_err() && parse_micro("2026-01-02T03:04:05.1234567Z").is_err());
    }

    proptest! {
        #[test]
        fn printing_is_read_back(seconds in -60_000_000_000_i64..200_000_000_000, micros in 0..1_000_000) {
            let time = Timestamp::new(seconds, micros * 1000).unwrap();
            prop_assert_eq!(parse_micro(&format_micro(time)), Ok(time));
            prop_assert_eq!(parse(&format(time)).unwrap().as_second(), seconds);
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}|[0-9TZ:+.-]{0,40}") {
            let _ = (parse(&text), parse_micro(&text));
        }
    }
}
