//! Parsed expressions made ready to run.
//!
//! The interpreter of the `cel` crate has corners that this goes round before anything runs: it answers `false` for a field
//! of what is no map, errs on `a.?b` where `b` is missing, cannot make objects, and does not count. So field selections
//! become index operations (which err, and copy nothing), objects become maps, and every turn of a loop pays at
//! [`TICK`] what it costs. What a checker has to say is said before: it sees what was written.
//!
//! Costs are upstream's (cel-go's runtime costs), as far as loops cause them and as little as a turn may come to: what upstream
//! allows is never refused.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, ListExpr, LiteralValue, MapEntryExpr,
    MapExpr,
};
use kube_cel::cel::objects::OptionalValue;
use kube_cel::cel::{Context, ExecutionError, Value as Cel};

/// Function that a loop calls on every turn.
const TICK: &str = "@tick";
/// Functions that an expansion calls: an optional value as a list, and a list as one; and the variable between them.
pub(super) const ITEMS: &str = "@items";
pub(super) const FIRST: &str = "@first";
const MADE: &str = "@made";
/// What the loops of one expression may cost: upstream's limit of an expression (`PerCallLimit`).
const CALL_MAX: i64 = 1_000_000;
/// What the loops of all expressions about an object may cost (`RuntimeCELCostBudget`).
const BUDGET: i64 = 10_000_000;
/// The clock is read once in so many turns.
const CLOCK: u64 = 256;
/// How an expression ends that costs too much.
pub(super) const CANCELLED: &str = "operation cancelled: actual cost limit exceeded";

thread_local! {
    static TURNS: Cell<u64> = const { Cell::new(0) };
    static CALL: Cell<i64> = const { Cell::new(0) };
    static SPENT: Cell<i64> = const { Cell::new(0) };
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Begins the time and the budget of all expressions that run on this thread from here on, until the next call.
pub(super) fn begin(time: Duration) {
    DEADLINE.set(Instant::now().checked_add(time));
    SPENT.set(0);
}

/// Begins the count of one expression. Expressions inside it (variables) share it.
pub(super) fn begin_expression() {
    CALL.set(0);
}

/// Whether the time or the budget is over.
pub(super) fn late() -> bool {
    SPENT.get() > BUDGET || DEADLINE.get().is_some_and(|d| Instant::now() > d)
}

/// Registers what lowered expressions call.
pub(super) fn register(context: &mut Context<'_>) {
    context.add_function(TICK, |cost: i64| -> Result<Cel, ExecutionError> {
        let (turns, call) = (TURNS.get().wrapping_add(1), CALL.get().saturating_add(cost));
        TURNS.set(turns);
        CALL.set(call);
        SPENT.set(SPENT.get().saturating_add(cost));
        if call > CALL_MAX || (turns.is_multiple_of(CLOCK) && late()) {
            return Err(ExecutionError::function_error(TICK, CANCELLED));
        }
        Ok(Cel::Bool(true))
    });
    context.add_function(ITEMS, |v: Cel| -> Result<Cel, ExecutionError> {
        let v: &OptionalValue = (&v).try_into()?;
        Ok(Cel::List(Arc::new(v.value().cloned().into_iter().collect())))
    });
    context.add_function(FIRST, |v: Cel| -> Result<Cel, ExecutionError> {
        match v {
            Cel::List(list) => Ok(super::values::optional(list.first().cloned())),
            _ => Err(ExecutionError::NoSuchOverload),
        }
    });
}

/// Expands what the parser knows no macro for: `o.optMap(x, ...)` and `o.optFlatMap(x, ...)` become a loop over the value
/// of `o`, if there is one. (A variable of the interpreter cannot hold an optional value, a list can hold what is in it.)
pub(super) fn expand(e: &mut IdedExpr) {
    members(e, &mut expand);
    let Expr::Call(c) = &e.expr else { return };
    let flat = match c.func_name.as_str() {
        "optMap" => false,
        "optFlatMap" => true,
        _ => return,
    };
    let (Some(target), [IdedExpr { expr: Expr::Ident(name), .. }, body]) = (&c.target, c.args.as_slice()) else {
        return;
    };
    let made = |expr: Expr| IdedExpr { id: e.id, expr };
    let list = |items: Vec<IdedExpr>| made(Expr::List(ListExpr::new(items)));
    let items = |of: IdedExpr| made(call(ITEMS, vec![of]));
    let found = made(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: items((**target).clone()),
        iter_var: name.clone(),
        iter_var2: None,
        accu_var: MADE.to_owned(),
        accu_init: list(vec![]),
        loop_cond: made(Expr::Literal(LiteralValue::Boolean(true.into()))),
        loop_step: if flat { items(body.clone()) } else { list(vec![body.clone()]) },
        result: made(Expr::Ident(MADE.to_owned())),
    })));
    e.expr = call(FIRST, vec![found]);
}

