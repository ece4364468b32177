//! Strategic merge patch: a merge that knows the type, and takes directives.
//!
//! Lists merge by the key or as the sets that the schema says; `$patch`, `$retainKeys`, `$deleteFromPrimitiveList/...` and
//! `$setElementOrder/...` change what happens. Items that only the patch has come before their neighbours that only the
//! object has, as upstream orders them. Nulls in what is new are dropped.

use serde_json::{Map, Value};

use super::{PatchError, go, not_json};
use crate::codec::{Parsed, parse_json};
use crate::schema::{PatchStrategy, Shape, Struct};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

fn wrong<T>(text: String) -> Result<T> {
    Err(PatchError::Directive(text))
}

/// Reads a strategic merge patch: an object, or null, which changes nothing.
pub fn parse(bytes: &[u8]) -> Result<Parsed> {
    let mut parsed = parse_json(bytes).map_err(|_| not_json())?;
    match &parsed.value {
        Value::Object(_) => {}
        Value::Null => parsed.value = Value::Object(Map::new()),
        _ => return Err(PatchError::Malformed("error decoding patch: an object is wanted".to_owned())),
    }
    Ok(parsed)
}

/// Merges `patch` into `object`, whose type is `shape`. On an error the object is half done and must not be used.
pub fn strategic_merge(object: &mut Value, patch: &Value, shape: &Struct) -> Result<()> {
    let (Value::Object(members), Value::Object(patch)) = (&mut *object, patch) else { return Ok(()) };
    merge_map(members, patch.clone(), Known::Struct(shape))
}

/// What is known of the members of a JSON object.
#[derive(Clone, Copy)]
enum Known<'a> {
    Struct(&'a Struct),
    /// Every member has this shape.
    Members(&'a Shape),
    Nothing,
}

/// How a list merges.
struct Rule<'a> {
    item: Known<'a>,
    merges: bool,
    key: &'a str,
}

fn known(shape: &Shape) -> Known<'_> {
    match shape {
        Shape::Struct(s) => Known::Struct(s),
        Shape::Map(inner) => Known::Members(inner),
        _ => Known::Nothing,
    }
}

impl<'a> Known<'a> {
    fn shape(self, name: &str) -> Option<&'a Shape> {
        match self {
            Known::Struct(s) => s.fields.iter().find(|f| f.name == name).map(|f| &f.shape),
            Known::Members(shape) => Some(shape),
            Known::Nothing => None,
        }
    }

    fn strategy(self, name: &str) -> PatchStrategy {
        match self {
            Known::Struct(s) => s.fields.iter().find(|f| f.name == name).map_or(PatchStrategy::Default, |f| f.patch),
            _ => PatchStrategy::Default,
        }
    }

    fn member(self, name: &str) -> Known<'a> {
        self.shape(name).map_or(Known::Nothing, known)
    }

    fn list(self, name: &str) -> Rule<'a> {
        let item = match self.shape(name) {
            Some(Shape::List(item)) => known(item),
            _ => Known::Nothing,
        };
        let merges = matches!(self.strategy(name), PatchStrategy::Merge | PatchStrategy::MergeRetainKeys);
        let key = match self {
            Known::Struct(s) => s.fields.iter().find(|f| f.name == name).and_then(|f| f.merge_key.as_deref()),
            _ => None,
        };
        Rule { item, merges, key: key.unwrap_or_default() }
    }
}

fn merge_map(object: &mut Object, mut patch: Object, known: Known<'_>) -> Result<()> {
    if let Some(directive) = patch.get(PATCH) {
        match directive.as_str() {
            Some("replace") => {
                patch.remove(PATCH);
                *object = patch;
            }
            Some("delete") => object.clear(),
            _ => return bad_directive(directive, &patch),
        }
        return Ok(());
    }
    retain_keys(object, &mut patch)?;
    ordered_lists(object, &mut patch, known)?;
    for (name, value) in patch {
        if let Some(name) = name.strip_prefix(DELETE_FROM) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (object.get_mut(name), &value) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if value.is_null() {
            object.remove(&name);
            continue;
        }
        match (object.get_mut(&name), value) {
            (Some(Value::Object(present)), Value::Object(value)) => {
                if known.strategy(&name) == PatchStrategy::Replace {
                    *present = value;
                } else {
                    merge_map(present, value, known.member(&name))?;
                }
            }
            (Some(Value::Array(present)), Value::Array(value)) => {
                merge_list(present, value, &known.list(&name))?;
            }
            (present, value) => {
                if let Some(value) = fresh(value) {
                    object.insert(name, value);
                } else if present.is_some() {
                    object.remove(&name);
                }
            }
        }
    }
    Ok(())
}

