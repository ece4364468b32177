//! What a plain scalar means in YAML 1.1, as far as upstream's library goes.

use serde_json::Value;

/// The meaning of a plain scalar.
pub(super) enum Scalar {
    /// A value other than a string.
    Value(Value),
    /// `.nan`, `.inf`: JSON cannot hold it.
    NotFinite,
    /// A date: read as a string, but quoted when printed.
    Timestamp,
    /// A string.
    String,
}

pub(super) fn resolve(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Value(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Scalar::Value(true.into());
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Value(false.into());
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return Scalar::NotFinite,
        _ => {}
    }
    match text.as_bytes()[0] {
        b'.' => float(&text.replace('_', "")),
        b'0'..=b'9' | b'+' | b'-' => {
            if is_timestamp(text) {
                return Scalar::Timestamp;
            }
            let plain: String = text.chars().filter(|c| *c != '_').collect();
            integer(&plain).map_or_else(|| float(&plain), Scalar::Value)
        }
        _ => Scalar::String,
    }
}

/// Go's notation of integers: `0x`, `0o`, `0b`, and a leading zero for octal.
fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = [("0x", 16), ("0b", 2), ("0o", 8)]
        .into_iter()
        .find_map(|(prefix, radix)| lower.strip_prefix(prefix).map(|d| (radix, d)))
        .unwrap_or(if lower.len() > 1 && lower.starts_with('0') { (8, &lower[1..]) } else { (10, &lower) });
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let number = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let number = if negative { -number } else { number };
    i64::try_from(number).map(Value::from).ok().or_else(|| u64::try_from(number).map(Value::from).ok())
}

fn float(text: &str) -> Scalar {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let shaped = digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    if !shaped || exponent.is_empty() || !digits(exponent) {
        return Scalar::String;
    }
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() => Scalar::Value(number(float)),
        // Out of range: upstream's library takes it for a string.
        _ => Scalar::String,
    }
}

/// A float as Go prints it in JSON: without a fraction where there is none.
fn number(float: f64) -> Value {
    if float.fract() == 0.0 && float.abs() < 9e18 { (float as i64).into() } else { float.into() }
}

/// `2006-1-2`, alone or with a time of day.
fn is_timestamp(text: &str) -> bool {
    let mut rest = text;
    let mut number = |min: usize, max: usize, range: std::ops::RangeInclusive<u32>| -> Option<()> {
        let digits = rest.bytes().take(max).take_while(u8::is_ascii_digit).count();
        let value = rest[..digits].parse().ok().filter(|n| digits >= min && range.contains(n));
        rest = &rest[digits..];
        value.map(|_: u32| ())
    };
    let date = number(4, 4, 0..=9999).is_some() && {
        let ok = rest.starts_with('-');
        rest = rest.get(1..).unwrap_or("");
        ok
    };
    if !date {
        return false;
    }
    // The date must exist; the time of day is read by the ordinary rules after it is filled up.
    let (day, time) = match rest.find(['T', 't', ' ']) {
        Some(i) => (&rest[..i], Some((rest.as_bytes()[i], &rest[i + 1..]))),
        None => (rest, None),
    };
    let Some((month, day)) = day.split_once('-') else { return false };
    let two = |t: &str| matches!(t.len(), 1 | 2) && t.bytes().all(|b| b.is_ascii_digit());
    if !two(month) || !two(day) {
        return false;
    }
    let date = format!("{}-{month:0>2}-{day:0>2}", &text[..4]);
    let Some((separator, time)) = time else { return crate::time::parse(&format!("{date}T00:00:00Z")).is_ok() };
    let end = time.find(['Z', '+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at(end);
    if (separator == b' ') != zone.is_empty() {
        return false;
    }
    let zone = if zone.is_empty() { "Z" } else { zone };
    let (whole, fraction) = clock.split_once('.').map_or((clock, ""), |(w, f)| (w, f));
    let parts: Vec<&str> = whole.split(':').collect();
    if parts.len() != 3 || !parts.iter().all(|p| two(p)) || fraction.len() > 9 {
        return false;
    }
    let fraction = if fraction.is_empty() { String::new() } else { format!(".{fraction}") };
    let time = format!("{date}T{:0>2}:{:0>2}:{:0>2}{fraction}{zone}", parts[0], parts[1], parts[2]);
    crate::time::parse(&time).is_ok()
}
