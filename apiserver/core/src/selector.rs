//! Label and field selectors: parsing, matching, printing.
//!
//! Grammar and messages: upstream's `labels` and `fields` packages. Requirements are kept sorted by key, as upstream
//! prints them.

use std::fmt;

use serde_json::Value;

use crate::invalid::quote_str;
use crate::names;

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// `key=value` or `key==value`.
    Equals,
    /// `key!=value`; also matches when the key is absent.
    NotEquals,
    /// `key in (a,b)`.
    In,
    /// `key notin (a,b)`; also matches when the key is absent.
    NotIn,
    /// `key`.
    Exists,
    /// `!key`.
    DoesNotExist,
    /// `key>1`.
    GreaterThan,
    /// `key<1`.
    LessThan,
}

/// One term of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Comparison.
    pub operator: Operator,
    /// Sorted operands; one for the equality and order operators, none for the existence ones.
    pub values: Vec<String>,
}

/// A conjunction of label requirements. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// Terms, sorted by key.
    pub requirements: Vec<Requirement>,
    /// Matches nothing at all (a null LabelSelector in an object).
    pub nothing: bool,
}

/// A selector that cannot be parsed; the text is for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// Where a selector looks labels up.
pub trait Labels {
    /// The value of label `key`.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for [(String, String)] {
    fn label(&self, key: &str) -> Option<&str> {
        self.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok().map(|i| self[i].1.as_str())
    }
}

impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

impl Labels for std::collections::BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Requirement {
    fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        let got = labels.label(&self.key);
        let within = |v: &str| self.values.iter().any(|x| x == v);
        let ordered = |f: fn(i64, i64) -> bool| {
            let (Some(Ok(a)), Some(Ok(b))) =
                (got.map(str::parse::<i64>), self.values.first().map(|v| v.parse::<i64>()))
            else {
                return false;
            };
            f(a, b)
        };
        match self.operator {
            Operator::Equals | Operator::In => got.is_some_and(within),
            Operator::NotEquals | Operator::NotIn => !got.is_some_and(within),
            Operator::Exists => got.is_some(),
            Operator::DoesNotExist => got.is_none(),
            Operator::GreaterThan => ordered(|a, b| a > b),
            Operator::LessThan => ordered(|a, b| a < b),
        }
    }

    /// Checks key and operands; the messages carry upstream's paths (`values[0][key]`).
    fn validate(&self) -> Result<(), ParseError> {
        let bad = |path: &str, value: &str, why: &str| {
            Err(ParseError(format!("{path}: Invalid value: {}: {why}", quote_str(value))))
        };
        if let Some(why) = names::is_qualified_name(&self.key).first() {
            return bad("key", &self.key, why);
        }
        match self.operator {
            Operator::GreaterThan | Operator::LessThan => {
                let v = self.values.first().map_or("", String::as_str);
                if v.parse::<i64>().is_err() {
                    return bad("values[0]", v, "for 'Gt', 'Lt' operators, the value must be an integer");
                }
            }
            _ => {}
        }
        for (i, v) in self.values.iter().enumerate() {
            if let Some(why) = names::is_label_value(v).first() {
                return bad(&format!("values[{i}][{}]", self.key), v, why);
            }
        }
        Ok(())
    }
}

impl LabelSelector {
    /// Whether everything matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether an object with these labels is selected.
    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Parses the query form, `a=b,c in (d,e),!f`.
    ///
    /// # Errors
    /// With upstream's message when the text is malformed or a key or value is illegal.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Parser { tokens: lex(text), at: 0 }.selector()
    }

    /// Builds a selector from a `metav1.LabelSelector` object. `null` selects nothing, `{}` everything. Malformed
    /// parts select nothing (they were refused at write time).
    #[must_use]
    pub fn from_object(v: Option<&Value>) -> Self {
        let Some(Value::Object(o)) = v else { return Self { requirements: vec![], nothing: true } };
        let mut requirements = vec![];
        for (k, v) in o.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let values = vec![v.as_str().unwrap_or_default().to_owned()];
            requirements.push(Requirement { key: k.clone(), operator: Operator::Equals, values });
        }
        for e in o.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let operator = match e["operator"].as_str() {
                Some("In") => Operator::In,
                Some("NotIn") => Operator::NotIn,
                Some("Exists") => Operator::Exists,
                Some("DoesNotExist") => Operator::DoesNotExist,
                _ => return Self { requirements: vec![], nothing: true },
            };
            let mut values: Vec<String> =
                e["values"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
            values.sort_unstable();
            requirements.push(Requirement { key: e["key"].as_str().unwrap_or_default().to_owned(), operator, values });
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Builds a selector from a plain map of labels (Services, ReplicationControllers). An empty map selects nothing
    /// here, because those kinds mean "no selector" by it.
    #[must_use]
    pub fn from_map(v: Option<&Value>) -> Self {
        match v.and_then(Value::as_object) {
            Some(o) if !o.is_empty() => Self {
                requirements: o
                    .iter()
                    .map(|(k, v)| Requirement {
                        key: k.clone(),
                        operator: Operator::Equals,
                        values: vec![v.as_str().unwrap_or_default().to_owned()],
                    })
                    .collect(),
                nothing: false,
            },
            _ => Self { requirements: vec![], nothing: true },
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            let list = r.values.join(",");
            match r.operator {
                Operator::Equals => write!(f, "{key}={list}")?,
                Operator::NotEquals => write!(f, "{key}!={list}")?,
                Operator::In => write!(f, "{key} in ({list})")?,
                Operator::NotIn => write!(f, "{key} notin ({list})")?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan => write!(f, "{key}>{list}")?,
                Operator::LessThan => write!(f, "{key}<{list}")?,
            }
        }
        Ok(())
    }
}

