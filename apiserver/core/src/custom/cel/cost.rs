//! How much a rule may cost at most, estimated from the sizes that a schema allows.
//!
//! The estimate counts as upstream's does in the large: a step costs one, a loop costs its body times the largest number
//! of items, comparing and searching text costs a tenth of its length, and what has no stated bound is as large as a
//! request may be. It does not follow every function, so only what exceeds a budget by more than a hundred times is
//! refused: there the two agree.

use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};

use super::super::schema::{Additional, Node, Type};
use crate::invalid::Errors;

/// Budget of one rule.
const RULE_MAX: f64 = 10_000_000.0;
/// Budget of all rules of a schema.
const TOTAL_MAX: f64 = 100_000_000.0;
/// Only this many times a budget is refused.
const FACTOR: f64 = 100.0;
/// Largest request.
const REQUEST: f64 = 3.0 * 1024.0 * 1024.0;

/// More than any budget.
const UNBOUNDED: f64 = 1e18;

/// A number of times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(f64);

impl Size {
    pub(super) const fn one() -> Self {
        Self(1.0)
    }

    pub(super) fn times(self, n: f64) -> Self {
        Self((self.0 * n.max(1.0)).min(1e18))
    }
}

/// The fewest bytes that a value takes in JSON.
fn least(node: &Node) -> f64 {
    match node.kind {
        Some(Type::String | Type::Array | Type::Object) => 2.0,
        Some(Type::Boolean) => 4.0,
        _ => 1.0,
    }
}

/// Most items of a list.
pub(super) fn elements(node: &Node) -> f64 {
    match node.max_items {
        Some(max) => max as f64,
        None => REQUEST / (node.items.as_deref().map_or(1.0, least) + 1.0),
    }
}

/// Most entries of a map.
pub(super) fn entries(node: &Node) -> f64 {
    match (node.max_properties, &node.additional) {
        (Some(max), _) => max as f64,
        (None, Additional::Schema(value)) => REQUEST / (least(value) + 6.0),
        (None, _) => REQUEST / 8.0,
    }
}

/// Most characters of a text.
fn characters(node: &Node) -> f64 {
    match node.max_length {
        Some(max) => max as f64 * 4.0,
        None if !node.values.is_empty() => {
            node.values.iter().filter_map(|v| v.as_str()).map(str::len).max().unwrap_or(0) as f64
        }
        None if matches!(node.format.as_str(), "date" | "date-time" | "duration") => 36.0,
        None => REQUEST - 2.0,
    }
}

/// What is known of a value while estimating.
#[derive(Clone, Copy)]
enum Known<'a> {
    Node(&'a Node),
    Text(f64),
    List(f64, Option<&'a Node>, f64),
    Other,
}

impl<'a> Known<'a> {
    fn text(self) -> f64 {
        match self {
            Self::Text(n) => n,
            Self::Node(n) if n.kind == Some(Type::String) => characters(n),
            _ => 1.0,
        }
    }

    fn count(self) -> f64 {
        match self {
            Self::List(n, ..) => n,
            Self::Node(n) if n.kind == Some(Type::Array) => elements(n),
            Self::Node(n) if matches!(n.additional, Additional::Schema(_)) => entries(n),
            _ => 1.0,
        }
    }

    fn is_map(self) -> bool {
        matches!(self, Self::Node(n) if n.kind == Some(Type::Object))
    }

    fn item(self) -> Self {
        match self {
            Self::Node(n) => match &n.items {
                Some(items) => Self::Node(items),
                None if matches!(n.additional, Additional::Schema(_)) => Self::Text(REQUEST),
                None => Self::Other,
            },
            Self::List(_, Some(node), _) => Self::Node(node),
            Self::List(_, None, text) => Self::Text(text),
            _ => Self::Other,
        }
    }

    fn field(self, name: &str) -> Self {
        let Self::Node(n) = self else { return Self::Other };
        let found = n.properties.iter().find(|(k, _)| super::values::escape(k) == name).map(|(_, n)| n);
        found.or_else(|| n.member(name)).map_or(Self::Other, Self::Node)
    }

    /// How much there is to compare: characters or elements, not what is in those.
    fn size(self) -> f64 {
        self.text().max(self.count())
    }
}

/// The cost of an expression over values of a schema.
pub(super) fn of(expression: &IdedExpr, node: &Node) -> f64 {
    let mut scopes = vec![("self", Known::Node(node)), ("oldSelf", Known::Node(node))];
    walk(expression, &mut scopes).0
}

fn walk<'a>(e: &'a IdedExpr, scopes: &mut Vec<(&'a str, Known<'a>)>) -> (f64, Known<'a>) {
    match &e.expr {
        Expr::Ident(name) => {
            let found = scopes.iter().rev().find(|(n, _)| n == name).map_or(Known::Other, |(_, k)| *k);
            (1.0, found)
        }
        Expr::Select(s) => {
            let (cost, known) = walk(&s.operand, scopes);
            (cost + 1.0, known.field(&s.field))
        }
        Expr::Literal(LiteralValue::String(s)) => (0.0, Known::Text(s.inner().chars().count() as f64)),
        Expr::Literal(_) => (0.0, Known::Text(1.0)),
        Expr::List(l) => {
            let cost: f64 = l.elements.iter().map(|x| walk(x, scopes).0).sum();
            (cost + 10.0, Known::List(l.elements.len() as f64, None, 16.0))
        }
        Expr::Map(m) => {
            let mut cost = 30.0;
            for entry in &m.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    cost += walk(&entry.key, scopes).0 + walk(&entry.value, scopes).0;
                }
            }
            (cost, Known::Other)
        }
        Expr::Comprehension(c) => {
            let (range, known) = walk(&c.iter_range, scopes);
            let depth = scopes.len();
            scopes.push((c.iter_var.as_str(), known.item()));
            scopes.push((c.accu_var.as_str(), Known::Other));
            let body = walk(&c.loop_cond, scopes).0 + walk(&c.loop_step, scopes).0;
            scopes.truncate(depth);
            let grows = matches!(c.accu_init.expr, Expr::List(_));
            let result = match known.item() {
                Known::Node(n) if grows => Known::List(known.count(), Some(n), 0.0),
                other if grows => Known::List(known.count(), None, other.text()),
                _ => Known::Other,
            };
            (range + known.count() * body.max(1.0), result)
        }
        Expr::Call(call) => {
            let mut cost = 1.0;
            let mut all = Vec::new();
            for x in call.target.iter().map(|t| &**t).chain(&call.args) {
                let (c, k) = walk(x, scopes);
                cost += c;
                all.push(k);
            }
            let first = all.first().copied().unwrap_or(Known::Other);
            let second = all.get(1).copied().unwrap_or(Known::Other);
            match call.func_name.as_str() {
                "_==_" | "_!=_" => (cost + first.size().min(second.size()) * 0.1, Known::Other),
                "_<_" | "_<=_" | "_>_" | "_>=_" => (cost + first.text().min(second.text()) * 0.1, Known::Other),
                "startsWith" | "endsWith" => (cost + second.text() * 0.1, Known::Other),
                "contains" => (cost + first.text() * 0.1 * (second.text() * 0.1), Known::Other),
                "matches" => (cost + first.text() * 0.1 * (second.text() * 0.25), Known::Other),
                // A list is searched from its beginning, a map knows.
                "@in" if second.is_map() => (cost, Known::Other),
                "@in" => (cost + second.count(), Known::Other),
                "lowerAscii" | "upperAscii" | "trim" | "replace" | "substring" => {
                    (cost + first.text() * 0.1, Known::Text(first.text()))
                }
                "_+_" => (cost + (first.text() + second.text()) * 0.1, Known::Text(first.text() + second.text())),
                // What is in a list that an expression made is of any size.
                "join" if matches!(first, Known::List(..)) => (cost + UNBOUNDED, Known::Text(REQUEST)),
                "join" => {
                    let whole = first.count() * first.item().text().max(1.0);
                    (cost + whole * 0.1, Known::Text(whole))
                }
                "split" => (cost + first.text() * 0.1, Known::List(first.text(), None, first.text())),
                "_[_]" => (cost, first.item()),
                _ => (cost, Known::Other),
            }
        }
        Expr::Struct(_) | Expr::Unspecified => (1.0, Known::Other),
    }
}