fn bad_directive<T>(directive: &Value, patch: &Object) -> Result<T> {
    let value = match directive {
        Value::String(s) => s.clone(),
        // `%s` of what is no string.
        Value::Null => "%!s(<nil>)".to_owned(),
        other => format!("%!s({}={})", go::type_name(other), go::print(other)),
    };
    wrong(format!("unknown patch type: {value} in map: {}", go::print(&Value::Object(patch.clone()))))
}

/// What is new, without nulls (they mean nothing here) and without the parts that carry a `$patch` of their own, whatever
/// it says: there is nothing to patch. Other directives stay and are reported as unknown fields.
fn fresh(value: Value) -> Option<Value> {
    match value {
        Value::Object(members) if members.contains_key(PATCH) => None,
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, v)| !v.is_null());
            Some(Value::Object(kept.filter_map(|(name, v)| Some((name, fresh(v)?))).collect()))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(fresh).collect())),
        other => Some(other),
    }
}

fn retain_keys(object: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || PatchError::Malformed("invalid patch format of retainKeys".to_owned());
    let Value::Array(keys) = keys else { return Err(bad()) };
    let kept = |name: &String| keys.iter().any(|k| k.as_str() == Some(name));
    let directive = |name: &String| name.starts_with(DELETE_FROM) || name.starts_with(SET_ORDER);
    if patch.iter().any(|(name, value)| !value.is_null() && !directive(name) && !kept(name)) {
        return Err(bad());
    }
    object.retain(|name, _| kept(name));
    Ok(())
}

/// Lists with an order: merged here, and taken out of the patch.
fn ordered_lists(object: &mut Object, patch: &mut Object, known: Known<'_>) -> Result<()> {
    let orders: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in orders {
        let order = list_of(patch.remove(&directive))?.unwrap_or_default();
        let name = &directive[SET_ORDER.len()..];
        let before = list_of(object.get(name).cloned())?;
        let change = match patch.get(name) {
            // A null removes the list, after which there is nothing to order.
            Some(Value::Null) => continue,
            other => list_of(other.cloned())?,
        };
        patch.remove(name);
        let rule = known.list(name);
        agrees(change.as_deref().unwrap_or_default(), &order, rule.key)?;
        let deletions = patch.remove(&format!("{DELETE_FROM}{name}"));
        let mut merged = match (&before, change) {
            (None, None) => continue,
            (Some(before), None) => before.clone(),
            (None, Some(change)) => change.into_iter().filter_map(fresh).collect(),
            (Some(before), Some(change)) => {
                let mut merged = before.clone();
                merge_list(&mut merged, change, &rule)?;
                merged
            }
        };
        if let Some(Value::Array(gone)) = deletions {
            merged.retain(|item| !gone.contains(item));
        }
        let before = before.unwrap_or_default();
        let (ours, theirs) = partition(merged, &order, rule.key)?;
        object.insert(name.to_owned(), Value::Array(interleave(ours, theirs, &order, &before, rule.key)?));
    }
    Ok(())
}

fn list_of(value: Option<Value>) -> Result<Option<Vec<Value>>> {
    match value {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => wrong(format!("expected a []interface {{}}, but received a {}", go::type_name(&other))),
    }
}

