//! Rules in CEL (`x-kubernetes-validations`): compiled with the schema, run on values after all other checks passed.
//!
//! The expressions are parsed and run by the `cel` crate with the Kubernetes functions of `kube-cel`; what stands around
//! them is ours: [`types`] and [`check`] find what does not fit when a definition is written, [`cost`] refuses what may
//! take too long, [`values`] makes CEL values along a schema, and this module walks an object.
//!
//! Expressions of policies and webhooks ([`expression`]) share all of it but the schema.
//!
//! Limits: the crate has no cost counter at run time, so the turns of loops and the time that all rules of one object take
//! are bounded instead (see [`lower`] and [`TIME_MAX`]); the type checker knows less than upstream's and lets pass what it
//! does not know.

mod check;
mod cost;
pub mod expression;
mod functions;
mod lower;
mod permission;
pub mod typecheck;
mod types;
mod values;

use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::IdedExpr;
use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, ExecutionError, Value as Cel};
use serde_json::Value;

use super::schema::{Additional, Node};
use super::validate::{NIL, old_item};
use crate::invalid::{ErrorType, Errors, FieldError, quote, quote_str};

pub(super) use self::check::definition;
pub use self::permission::{Authorizer, Check, Decision};

/// All rules of one object together may take this long; then the rest is not run and the write is refused.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Why a rule says no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reason {
    #[default]
    Invalid,
    Forbidden,
    Required,
    Duplicate,
}

/// One rule, compiled when the first value is held against it: most definitions' rules never are.
#[derive(Debug)]
pub struct Rule {
    source: Value,
    compiled: OnceLock<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    text: String,
    program: Result<IdedExpr, String>,
    message: String,
    message_expression: Option<IdedExpr>,
    reason: Reason,
    /// Below the value the rule is about, with its leading dot; empty for the value itself.
    field_path: String,
    uses_old: bool,
    optional_old: bool,
}

impl Rule {
    /// A rule of `x-kubernetes-validations`. What does not compile is told when it runs.
    #[must_use]
    pub fn new(source: &Value) -> Self {
        Self { source: source.clone(), compiled: OnceLock::new() }
    }

    fn compiled(&self) -> &Compiled {
        self.compiled.get_or_init(|| Compiled::of(&self.source))
    }
}

impl Compiled {
    fn of(rule: &Value) -> Self {
        let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
        let expression = text("rule");
        let message_expression = text("messageExpression");
        let program = parse(&expression);
        let uses_old = program.as_ref().is_ok_and(uses_old);
        let ready = |program: &IdedExpr| lower::lower(program, &[]);
        Self {
            uses_old,
            program: program.map(|p| ready(&p)),
            message: text("message"),
            message_expression: Some(message_expression)
                .filter(|m| !m.is_empty())
                .and_then(|m| parse(&m).ok().as_ref().map(ready)),
            reason: match text("reason").as_str() {
                "FieldValueForbidden" => Reason::Forbidden,
                "FieldValueRequired" => Reason::Required,
                "FieldValueDuplicate" => Reason::Duplicate,
                _ => Reason::Invalid,
            },
            field_path: text("fieldPath"),
            optional_old: rule.get("optionalOldSelf") == Some(&Value::Bool(true)),
            text: expression,
        }
    }

    fn shown(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }
}

/// A fault at a place (line and column from one), with the line it is in.
fn fault(text: &str, line: usize, column: usize, why: &str) -> String {
    let shown = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let dots = ".".repeat(column.saturating_sub(1));
    format!("ERROR: <input>:{line}:{column}: {why}\n | {shown}\n | {dots}^")
}

/// Parses an expression; the error is in upstream's words.
fn parse(text: &str) -> Result<IdedExpr, String> {
    let mut parsed = Parser::default().enable_optional_syntax(true).parse(text).map_err(|e| {
        let first = e.errors.first();
        first.map_or_else(
            || "ERROR".to_owned(),
            |e| fault(text, usize::try_from(e.pos.0).unwrap_or(1), usize::try_from(e.pos.1).unwrap_or(1), &e.msg),
        )
    })?;
    lower::expand(&mut parsed);
    Ok(parsed)
}

fn uses_old(expression: &IdedExpr) -> bool {
    expression.expr.references_variable("oldSelf")
}

