//! Values against their schema, in upstream's words and order.
//!
//! The order of checks and what ends them early are those of the validator upstream uses: type, junctors, string, format,
//! number, list, enumeration, object. Errors of junctors have no path of their own there, which shows as `<nil>`.
//!
//! On updates a value that is equal to its old self keeps its faults (ratcheting): where a value is the same as before,
//! everything found at it and below is forgotten. Items of lists have an old self only where the list has keys.

use serde_json::Value;

use super::formats;
use super::schema::{Additional, Bound, ListType, Node, Type};
use crate::invalid::{Errors, quote_str};
use crate::path::Path;

/// Prints where upstream has no path.
pub const NIL: &str = "<nil>";

/// What was found, with the number of checks that were made: of several alternatives the one that got furthest is told.
#[derive(Default)]
struct Outcome {
    errors: Errors,
    matched: usize,
}

impl Outcome {
    fn valid(&self) -> bool {
        self.errors.is_empty()
    }

    fn merge(&mut self, other: Self) {
        for e in other.errors.0 {
            if !self.errors.0.contains(&e) {
                self.errors.0.push(e);
            }
        }
        self.matched += other.matched;
    }
}

/// Checks `value` along `node`. Paths are below `base` (empty: the object itself); `old` is what the value was before.
pub fn check(value: &Value, node: &Node, old: Option<&Value>, base: &str, errors: &mut Errors) {
    let found = node_at(value, node, old, &Path::new(""));
    for mut e in found.errors.0 {
        e.path = match (base, e.path.as_str()) {
            ("", "" | NIL) => NIL.to_owned(),
            ("", path) => path.to_owned(),
            (base, "" | NIL) => base.to_owned(),
            (base, path) => format!("{base}.{path}"),
        };
        errors.0.push(e);
    }
}

fn node_at(value: &Value, node: &Node, old: Option<&Value>, path: &Path<'_>) -> Outcome {
    let mut out = Outcome::default();
    if value.is_null() {
        type_of(value, node, path, &mut out);
        values(value, node, path, &mut out);
    } else {
        let typed = node.kind.is_some() || node.int_or_string || !node.format.is_empty();
        if typed {
            type_of(value, node, path, &mut out);
            out.matched += 1;
        }
        junctors(value, node, old, path, &mut out);
        out.matched += 1;
        match value {
            Value::String(s) => {
                string(s, node, path, &mut out);
                out.matched += 1;
                if formats::known(&node.format) {
                    if !formats::fits(&node.format, s) {
                        let why = format!("{path} in body must be of type {}: {}", node.format, quote_str(s));
                        out.errors.type_invalid(path, s.as_str(), why);
                    }
                    out.matched += 1;
                }
            }
            Value::Number(n) => {
                number(value, n.as_f64().unwrap_or(0.0), node, path, &mut out);
                out.matched += 2;
            }
            Value::Array(list) => {
                array(list, node, old, path, &mut out);
                out.matched += 2;
            }
            _ => {}
        }
        values(value, node, path, &mut out);
        out.matched += 1;
        if let Value::Object(_) = value {
            object(value, node, old, path, &mut out);
            out.matched += 1;
        }
    }
    if !out.valid() && old == Some(value) {
        out.errors = Errors::new();
    }
    out
}

fn json_type(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
        Value::Number(n) if n.is_i64() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
    }
}

fn type_of(value: &Value, node: &Node, path: &Path<'_>, out: &mut Outcome) {
    let wanted: Vec<&str> = match (node.int_or_string, node.kind) {
        (true, _) => vec!["integer", "string"],
        (false, Some(kind)) => vec![kind.name()],
        (false, None) => vec![],
    };
    let (found, format) = json_type(value);
    let wrong = |wanted: &str, found: &str, out: &mut Outcome| {
        let why = format!("{path} in body must be of type {wanted}: {}", quote_str(found));
        out.errors.type_invalid(path, found, why);
    };
    if value.is_null() {
        if !wanted.is_empty() && !node.nullable {
            wrong(&wanted.join(","), "null", out);
        } else {
            out.matched += 1;
        }
        return;
    }
    let has = |name: &str| wanted.contains(&name);
    let numeric = has("number") || has("integer");
    let whole =
        found == "number" && has("integer") && value.as_f64().is_some_and(|f| f.fract() == 0.0 && f.abs() < 9.2e18);
    let widened = found == "integer" && has("number");
    let listed = value.is_string() || value.is_array();
    let stated = !node.format.is_empty() && (numeric || wanted.is_empty() || formats::known(&node.format));
    if !listed && stated && !(has(found) || format == node.format || whole || widened) {
        return wrong(&node.format, if format.is_empty() { "" } else { format }, out);
    }
    if !numeric && stated && listed {
        out.matched += 1;
        return;
    }
    if wanted.is_empty() || has(found) || whole || widened {
        out.matched += 1;
    } else {
        wrong(&wanted.join(","), found, out);
    }
}

