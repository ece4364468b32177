//! What is wrong with a text that is no YAML, in the words of the library that upstream reads with.
//!
//! That library counts lines from nought, tells none for the first, and adds one only where its scanner found the fault, not
//! its parser. A text's end is a line of its own.

use granit_parser::{ErrorKind, Marker, ScanError};

use crate::codec::json::DecodeError;

/// Where the library names a fault.
enum At {
    /// Nowhere.
    Nowhere,
    /// On a line, counted from one, that its scanner was on.
    Scanner(usize),
    /// On a line, counted from one, that its parser was on.
    Parser(usize),
}

/// What upstream says of a fault in `text`.
pub(super) fn told(error: &ScanError, text: &str) -> DecodeError {
    let line = error.marker().line();
    let end = text.matches('\n').count() + 1;
    let before: String = text.chars().take(error.marker().index()).collect();
    let (at, what) = match error.kind() {
        ErrorKind::UnexpectedCharacter { character } if character.is_control() => {
            (At::Nowhere, "control characters are not allowed".into())
        }
        ErrorKind::UnknownAnchor => {
            (At::Nowhere, format!("unknown anchor '{}' referenced", alias(error.marker(), text)))
        }
        ErrorKind::UnexpectedCharacter { .. } | ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation => {
            (At::Scanner(line), "found character that cannot start any token".into())
        }
        // Seen where the next token begins.
        ErrorKind::TabInPlainScalar => {
            (At::Scanner(line + 1), "found a tab character that violates indentation".into())
        }
        ErrorKind::ExpectedDocumentStart if text.starts_with('%') => {
            (At::Scanner(line), "found unknown directive name".into())
        }
        ErrorKind::SimpleKeyExpected => (At::Scanner(line + 1), "could not find expected ':'".into()),
        ErrorKind::UnclosedQuotedScalar => (At::Scanner(end), "found unexpected end of stream".into()),
        ErrorKind::InvalidQuotedScalarIndent if line >= end => {
            (At::Scanner(end), "found unexpected end of stream".into())
        }
        ErrorKind::UnclosedFlowCollection { open } => {
            let end = if text.ends_with('\n') { end } else { end + 1 };
            (At::Parser(end), wanted(Some(*open), text).into())
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            // Marked is the bracket that was opened.
            let closed = text[before.len()..].find(*close).map_or(text, |n| &text[..before.len() + n]);
            (At::Parser(closed.matches('\n').count() + 1), wanted(Some(*open), closed).into())
        }
        ErrorKind::MisplacedFlowCollectionEnd | ErrorKind::ExpectedNodeContent => (At::Parser(line), NODE.into()),
        ErrorKind::InvalidTrailingSingleQuotedScalar | ErrorKind::InvalidTrailingDoubleQuotedScalar => {
            (At::Parser(line), wanted(enclosing(&before), &before).into())
        }
        ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::ExpectedFlowMappingSeparator
        | ErrorKind::ExpectedFlowSequenceSeparator
        | ErrorKind::ExpectedDocumentStart => (At::Parser(line), plain(&error.info())),
        _ => (At::Scanner(line), plain(&error.info())),
    };
    let line = match at {
        At::Scanner(line) if line > 1 => format!("line {line}: "),
        At::Parser(line) if line > 1 => format!("line {}: ", line - 1),
        _ => String::new(),
    };
    DecodeError::Yaml(format!("yaml: {line}{what}"))
}

/// What the library says of bytes that are no UTF-8.
pub(super) fn no_utf8(error: std::str::Utf8Error, text: &[u8]) -> DecodeError {
    let what = match (error.error_len(), text.get(error.valid_up_to())) {
        (None, _) => "incomplete UTF-8 octet sequence",
        (_, Some(0xc0..=0xf7)) => "invalid trailing UTF-8 octet",
        _ => "invalid leading UTF-8 octet",
    };
    DecodeError::Yaml(format!("yaml: {what}"))
}

const NODE: &str = "did not find expected node content";

/// What had to follow `before`, inside of `open` or else in a block.
fn wanted(open: Option<char>, before: &str) -> &'static str {
    match open {
        Some(_) if before.trim_end().ends_with(['{', '[', ',', ':']) => NODE,
        Some('{') => "did not find expected ',' or '}'",
        Some(_) => "did not find expected ',' or ']'",
        None => "did not find expected key",
    }
}

/// The bracket that is still open. Those in scalars are taken for others: they only choose the words.
fn enclosing(before: &str) -> Option<char> {
    let mut closed = 0_usize;
    for c in before.chars().rev() {
        match c {
            '}' | ']' => closed += 1,
            '{' | '[' if closed == 0 => return Some(c),
            '{' | '[' => closed -= 1,
            _ => {}
        }
    }
    None
}

/// The problem without what was going on.
fn plain(info: &str) -> String {
    match info.split_once(", ") {
        Some((context, problem)) if context.starts_with("while ") => problem.to_owned(),
        _ => info.to_owned(),
    }
}

/// The name of the alias at `at`.
pub(super) fn alias(at: &Marker, text: &str) -> String {
    let named = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    text.chars().skip(at.index() + 1).take_while(named).collect()
}
