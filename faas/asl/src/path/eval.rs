//! Walking a value along the segments of a path.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::Segment;
use crate::budget::Budget;

/// The most values that a step may find: more than the largest payload could hold.
const MAX_FOUND: usize = 262_144;

/// What may close a path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Function {
    Length,
    Keys,
    Min,
    Max,
    Sum,
    Avg,
    Stddev,
    First,
    Last,
}

impl Function {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "length" | "size" => Self::Length,
            "keys" => Self::Keys,
            "min" => Self::Min,
            "max" => Self::Max,
            "sum" => Self::Sum,
            "avg" => Self::Avg,
            "stddev" => Self::Stddev,
            "first" => Self::First,
            "last" => Self::Last,
            _ => return None,
        })
    }

    fn apply(self, value: &Value) -> Option<Value> {
        match self {
            Self::Length => match value {
                Value::Array(items) => Some(items.len().into()),
                Value::Object(map) => Some(map.len().into()),
                Value::String(text) => Some(text.chars().count().into()),
                _ => None,
            },
            Self::Keys => Some(value.as_object()?.keys().cloned().collect()),
            Self::First => value.as_array()?.first().cloned(),
            Self::Last => value.as_array()?.last().cloned(),
            Self::Min | Self::Max | Self::Sum | Self::Avg | Self::Stddev => self.number(value.as_array()?),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of items are far below 2^52")]
    fn number(self, items: &[Value]) -> Option<Value> {
        let numbers: Vec<f64> = items.iter().filter_map(Value::as_f64).collect();
        if numbers.is_empty() {
            return None;
        }
        let count = numbers.len() as f64;
        let sum: f64 = numbers.iter().sum();
        let result = match self {
            Self::Min => numbers.iter().copied().fold(f64::INFINITY, f64::min),
            Self::Max => numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            Self::Sum => sum,
            Self::Avg => sum / count,
            _ => (numbers.iter().map(|n| (n - sum / count).powi(2)).sum::<f64>() / count).sqrt(),
        };
        Some(number(result))
    }
}

/// A JSON number, whole where it can be.
pub(crate) fn number(value: f64) -> Value {
    #[allow(clippy::cast_possible_truncation, reason = "guarded by the range")]
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 { json!(value as i64) } else { json!(value) }
}

/// What the segments select from `start`; `whole` is what `$` means in filters. Paths that find more than any payload
/// could hold find nothing.
pub(crate) fn select<'a>(segments: &[Segment], start: &'a Value, whole: &'a Value) -> Option<Cow<'a, Value>> {
    let mut at = start;
    let mut rest = segments;
    while let Some((segment, after)) = rest.split_first() {
        match segment {
            Segment::Child(name) => at = at.as_object()?.get(name)?,
            Segment::Index(i) => at = item(at.as_array()?, *i)?,
            Segment::Function(f) => return f.apply(at).map(Cow::Owned),
            _ => break,
        }
        rest = after;
    }
    if rest.is_empty() {
        return Some(Cow::Borrowed(at));
    }
    let mut found = vec![at];
    for segment in rest {
        if let Segment::Function(f) = segment {
            return f.apply(&copies(&found)?).map(Cow::Owned);
        }
        let mut next = Vec::new();
        for value in found {
            step(segment, value, whole, &mut next);
            if next.len() > MAX_FOUND {
                return None;
            }
        }
        found = next;
    }
    copies(&found).map(Cow::Owned)
}

fn copies(found: &[&Value]) -> Option<Value> {
    let mut budget = Budget::new();
    let fits = found.iter().all(|value| budget.take(value));
    fits.then(|| Value::Array(found.iter().map(|value| (*value).clone()).collect()))
}

fn item(items: &[Value], index: i64) -> Option<&Value> {
    let index = if index < 0 { index.checked_add(i64::try_from(items.len()).ok()?)? } else { index };
    items.get(usize::try_from(index).ok()?)
}

fn step<'a>(segment: &Segment, value: &'a Value, whole: &'a Value, out: &mut Vec<&'a Value>) {
    match segment {
        Segment::Child(name) => out.extend(value.as_object().and_then(|map| map.get(name))),
        Segment::Children(names) => {
            if let Some(map) = value.as_object() {
                out.extend(names.iter().filter_map(|name| map.get(name)));
            }
        }
        Segment::Index(i) => out.extend(value.as_array().and_then(|items| item(items, *i))),
        Segment::Indexes(all) => {
            if let Some(items) = value.as_array() {
                out.extend(all.iter().filter_map(|i| item(items, *i)));
            }
        }
        Segment::Slice(start, end, step) => {
            if let Some(items) = value.as_array() {
                let (start, end) = (bound(*start, 0, items.len()), bound(*end, items.len(), items.len()));
                let step = usize::try_from(*step).unwrap_or(1).max(1);
                if start < end {
                    out.extend(items[start..end].iter().step_by(step));
                }
            }
        }
        Segment::Wildcard => children(value, &mut |child| out.push(child)),
        Segment::Descend(inner) => descend(inner, value, whole, out),
        // An object is an element of itself here, as in the service's implementation.
        Segment::Filter(filter) => match value {
            Value::Array(items) => out.extend(items.iter().filter(|item| filter.holds(item, whole))),
            Value::Object(_) if filter.holds(value, whole) => out.push(value),
            _ => {}
        },
        Segment::Function(_) => {}
    }
}

fn descend<'a>(inner: &Segment, value: &'a Value, whole: &'a Value, out: &mut Vec<&'a Value>) {
    // A filter looks at the elements of arrays only: objects would otherwise be found twice.
    if !matches!((inner, value), (Segment::Filter(_), Value::Object(_))) {
        step(inner, value, whole, out);
    }
    children(value, &mut |child| descend(inner, child, whole, out));
}

fn children<'a>(value: &'a Value, f: &mut dyn FnMut(&'a Value)) {
    match value {
        Value::Array(items) => items.iter().for_each(f),
        Value::Object(map) => map.values().for_each(f),
        _ => {}
    }
}

/// The bound of a slice within `0..=len`; negative ones count from the end.
fn bound(at: Option<i64>, default: usize, len: usize) -> usize {
    let Some(at) = at else { return default };
    let magnitude = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
    if at < 0 { len.saturating_sub(magnitude) } else { magnitude.min(len) }
}
