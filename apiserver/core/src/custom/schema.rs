//! The structural schema of a version, compiled once, at its first use: what pruning, defaulting, validation and ownership walk along.
//!
//! A definition's schema is JSON that was checked before it got here; compiling never fails, it only leaves out what does
//! not make sense (a pattern that is no regular expression), because a definition that was stored once must go on being
//! served.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use regex::Regex;
use serde_json::Value;

use super::cel::{Rule, Rules};

/// A value's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `object`
    Object,
    /// `array`
    Array,
    /// `string`
    String,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `boolean`
    Boolean,
}

impl Type {
    /// Every type by its name, in the order of error texts.
    pub const ALL: [(&'static str, Self); 6] = [
        ("array", Self::Array),
        ("boolean", Self::Boolean),
        ("integer", Self::Integer),
        ("number", Self::Number),
        ("object", Self::Object),
        ("string", Self::String),
    ];

    /// The type of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, t)| *t)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, t)| *t == self).map_or("", |(n, _)| n)
    }
}

/// What members an object may have besides the declared ones.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    /// None.
    #[default]
    No,
    /// Any.
    Any,
    /// Those that follow a schema.
    Schema(Box<Node>),
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// Unique scalars (or atomic values).
    Set,
    /// Objects by key.
    Map,
}

/// A bound with its exclusiveness.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// The bound.
    pub value: f64,
    /// Whether the bound itself is outside.
    pub exclusive: bool,
}

/// A regular expression, compiled when the first value is held against it: most definitions' never are, and one takes
/// tens of KiB.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: OnceLock<Option<Regex>>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), regex: OnceLock::new() }
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a value matches somewhere. What is no regular expression asks nothing.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        let regex = self.regex.get_or_init(|| Regex::new(&self.text).ok());
        regex.as_ref().is_none_or(|r| r.is_match(value))
    }
}

/// The schema of a version, compiled when the first object needs it: a cluster has many definitions that nobody uses.
#[derive(Debug, Default)]
pub struct Schema {
    /// As JSON, which takes a sixth of what a tree of values takes.
    source: Option<Box<str>>,
    open: bool,
    root: OnceLock<Node>,
}

impl Schema {
    /// That of an entry of `spec.versions`.
    #[must_use]
    pub fn of(version: &Value) -> Self {
        let source = version.get("schema").and_then(|s| s.get("openAPIV3Schema")).filter(|s| !s.is_null());
        let open = source.is_none_or(|s| {
            let none = s.get("properties").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
            none && s.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
        });
        Self { source: source.map(|s| s.to_string().into()), open, root: OnceLock::new() }
    }

    /// As it was written, in JSON; `None` where the version has none.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Whether everything is kept as it comes.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Compiled, for once.
    #[must_use]
    pub fn compile(&self) -> Node {
        let source = self.source.as_ref().and_then(|s| serde_json::from_str::<Value>(s).ok());
        source.as_ref().map_or_else(Node::open, Node::compile)
    }

    /// Compiled, and kept.
    #[must_use]
    pub fn root(&self) -> &Node {
        self.root.get_or_init(|| self.compile())
    }
}

/// One value's schema.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// `type`; none where anything goes (or int-or-string).
    pub kind: Option<Type>,
    /// `nullable`
    pub nullable: bool,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    /// `default`
    pub default: Option<Value>,
    /// `properties`
    pub properties: BTreeMap<String, Node>,
    /// `additionalProperties`
    pub additional: Additional,
    /// `items`
    pub items: Option<Box<Node>>,
    /// `x-kubernetes-list-type`; none when not stated.
    pub list: Option<ListType>,
    /// `x-kubernetes-list-map-keys`
    pub keys: Vec<String>,
    /// `x-kubernetes-map-type: atomic`
    pub atomic_map: bool,
    /// `format`
    pub format: String,
    /// `enum`
    pub values: Vec<Value>,
    /// `pattern`
    pub pattern: Option<Pattern>,
    /// `minimum`
    pub minimum: Option<Bound>,
    /// `maximum`
    pub maximum: Option<Bound>,
    /// `multipleOf`
    pub multiple_of: Option<f64>,
    /// `minLength`
    pub min_length: Option<i64>,
    /// `maxLength`
    pub max_length: Option<i64>,
    /// `minItems`
    pub min_items: Option<i64>,
    /// `maxItems`
    pub max_items: Option<i64>,
    /// `minProperties`
    pub min_properties: Option<i64>,
    /// `maxProperties`
    pub max_properties: Option<i64>,
    /// `uniqueItems`
    pub unique_items: bool,
    /// `required`
    pub required: Vec<String>,
    /// `allOf`
    pub all_of: Vec<Node>,
    /// `anyOf`
    pub any_of: Vec<Node>,
    /// `oneOf`
    pub one_of: Vec<Node>,
    /// `not`
    pub not: Option<Box<Node>>,
    /// `x-kubernetes-validations`, compiled.
    pub rules: Rules,
    /// Whether there are rules here or below.
    pub ruled: bool,
}