/// The cost of all rules of a schema.
#[derive(Default)]
pub(super) struct Total {
    cost: f64,
    dear: Vec<(String, f64)>,
}

fn exceeds(what: &str) -> String {
    format!(
        "{what} exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

impl Total {
    /// Adds a rule that costs this much each of so many times.
    pub(super) fn add(&mut self, path: &str, cost: f64, times: Size, errors: &mut Errors) {
        let whole = cost * times.0;
        if whole > RULE_MAX * FACTOR {
            errors.forbidden(&path, exceeds("estimated rule cost"));
        }
        self.cost += whole;
        self.dear.push((path.to_owned(), whole));
        self.dear.sort_by(|a, b| b.1.total_cmp(&a.1));
        self.dear.truncate(4);
    }

    /// Tells when all rules together are too dear.
    pub(super) fn report(&self, path: &str, errors: &mut Errors) {
        if self.cost <= TOTAL_MAX * FACTOR {
            return;
        }
        for (path, cost) in &self.dear {
            if *cost > TOTAL_MAX / 100.0 {
                let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
                errors.forbidden(path, why);
            }
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.forbidden(&path, exceeds(what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// (schema, rule, whether it exceeds the budget of a rule a hundredfold)
    #[test]
    fn estimates() {
        let list = json!({"type":"object","properties":{"l":{"type":"array","items":{"type":"string"}}}});
        let bounded = json!({"type":"object","properties":{"l":{"type":"array","maxItems":10,"items":{"type":"string","maxLength":10}}}});
        let map = json!({"type":"object","additionalProperties":{"type":"string"}});
        for (schema, rule, dear) in [
            (&list, "self.l.all(x, self.l.all(y, x == y))", true),
            (&list, "self.l.all(x, x.contains('aaaaaaaaaaaaaaa'))", true),
            (&list, "self.l.all(x, x in ['a', 'b'])", false),
            (&list, "self.l.size() < 5 && self.l == oldSelf.l", false),
            (&bounded, "self.l.all(x, self.l.all(y, x == y))", false),
            (&bounded, "self.l.join(',') != ''", false),
            (&map, "self.all(k, k in ['memory.available', 'nodefs.available', 'pid.available'])", false),
            (&map, "self.all(k, k in oldSelf)", false),
        ] {
            let program = super::super::parse(rule).unwrap_or_else(|e| panic!("{rule}: {e}"));
            let cost = of(&program, &Node::compile(schema));
            assert_eq!(cost > RULE_MAX * FACTOR, dear, "{rule}: {cost}");
        }
    }
}
