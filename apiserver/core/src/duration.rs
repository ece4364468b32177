//! Lengths of time as Go writes them: `1h30m`, `1.5s`, `-250ms`, `0`.

use crate::invalid::quote_str;

/// Units and their nanoseconds.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    // Two characters are in use for micro.
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

/// Nanoseconds of a length of time: a sign or none, then numbers with a unit each; `0` needs none.
///
/// # Errors
/// In the words of Go's `time.ParseDuration`.
pub fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote_str(text));
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos = 0.0_f64;
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_ends);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let unit_ends = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_ends);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote_str(text)));
        }
        let size = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, size)| size);
        nanos += number
            * size.ok_or_else(|| format!("time: unknown unit {} in duration {}", quote_str(unit), quote_str(text)))?;
        rest = after;
    }
    // What 64 bits of nanoseconds hold: 292 years.
    if nanos > i64::MAX as f64 {
        return Err(invalid());
    }
    let nanos = nanos as i64;
    Ok(if text.starts_with('-') { -nanos } else { nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("1h30m", 5_400_000_000_000),
            ("+1.5s", 1_500_000_000),
            (".5ms", 500_000),
            ("1.us", 1_000),
            ("3\u{b5}s3\u{3bc}s1ns", 6_001),
            ("-250ms", -250_000_000),
        ] {
            assert_eq!(parse(text), Ok(nanos), "{text}");
        }
        for (text, why) in [
            ("", "time: invalid duration \"\""),
            ("-", "time: invalid duration \"-\""),
            ("invalid", "time: invalid duration \"invalid\""),
            (".s", "time: invalid duration \".s\""),
            ("1.2.3s", "time: invalid duration \"1.2.3s\""),
            ("3", "time: missing unit in duration \"3\""),
            ("1m3", "time: missing unit in duration \"1m3\""),
            ("3d", "time: unknown unit \"d\" in duration \"3d\""),
            ("1s ", "time: unknown unit \"s \" in duration \"1s \""),
            ("300000000h", "time: invalid duration \"300000000h\""),
        ] {
            assert_eq!(parse(text), Err(why.to_owned()), "{text}");
        }
    }
}