impl Node {
    /// Compiles a schema.
    #[must_use]
    pub fn compile(schema: &Value) -> Self {
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        let whole = |key: &str| schema.get(key).and_then(Value::as_i64);
        let float = |key: &str| schema.get(key).and_then(Value::as_f64);
        let list = |key: &str| schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let nodes = |key: &str| list(key).iter().map(Self::compile).collect::<Vec<_>>();
        let strings = |key: &str| list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
        let bound = |key: &str, exclusive: &str| float(key).map(|value| Bound { value, exclusive: flag(exclusive) });
        let properties = schema.get("properties").and_then(Value::as_object);
        let mut node = Self {
            kind: Type::parse(text("type")),
            nullable: flag("nullable"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            default: schema.get("default").filter(|d| !d.is_null()).cloned(),
            properties: properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), Self::compile(schema)))
                .collect(),
            additional: match schema.get("additionalProperties") {
                Some(Value::Bool(true)) => Additional::Any,
                Some(schema @ Value::Object(_)) => Additional::Schema(Box::new(Self::compile(schema))),
                _ => Additional::No,
            },
            items: schema.get("items").filter(|i| i.is_object()).map(|i| Box::new(Self::compile(i))),
            list: match text("x-kubernetes-list-type") {
                "atomic" => Some(ListType::Atomic),
                "set" => Some(ListType::Set),
                "map" => Some(ListType::Map),
                _ => None,
            },
            keys: strings("x-kubernetes-list-map-keys"),
            atomic_map: text("x-kubernetes-map-type") == "atomic",
            format: text("format").to_owned(),
            values: list("enum").to_vec(),
            pattern: Some(text("pattern")).filter(|p| !p.is_empty()).map(Pattern::new),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: float("multipleOf"),
            min_length: whole("minLength"),
            max_length: whole("maxLength"),
            min_items: whole("minItems"),
            max_items: whole("maxItems"),
            min_properties: whole("minProperties"),
            max_properties: whole("maxProperties"),
            unique_items: flag("uniqueItems"),
            required: strings("required"),
            all_of: nodes("allOf"),
            any_of: nodes("anyOf"),
            one_of: nodes("oneOf"),
            not: schema.get("not").filter(|n| n.is_object()).map(|n| Box::new(Self::compile(n))),
            rules: list("x-kubernetes-validations").iter().map(|r| Arc::new(Rule::new(r))).collect(),
            ruled: false,
        };
        node.ruled = !node.rules.is_empty()
            || node.properties.values().any(Self::has_rules)
            || matches!(&node.additional, Additional::Schema(n) if n.ruled)
            || node.items.as_ref().is_some_and(|n| n.ruled);
        node
    }

    /// Whether there are rules in CEL here or below.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.ruled
    }

    /// The schema of a version that has none: everything is kept.
    #[must_use]
    pub fn open() -> Self {
        Self { kind: Some(Type::Object), preserve: true, ..Self::default() }
    }

    /// The schema of a member, if it is known.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Node> {
        self.properties.get(name).or(match &self.additional {
            Additional::Schema(node) => Some(node),
            Additional::Any | Additional::No => None,
        })
    }
}