/// Whether the items of a patch occur in the order list, in that order.
fn agrees(patch: &[Value], order: &[Value], key: &str) -> Result<()> {
    let deletes = |item: &Value| !key.is_empty() && item.get(PATCH).and_then(Value::as_str) == Some("delete");
    let mut rest = order.iter();
    for item in patch.iter().filter(|i| !deletes(i)) {
        if !rest.any(|o| same(o, item, key)) {
            let (patch, order) = (Value::Array(patch.to_vec()), Value::Array(order.to_vec()));
            return wrong(format!(
                "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                go::print(&patch),
                "$setElementOrder",
                go::print(&order)
            ));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
}

fn merge_list(list: &mut Vec<Value>, patch: Vec<Value>, rule: &Rule<'_>) -> Result<()> {
    if !rule.merges {
        *list = patch;
        return Ok(());
    }
    let mut both = list.iter().chain(&patch);
    let Some(objects) = both.clone().next().map(Value::is_object) else { return Ok(()) };
    if both.any(|item| item.is_object() != objects) {
        let show = Value::Array(vec![Value::Array(list.clone()), Value::Array(patch)]);
        return wrong(format!("list element types are not identical: {}", go::print(&show)));
    }
    let before = list.clone();
    let merged = if objects {
        merge_objects(list, &patch, rule)?
    } else {
        let mut merged: Vec<Value> = Vec::new();
        for item in list.iter().chain(&patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        merged
    };
    let key = if objects { rule.key } else { "" };
    let Merged { before, patch, merged } =
        if objects { special_order(before, patch, merged, key) } else { Merged { before, patch, merged } };
    let (ours, theirs) = partition(merged, &patch, key)?;
    *list = interleave(ours, theirs, &patch, &before, key)?;
    Ok(())
}

/// A merged list, and the two that decide its order.
struct Merged {
    before: Vec<Value>,
    patch: Vec<Value>,
    merged: Vec<Value>,
}

/// Items that carry a directive have no say in the order; after a replacement the patch alone decides.
fn special_order(before: Vec<Value>, mut patch: Vec<Value>, merged: Vec<Value>, key: &str) -> Merged {
    let replaced = patch.iter().any(|i| i.get(PATCH).and_then(Value::as_str) == Some("replace"));
    patch.retain(|i| i.get(PATCH).is_none() && i.get(key).is_some());
    let before = if replaced { merged.clone() } else { before };
    Merged { before, patch, merged }
}

fn merge_objects(list: &[Value], patch: &[Value], rule: &Rule<'_>) -> Result<Vec<Value>> {
    let key = rule.key;
    let mut list = list.to_vec();
    let mut rest = Vec::new();
    let mut replace = false;
    for item in patch {
        let Value::Object(members) = item else { continue };
        match members.get(PATCH).map(Value::as_str) {
            None => rest.push(members.clone()),
            Some(Some("delete")) => {
                let Some(value) = members.get(key) else {
                    return wrong("delete patch type with no merge key defined".to_owned());
                };
                list.retain(|present| present.get(key) != Some(value));
            }
            Some(Some("replace")) => replace = true,
            Some(Some("merge")) => return wrong("merging lists cannot yet be specified in the patch".to_owned()),
            Some(_) => return bad_directive(&members[PATCH], members),
        }
    }
    if replace {
        return Ok(rest.into_iter().map(Value::Object).collect());
    }
    for item in rest {
        let Some(value) = item.get(key) else { return no_key(&Value::Object(item), key) };
        match list.iter_mut().find(|present| present.get(key) == Some(value)) {
            Some(Value::Object(present)) => merge_map(present, item, rule.item)?,
            _ => list.extend(fresh(Value::Object(item))),
        }
    }
    Ok(list)
}

fn no_key<T>(item: &Value, key: &str) -> Result<T> {
    wrong(format!("map: {} does not contain declared merge key: {key}", go::print(item)))
}

/// The items that `by` names, and the others.
fn partition(list: Vec<Value>, by: &[Value], key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    if !key.is_empty() {
        if let Some(at) = by.iter().position(|item| !item.is_object()) {
            return wrong(format!("value for key {at} is not a map"));
        }
        if let Some(item) = list.iter().chain(by).find(|item| item.get(key).is_none()) {
            return no_key(item, key);
        }
    }
    Ok(list.into_iter().partition(|item| by.iter().any(|b| same(b, item, key))))
}

/// Puts `ours` in the order of `order` and weaves `theirs` in: before the first of ours that came later in the old list.
fn interleave(
    mut ours: Vec<Value>,
    theirs: Vec<Value>,
    order: &[Value],
    before: &[Value],
    key: &str,
) -> Result<Vec<Value>> {
    let place = |list: &[Value], item: &Value| list.iter().position(|o| same(o, item, key));
    ours.sort_by_key(|item| place(order, item));
    let mut theirs = theirs;
    theirs.sort_by_key(|item| place(before, item));
    let mut out = Vec::with_capacity(ours.len() + theirs.len());
    let (mut left, mut right) = (theirs.into_iter().peekable(), ours.into_iter().peekable());
    loop {
        let first = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) => matches!((place(before, l), place(before, r)), (Some(l), Some(r)) if l < r),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return Ok(out),
        };
        out.extend(if first { left.next() } else { right.next() });
    }
}