/// Whether an expression names a variable.
trait References {
    fn references_variable(&self, name: &str) -> bool;
}

impl References for kube_cel::cel::common::ast::Expr {
    fn references_variable(&self, name: &str) -> bool {
        let ided = IdedExpr { id: 0, expr: self.clone() };
        check::names(&ided).iter().any(|n| n == name)
    }
}

/// What is to be told of rules that fail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// What refuses the write.
    Errors,
    /// What was wrong before and is not held against the write.
    Warnings,
}

/// Functions and names of types, which all expressions share.
fn root() -> &'static Context<'static> {
    static ROOT: LazyLock<Context<'static>> = LazyLock::new(|| {
        let mut root = Context::default().with_all();
        values::add_types(&mut root);
        lower::register(&mut root);
        permission::register(&mut root);
        root
    });
    &ROOT
}

const OVER_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

struct Walk {
    told: Told,
    exhausted: bool,
}

/// Runs the rules of an object. `old` is the object before, on updates.
pub fn run(object: &Value, root: &Node, old: Option<&Value>, told: Told, errors: &mut Errors) {
    if !root.has_rules() {
        return;
    }
    lower::begin(TIME_MAX);
    let mut walk = Walk { told, exhausted: false };
    walk.value(object, root, old, true, "", errors);
}

