//! Values seen along their schema: which fields a value has, how two differ, how they merge, what is left when fields are
//! taken out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{Set, Step, show};
use crate::patch::go;
use crate::schema::{Field, ListType, Presence, Shape, Struct};

/// How a value is owned.
#[derive(Clone, Copy)]
pub(super) enum Type<'a> {
    /// A scalar of this shape.
    Scalar(&'a Shape),
    /// Owned as a whole.
    Atomic,
    /// A structure of declared fields.
    Struct(&'a Struct),
    /// A map of values of this shape.
    Map(&'a Shape),
    /// A list of scalars, each once.
    Set(&'a Shape),
    /// A list of objects by key.
    Keyed(&'a Shape, &'a [std::borrow::Cow<'static, str>]),
    /// Not described: objects by member, everything else as a whole.
    Deduced,
}

impl<'a> Type<'a> {
    fn of_shape(shape: &'a Shape) -> Self {
        match shape {
            Shape::Struct(s) if s.atomic => Self::Atomic,
            Shape::Struct(s) => Self::Struct(s),
            Shape::Map(inner) => Self::Map(inner),
            Shape::Deduced => Self::Deduced,
            Shape::String
            | Shape::Bytes
            | Shape::Bool
            | Shape::Int32
            | Shape::Int64
            | Shape::Double
            | Shape::Time
            | Shape::MicroTime
            | Shape::Duration
            | Shape::Quantity
            | Shape::IntOrString => Self::Scalar(shape),
            // Lists that no field describes, and JSON or objects as such.
            _ => Self::Atomic,
        }
    }

    fn of_field(field: &'a Field) -> Self {
        match (&field.shape, field.list) {
            _ if field.atomic => Self::Atomic,
            (Shape::Struct(s), _) if field.granular => Self::Struct(s),
            (Shape::List(item), ListType::Set) => Self::Set(item),
            (Shape::List(item), ListType::Map) => Self::Keyed(item, &field.list_keys),
            (shape, _) => Self::of_shape(shape),
        }
    }

    /// The type of a member of an object of this type; `None`: not declared.
    fn member(self, name: &str) -> Option<Self> {
        match self {
            Self::Struct(s) => match s.field(name) {
                Some(field) => Some(Self::of_field(field)),
                None if s.preserve_unknown => Some(Self::Deduced),
                None => None,
            },
            Self::Map(inner) => Some(Self::of_shape(inner)),
            _ => Some(Self::Deduced),
        }
    }

    fn declares(self, name: &str) -> bool {
        matches!(self, Self::Struct(s) if s.field(name).is_some())
    }

    fn item(self) -> Self {
        match self {
            Self::Set(item) | Self::Keyed(item, _) => Self::of_shape(item),
            _ => Self::Deduced,
        }
    }

    /// Whether a value of this type is an object that is owned member by member.
    fn is_map(self, value: Option<&Value>) -> bool {
        match self {
            Self::Struct(_) | Self::Map(_) => true,
            Self::Deduced => value.is_some_and(Value::is_object),
            _ => false,
        }
    }

    fn is_list(self) -> bool {
        matches!(self, Self::Set(_) | Self::Keyed(..))
    }
}

fn members(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What stands for a key that an item leaves out: its default, or what upstream's type prints for nothing.
fn key_default(item: &Shape, key: &str) -> Option<Value> {
    let Shape::Struct(s) = item else { return None };
    let field = s.field(key)?;
    if let Some(default) = &field.default {
        return serde_json::from_str(default).ok();
    }
    match (field.presence, &field.shape) {
        (Presence::Always, Shape::String) => Some(Value::from("")),
        (Presence::Always, Shape::Int32 | Shape::Int64) => Some(Value::from(0)),
        (Presence::Always, Shape::Bool) => Some(Value::from(false)),
        _ => None,
    }
}

/// The step to an item of a list. `None` when it leaves out all its keys.
fn item_step(t: Type<'_>, item: &Value, index: usize) -> Option<Step> {
    match t {
        Type::Set(_) => Some(Step::Value(item.to_string().into())),
        Type::Keyed(shape, keys) => {
            let mut found = Map::new();
            for key in keys {
                let given = item.get(&**key).filter(|v| !v.is_null()).cloned();
                if let Some(value) = given.or_else(|| key_default(shape, key)) {
                    found.insert(key.to_string(), value);
                }
            }
            (!found.is_empty()).then(|| Step::Key(Value::Object(found).to_string().into()))
        }
        _ => Some(Step::Index(index as u64)),
    }
}

/// The items of a list by step. Items without keys stand at their position.
fn by_step<'v>(t: Type<'_>, list: &'v [Value]) -> (Vec<Step>, BTreeMap<Step, Vec<&'v Value>>) {
    let mut order = Vec::with_capacity(list.len());
    let mut all: BTreeMap<Step, Vec<&Value>> = BTreeMap::new();
    for (i, item) in list.iter().enumerate() {
        let step = item_step(t, item, i).unwrap_or(Step::Index(i as u64));
        order.push(step.clone());
        all.entry(step).or_default().push(item);
    }
    (order, all)
}

/// Whether a value can be read along the schema, except that items may repeat.
pub(super) fn fits(value: &Value, t: Type<'_>) -> bool {
    faults(value, t).iter().all(|f| f.contains(TWICE))
}

const TWICE: &str = ": duplicate entries for key ";

/// Faults that keep a value from being read along the schema, as upstream words them.
pub(super) fn faults(value: &Value, t: Type<'_>) -> Vec<String> {
    let mut out = Vec::new();
    fault(value, t, &mut Vec::new(), &mut out);
    out
}

fn fault(value: &Value, t: Type<'_>, path: &mut Vec<Step>, out: &mut Vec<String>) {
    let mut report = |path: &[Step], what: String| out.push(format!("{}: {what}", show(path)));
    match (t, value) {
        (_, Value::Null) | (Type::Atomic, _) => {}
        (Type::Scalar(shape), value) => {
            let wanted = match shape {
                Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Duration
                    if !value.is_string() =>
                {
                    let shown = go::literal(value);
                    return report(path, format!("expected string, got &value.valueUnstructured{{Value:{shown}}}"));
                }
                Shape::Bool if !value.is_boolean() => {
                    return report(path, format!("expected boolean, got &{{{}}}", go::print(value)));
                }
                Shape::Int32 | Shape::Int64 | Shape::Double if !value.is_number() => "numeric (int or float)",
                Shape::Quantity | Shape::IntOrString if value.is_object() || value.is_array() => "scalar",
                _ => return,
            };
            let got = match go::type_name(value) {
                "map[string]interface {}" => "map",
                "[]interface {}" => "list",
                "bool" => "boolean",
                "int64" => "int",
                "float64" => "float",
                other => other,
            };
            report(path, format!("expected {wanted}, got {got}"));
        }
        (Type::Struct(_) | Type::Map(_) | Type::Deduced, Value::Object(members)) => {
            for (name, value) in members {
                path.push(Step::field(name));
                match t.member(name) {
                    Some(member) => fault(value, member, path, out),
                    None => out.push(format!("{}: field not declared in schema", show(path))),
                }
                path.pop();
            }
        }
        (Type::Set(_) | Type::Keyed(..), Value::Array(list)) => {
            let mut seen = BTreeSet::new();
            for (i, item) in list.iter().enumerate() {
                let Some(step) = item_step(t, item, i) else {
                    let keys: Vec<&str> = match t {
                        Type::Keyed(_, keys) => keys.iter().map(|k| &**k).collect(),
                        _ => Vec::new(),
                    };
                    let what = format!(
                        "element {i}: associative list with keys has an element that omits all key fields {keys:?} (and doesn't have default values for any key fields)"
                    );
                    out.push(format!("{}: {what}", show(path)));
                    continue;
                };
                if !seen.insert(step.clone()) {
                    out.push(format!("{}{TWICE}{step}", show(path)));
                }
                path.push(step);
                fault(item, t.item(), path, out);
                path.pop();
            }
        }
        (Type::Deduced, _) => {}
        (t, value) => {
            let wanted = if t.is_list() { "list" } else { "map" };
            report(path, format!("expected {wanted}, got &{{{}}}", go::print(value)));
        }
    }
}

/// The fields that an applied configuration lists.
pub(super) fn field_set(value: &Value, t: Type<'_>) -> Set {
    let mut set = Set::default();
    if t.is_map(Some(value)) {
        for (name, value) in members(Some(value)).into_iter().flatten() {
            let step = Step::field(name);
            let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
            below(&mut set, step, value, t.member(name).unwrap_or(Type::Deduced), empty || !t.declares(name));
        }
    } else if t.is_list() {
        for (i, item) in items(Some(value)).iter().enumerate() {
            let step = item_step(t, item, i).unwrap_or(Step::Index(i as u64));
            below(&mut set, step, item, t.item(), true);
        }
    }
    set
}

fn below(set: &mut Set, step: Step, value: &Value, t: Type<'_>, itself: bool) {
    if itself || !(t.is_map(Some(value)) || t.is_list()) {
        set.members.insert(step.clone());
    }
    let child = field_set(value, t);
    if !child.is_empty() {
        // An item that occurs twice counts once.
        let joined = set.children.get(&step).map_or_else(|| child.clone(), |present| present.union(&child));
        set.children.insert(step, joined);
    }
}

/// How two values differ.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) removed: Set,
    pub(super) modified: Set,
}

impl Comparison {
    pub(super) fn of(old: &Value, new: &Value, t: Type<'_>) -> Self {
        let mut out = Self::default();
        out.walk(Some(old), Some(new), t, &mut Vec::new());
        out
    }

    /// Without what is below these paths.
    pub(super) fn without(mut self, ignored: &Set) -> Self {
        for set in [&mut self.added, &mut self.removed, &mut self.modified] {
            set.cut(ignored);
        }
        self
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>, path: &[Step]) {
        match (old, new) {
            (None, Some(_)) => self.added.insert(path),
            (Some(_), None) => self.removed.insert(path),
            (Some(old), Some(new)) if !same(old, new) => self.modified.insert(path),
            _ => {}
        }
    }

    fn walk(&mut self, old: Option<&Value>, new: Option<&Value>, t: Type<'_>, path: &mut Vec<Step>) {
        // Most of an object stays as it is in most writes.
        if old.is_some() && old == new {
            return;
        }
        let granular_map = t.is_map(new.or(old)) && [old, new].iter().flatten().all(|v| v.is_object() || v.is_null());
        let granular_list = t.is_list() && [old, new].iter().flatten().all(|v| v.is_array() || v.is_null());
        let (om, nm) = (members(old), members(new));
        let (ol, nl) = (items(old), items(new));
        if granular_map && !(om.is_none_or(Map::is_empty) && nm.is_none_or(Map::is_empty)) {
            let names: BTreeSet<&String> = om.into_iter().chain(nm).flat_map(Map::keys).collect();
            for name in names {
                path.push(Step::field(name));
                let member = t.member(name).unwrap_or(Type::Deduced);
                self.walk(om.and_then(|m| m.get(name)), nm.and_then(|m| m.get(name)), member, path);
                path.pop();
            }
        } else if granular_list && !(ol.is_empty() && nl.is_empty()) {
            let (_, before) = by_step(t, ol);
            let (_, after) = by_step(t, nl);
            let steps: BTreeSet<&Step> = before.keys().chain(after.keys()).collect();
            for step in steps {
                path.push(step.clone());
                match (before.get(step).map(Vec::as_slice), after.get(step).map(Vec::as_slice)) {
                    (old @ (None | Some([_])), new @ (None | Some([_]))) => {
                        let one = |list: Option<&[&'_ Value]>| list.map(|l| l[0].clone());
                        self.walk(one(old).as_ref(), one(new).as_ref(), t.item(), path);
                    }
                    // Items of one key are one unit: owned as a whole, nothing below.
                    (old, new) => {
                        if let Some([single]) = old {
                            self.removed.below(path, &field_set(single, t.item()));
                        }
                        let whole = |list: Option<&[&Value]>| list.map(|l| l.iter().map(|v| (*v).clone()).collect());
                        let (before, after): (Option<Value>, Option<Value>) = (whole(old), whole(new));
                        self.leaf(before.as_ref(), after.as_ref(), path);
                        if let Some([single]) = new {
                            self.added.below(path, &field_set(single, t.item()));
                        }
                    }
                }
                path.pop();
            }
        } else {
            // A map of which nobody says what it is comes or goes with all that is in it.
            if let (Type::Deduced, Some(was), Some(is)) = (t, old, new)
                && was.is_object() != is.is_object()
            {
                self.removed.below(path, &field_set(was, t));
                self.added.below(path, &field_set(is, t));
            }
            return self.leaf(old, new, path);
        }
        match (old, new) {
            (None, _) => self.added.insert(path),
            (_, None) => self.removed.insert(path),
            _ => {}
        }
    }
}

/// Equality in which `1` is `1.0`.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// `live` with everything that `config` says.
pub(super) fn merge(live: &Value, config: &Value, t: Type<'_>) -> Value {
    if t.is_map(Some(config)) && members(Some(live)).is_some_and(|m| !m.is_empty()) || t.is_map(Some(live)) {
        let Value::Object(present) = live else { return config.clone() };
        let mut out = present.clone();
        match config {
            Value::Object(config) => {
                for (name, value) in config {
                    let member = t.member(name).unwrap_or(Type::Deduced);
                    let merged = present.get(name).map_or_else(|| value.clone(), |p| merge(p, value, member));
                    out.insert(name.clone(), merged);
                }
                return Value::Object(out);
            }
            // A null says nothing about the members that are there.
            Value::Null if !present.is_empty() => return live.clone(),
            other => return other.clone(),
        }
    }
    if t.is_list() {
        match (live, config) {
            (Value::Array(live), Value::Array(config)) => return Value::Array(merge_list(live, config, t)),
            (Value::Array(items), Value::Null) if !items.is_empty() => return live.clone(),
            _ => {}
        }
    }
    config.clone()
}

/// Shared items in the order of the configuration, with the others of the live list where they were between them.
fn merge_list(live: &[Value], config: &[Value], t: Type<'_>) -> Vec<Value> {
    let (live_order, live_items) = by_step(t, live);
    let (config_order, config_items) = by_step(t, config);
    let merged = |step: &Step| match (live_items.get(step).and_then(|l| l.first()), config_items[step].last()) {
        (Some(l), Some(c)) => Some(merge(l, c, t.item())),
        (None, Some(c)) => Some((*c).clone()),
        _ => None,
    };
    let mut done: BTreeSet<&Step> = BTreeSet::new();
    let mut out = Vec::with_capacity(live.len() + config.len());
    let (mut l, mut c) = (0, 0);
    while l < live.len() || c < config.len() {
        if l < live.len() && !config_items.contains_key(&live_order[l]) {
            out.push(live[l].clone());
            l += 1;
        } else if l < live.len() && done.contains(&live_order[l]) {
            l += 1;
        } else if c < config.len() {
            let step = &config_order[c];
            if done.insert(step) {
                out.extend(merged(step));
            }
            c += 1;
        } else {
            // The live item is in the configuration and was merged above.
            l += 1;
        }
    }
    out
}

/// The value without these fields. What becomes empty by that becomes null.
pub(super) fn remove(value: &Value, gone: &Set, t: Type<'_>) -> Value {
    match value {
        Value::Object(present) if t.is_map(Some(value)) && !present.is_empty() => {
            let mut out = Map::new();
            for (name, value) in present {
                let step = Step::field(name);
                if gone.members.contains(&step) {
                    continue;
                }
                let member = t.member(name).unwrap_or(Type::Deduced);
                let left = gone.children.get(&step).map_or_else(|| value.clone(), |below| remove(value, below, member));
                out.insert(name.clone(), left);
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        Value::Array(list) if t.is_list() && !list.is_empty() => {
            let mut out = Vec::new();
            for (i, item) in list.iter().enumerate() {
                let step = item_step(t, item, i).unwrap_or(Step::Index(i as u64));
                if gone.members.contains(&step) {
                    continue;
                }
                out.push(gone.children.get(&step).map_or_else(|| item.clone(), |below| remove(item, below, t.item())));
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        other => other.clone(),
    }
}

/// The set with every declared field that has something below it as a member too.
pub(super) fn with_named(set: &Set, t: Type<'_>) -> Set {
    let mut out = Set { members: set.members.clone(), ..Set::default() };
    for (step, child) in &set.children {
        let below = match step {
            Step::Field(name) => {
                if t.declares(name) {
                    out.members.insert(step.clone());
                }
                t.member(name).unwrap_or(Type::Deduced)
            }
            _ => t.item(),
        };
        out.children.insert(step.clone(), with_named(child, below));
    }
    out
}