fn composite(out: &mut Outcome, path: &Path<'_>, why: &str) {
    out.errors.invalid(&NIL, "", format!("{} {why}", quote_str(&path.to_string())));
}

fn junctors(value: &Value, node: &Node, old: Option<&Value>, path: &Path<'_>, out: &mut Outcome) {
    let alternative = |n: &Node| node_at(value, n, old, path);
    if !node.any_of.is_empty() {
        let mut best: Option<Outcome> = None;
        let mut success = None;
        for n in &node.any_of {
            let found = alternative(n);
            if found.valid() {
                success = Some(found);
                break;
            }
            if best.as_ref().is_none_or(|b| found.matched > b.matched) {
                best = Some(found);
            }
        }
        match (success, best) {
            (Some(found), _) => out.merge(found),
            (None, best) => {
                composite(out, path, "must validate at least one schema (anyOf)");
                best.into_iter().for_each(|b| out.merge(b));
            }
        }
    }
    if !node.one_of.is_empty() {
        let mut best: Option<Outcome> = None;
        let mut first = None;
        let mut count = 0;
        for n in &node.one_of {
            let found = alternative(n);
            if found.valid() {
                count += 1;
                best = None;
                first.get_or_insert(found);
            } else if count == 0 && best.as_ref().is_none_or(|b| found.matched > b.matched) {
                best = Some(found);
            }
        }
        match count {
            1 => first.into_iter().for_each(|f| out.merge(f)),
            n => {
                let found =
                    if n == 0 { "Found none valid".to_owned() } else { format!("Found {n} valid alternatives") };
                composite(out, path, &format!("must validate one and only one schema (oneOf). {found}"));
                best.into_iter().for_each(|b| out.merge(b));
            }
        }
    }
    if !node.all_of.is_empty() {
        let mut count = 0;
        for n in &node.all_of {
            let found = alternative(n);
            count += usize::from(found.valid());
            out.merge(found);
        }
        if count == 0 {
            composite(out, path, "must validate all the schemas (allOf). None validated");
        } else if count < node.all_of.len() {
            composite(out, path, "must validate all the schemas (allOf)");
        }
    }
    if let Some(n) = &node.not
        && node_at(value, n, None, path).valid()
    {
        composite(out, path, "must not validate the schema (not)");
    }
    out.matched += 1;
}

fn string(s: &str, node: &Node, path: &Path<'_>, out: &mut Outcome) {
    let length = i64::try_from(s.chars().count()).unwrap_or(i64::MAX);
    if let Some(max) = node.max_length.filter(|max| length > *max) {
        out.errors.too_long(path, usize::try_from(max).unwrap_or(0));
    } else if let Some(min) = node.min_length.filter(|min| length < *min) {
        out.errors.invalid(path, s, format!("{path} in body should be at least {min} chars long"));
    } else if let Some(pattern) = &node.pattern
        && !pattern.matches(s)
    {
        out.errors.invalid(path, s, format!("{path} in body should match '{}'", pattern.text()));
    }
}

/// A bound as upstream prints it.
fn shown(n: f64) -> String {
    crate::patch::go::print(&Value::from(n))
}