/// Splits into symbols and words. Symbols: `( ) , ! = == != > <`; everything else up to white space is a word.
fn lex(text: &str) -> Vec<String> {
    let mut out = vec![];
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        if c.is_ascii_whitespace() {
            chars.next();
        } else if matches!(c, '(' | ')' | ',') {
            out.push(c.to_string());
            chars.next();
        } else if matches!(c, '=' | '!' | '>' | '<') {
            let mut s = String::new();
            s.push(c);
            chars.next();
            if matches!(c, '=' | '!') && chars.peek() == Some(&'=') {
                s.push('=');
                chars.next();
            }
            out.push(s);
        } else {
            let mut s = String::new();
            while let Some(&c) = chars.peek() {
                if c.is_ascii_whitespace() || matches!(c, '(' | ')' | ',' | '=' | '!' | '>' | '<') {
                    break;
                }
                s.push(c);
                chars.next();
            }
            out.push(s);
        }
    }
    out
}

fn is_symbol(t: &str) -> bool {
    matches!(t, "" | "(" | ")" | "," | "!" | "=" | "==" | "!=" | ">" | "<")
}

struct Parser {
    tokens: Vec<String>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> String {
        let t = self.peek().to_owned();
        self.at += 1;
        t
    }

    fn selector(mut self) -> Result<LabelSelector, ParseError> {
        let mut requirements = vec![];
        loop {
            match self.peek() {
                "" if self.at == 0 => break,
                t if !is_symbol(t) || t == "!" => {
                    let r =
                        self.requirement().map_err(|e| ParseError(format!("unable to parse requirement: {}", e.0)))?;
                    requirements.push(r);
                    match self.next().as_str() {
                        "" => break,
                        "," => {
                            let t = self.peek();
                            if is_symbol(t) && t != "!" {
                                return Err(ParseError(format!("found '{t}', expected: identifier after ','")));
                            }
                        }
                        t => return Err(ParseError(format!("found '{t}', expected: ',' or 'end of string'"))),
                    }
                }
                t => return Err(ParseError(format!("found '{t}', expected: !, identifier, or 'end of string'"))),
            }
        }
        requirements.sort_by(|a: &Requirement, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let negated = self.peek() == "!";
        if negated {
            self.at += 1;
        }
        let key = self.next();
        if is_symbol(&key) {
            return Err(ParseError(format!("found '{key}', expected: identifier")));
        }
        if let Some(why) = names::is_qualified_name(&key).first() {
            return Err(ParseError(format!("<nil>: Invalid value: {}: {why}", quote_str(&key))));
        }
        let mut r = Requirement { key, operator: Operator::Exists, values: vec![] };
        if negated || matches!(self.peek(), "" | ",") {
            if negated {
                r.operator = Operator::DoesNotExist;
            }
            return Ok(r);
        }
        let op = self.next();
        r.operator = match op.as_str() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            "=" | "==" => Operator::Equals,
            "!=" => Operator::NotEquals,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            t => return Err(ParseError(format!("found '{t}', expected: in, notin, =, ==, !=, gt, lt"))),
        };
        r.values = match r.operator {
            Operator::In | Operator::NotIn => self.list()?,
            _ => vec![self.exact()?],
        };
        r.validate()?;
        Ok(r)
    }

