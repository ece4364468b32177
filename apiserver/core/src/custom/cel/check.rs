//! What does not fit in a rule, found when a definition is written: syntax, fields that a schema does not declare, names
//! that nobody declared, operands of the wrong type, results that are no bool.
//!
//! The parser keeps no positions of what it understood, so the place in an error is found again in the text: a field by
//! its dot, a name by its beginning, an operator by itself, a call by its parenthesis; the nth of a kind is the nth seen.
//! Functions whose result depends on their arguments in ways this does not follow are of any type.

use std::collections::HashMap;

use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use serde_json::{Value, json};

use super::super::schema::{Additional, ListType, Node};
use super::functions::result_of;
use super::lower::{FIRST, ITEMS};
use super::types::{Base, Ty};
use super::{cost, fault, parse};
use crate::invalid::Errors;

/// Names of variables that an expression uses, without those of its own loops.
pub(super) fn names(expression: &IdedExpr) -> Vec<String> {
    let mut out = Vec::new();
    collect(expression, &mut out);
    out
}

fn collect(e: &IdedExpr, out: &mut Vec<String>) {
    match &e.expr {
        Expr::Ident(name) => out.push(name.clone()),
        Expr::Select(s) => collect(&s.operand, out),
        Expr::Call(c) => {
            c.target.iter().for_each(|t| collect(t, out));
            c.args.iter().for_each(|a| collect(a, out));
        }
        Expr::List(l) => l.elements.iter().for_each(|x| collect(x, out)),
        Expr::Map(m) => {
            for entry in &m.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    collect(&entry.key, out);
                    collect(&entry.value, out);
                }
            }
        }
        Expr::Struct(s) => {
            for entry in &s.entries {
                if let EntryExpr::StructField(f) = &entry.expr {
                    collect(&f.value, out);
                }
            }
        }
        Expr::Comprehension(c) => {
            for part in [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result] {
                collect(part, out);
            }
        }
        _ => {}
    }
}

/// The first thing that does not fit.
struct Misfit(String);

struct Checker<'t, 'a> {
    text: &'t str,
    scopes: Vec<(String, Ty<'a>)>,
    seen: HashMap<String, usize>,
    /// What only some expressions may use.
    more: More,
}

/// What only some expressions may use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct More {
    /// Functions that ask about permissions.
    pub(super) authorizer: bool,
    /// Objects and patches that are made.
    pub(super) objects: bool,
}

/// Type of a patch that an expression makes, and of the object.
pub(super) const PATCH: &str = "JSONPatch";
pub(super) const OBJECT: &str = "Object";

type Checked<'a> = Result<Ty<'a>, Misfit>;