/// Calls `f` on every direct part of an expression.
fn members(e: &mut IdedExpr, f: &mut dyn FnMut(&mut IdedExpr)) {
    let entries = |entries: &mut Vec<IdedEntryExpr>, f: &mut dyn FnMut(&mut IdedExpr)| {
        for entry in entries {
            match &mut entry.expr {
                EntryExpr::MapEntry(m) => {
                    f(&mut m.key);
                    f(&mut m.value);
                }
                EntryExpr::StructField(s) => f(&mut s.value),
            }
        }
    };
    match &mut e.expr {
        Expr::Select(s) => f(&mut s.operand),
        Expr::Call(c) => {
            c.target.iter_mut().for_each(|t| f(t));
            c.args.iter_mut().for_each(f);
        }
        Expr::List(l) => l.elements.iter_mut().for_each(f),
        Expr::Map(m) => entries(&mut m.entries, f),
        Expr::Struct(s) => entries(&mut s.entries, f),
        Expr::Comprehension(c) => {
            for part in [&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result] {
                f(part);
            }
        }
        Expr::Literal(_) | Expr::Ident(_) | Expr::Unspecified => {}
    }
}

/// An expression as it is run. Names in `composed` have their members as variables of their own: `variables.x` becomes
/// the variable of that whole name.
pub(super) fn lower(e: &IdedExpr, composed: &[&str]) -> IdedExpr {
    let run = |e: &IdedExpr| lower(e, composed);
    let each = |list: &[IdedExpr]| list.iter().map(run).collect::<Vec<_>>();
    let expr = match &e.expr {
        Expr::Select(s) => {
            if let Expr::Ident(of) = &s.operand.expr
                && let Some(whole) = member(of, &s.field, composed)
            {
                return made(
                    e,
                    if s.test { Expr::Literal(LiteralValue::Boolean(true.into())) } else { Expr::Ident(whole) },
                );
            }
            let operand = run(&s.operand);
            let field = made(e, Expr::Literal(LiteralValue::String(s.field.as_str().into())));
            if !s.test {
                call("_[_]", vec![operand, field])
            } else if optional(&s.operand) {
                let found = made(e, call("_[?_]", vec![operand, field]));
                Expr::Call(CallExpr { func_name: "hasValue".into(), target: Some(Box::new(found)), args: vec![] })
            } else {
                let mut s = s.clone();
                s.operand = Box::new(operand);
                Expr::Select(s)
            }
        }
        Expr::Call(c) => {
            let name = if c.func_name == "_?._" { "_[?_]".to_owned() } else { c.func_name.clone() };
            let target = c.target.as_ref().map(|t| Box::new(run(t)));
            Expr::Call(CallExpr { func_name: name, target, args: each(&c.args) })
        }
        Expr::List(l) => {
            let mut l = l.clone();
            l.elements = each(&l.elements);
            Expr::List(l)
        }
        Expr::Map(m) => Expr::Map(MapExpr { entries: m.entries.iter().map(|x| entry(x, composed)).collect() }),
        Expr::Struct(s) => Expr::Map(MapExpr { entries: s.entries.iter().map(|x| entry(x, composed)).collect() }),
        Expr::Comprehension(c) => {
            let cost = made(e, Expr::Literal(LiteralValue::Int(turn(c).into())));
            let tick = made(e, call(TICK, vec![cost]));
            let cond = made(e, call("_&&_", vec![tick, run(&c.loop_cond)]));
            Expr::Comprehension(Box::new(ComprehensionExpr {
                iter_range: run(&c.iter_range),
                iter_var: c.iter_var.clone(),
                iter_var2: c.iter_var2.clone(),
                accu_var: c.accu_var.clone(),
                accu_init: run(&c.accu_init),
                loop_cond: cond,
                loop_step: run(&c.loop_step),
                result: run(&c.result),
            }))
        }
        same @ (Expr::Literal(_) | Expr::Ident(_)) => same.clone(),
        // The interpreter would bring the thread down.
        Expr::Unspecified => Expr::Literal(LiteralValue::Null),
    };
    made(e, expr)
}

