//! The condition inside `[?( … )]`.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::Segment;
use super::eval::select;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    Any(Vec<Filter>),
    All(Vec<Filter>),
    Not(Box<Filter>),
    Exists(Term),
    Compare(Term, Comparison, Term),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Term {
    /// From `@`, the element.
    Here(Vec<Segment>),
    /// From `$`, the whole.
    Whole(Vec<Segment>),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    LessEqual,
    GreaterEqual,
    Less,
    Greater,
    In,
    NotIn,
}

impl Comparison {
    /// The longer tokens first.
    pub(crate) const TOKENS: [(&'static str, Self); 8] = [
        ("==", Self::Equal),
        ("!=", Self::NotEqual),
        ("<=", Self::LessEqual),
        (">=", Self::GreaterEqual),
        ("<", Self::Less),
        (">", Self::Greater),
        ("nin", Self::NotIn),
        ("in", Self::In),
    ];
}

impl Filter {
    pub(crate) fn holds(&self, here: &Value, whole: &Value) -> bool {
        match self {
            Self::Any(all) => all.iter().any(|f| f.holds(here, whole)),
            Self::All(all) => all.iter().all(|f| f.holds(here, whole)),
            Self::Not(f) => !f.holds(here, whole),
            Self::Exists(term) => term.value(here, whole).is_some(),
            Self::Compare(left, comparison, right) => {
                compare(left.value(here, whole).as_deref(), *comparison, right.value(here, whole).as_deref())
            }
        }
    }
}

impl Term {
    fn value<'a>(&'a self, here: &'a Value, whole: &'a Value) -> Option<Cow<'a, Value>> {
        match self {
            Self::Here(segments) => select(segments, here, whole),
            Self::Whole(segments) => select(segments, whole, whole),
            Self::Literal(value) => Some(Cow::Borrowed(value)),
        }
    }
}

fn compare(left: Option<&Value>, comparison: Comparison, right: Option<&Value>) -> bool {
    let (Some(left), Some(right)) = (left, right) else {
        return comparison == Comparison::NotEqual && (left.is_some() || right.is_some());
    };
    match comparison {
        Comparison::Equal => same(left, right),
        Comparison::NotEqual => !same(left, right),
        Comparison::In => right.as_array().is_some_and(|all| all.iter().any(|v| same(left, v))),
        Comparison::NotIn => !right.as_array().is_some_and(|all| all.iter().any(|v| same(left, v))),
        Comparison::Less => order(left, right) == Some(Ordering::Less),
        Comparison::Greater => order(left, right) == Some(Ordering::Greater),
        Comparison::LessEqual => matches!(order(left, right), Some(Ordering::Less | Ordering::Equal)),
        Comparison::GreaterEqual => matches!(order(left, right), Some(Ordering::Greater | Ordering::Equal)),
    }
}

fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(_), Value::Number(_)) => order(left, right) == Some(Ordering::Equal),
        _ => left == right,
    }
}

/// Numbers and strings have an order, nothing else has.
pub(crate) fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}
