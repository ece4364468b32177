//! Field errors: what validation finds, in upstream's words.

use std::collections::HashSet;
use std::fmt;

use serde_json::Value;

use crate::path::Path;

/// The class of a field error. Decides the `reason` of the cause in the Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// A value that must be there is missing.
    Required,
    /// A value that is malformed.
    Invalid,
    /// A value outside an enumeration.
    NotSupported,
    /// A value that must be unique and is not.
    Duplicate,
    /// A field that may not be set, or changed.
    Forbidden,
    /// A string that is too long.
    TooLong,
    /// A list with too many elements.
    TooMany,
    /// A value of the wrong type.
    TypeInvalid,
    /// A reference to something that is not there.
    NotFound,
    /// The check itself failed.
    Internal,
}

impl ErrorType {
    /// The `reason` of the cause.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotFound => "FieldValueNotFound",
            Self::Internal => "InternalError",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
            Self::Internal => "Internal error",
        }
    }
}

/// One fault at one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Class.
    pub kind: ErrorType,
    /// Where, for example `spec.containers[0].name`.
    pub path: String,
    /// `Invalid value: "x": must be ...`: what comes after the path.
    pub body: String,
    /// Whether a generated rule of upstream's finds it: see [`Errors::generated`].
    pub generated: bool,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body)
    }
}

/// A value as error texts quote it: strings in Go's `%q`, the rest as JSON.
#[must_use]
pub fn quote(value: &Value) -> String {
    match value {
        Value::String(s) => quote_str(s),
        other => other.to_string(),
    }
}

/// A string in Go's `%q`.
#[must_use]
pub fn quote_str(s: &str) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            // Writing to a String cannot fail.
            c if (c as u32) < 0x20 || c as u32 == 0x7f => drop(write!(out, "\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Collects field errors. Validation functions take `&mut Errors` and go on after a fault, so that the user sees all.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of faults.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    fn push(&mut self, kind: ErrorType, path: &impl fmt::Display, value: Option<String>, detail: &str) {
        let mut body = kind.title().to_owned();
        if let Some(v) = value {
            body.push_str(": ");
            body.push_str(&v);
        }
        if !detail.is_empty() {
            body.push_str(": ");
            body.push_str(detail);
        }
        self.0.push(FieldError { kind, path: path.to_string(), body, generated: false });
    }

    /// What `find` finds is found by rules that upstream generates from its types. It runs them after all rules written
    /// by hand, whatever the field: answers show them last, and among themselves in the order of this list.
    pub fn generated(&mut self, find: impl FnOnce(&mut Self)) {
        let from = self.0.len();
        find(self);
        for e in &mut self.0[from..] {
            e.generated = true;
        }
    }

    /// Rules see nothing where a client sent an empty map or list; upstream's still see it, and show it. `emptied` has the
    /// paths and what was there: `spec.capacity={}`.
    pub fn show_empty(&mut self, emptied: &[String]) {
        for (path, shown) in emptied.iter().filter_map(|e| e.rsplit_once('=')) {
            for e in self.0.iter_mut().filter(|e| e.path == path) {
                e.body = e.body.replacen(" value: null", &format!(" value: {shown}"), 1);
            }
        }
    }

    /// Forgets what was said before in the same words, except what generated rules find: upstream drops such repetitions on
    /// its way from the rules written by hand to the generated ones, for the kinds that have these.
    pub fn once(&mut self) {
        let mut said = HashSet::new();
        self.0.retain(|e| e.generated || said.insert((e.path.clone(), e.body.clone())));
    }

    /// The faults in the order in which clients are told.
    #[must_use]
    pub fn told(&self) -> Vec<&FieldError> {
        let mut all: Vec<&FieldError> = self.0.iter().collect();
        all.sort_by_key(|e| e.generated);
        all
    }

    /// The faults as one text, each once; several in brackets.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut said = HashSet::new();
        let mut texts: Vec<String> = self.told().into_iter().map(ToString::to_string).collect();
        texts.retain(|t| said.insert(t.clone()));
        if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
    }

    /// `path: Required value: detail`. An empty detail is left out, here and below.
    pub fn required(&mut self, path: &impl fmt::Display, detail: &str) {
        self.push(ErrorType::Required, path, None, detail);
    }

    /// `path: Invalid value: "v": detail`.
    pub fn invalid(&mut self, path: &impl fmt::Display, value: impl Into<Value>, detail: impl AsRef<str>) {
        self.push(ErrorType::Invalid, path, Some(quote(&value.into())), detail.as_ref());
    }

    /// `path: Invalid value: text: detail` with the value's text given as is (unquoted), for values upstream prints in
    /// its own way.
    pub fn invalid_raw(&mut self, path: &impl fmt::Display, text: impl Into<String>, detail: impl AsRef<str>) {
        self.push(ErrorType::Invalid, path, Some(text.into()), detail.as_ref());
    }

    /// `path: Invalid value: detail`, for values that upstream leaves out of the text.
    pub fn invalid_untold(&mut self, path: &impl fmt::Display, detail: impl AsRef<str>) {
        self.push(ErrorType::Invalid, path, None, detail.as_ref());
    }

    /// Like [`Errors::invalid`] with the cause reason `FieldValueTypeInvalid`.
    pub fn type_invalid(&mut self, path: &impl fmt::Display, value: impl Into<Value>, detail: impl AsRef<str>) {
        self.push(ErrorType::TypeInvalid, path, Some(quote(&value.into())), detail.as_ref());
    }

    /// `path: Unsupported value: "v": supported values: "a", "b"`.
    pub fn not_supported(&mut self, path: &impl fmt::Display, value: impl Into<Value>, supported: &[&str]) {
        let list = supported.iter().map(|s| quote_str(s)).collect::<Vec<_>>().join(", ");
        let detail = if supported.is_empty() { String::new() } else { format!("supported values: {list}") };
        self.push(ErrorType::NotSupported, path, Some(quote(&value.into())), &detail);
    }

    /// Like [`Errors::not_supported`] with the value's text given as is.
    pub fn not_supported_raw(&mut self, path: &impl fmt::Display, text: &str, supported: &[&str]) {
        let list = supported.iter().map(|s| quote_str(s)).collect::<Vec<_>>().join(", ");
        self.push(ErrorType::NotSupported, path, Some(text.to_owned()), &format!("supported values: {list}"));
    }

    /// `path: Duplicate value: "v"`.
    pub fn duplicate(&mut self, path: &impl fmt::Display, value: impl Into<Value>) {
        self.push(ErrorType::Duplicate, path, Some(quote(&value.into())), "");
    }

    /// Like [`Errors::duplicate`] with the value already printed and a reason.
    pub fn duplicate_raw(&mut self, path: &impl fmt::Display, shown: String, detail: impl AsRef<str>) {
        self.push(ErrorType::Duplicate, path, Some(shown), detail.as_ref());
    }

    /// `path: Not found: "v"`.
    pub fn not_found(&mut self, path: &impl fmt::Display, value: impl Into<Value>) {
        self.push(ErrorType::NotFound, path, Some(quote(&value.into())), "");
    }

    /// `path: Forbidden: detail`.
    pub fn forbidden(&mut self, path: &impl fmt::Display, detail: impl AsRef<str>) {
        self.push(ErrorType::Forbidden, path, None, detail.as_ref());
    }

    /// `path: Too long: may not be more than N bytes`.
    pub fn too_long(&mut self, path: &impl fmt::Display, max: usize) {
        self.push(ErrorType::TooLong, path, None, &format!("may not be more than {max} bytes"));
    }

    /// `path: Too many: N: must have at most M items`.
    pub fn too_many(&mut self, path: &impl fmt::Display, actual: usize, max: usize) {
        let items = if max == 1 { "item" } else { "items" };
        self.push(ErrorType::TooMany, path, Some(actual.to_string()), &format!("must have at most {max} {items}"));
    }

    /// `path: Internal error: detail`.
    pub fn internal(&mut self, path: &impl fmt::Display, detail: &str) {
        self.push(ErrorType::Internal, path, None, detail);
    }
}