impl<'a> Checker<'_, 'a> {
    fn makes(&self, name: &str) -> bool {
        let object = name == OBJECT || name.strip_prefix(OBJECT).is_some_and(|rest| rest.starts_with('.'));
        self.more.objects && (object || name == PATCH)
    }

    /// What a function results in; `None` where there is none of this name.
    fn result(&self, function: &str) -> Option<Ty<'a>> {
        result_of(function).or(match function {
            ITEMS | FIRST => Some(Ty::DYN),
            _ if !self.more.authorizer => None,
            "allowed" | "denied" | "errored" => Some(Ty::BOOL),
            "reason" | "error" => Some(Ty::STRING),
            "path" | "group" | "serviceAccount" | "resource" | "subresource" | "namespace" | "name" | "check"
            | "fieldSelector" | "labelSelector" => Some(Ty::DYN),
            _ => None,
        })
    }

    /// Where the next `needle` stands; the offset is added to its beginning.
    fn fault(&mut self, needle: &str, word: bool, offset: usize, why: &str) -> Misfit {
        let count = self.seen.get(needle).copied().unwrap_or(0);
        let fits = |at: &usize| {
            let before = self.text[..*at].chars().next_back();
            let after = self.text[*at + needle.len()..].chars().next();
            let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !word || (!part(before) || needle.starts_with('.')) && !part(after)
        };
        let places: Vec<usize> = self.text.match_indices(needle).map(|(i, _)| i).filter(fits).collect();
        let at = places.get(count).or(places.last()).copied().unwrap_or(0) + offset;
        // Not found as it is written here (`f (x)`): somewhere before is better than nowhere.
        let at = (0..=at.min(self.text.len())).rev().find(|i| self.text.is_char_boundary(*i)).unwrap_or(0);
        let line_start = self.text[..at].rfind('\n').map_or(0, |i| i + 1);
        let line = self.text[..line_start].matches('\n').count() + 1;
        Misfit(fault(self.text, line, at - line_start + 1, why))
    }

    fn passed(&mut self, needle: &str) {
        *self.seen.entry(needle.to_owned()).or_default() += 1;
    }

    fn check(&mut self, e: &IdedExpr) -> Checked<'a> {
        match &e.expr {
            Expr::Literal(literal) => Ok(Ty::Base(match literal {
                LiteralValue::Boolean(_) => Base::Bool,
                LiteralValue::Bytes(_) => Base::Bytes,
                LiteralValue::Double(_) => Base::Double,
                LiteralValue::Int(_) => Base::Int,
                LiteralValue::Null => Base::Null,
                LiteralValue::String(_) => Base::String,
                LiteralValue::UInt(_) => Base::Uint,
            })),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => {
                let of = self.check(&select.operand)?;
                let needle = format!(".{}", select.field);
                let Ok(found) = of.field(&select.field) else {
                    return Err(match of {
                        Ty::Object(..) | Ty::Names | Ty::Record(_) | Ty::Model(_) => {
                            self.fault(&needle, true, 0, &format!("undefined field '{}'", select.field))
                        }
                        _ => self.fault(&needle, true, 0, &format!("type '{of}' does not support field selection")),
                    });
                };
                self.passed(&needle);
                Ok(if select.test { Ty::BOOL } else { found })
            }
            Expr::List(list) => {
                let mut item: Option<Ty<'a>> = None;
                for x in &list.elements {
                    let t = self.check(x)?;
                    item = Some(match item {
                        Some(i) if i.equatable(&t) && !t.is_dyn() => i,
                        None => t,
                        Some(_) => Ty::DYN,
                    });
                }
                Ok(Ty::List(Box::new(item.unwrap_or(Ty::DYN))))
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.check(&entry.key)?;
                        self.check(&entry.value)?;
                    }
                }
                Ok(Ty::Map(Box::new(Ty::DYN)))
            }
            Expr::Comprehension(c) => {
                let range = self.check(&c.iter_range)?;
                let item = match &range {
                    Ty::List(item) => (**item).clone(),
                    Ty::Map(_) | Ty::Object(..) => Ty::STRING,
                    _ => Ty::DYN,
                };
                let accumulated = self.check(&c.accu_init)?;
                let depth = self.scopes.len();
                self.scopes.push((c.iter_var.clone(), item));
                if let Some(second) = &c.iter_var2 {
                    self.scopes.push((second.clone(), Ty::DYN));
                }
                self.scopes.push((c.accu_var.clone(), accumulated.clone()));
                self.check(&c.loop_cond)?;
                let step = self.check(&c.loop_step)?;
                // A list that grows has the type of what is added.
                let whole = if matches!(accumulated, Ty::List(_)) { step } else { accumulated };
                self.scopes.truncate(depth + 1);
                self.scopes.push((c.accu_var.clone(), whole));
                let result = self.check(&c.result);
                self.scopes.truncate(depth);
                result
            }
            Expr::Call(call) => self.call(&call.func_name, call.target.as_deref(), &call.args),
            Expr::Struct(s) => {
                if !self.makes(&s.type_name) {
                    let why = format!("undeclared reference to '{}' (in container '')", s.type_name);
                    return Err(self.fault(&s.type_name, true, s.type_name.len(), &why));
                }
                for entry in &s.entries {
                    let EntryExpr::StructField(f) = &entry.expr else { continue };
                    if s.type_name == PATCH && !["op", "path", "from", "value"].contains(&f.field.as_str()) {
                        return Err(self.fault(
                            &f.field,
                            true,
                            f.field.len(),
                            &format!("undefined field '{}'", f.field),
                        ));
                    }
                    self.check(&f.value)?;
                }
                Ok(Ty::Message(s.type_name.clone()))
            }
            Expr::Unspecified => Ok(Ty::DYN),
        }
    }

    fn ident(&mut self, name: &str) -> Checked<'a> {
        if let Some((_, t)) = self.scopes.iter().rev().find(|(n, _)| n == name) {
            return Ok(t.clone());
        }
        if matches!(name, "int" | "uint" | "double" | "string" | "bytes" | "bool" | "list" | "map" | "null_type") {
            return Ok(Ty::Base(Base::Type));
        }
        Err(self.fault(name, true, 0, &format!("undeclared reference to '{name}' (in container '')")))
    }

    fn call(&mut self, name: &str, target: Option<&IdedExpr>, args: &[IdedExpr]) -> Checked<'a> {
        // `math.greatest(...)`: the name before the dot is no variable.
        if let Some(IdedExpr { expr: Expr::Ident(space), .. }) = target {
            let whole = format!("{space}.{name}");
            if let Some(result) = self.result(&whole) {
                for a in args {
                    self.check(a)?;
                }
                return Ok(result);
            }
        }
        let mut types = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            types.push(self.check(target)?);
        }
        // Faults are told in the order of their places: a function's name stands before its arguments.
        if operator(name).is_none() && self.result(name).is_none() {
            let why = format!("undeclared reference to '{name}' (in container '')");
            return Err(self.fault(&format!("{name}("), false, name.len(), &why));
        }
        for e in args {
            types.push(self.check(e)?);
        }
        if let Some(operator) = operator(name) {
            return self.operator(name, operator, &types);
        }
        match (name, types.as_slice()) {
            ("value" | "orValue", [Ty::Optional(inner), ..]) => return Ok((**inner).clone()),
            (ITEMS, [Ty::Optional(inner)]) => return Ok(Ty::List(inner.clone())),
            (FIRST, [Ty::List(inner)]) => return Ok(Ty::Optional(inner.clone())),
            (ITEMS | FIRST, _) => return Ok(Ty::DYN),
            ("type", [_]) => return Ok(Ty::Base(Base::Type)),
            ("timestamp", [_]) => return Ok(Ty::Base(Base::Timestamp)),
            ("duration", [_]) => return Ok(Ty::Base(Base::Duration)),
            ("min" | "max" | "sum" | "first" | "last", [Ty::List(item)]) => return Ok((**item).clone()),
            ("distinct" | "reverse" | "sort" | "slice", [list @ Ty::List(_), ..]) => return Ok(list.clone()),
            ("reverse", [Ty::Base(Base::String)]) => return Ok(Ty::STRING),
            ("format", [Ty::Base(Base::String), ..]) => return Ok(Ty::STRING),
            ("uint", [_]) => return Ok(Ty::Base(Base::Uint)),
            ("bytes", [_]) => return Ok(Ty::Base(Base::Bytes)),
            _ => {}
        }
        self.passed(&format!("{name}("));
        Ok(self.result(name).unwrap_or(Ty::DYN))
    }

    fn operator(&mut self, name: &str, sign: &str, types: &[Ty<'a>]) -> Checked<'a> {
        let shown: Vec<String> = types.iter().map(ToString::to_string).collect();
        let mut none = || {
            let why = format!("found no matching overload for '{name}' applied to '({})'", shown.join(", "));
            self.fault(sign, false, 0, &why)
        };
        let boolean = |t: &Ty<'_>| t.is(Base::Bool) || t.is_dyn();
        let result = match (name, types) {
            ("_&&_" | "_||_", all) => all.iter().all(boolean).then_some(Ty::BOOL),
            ("!_" | "@not_strictly_false", [t]) => boolean(t).then_some(Ty::BOOL),
            ("_==_" | "_!=_", [a, b]) => a.equatable(b).then_some(Ty::BOOL),
            ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
                let plain = |t: &Ty<'_>| matches!(t, Ty::Base(_));
                let fits = (a.is_number() && b.is_number()) || (plain(a) && plain(b) && a.equatable(b));
                fits.then_some(Ty::BOOL)
            }
            ("_?_:_", [test, a, b]) => boolean(test).then(|| if a.is_dyn() { b.clone() } else { a.clone() }),
            ("@in", [_, Ty::List(_) | Ty::Map(_) | Ty::Base(Base::Dyn) | Ty::Object(..)]) => Some(Ty::BOOL),
            ("_[_]", [Ty::List(item), index]) => (index.is(Base::Int) || index.is_dyn()).then(|| (**item).clone()),
            ("_[_]", [Ty::Map(value), _]) => Some((**value).clone()),
            ("_[_]", [Ty::Base(Base::Dyn), _]) | ("-_", [Ty::Base(Base::Dyn)]) => Some(Ty::DYN),
            ("-_", [t]) => t.is_number().then(|| t.clone()),
            // What is taken out of an optional value is one, too.
            ("_[_]", [Ty::Optional(of), index]) => match (&**of, index) {
                (Ty::List(item), index) if index.is(Base::Int) || index.is_dyn() => Some(Ty::Optional(item.clone())),
                (Ty::Map(value), _) => Some(Ty::Optional(value.clone())),
                (Ty::Base(Base::Dyn), _) => Some(types[0].clone()),
                _ => None,
            },
            ("_[?_]" | "_?._", [Ty::List(inner) | Ty::Map(inner), ..]) => Some(Ty::Optional(inner.clone())),
            ("_[?_]" | "_?._", [Ty::Optional(of), ..]) => match &**of {
                Ty::List(inner) | Ty::Map(inner) => Some(Ty::Optional(inner.clone())),
                _ => Some(Ty::DYN),
            },
            ("_[?_]" | "_?._", _) => Some(Ty::DYN),
            ("_+_", [Ty::Base(a), Ty::Base(b)]) => match (a, b) {
                (Base::Timestamp, Base::Duration) | (Base::Duration, Base::Timestamp) => {
                    Some(Ty::Base(Base::Timestamp))
                }
                (Base::Dyn, _) | (_, Base::Dyn) => Some(Ty::DYN),
                (Base::Bool | Base::Null | Base::Type | Base::Timestamp, _) => None,
                _ => types[0].equatable(&types[1]).then(|| types[0].clone()),
            },
            ("_+_", [Ty::List(a), Ty::List(b)]) => Some(Ty::List(if a.is_dyn() { b.clone() } else { a.clone() })),
            ("_-_", [Ty::Base(Base::Timestamp), Ty::Base(Base::Timestamp)]) => Some(Ty::Base(Base::Duration)),
            ("_-_", [t @ Ty::Base(Base::Timestamp | Base::Duration), Ty::Base(Base::Duration)]) => Some(t.clone()),
            ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) => {
                if a.is_dyn() || b.is_dyn() {
                    Some(Ty::DYN)
                } else {
                    (a.is_number() && a.equatable(b)).then(|| a.clone())
                }
            }
            _ => None,
        };
        match result {
            Some(t) => {
                self.passed(sign);
                Ok(t)
            }
            None => Err(none()),
        }
    }
}