/// What a turn of a loop costs at least. Loops in it pay for themselves.
fn turn(c: &ComprehensionExpr) -> i64 {
    let step = match &c.loop_step.expr {
        // `accumulated && what is asked`: the loop has ended where the first decides.
        Expr::Call(and) if matches!(and.func_name.as_str(), "_&&_" | "_||_") => and.args.iter().map(cost).sum(),
        _ => cost(&c.loop_step),
    };
    cost(&c.loop_cond) + step
}

/// What an expression costs at least: one for a variable, a field and a call each, nothing for what may not be looked at.
fn cost(e: &IdedExpr) -> i64 {
    let all = |list: &[IdedExpr]| list.iter().map(cost).sum::<i64>();
    match &e.expr {
        Expr::Ident(_) => 1,
        Expr::Select(s) => cost(&s.operand) + i64::from(!s.test),
        Expr::Call(c) => match (c.func_name.as_str(), c.args.as_slice()) {
            ("_&&_" | "_||_", [first, ..]) => cost(first),
            ("_?_:_", [test, yes, no]) => cost(test) + cost(yes).min(cost(no)),
            ("_[_]" | "_[?_]" | "_?._", args) => all(args),
            (_, args) => 1 + c.target.as_deref().map_or(0, cost) + all(args),
        },
        Expr::List(l) => all(&l.elements),
        Expr::Comprehension(c) => cost(&c.iter_range) + cost(&c.accu_init),
        Expr::Map(_) | Expr::Struct(_) | Expr::Literal(_) | Expr::Unspecified => 0,
    }
}

fn made(at: &IdedExpr, expr: Expr) -> IdedExpr {
    IdedExpr { id: at.id, expr }
}

fn call(name: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args })
}

/// The variable that a member of a composed one is.
fn member(of: &str, field: &str, composed: &[&str]) -> Option<String> {
    let whole = format!("{of}.{field}");
    (composed.contains(&of) || composed.contains(&whole.as_str())).then_some(whole)
}

/// Whether an expression may be an optional value, by how it is written.
fn optional(e: &IdedExpr) -> bool {
    match &e.expr {
        Expr::Select(s) => optional(&s.operand),
        Expr::Call(c) => match c.func_name.as_str() {
            "_?._" | "_[?_]" => true,
            "_[_]" => c.args.first().is_some_and(optional),
            _ => false,
        },
        _ => false,
    }
}

fn entry(e: &IdedEntryExpr, composed: &[&str]) -> IdedEntryExpr {
    let made = match &e.expr {
        EntryExpr::MapEntry(m) => {
            MapEntryExpr { key: lower(&m.key, composed), value: lower(&m.value, composed), optional: m.optional }
        }
        EntryExpr::StructField(f) => {
            let key = Expr::Literal(LiteralValue::String(super::values::unescape(&f.field).into()));
            MapEntryExpr {
                key: IdedExpr { id: e.id, expr: key },
                value: lower(&f.value, composed),
                optional: f.optional,
            }
        }
    };
    IdedEntryExpr { id: e.id, expr: EntryExpr::MapEntry(made) }
}