/// Shorthand used by validation code: the path of the object itself.
pub const ROOT: Path<'static> = Path::new("");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let mut e = Errors::new();
        let p = Path::new("spec");
        e.required(&p.child("a"), "");
        e.invalid(&p.child("b"), -1, "must be greater than or equal to 0");
        e.not_supported(&p.child("c"), "x", &["b", "a"]);
        e.too_long(&p, 63);
        let all: Vec<_> = e.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            all,
            [
                "spec.a: Required value",
                "spec.b: Invalid value: -1: must be greater than or equal to 0",
                "spec.c: Unsupported value: \"x\": supported values: \"b\", \"a\"",
                "spec: Too long: may not be more than 63 bytes",
            ]
        );
    }

    #[test]
    fn what_was_sent_empty_is_shown_empty() {
        let mut e = Errors::new();
        e.invalid_raw(&"a.b", "null", "why");
        e.invalid_raw(&"a.c", "null", "why");
        e.show_empty(&["a.b={}".to_owned()]);
        let told: Vec<_> = e.0.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["a.b: Invalid value: {}: why", "a.c: Invalid value: null: why"]);
    }

    #[test]
    fn what_is_found_twice_is_told_once() {
        let mut e = Errors::new();
        e.required(&"a", "");
        e.required(&"b", "");
        e.required(&"a", "");
        e.required(&"a", "why");
        e.generated(|e| e.required(&"a", ""));
        e.once();
        assert_eq!(e.told().into_iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["a", "b", "a", "a"]);
    }

    #[test]
    fn generated_rules_speak_last() {
        let mut e = Errors::new();
        e.generated(|e| e.required(&"a", ""));
        e.required(&"b", "");
        e.generated(|e| e.required(&"c", ""));
        let told: Vec<_> = e.told().into_iter().map(|e| e.path.as_str()).collect();
        assert_eq!(told, ["b", "a", "c"]);
    }
}