/// The sign of an operator.
fn operator(name: &str) -> Option<&'static str> {
    Some(match name {
        "_&&_" => "&&",
        "_||_" => "||",
        "!_" => "!",
        "@not_strictly_false" => "",
        "_==_" => "==",
        "_!=_" => "!=",
        "_<_" => "<",
        "_<=_" => "<=",
        "_>_" => ">",
        "_>=_" => ">=",
        "_?_:_" => "?",
        "@in" => "in",
        "_[_]" => "[",
        "_[?_]" => "[?",
        "_?._" => ".?",
        "_+_" => "+",
        "_-_" | "-_" => "-",
        "_*_" => "*",
        "_/_" => "/",
        "_%_" => "%",
        _ => return None,
    })
}

/// Parses and types an expression.
fn typed<'a>(text: &str, this: &Ty<'a>, optional_old: bool) -> Result<(IdedExpr, Ty<'a>), String> {
    let program = parse(text)?;
    let old = if optional_old { Ty::Optional(Box::new(this.clone())) } else { this.clone() };
    let scopes = vec![("self".to_owned(), this.clone()), ("oldSelf".to_owned(), old)];
    let result = typed_in(text, &program, scopes, More::default())?;
    Ok((program, result))
}

/// Types a parsed expression where these variables are known.
pub(super) fn typed_in<'a>(
    text: &str,
    program: &IdedExpr,
    scopes: Vec<(String, Ty<'a>)>,
    more: More,
) -> Result<Ty<'a>, String> {
    Checker { text, scopes, seen: HashMap::new(), more }.check(program).map_err(|m| m.0)
}