impl Walk {
    fn value(&mut self, value: &Value, node: &Node, old: Option<&Value>, root: bool, path: &str, errors: &mut Errors) {
        if value.is_null() {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        self.rules(value, node, old, root, path, errors);
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let before = old.and_then(|o| o.get(name));
                    if let Some(property) = node.properties.get(name).filter(|n| n.has_rules()) {
                        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                        // Members of an atomic map have no old selves.
                        let before = before.filter(|_| !node.atomic_map);
                        self.value(member, property, before, false, &at, errors);
                    } else if let Additional::Schema(inner) = &node.additional
                        && inner.has_rules()
                        && !node.properties.contains_key(name)
                    {
                        self.value(member, inner, before, false, &format!("{path}[{name}]"), errors);
                    }
                }
            }
            Value::Array(list) => {
                let Some(items) = node.items.as_ref().filter(|n| n.has_rules()) else { return };
                for (i, item) in list.iter().enumerate() {
                    let before = old_item(node, old, item);
                    self.value(item, items, before, false, &format!("{path}[{i}]"), errors);
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, value: &Value, node: &Node, old: Option<&Value>, root: bool, path: &str, errors: &mut Errors) {
        if node.rules.is_empty() || self.exhausted {
            return;
        }
        let object = root || node.embedded;
        let ratcheted = old == Some(value);
        let this = values::of(value, node, object);
        let before = old.map(|o| values::of(o, node, object));
        for rule in node.rules.iter().map(|r| r.compiled()) {
            if lower::late() {
                self.exhausted = true;
                self.tell(errors, false, error(path, Reason::Invalid, Some(kind_of(node)), OVER_BUDGET));
                return;
            }
            if rule.uses_old && !rule.optional_old && before.is_none() {
                continue;
            }
            let scope = |program: &IdedExpr| {
                let mut scope = self::root().new_inner_scope();
                scope.add_variable_from_value("self", this.clone());
                if rule.uses_old {
                    let old = match (&before, rule.optional_old) {
                        (Some(o), false) => o.clone(),
                        (o, _) => values::optional(o.clone()),
                    };
                    scope.add_variable_from_value("oldSelf", old);
                }
                lower::begin_expression();
                Cel::resolve(program, &scope)
            };
            let program = match &rule.program {
                Ok(program) => program,
                Err(why) => {
                    let why = format!("rule compile error: compilation failed: {why}");
                    self.tell(errors, false, error(path, Reason::Invalid, Some(kind_of(node)), &why));
                    continue;
                }
            };
            let quiet = ratcheted && !rule.uses_old;
            match scope(program) {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => {
                    let said = rule.message_expression.as_ref().and_then(|m| match scope(m) {
                        Ok(Cel::String(s)) => Some(s.trim().to_owned()).filter(|s| !s.is_empty() && !s.contains('\n')),
                        _ => None,
                    });
                    let said = said.unwrap_or_else(|| match rule.message.as_str() {
                        "" => format!("failed rule: {}", rule.text),
                        message => message.to_owned(),
                    });
                    let shown = match value {
                        Value::Object(_) | Value::Array(_) => None,
                        scalar => Some(quote(scalar)),
                    };
                    let at = format!("{path}{}", rule.field_path);
                    let at = if path.is_empty() { at.trim_start_matches('.') } else { &at };
                    self.tell(errors, quiet, error(at, rule.reason, shown, &said));
                }
                Err(ExecutionError::FunctionError { message, .. }) if message == lower::CANCELLED => {
                    let over = lower::late();
                    let why = if over {
                        OVER_BUDGET.to_owned()
                    } else {
                        format!(
                            "'{message}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                            rule.shown()
                        )
                    };
                    self.exhausted = true;
                    self.tell(errors, false, error(path, Reason::Invalid, Some(kind_of(node)), &why));
                    return;
                }
                Err(e) => {
                    let why = format!("{} evaluating rule: {}", words(&e), rule.shown());
                    self.tell(errors, quiet, error(path, Reason::Invalid, Some(kind_of(node)), &why));
                }
            }
        }
    }

    fn tell(&self, errors: &mut Errors, ratcheted: bool, e: FieldError) {
        if ratcheted == (self.told == Told::Warnings) {
            errors.0.push(e);
        }
    }
}

/// The type of a value as errors quote it in place of the value.
fn kind_of(node: &Node) -> String {
    quote_str(node.kind.map_or("", super::schema::Type::name))
}

fn error(path: &str, reason: Reason, value: Option<String>, why: &str) -> FieldError {
    let path = if path.is_empty() { NIL.to_owned() } else { path.to_owned() };
    let with = |title: &str| match &value {
        Some(v) => format!("{title}: {v}"),
        None => title.to_owned(),
    };
    let (kind, body) = match reason {
        Reason::Invalid => (ErrorType::Invalid, format!("{}: {why}", with("Invalid value"))),
        Reason::Forbidden => (ErrorType::Forbidden, format!("Forbidden: {why}")),
        Reason::Required => (ErrorType::Required, format!("Required value: {why}")),
        Reason::Duplicate => (ErrorType::Duplicate, with("Duplicate value")),
    };
    FieldError { kind, path, body, generated: false }
}

/// An error at run time in upstream's words.
fn words(e: &ExecutionError) -> String {
    match e {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::IndexOutOfBounds(at) => match at {
            Cel::Int(i) => format!("index out of bounds: {i}"),
            Cel::UInt(i) => format!("index out of bounds: {i}"),
            _ => "index out of bounds".to_owned(),
        },
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::Overflow(..) => "return error for overflow".to_owned(),
        ExecutionError::UndeclaredReference(name) => format!("no such attribute(s): {name}"),
        ExecutionError::FunctionError { function, message } => match function.as_str() {
            "int" | "uint" | "double" | "timestamp" | "duration" if message.contains("pars") => {
                format!("type conversion error from 'string' to '{function}'")
            }
            _ => message.clone(),
        },
        _ => "no such overload".to_owned(),
    }
}

/// Rules shared by clones of a schema.
pub type Rules = Vec<Arc<Rule>>;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(spec: Value, object: &Value, old: Option<&Value>, told: Told) -> Vec<String> {
        let root = Node::compile(&json!({"type": "object", "properties": {"spec": spec}}));
        let mut errors = Errors::new();
        run(object, &root, old, told, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    /// (schema of `spec`, `spec`, `spec` before, errors)
    #[test]
    fn rules() {
        let n = |rules: Value| json!({"type":"object","properties":{"n":{"type":"integer","x-kubernetes-validations":rules}}});
        let cases = [
            (
                n(json!([{"rule":"self > 1"}])),
                json!({"n":1}),
                None,
                vec!["spec.n: Invalid value: 1: failed rule: self > 1"],
            ),
            (n(json!([{"rule":"self > 1"}])), json!({"n":2}), None, vec![]),
            (n(json!([{"rule":"self >= oldSelf"}])), json!({"n":1}), None, vec![]),
            (
                n(json!([{"rule":"self >= oldSelf","message":"m"}])),
                json!({"n":1}),
                Some(json!({"n":2})),
                vec!["spec.n: Invalid value: 1: m"],
            ),
            (n(json!([{"rule":"self > 1"}])), json!({"n":1}), Some(json!({"n":1})), vec![]),
            (
                n(
                    json!([{"rule":"oldSelf.hasValue() ? self > oldSelf.value() : self == 1","optionalOldSelf":true,"message":"m"}]),
                ),
                json!({"n":2}),
                None,
                vec!["spec.n: Invalid value: 2: m"],
            ),
            (
                json!({"type":"object","properties":{"a":{"type":"integer"},"a-b":{"type":"string"}},
                "x-kubernetes-validations":[{"rule":"self.a__dash__b == 'x'","messageExpression":"'is ' + self.a__dash__b","fieldPath":".a","reason":"FieldValueForbidden"}]}),
                json!({"a":1,"a-b":"y"}),
                None,
                vec!["spec.a: Forbidden: is y"],
            ),
            (
                json!({"type":"object","properties":{"t":{"type":"string","format":"date-time"},"u":{"type":"string","format":"duration"}},
                "x-kubernetes-validations":[{"rule":"self.t > timestamp('2020-01-01T00:00:00Z') && self.u < duration('1h')"}]}),
                json!({"t":"2021-01-01T00:00:00Z","u":"5m"}),
                None,
                vec![],
            ),
        ];
        for (schema, spec, old, want) in cases {
            let old = old.map(|o| json!({"spec": o}));
            let told = found(schema.clone(), &json!({"spec": spec}), old.as_ref(), Told::Errors);
            assert_eq!(told, want, "{schema}");
        }
    }

    /// Rules as well-known definitions have them: accepted when written, and true of an object that fits.
    #[test]
    fn rules_people_write() {
        let listener = json!({"type":"object","required":["name"],"properties":{"name":{"type":"string","maxLength":20},
            "hostname":{"type":"string","maxLength":20},"port":{"type":"integer"},"protocol":{"type":"string","maxLength":20},
            "tls":{"type":"object","properties":{"mode":{"type":"string","maxLength":20},
                "refs":{"type":"array","maxItems":4,"items":{"type":"string","maxLength":9}},
                "options":{"type":"object","maxProperties":3,"additionalProperties":{"type":"string","maxLength":9}}}}}});
        let properties = json!({
            "listeners": {"type":"array","maxItems":8,"x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["name"],"items":listener},
            "labels": {"type":"object","maxProperties":9,"additionalProperties":{"type":"string","maxLength":20}},
            "values": {"type":"array","maxItems":9,"items":{"type":"string","maxLength":20}},
            "min": {"type":"integer"}, "max": {"type":"integer"}, "ratio": {"type":"number"}, "flag": {"type":"boolean"},
            "text": {"type":"string","maxLength":64}, "port": {"x-kubernetes-int-or-string": true},
            "timeout": {"type":"string","maxLength":20}, "ip": {"type":"string","maxLength":40},
            "none": {"type":"object","properties":{"x":{"type":"string","maxLength":9}}}});
        let object = json!({"spec": {
            "listeners": [{"name":"a","port":80,"protocol":"HTTP"},{"name":"b","port":443,"protocol":"HTTPS","tls":{"mode":"Terminate","refs":["r"]}}],
            "labels": {"app":"x","tier":"y"}, "values": ["1","2"], "min": 1, "max": 3, "ratio": 0.5, "flag": true,
            "text": "/a-b", "port": "http", "timeout": "5s", "ip": "10.0.0.1"}});
        let rules = [
            "self.listeners.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)",
            "self.listeners.all(l1, self.listeners.exists_one(l2, l1.name == l2.name))",
            "self.listeners.all(l1, self.listeners.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))",
            "self.listeners.all(l, has(l.tls) && has(l.tls.mode) && l.tls.mode == 'Terminate' ? size(l.tls.refs) > 0 || size(l.tls.options) > 0 : true)",
            "self.listeners.filter(f, f.protocol == 'HTTPS').size() <= 1",
            "(self.listeners.size() > 0 ? self.listeners[0].name.size() : 0) + (size(self.listeners) > 1 ? 1 : 0) <= 128",
            "self.min <= self.max && self.min < 5.5 && self.ratio <= 1.0 && self.ratio > 0",
            "has(self.min) != has(self.none)",
            "[has(self.min), has(self.none)].exists_one(x, x)",
            "[has(self.min), has(self.none)].filter(x, x).size() == 1",
            "self.text.startsWith('/') && self.text.matches('^/[a-z-]+$') && !self.text.contains('//')",
            "self.text.split('-').size() == 2 && self.text.lowerAscii() == self.text && self.text.indexOf('a') == 1",
            "self.values.all(x, x.size() > 0 && int(x) >= 0) && self.values.map(v, int(v)).sum() == 3",
            "self.values.isSorted() && self.values.join(',') == '1,2' && '1' in self.values",
            "'app' in self.labels && self.labels['app'] == 'x' && self.labels.all(k, k != 'z')",
            "self.labels.exists(k, self.labels[k].startsWith('y'))",
            "!has(self.none) || self.none.x != ''",
            "type(self.port) == string && self.port == 'http'",
            "type(self.port) == int ? self.port > 0 : true",
            "duration(self.timeout) >= duration('1s') && duration(self.timeout) < duration('1h')",
            "isIP(self.ip) && ip(self.ip).family() == 4 && cidr('10.0.0.0/8').containsIP(ip(self.ip))",
            "quantity('1Gi').isGreaterThan(quantity('1Mi'))",
            "self.flag == true && string(self.min) + '' == '1' && double(self.min) == 1.0",
            "self.flag && !(self.max in [4, 5]) && self.max - self.min == 2 && self.max % 2 == 1",
            "url('https://example.com:80/x').getHostname() == 'example.com'",
            "dyn(self.min) == 1",
        ];
        let rules: Vec<Value> = rules.iter().map(|r| json!({"rule": r})).collect();
        let spec = json!({"type":"object","properties":properties,"x-kubernetes-validations":rules});
        let schema = json!({"type":"object","properties":{"spec":spec.clone()}});
        let mut refused = Errors::new();
        definition(&schema, &Node::compile(&schema), "s", &mut refused);
        let refused: Vec<String> = refused.0.iter().map(ToString::to_string).collect();
        assert_eq!(refused, Vec::<String>::new());
        assert_eq!(found(spec, &object, None, Told::Errors), Vec::<String>::new());
    }

    #[test]
    fn a_rule_that_costs_too_much_ends_them_all() {
        let rule = "self.all(x, self.all(y, y == x))";
        let spec = json!({"type":"array","maxItems":725,"items":{"type":"integer"},
            "x-kubernetes-validations":[{"rule":rule},{"rule":"self.size() == 0"}]});
        let with = |n: usize| found(spec.clone(), &json!({"spec": vec![7; n]}), None, Told::Errors);
        assert_eq!(with(400), ["spec: Invalid value: failed rule: self.size() == 0"]);
        let why = "'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: ";
        assert_eq!(with(725), [format!("spec: Invalid value: \"array\": {why}{rule}")]);
    }

    proptest::proptest! {
        /// Whatever is written as a rule is refused or accepted, and run if accepted; it never brings anything down.
        #[test]
        fn any_text_may_be_a_rule(text in "(self|x|\\.a|\\.b|\\[|\\]|\\(|\\)| |==|&&|!|\\?|:|'é'|1|all|has|size|\\+|in|,|ü|\n){0,12}") {
            let spec = json!({"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"type":"integer"}}},
                "x-kubernetes-validations":[{"rule":text,"messageExpression":text}]});
            let schema = json!({"type":"object","properties":{"spec":spec.clone()}});
            definition(&schema, &Node::compile(&schema), "s", &mut Errors::new());
            found(spec, &json!({"spec":{"a":"x","b":[1]}}), None, Told::Errors);
        }
    }

    #[test]
    fn what_was_wrong_before_is_a_warning() {
        let schema = json!({"type":"object","properties":{"n":{"type":"integer","x-kubernetes-validations":[{"rule":"self > 1"}]}}});
        let object = json!({"spec":{"n":1}});
        let told = found(schema, &object, Some(&object), Told::Warnings);
        assert_eq!(told, ["spec.n: Invalid value: 1: failed rule: self > 1"]);
    }
}