    /// One operand; missing means the empty string.
    fn exact(&mut self) -> Result<String, ParseError> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            t if !is_symbol(t) => Ok(self.next()),
            t => Err(ParseError(format!("found '{t}', expected: identifier"))),
        }
    }

    /// `(a,b)`; an empty element is the empty string.
    fn list(&mut self) -> Result<Vec<String>, ParseError> {
        let t = self.next();
        if t != "(" {
            return Err(ParseError(format!("found '{t}' expected: '('")));
        }
        let mut values = vec![];
        loop {
            let t = self.next();
            match t.as_str() {
                ")" => {
                    values.push(String::new());
                    break;
                }
                "," => values.push(String::new()),
                t if !is_symbol(t) => {
                    values.push(t.to_owned());
                    match self.next().as_str() {
                        "," => {
                            if self.peek() == ")" {
                                continue;
                            }
                        }
                        ")" => break,
                        t => return Err(ParseError(format!("found '{t}', expected: ',', or ')'"))),
                    }
                }
                t => return Err(ParseError(format!("found '{t}', expected: ',', ')' or identifier"))),
            }
        }
        values.sort_unstable();
        values.dedup();
        Ok(values)
    }
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// Field path, for example `spec.nodeName`.
    pub field: String,
    /// Operand.
    pub value: String,
    /// `!=` instead of `=`.
    pub negated: bool,
}

/// A conjunction of field terms. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Terms in the order given.
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Parses `a=b,c!=d`. A backslash escapes `,`, `=` and itself.
    ///
    /// # Errors
    /// With upstream's message when a term has no operator.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = vec![];
        let mut parts = split_terms(text);
        // As upstream: of several faults the first in this order is told.
        parts.sort();
        for part in parts.iter().filter(|p| !p.is_empty()) {
            let bad = || ParseError(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let (field, value, negated) = split_operator(part).ok_or_else(bad)?;
            let value = unescape(value).ok_or_else(bad)?;
            // What says nothing selects everything.
            if !field.is_empty() || !value.is_empty() {
                terms.push(FieldTerm { field: field.to_owned(), value, negated });
            }
        }
        Ok(Self { terms })
    }

    /// Whether everything matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must have, if the selector pins it.
    #[must_use]
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| !t.negated && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether an object is selected; `get` answers a field's value, empty when it has none.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> &'a str) -> bool {
        self.terms.iter().all(|t| (get(&t.field) == t.value) != t.negated)
    }
}

fn split_terms(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            out.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = out.last_mut() {
            last.push(c);
        }
    }
    out
}

fn split_operator(term: &str) -> Option<(&str, &str, bool)> {
    let mut escaped = false;
    for (i, c) in term.char_indices() {
        if !escaped {
            let rest = &term[i..];
            if let Some(value) = rest.strip_prefix("!=") {
                return Some((&term[..i], value, true));
            }
            if let Some(value) = rest.strip_prefix("==") {
                return Some((&term[..i], value, false));
            }
            if c == '=' {
                return Some((&term[..i], &rest[1..], false));
            }
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

fn unescape(s: &str) -> Option<String> {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                e @ ('\\' | ',' | '=') => out.push(e),
                _ => return None,
            },
            // An unescaped operator or separator inside a value is a mistake.
            '=' | ',' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut v: Vec<_> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        v.sort();
        v
    }

    #[test]
    fn label_selectors_match() {
        let l = labels(&[("app", "web"), ("n", "5")]);
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app == web", true),
            ("app!=web", false),
            ("x!=y", true),
            ("app in (a,web)", true),
            ("x notin (a)", true),
            ("app,!x", true),
            ("!app", false),
            ("n>4,n<6", true),
            ("app=", false),
        ] {
            let s = LabelSelector::parse(text).unwrap();
            assert_eq!(s.matches(l.as_slice()), want, "{text}");
        }
    }

    #[test]
    fn label_selectors_complain_like_upstream() {
        for (text, want) in [
            ("a==b=c", "found '=', expected: ',' or 'end of string'"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in x", "unable to parse requirement: found 'x' expected: '('"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().0, want, "{text}");
        }
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed").unwrap();
        assert_eq!(s.exact("spec.nodeName"), Some("n1"));
        assert!(s.matches(|f| if f == "spec.nodeName" { "n1" } else { "Running" }));
        assert!(!s.matches(|_| "Failed"));
        assert!(FieldSelector::parse("spec.x").is_err());
        for nothing in ["", ",", "=", "==", "!=,="] {
            assert!(FieldSelector::parse(nothing).unwrap().is_everything(), "{nothing}");
        }
        assert_eq!(FieldSelector::parse("a=b\\,c").unwrap().terms[0].value, "b,c");
    }

    proptest::proptest! {
        #[test]
        fn printing_parses_back(keys in proptest::collection::btree_map("[a-z]{1,5}", "[a-z0-9]{0,5}", 0..4)) {
            let text = keys.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
            let s = LabelSelector::parse(&text).unwrap();
            proptest::prop_assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            drop(LabelSelector::parse(&text));
            drop(FieldSelector::parse(&text));
        }
    }
}