fn number(value: &Value, n: f64, node: &Node, path: &Path<'_>, out: &mut Outcome) {
    let name = match (node.int_or_string, node.kind) {
        (true, _) | (false, Some(Type::Integer)) => "integer",
        (false, Some(Type::Number)) => "number",
        _ => "",
    };
    let fits = match (name, node.format.as_str()) {
        ("integer", "int32") => value.as_i64().is_some_and(|i| i32::try_from(i).is_ok()),
        ("integer", _) => value.as_i64().is_some() || (n.fract() == 0.0 && n.abs() < 9.2e18),
        (_, "float" | "float32") => n.abs() <= f64::from(f32::MAX),
        _ => true,
    };
    if !fits {
        let format =
            if node.format.is_empty() { "(default format)".to_owned() } else { format!("with format {}", node.format) };
        out.errors.invalid(&NIL, "", format!("Checked value must be of type {name} {format} in {path}"));
    }
    if let Some(factor) = node.multiple_of {
        if factor <= 0.0 {
            out.errors.invalid(
                path,
                value.clone(),
                format!("factor MultipleOf declared for {path} must be positive: {}", shown(factor)),
            );
        } else {
            let quotient = n / factor;
            let exact = match (value.as_i64(), factor.fract() == 0.0) {
                (Some(i), true) => i % (factor as i64) == 0,
                _ => quotient.fract() == 0.0,
            };
            if !exact {
                out.errors.invalid(
                    path,
                    value.clone(),
                    format!("{path} in body should be a multiple of {}", shown(factor)),
                );
            }
        }
    }
    if let Some(Bound { value: max, exclusive }) = node.maximum
        && (n > max || (exclusive && n == max))
    {
        let than = if exclusive { "than" } else { "than or equal to" };
        out.errors.invalid(path, value.clone(), format!("{path} in body should be less {than} {}", shown(max)));
    }
    if let Some(Bound { value: min, exclusive }) = node.minimum
        && (n < min || (exclusive && n == min))
    {
        let than = if exclusive { "than" } else { "than or equal to" };
        out.errors.invalid(path, value.clone(), format!("{path} in body should be greater {than} {}", shown(min)));
    }
}

fn array(list: &[Value], node: &Node, old: Option<&Value>, path: &Path<'_>, out: &mut Outcome) {
    if let Some(items) = &node.items {
        for (i, value) in list.iter().enumerate() {
            out.merge(node_at(value, items, old_item(node, old, value), &path.index(i)));
        }
    }
    let count = i64::try_from(list.len()).unwrap_or(i64::MAX);
    if let Some(min) = node.min_items.filter(|min| count < *min) {
        out.errors.invalid(path, count, format!("{path} in body should have at least {min} items"));
    }
    if let Some(max) = node.max_items.filter(|max| count > *max) {
        out.errors.too_many(path, list.len(), usize::try_from(max).unwrap_or(0));
    }
    if node.unique_items && list.iter().enumerate().any(|(i, v)| list[..i].contains(v)) {
        out.errors.invalid(path, "", format!("{path} in body shouldn't contain duplicates"));
    }
}

/// The old self of a list's item: the one with the same keys.
#[must_use]
pub fn old_item<'v>(node: &Node, old: Option<&'v Value>, item: &Value) -> Option<&'v Value> {
    if node.list != Some(ListType::Map) {
        return None;
    }
    let same = |o: &&Value| node.keys.iter().all(|k| o.get(k) == item.get(k));
    old?.as_array()?.iter().find(same)
}

fn values(value: &Value, node: &Node, path: &Path<'_>, out: &mut Outcome) {
    if node.values.is_empty() {
        return;
    }
    let same = |allowed: &Value| match (allowed, value) {
        (Value::Null, _) => false,
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    };
    if node.values.iter().any(same) {
        return;
    }
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let allowed: Vec<String> = node.values.iter().map(text).collect();
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    out.errors.not_supported(path, value.clone(), &allowed);
}

