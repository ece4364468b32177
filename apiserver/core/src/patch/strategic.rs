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

/// Merges `patch` into `object`, whose type is `shape`. On an error the object is half done and must not be used. Directives
/// that were followed, and lists that were ordered, are gone from the patch afterwards: it is what refusals quote.
pub fn strategic_merge(object: &mut Value, patch: &mut Value, shape: &Struct) -> Result<()> {
    let (Value::Object(members), Value::Object(patch)) = (object, patch) else { return Ok(()) };
    merge_map(members, patch, Known::Struct(shape))
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

fn merge_map(object: &mut Object, patch: &mut Object, known: Known<'_>) -> Result<()> {
    if let Some(directive) = patch.get(PATCH) {
        match directive.as_str() {
            Some("replace") => {
                patch.remove(PATCH);
                object.clone_from(patch);
            }
            Some("delete") => object.clear(),
            _ => return bad_directive(directive, patch),
        }
        return Ok(());
    }
    retain_keys(object, patch)?;
    ordered_lists(object, patch, known)?;
    for (name, value) in patch {
        if let Some(name) = name.strip_prefix(DELETE_FROM) {
            match (object.get_mut(name), &*value) {
                (Some(Value::Array(list)), Value::Array(gone)) => {
                    alike(list, gone)?;
                    list.retain(|item| !gone.contains(item));
                }
                (Some(_), Value::Null) => drop(object.remove(name)),
                _ => {}
            }
            continue;
        }
        if value.is_null() {
            object.remove(name);
            continue;
        }
        match (object.get_mut(name), value) {
            (Some(Value::Object(present)), Value::Object(value)) => {
                if known.strategy(name) == PatchStrategy::Replace {
                    present.clone_from(value);
                } else {
                    merge_map(present, value, known.member(name))?;
                }
            }
            (Some(Value::Array(present)), Value::Array(value)) => {
                merge_list(present, value, &known.list(name))?;
            }
            (present, value) => {
                drop_nulls(value);
                if let Some(value) = fresh(value.clone()) {
                    object.insert(name.clone(), value);
                } else if present.is_some() {
                    object.remove(name);
                }
            }
        }
    }
    Ok(())
}

/// Nulls in what is new mean nothing; they are not quoted either.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, v| !v.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Only lists of one type can be merged.
fn alike(list: &[Value], patch: &[Value]) -> Result<()> {
    let mut both = list.iter().chain(patch).map(go::type_name);
    let Some(first) = both.next() else { return Ok(()) };
    if both.any(|other| other != first) {
        let show = Value::Array([list, patch].map(|l| Value::Array(l.to_vec())).to_vec());
        return wrong(format!("list element types are not identical: {}", go::print(&show)));
    }
    Ok(())
}

fn bad_directive<T>(directive: &Value, patch: &Object) -> Result<T> {
    let (directive, patch) = (go::as_text(directive), go::print(&Value::Object(patch.clone())));
    wrong(format!("unknown patch type: {directive} in map: {patch}"))
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
        let change = list_of(patch.get(name).cloned())?;
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
                let mut change = change;
                merge_list(&mut merged, &mut change, &rule)?;
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
        Some(other) => bad_type("[]interface {}", &other),
    }
}

fn bad_type<T>(wanted: &str, found: &Value) -> Result<T> {
    let found = if found.is_null() { "%!s(<nil>)" } else { go::type_name(found) };
    wrong(format!("expected a {wanted}, but received a {found}"))
}

/// Whether the items of a patch occur in the order list, in that order. Nothing is in order with everything.
fn agrees(patch: &[Value], order: &[Value], key: &str) -> Result<()> {
    if order.is_empty() {
        return Ok(());
    }
    let deletes = |item: &Value| !key.is_empty() && item.get(PATCH).and_then(Value::as_str) == Some("delete");
    let mut rest = order.iter();
    for item in patch.iter().filter(|i| !deletes(i)) {
        loop {
            let Some(next) = rest.next() else {
                let (patch, order) = (Value::Array(patch.to_vec()), Value::Array(order.to_vec()));
                return wrong(format!(
                    "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                    go::print(&patch),
                    "$setElementOrder",
                    go::print(&order)
                ));
            };
            if !key.is_empty() {
                for one in [item, next] {
                    match one {
                        Value::Object(members) if members.contains_key(key) => {}
                        Value::Object(_) => return no_key(one, key),
                        other => return bad_type("map[string]interface {}", other),
                    }
                }
            }
            if same(next, item, key) {
                break;
            }
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
}

fn merge_list(list: &mut Vec<Value>, patch: &mut Vec<Value>, rule: &Rule<'_>) -> Result<()> {
    if !rule.merges {
        list.clone_from(patch);
        return Ok(());
    }
    let Some(first) = list.iter().chain(&*patch).next() else { return Ok(()) };
    let objects = first.is_object();
    alike(list, patch)?;
    let before = list.clone();
    let merged = if objects {
        merge_objects(list, patch, rule)?
    } else {
        let mut merged: Vec<Value> = Vec::new();
        for item in list.iter().chain(&*patch) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        merged
    };
    let key = if objects { rule.key } else { "" };
    let patch = patch.clone();
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

fn merge_objects(list: &[Value], patch: &mut [Value], rule: &Rule<'_>) -> Result<Vec<Value>> {
    let key = rule.key;
    let mut list = list.to_vec();
    let mut replace = false;
    for item in &*patch {
        let Value::Object(members) = item else { continue };
        match members.get(PATCH).map(Value::as_str) {
            None => {}
            Some(Some("delete")) => {
                if key.is_empty() {
                    return wrong("delete patch type with no merge key defined".to_owned());
                }
                let Some(value) = members.get(key) else { return no_key(item, key) };
                list.retain(|present| present.get(key) != Some(value));
            }
            Some(Some("replace")) => replace = true,
            Some(Some("merge")) => return wrong("merging lists cannot yet be specified in the patch".to_owned()),
            Some(_) => return bad_directive(&members[PATCH], members),
        }
    }
    let rest = patch.iter_mut().filter(|item| item.get(PATCH).is_none());
    if replace {
        return Ok(rest.map(|item| item.clone()).collect());
    }
    for item in rest {
        let Some(value) = item.get(key).cloned() else { return no_key(item, key) };
        match (list.iter_mut().find(|present| present.get(key) == Some(&value)), item) {
            (Some(Value::Object(present)), Value::Object(item)) => merge_map(present, item, rule.item)?,
            (_, item) => list.extend(fresh(item.clone())),
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
