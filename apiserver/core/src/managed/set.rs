//! Sets of fields, and their form in `managedFields` (FieldsV1).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

/// One step from a value to a part of it. Values inside are canonical JSON text, so that steps compare and sort.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A member of an object.
    Field(Box<str>),
    /// The item of a keyed list: the keys as a JSON object.
    Key(Box<str>),
    /// The item of a set: its JSON.
    Value(Box<str>),
    /// A position.
    Index(u64),
}

impl Step {
    /// A member.
    #[must_use]
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// The form in FieldsV1: `f:name`, `k:{...}`, `v:...`, `i:0`.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(json) => format!("k:{json}"),
            Self::Value(json) => format!("v:{json}"),
            Self::Index(i) => format!("i:{i}"),
        }
    }

    /// Reads [`Step::encode`]'s form. `None` for what is none.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let canonical = |json: &str| serde_json::from_str::<Value>(json).ok().map(|v| v.to_string().into_boxed_str());
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Self::Field(rest.into())),
            "k" if rest.starts_with('{') => canonical(rest).map(Self::Key),
            "v" => canonical(rest).map(Self::Value),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }
}

/// As in messages: `.name`, `[name="a",protocol="TCP"]`, `[="v"]`, `[0]`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(json) => {
                let keys: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", keys.join(","))
            }
            Self::Value(json) => write!(f, "[={json}]"),
            Self::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// A set of paths: this node's own steps, and what is below each step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Steps that are in the set themselves.
    pub members: BTreeSet<Step>,
    /// Sets below a step; never empty ones.
    pub children: BTreeMap<Step, Set>,
}

impl Set {
    /// The set of these paths of members, for example `["status"]` or `["metadata", "name"]`.
    #[must_use]
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|name| Step::field(name)).collect::<Vec<_>>());
        }
        set
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Adds a path. The empty path is the whole value, which no set holds.
    pub fn insert(&mut self, path: &[Step]) {
        match path {
            [] => {}
            [step] => drop(self.members.insert(step.clone())),
            [step, rest @ ..] => self.children.entry(step.clone()).or_default().insert(rest),
        }
    }

    /// Adds a whole set below a path.
    pub(super) fn below(&mut self, path: &[Step], set: &Self) {
        match path {
            [] => *self = self.union(set),
            [step, rest @ ..] if !set.is_empty() => self.children.entry(step.clone()).or_default().below(rest, set),
            _ => {}
        }
    }

    fn set_child(&mut self, step: &Step, child: Self) {
        if !child.is_empty() {
            self.children.insert(step.clone(), child);
        }
    }

    /// Paths in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.extend(other.clone());
        out
    }

    /// Adds the paths of another.
    pub fn extend(&mut self, other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        self.members.extend(other.members);
        for (step, child) in other.children {
            self.children.entry(step).or_default().extend(child);
        }
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self { members: self.members.intersection(&other.members).cloned().collect(), ..Self::default() };
        for (step, child) in &self.children {
            if let Some(with) = other.children.get(step) {
                out.set_child(step, child.intersection(with));
            }
        }
        out
    }

    /// Paths of this one that are not in the other. What lies below a path of the other stays.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.subtract(other);
        out
    }

    /// Takes the paths of another away. What lies below a path of the other stays.
    pub fn subtract(&mut self, other: &Self) {
        self.take_away(other, Self::subtract);
    }

    /// Paths of this one that are neither in the other nor below a path of it.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.cut(other);
        out
    }

    /// Takes the paths of another away, and what is below them.
    pub fn cut(&mut self, other: &Self) {
        for step in &other.members {
            self.children.remove(step);
        }
        self.take_away(other, Self::cut);
    }

    /// Takes the members of the other away and does the same below; keeps no empty children.
    fn take_away(&mut self, other: &Self, below: fn(&mut Self, &Self)) {
        for step in &other.members {
            self.members.remove(step);
        }
        for (step, theirs) in &other.children {
            if let Some(ours) = self.children.get_mut(step) {
                below(ours, theirs);
                if ours.is_empty() {
                    self.children.remove(step);
                }
            }
        }
    }

    /// Calls `each` with every path.
    pub fn each(&self, each: &mut impl FnMut(&[Step])) {
        self.walk(&mut Vec::new(), each);
    }

    fn walk(&self, path: &mut Vec<Step>, each: &mut impl FnMut(&[Step])) {
        for step in &self.members {
            path.push(step.clone());
            each(path);
            path.pop();
        }
        for (step, child) in &self.children {
            path.push(step.clone());
            child.walk(path, each);
            path.pop();
        }
    }

    /// The FieldsV1 form.
    #[must_use]
    pub fn encode(&self) -> Value {
        Value::Object(self.encode_members())
    }

    fn encode_members(&self) -> Map<String, Value> {
        let mut out = Map::new();
        for step in &self.members {
            out.insert(step.encode(), Value::Object(Map::new()));
        }
        for (step, child) in &self.children {
            let mut below = child.encode_members();
            if self.members.contains(step) {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            out.insert(step.encode(), Value::Object(below));
        }
        out
    }

    /// Reads the FieldsV1 form. `None` for what is none.
    #[must_use]
    pub fn decode(fields: &Value) -> Option<Self> {
        let mut out = Self::default();
        for (name, below) in fields.as_object()? {
            if name == "." {
                continue;
            }
            let step = Step::decode(name)?;
            let members = below.as_object()?;
            if members.is_empty() || members.contains_key(".") {
                out.members.insert(step.clone());
            }
            out.set_child(&step, Self::decode(below)?);
        }
        Some(out)
    }
}

/// A path in messages: `.spec.ports[port=80,protocol="TCP"].name`.
#[must_use]
pub fn show(path: &[Step]) -> String {
    path.iter().map(Step::to_string).collect()
}