/// Checks all rules of a version's schema, which is otherwise in order. `path` is that of the schema.
pub(in super::super) fn definition(schema: &Value, root: &Node, path: &str, errors: &mut Errors) {
    let mut total = cost::Total::default();
    place(schema, root, true, path, None, &mut total, cost::Size::one(), errors);
    total.report(path, errors);
}

#[allow(clippy::too_many_arguments)]
fn place(
    schema: &Value,
    node: &Node,
    root: bool,
    path: &str,
    uncorrelated: Option<&str>,
    total: &mut cost::Total,
    times: cost::Size,
    errors: &mut Errors,
) {
    let child = |key: &str, name: &str| schema.get(key).and_then(|p| p.get(name)).cloned().unwrap_or_default();
    for (name, property) in &node.properties {
        let inner = if node.atomic_map { Some(path) } else { uncorrelated };
        let at = format!("{path}.properties[{name}]");
        place(&child("properties", name), property, false, &at, inner, total, times, errors);
    }
    if let Additional::Schema(value) = &node.additional {
        let schema = schema.get("additionalProperties").cloned().unwrap_or_default();
        let times = times.times(cost::entries(node));
        place(&schema, value, false, &format!("{path}.additionalProperties"), uncorrelated, total, times, errors);
    }
    if let Some(items) = &node.items {
        let schema = schema.get("items").cloned().unwrap_or_default();
        let inner = if node.list == Some(ListType::Map) { uncorrelated } else { Some(path) };
        let times = times.times(cost::elements(node));
        place(&schema, items, false, &format!("{path}.items"), inner, total, times, errors);
    }
    let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array).cloned().unwrap_or_default();
    let this = Ty::of(node, root).unwrap_or(Ty::DYN);
    for (i, rule) in rules.iter().enumerate() {
        one(rule, node, &this, &format!("{path}.x-kubernetes-validations[{i}]"), uncorrelated, total, times, errors);
    }
}

