//! String formats that a schema may name. What is not in this list is accepted without a check, with a warning when the
//! definition is written.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

use crate::names;

/// Every format of strings that is checked, without its dashes (`date-time` and `datetime` are one).
const KNOWN: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// Whether a format of strings is checked.
#[must_use]
pub fn known(format: &str) -> bool {
    let plain = format.replace('-', "");
    KNOWN.contains(&plain.as_str())
}

macro_rules! pattern {
    ($name:ident, $text:literal) => {
        // A constant pattern; were it malformed, nothing would match, and the test below would say so.
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($text).ok());
    };
}

pattern!(TIME, r"^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$");
pattern!(BYTE, r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$");
pattern!(BSON, r"^[0-9a-fA-F]{24}$");
pattern!(HEX, r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$");
pattern!(
    RGB,
    r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$"
);
pattern!(SSN, r"^\d{3}[- ]?\d{2}[- ]?\d{4}$");
pattern!(UUID, r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$");
pattern!(UUID3, r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$");
pattern!(UUID4, r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$");
pattern!(UUID5, r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$");
pattern!(
    HOST,
    r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$"
);
pattern!(DURATION, r"(\d+)\s*([A-Za-zµ]+)");
pattern!(GO_DURATION, r"^[+-]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)$");
pattern!(MAC, r"^([0-9a-fA-F]{2}([:-][0-9a-fA-F]{2})+|[0-9a-fA-F]{4}(\.[0-9a-fA-F]{4})+)$");

fn is(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|p| p.is_match(text))
}

/// Whether `text` is of a known format; of unknown ones everything is.
#[must_use]
pub fn fits(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "bsonobjectid" => is(&BSON, text),
        "byte" => is(&BYTE, text),
        "cidr" => is_cidr(text),
        "creditcard" => is_card(text),
        "date" => is_date(text),
        "datetime" => is_time(text),
        "duration" => is_duration(text),
        "email" => is_email(text),
        "hexcolor" => is(&HEX, text),
        "hostname" => is(&HOST, text) && text.len() <= 255 && text.split('.').all(|p| p.len() <= 63),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "k8slongname" => names::is_dns1123_subdomain(text).is_empty(),
        "k8sshortname" => names::is_dns1123_label(text).is_empty(),
        "mac" => is_mac(text),
        "rgbcolor" => is(&RGB, text),
        "ssn" => is(&SSN, text),
        "uri" => is_uri(text),
        "uuid" => is(&UUID, text),
        "uuid3" => is(&UUID3, text),
        "uuid4" => is(&UUID4, text),
        "uuid5" => is(&UUID5, text),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    text.contains('/') && text.parse::<ipnet::IpNet>().is_ok()
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.is_ascii() && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_time(text: &str) -> bool {
    let lower = text.to_lowercase();
    let Some((date, time)) = lower.split_once('t') else { return false };
    let found = TIME.as_ref().and_then(|p| p.captures(time));
    is_date(date) && found.is_some_and(|m| &m[1] <= "23" && &m[2] <= "59" && &m[3] <= "59")
}

/// A Go duration, or numbers with units as people write them.
fn is_duration(text: &str) -> bool {
    const UNITS: [&[&str]; 8] = [
        &["ns", "nano"],
        &["us", "µs", "micro"],
        &["ms", "milli"],
        &["s", "sec"],
        &["m", "min"],
        &["h", "hr", "hour"],
        &["d", "day"],
        &["w", "wk", "week"],
    ];
    if is(&GO_DURATION, text) {
        return true;
    }
    let Some(pattern) = DURATION.as_ref() else { return false };
    pattern.captures_iter(text).any(|m| {
        let unit = m[2].to_lowercase();
        let known =
            |names: &&[&str]| names.contains(&unit.as_str()) || names.last().is_some_and(|l| unit.starts_with(l));
        m[1].parse::<i64>().is_ok() && UNITS.iter().any(known)
    })
}

/// An address, alone or as `Name <address>`.
fn is_email(text: &str) -> bool {
    let text = text.trim();
    let address = match text.rsplit_once('<') {
        Some((_, rest)) => match rest.strip_suffix('>') {
            Some(a) => a,
            None => return false,
        },
        None => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    let atom = |c: char| c.is_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let dotted = |s: &str| s.split('.').all(|p| !p.is_empty() && p.chars().all(atom));
    (quoted || dotted(local)) && (dotted(domain) || (domain.starts_with('[') && domain.ends_with(']')))
}

fn is_mac(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let one_separator = [':', '-', '.'].iter().filter(|c| text.contains(**c)).count() == 1;
    is(&MAC, text) && one_separator && matches!(digits, 12 | 16 | 40)
}

/// What an HTTP request line would take: an absolute URI, or a path.
fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|b| b <= 0x20 || b == 0x7f) {
        return false;
    }
    if text.starts_with('/') || text == "*" {
        return true;
    }
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    })
}

fn digits(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

fn is_card(text: &str) -> bool {
    let plain = digits(text);
    if !(13..=19).contains(&plain.len()) || !plain.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let sum: u32 = plain.bytes().rev().enumerate().fold(0, |sum, (i, b)| {
        let d = u32::from(b - b'0') * if i % 2 == 1 { 2 } else { 1 };
        sum + if d > 9 { d - 9 } else { d }
    });
    sum.is_multiple_of(10)
}

fn is_isbn10(text: &str) -> bool {
    let plain = digits(text);
    if plain.len() != 10 || !plain.is_ascii() {
        return false;
    }
    let mut sum = 0;
    for (i, b) in plain.bytes().enumerate() {
        let value = match b {
            b'0'..=b'9' => usize::from(b - b'0'),
            b'X' if i == 9 => 10,
            _ => return false,
        };
        sum += (i + 1) * value;
    }
    sum % 11 == 0
}

fn is_isbn13(text: &str) -> bool {
    let plain = digits(text);
    if plain.len() != 13 || !plain.bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let weight = |i: usize| if i.is_multiple_of(2) { 1 } else { 3 };
    plain.bytes().enumerate().map(|(i, b)| weight(i) * usize::from(b - b'0')).sum::<usize>() % 10 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (format, good, bad) in [
            ("date-time", "2020-01-01T00:00:00Z", "2020-01-01 00:00:00"),
            ("date-time", "2020-01-01t00:00:00.5+01:00", "2020-01-01T24:00:00Z"),
            ("date", "2020-02-29", "2020-2-1"),
            ("duration", "1h2m", "x"),
            ("duration", "1 hour", ""),
            ("byte", "AAA=", "A"),
            ("ipv4", "1.2.3.4", "::1"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("mac", "01:02:03:04:05:06", "1:2"),
            ("mac", "0102.0304.0506", "01:02-03:04:05:06"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("email", "a@b.c", "a"),
            ("email", "A B <a@b>", "a b@c"),
            ("uri", "http://x/y", ":"),
            ("hostname", "example.com", "x.y"),
            ("hostname", "localhost", "-x"),
            ("hexcolor", "fff", "#ff"),
            ("rgbcolor", "rgb(1, 2, 3)", "rgb(256,1,1)"),
            ("ssn", "111-11-1111", "1"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("isbn", "0-306-40615-2", "0-306-40615-3"),
            ("isbn13", "978-0-306-40615-7", "978-0-306-40615-8"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "x"),
            ("k8s-short-name", "a-b", "a.b"),
            ("k8s-long-name", "a.b", "A"),
        ] {
            assert!(known(format), "{format}");
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(!known("nonsense") && fits("nonsense", "x"));
    }
}
