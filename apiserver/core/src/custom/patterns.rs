//! Whether a pattern is a regular expression, and why not, in the words of upstream's engine (RE2 syntax).

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{Error, ErrorKind};

/// Why `pattern` is no regular expression; `None` when it is one.
#[must_use]
pub(super) fn fault(pattern: &str) -> Option<String> {
    if pattern.is_empty() {
        return None;
    }
    match Parser::new().parse(pattern) {
        Err(e) => Some(words(pattern, &e)),
        Ok(_) => regex::Regex::new(pattern).err().map(|e| match e {
            regex::Error::CompiledTooBig(_) => "expression too large".to_owned(),
            _ => format!("invalid escape sequence: `{pattern}`"),
        }),
    }
}

fn words(pattern: &str, e: &Error) -> String {
    let start = e.span().start.offset;
    let from = pattern.get(start..).unwrap_or_default();
    let here = pattern.get(start..e.span().end.offset).unwrap_or_default();
    match e.kind() {
        ErrorKind::ClassUnclosed => format!("missing closing ]: `{from}`"),
        ErrorKind::GroupUnclosed => format!("missing closing ): `{pattern}`"),
        ErrorKind::GroupUnopened => format!("unexpected ): `{pattern}`"),
        ErrorKind::ClassRangeInvalid | ErrorKind::ClassRangeLiteral => {
            format!("invalid character class range: `{here}`")
        }
        ErrorKind::EscapeUnexpectedEof => "trailing backslash at end of expression: ``".to_owned(),
        ErrorKind::RepetitionMissing => {
            let operator = from.chars().next().map(String::from).unwrap_or_default();
            format!("missing argument to repetition operator: `{operator}`")
        }
        ErrorKind::RepetitionCountInvalid => format!("invalid repeat count: `{here}`"),
        ErrorKind::UnsupportedLookAround => format!("invalid or unsupported Perl syntax: `{here}`"),
        ErrorKind::FlagUnrecognized | ErrorKind::FlagUnexpectedEof | ErrorKind::GroupNameUnexpectedEof => {
            format!("missing argument to repetition operator: `{here}`")
        }
        _ => format!("invalid escape sequence: `{here}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn faults() {
        for (pattern, want) in [
            ("^a+$", None),
            ("([", Some("missing closing ]: `[`")),
            ("(a", Some("missing closing ): `(a`")),
            ("a)", Some("unexpected ): `a)`")),
            ("*a", Some("missing argument to repetition operator: `*`")),
            ("[z-a]", Some("invalid character class range: `z-a`")),
            ("a\\", Some("trailing backslash at end of expression: ``")),
            ("(?=a)", Some("invalid or unsupported Perl syntax: `(?=`")),
        ] {
            assert_eq!(fault(pattern).as_deref(), want, "{pattern}");
        }
    }
}