/// A rule as upstream prints it.
fn shown(rule: &Value) -> String {
    let text = |key: &str| rule.get(key).cloned().unwrap_or_else(|| "".into());
    let value = |key: &str| rule.get(key).cloned().unwrap_or_default();
    json!({"Rule": text("rule"), "Message": text("message"), "MessageExpression": text("messageExpression"),
        "Reason": value("reason"), "FieldPath": text("fieldPath"), "OptionalOldSelf": value("optionalOldSelf")})
    .to_string()
}

#[allow(clippy::too_many_arguments)]
fn one(
    rule: &Value,
    node: &Node,
    this: &Ty<'_>,
    at: &str,
    uncorrelated: Option<&str>,
    total: &mut cost::Total,
    times: cost::Size,
    errors: &mut Errors,
) {
    let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    let optional = rule.get("optionalOldSelf");
    let rule_at = format!("{at}.rule");
    let mut uses_old = false;
    let expression = text("rule");
    match typed(expression, this, optional == Some(&Value::Bool(true))) {
        Err(why) => errors.invalid_raw(&rule_at, shown(rule), format!("compilation failed: {why}")),
        Ok((program, result)) => {
            if result.is(Base::Bool) || result.is_dyn() {
                uses_old = names(&program).iter().any(|n| n == "oldSelf");
                total.add(&rule_at, cost::of(&program, node), times, errors);
            } else {
                errors.invalid_raw(&rule_at, shown(rule), "cel expression must evaluate to a bool");
            }
        }
    }
    let message = text("messageExpression");
    if !message.is_empty() {
        let at = format!("{at}.messageExpression");
        match typed(message, this, optional == Some(&Value::Bool(true))) {
            Err(why) => errors.invalid_raw(&at, shown(rule), format!("messageExpression compilation failed: {why}")),
            Ok((_, result)) if !result.is(Base::String) && !result.is_dyn() => {
                errors.invalid_raw(&at, shown(rule), "messageExpression must evaluate to a string");
            }
            Ok(_) => {}
        }
    }
    if uses_old {
        if let Some(within) = uncorrelated {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
            errors.invalid(&rule_at, expression, why);
        }
    } else if let Some(optional) = optional.filter(|o| !o.is_null()) {
        let why = "may not be set if oldSelf is not used in rule";
        errors.invalid(&format!("{at}.optionalOldSelf"), optional.clone(), why);
    }
}