fn object(value: &Value, node: &Node, old: Option<&Value>, path: &Path<'_>, out: &mut Outcome) {
    let Value::Object(members) = value else { return };
    let count = i64::try_from(members.len()).unwrap_or(i64::MAX);
    if let Some(min) = node.min_properties.filter(|min| count < *min) {
        out.errors.invalid(path, count, format!("{path} in body should have at least {min} properties"));
    }
    if let Some(max) = node.max_properties.filter(|max| count > *max) {
        out.errors.too_many(path, members.len(), usize::try_from(max).unwrap_or(0));
    }
    let before = |name: &str| old.and_then(|o| o.get(name));
    if let Additional::Schema(schema) = &node.additional {
        for (name, value) in members.iter().filter(|(name, _)| !node.properties.contains_key(*name)) {
            out.merge(node_at(value, schema, before(name), &path.child(name)));
        }
    }
    for (name, schema) in &node.properties {
        if let Some(value) = members.get(name) {
            out.merge(node_at(value, schema, before(name), &path.child(name)));
        }
    }
    for name in node.required.iter().filter(|n| !members.contains_key(*n)) {
        out.errors.required(&path.child(name), "");
    }
}

/// Checks that items of sets and of keyed lists are there once.
pub fn unique(value: &Value, node: &Node, path: &Path<'_>, errors: &mut Errors) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let Some(member) = node.member(name) else { continue };
                if node.properties.contains_key(name) {
                    unique(value, member, &path.child(name), errors);
                } else {
                    unique(value, member, &path.key(name), errors);
                }
            }
        }
        Value::Array(list) => {
            let key = |item: &Value| match node.list {
                Some(ListType::Map) => {
                    let keys = node.keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone())));
                    Some(Value::Object(keys.collect()))
                }
                Some(ListType::Set) => Some(item.clone()),
                _ => None,
            };
            let mut seen: Vec<Value> = Vec::new();
            for (i, item) in list.iter().enumerate() {
                if let Some(key) = key(item) {
                    if seen.contains(&key) {
                        errors.duplicate(&path.index(i), key);
                    } else {
                        seen.push(key);
                    }
                }
                if let Some(items) = &node.items {
                    unique(item, items, &path.index(i), errors);
                }
            }
        }
        _ => {}
    }
}

/// Checks kind, version and metadata of embedded objects.
pub fn embedded(value: &Value, node: &Node, path: &Path<'_>, errors: &mut Errors) {
    match value {
        Value::Object(members) => {
            if node.embedded {
                embedded_object(value, path, errors);
            }
            for (name, value) in members {
                let Some(member) = node.member(name) else { continue };
                if node.properties.contains_key(name) {
                    embedded(value, member, &path.child(name), errors);
                } else {
                    embedded(value, member, &path.key(name), errors);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &node.items else { return };
            for (i, value) in list.iter().enumerate() {
                embedded(value, items, &path.index(i), errors);
            }
        }
        _ => {}
    }
}

/// Kind, version and metadata of one embedded object.
pub fn embedded_object(value: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("apiVersion");
    match value.get("apiVersion") {
        None => errors.required(&at, ""),
        Some(Value::String(s)) if s.is_empty() => errors.invalid(&at, s.as_str(), "must not be empty"),
        Some(Value::String(s)) => {
            if s.matches('/').count() > 1 {
                errors.invalid(&at, s.as_str(), format!("unexpected GroupVersion string: {s}"));
            }
        }
        Some(other) => errors.invalid(&at, other.clone(), "must be a string"),
    }
    let at = path.child("kind");
    match value.get("kind") {
        None => errors.required(&at, ""),
        Some(Value::String(s)) if s.is_empty() => errors.invalid(&at, s.as_str(), "must not be empty"),
        Some(Value::String(s)) => {
            let why = crate::names::is_dns1035_label(&s.to_lowercase());
            if !why.is_empty() {
                let why = format!("may have mixed case, but should otherwise match: {}", why.join(","));
                errors.invalid(&at, s.as_str(), why);
            }
        }
        Some(other) => errors.invalid(&at, other.clone(), "must be a string"),
    }
    if value.get("metadata").is_some_and(Value::is_object) {
        let mut named = serde_json::json!({"metadata": value["metadata"]});
        if crate::meta::name(&named).is_empty() {
            named["metadata"]["name"] = "fakename".into();
        }
        let mut found = Errors::new();
        let namespaced = !crate::meta::namespace(&named).is_empty();
        crate::meta::validate(&named, namespaced, crate::meta::NameRule::PathSegment, &mut found);
        for mut e in found.0 {
            e.path = path.child(&e.path).to_string();
            errors.0.push(e);
        }
    }
}
