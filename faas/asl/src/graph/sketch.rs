//! A machine reduced to what a picture shows: nodes, and transitions with the words beside them.

use crate::definition::{Condition, Machine, Operand, Operator, State, StateKind, Transition};

/// The longest words beside a transition.
const MAX_LABEL: usize = 40;

pub(super) struct Sketch<'d> {
    pub(super) nodes: Vec<Node<'d>>,
    pub(super) edges: Vec<Edge>,
    pub(super) start: usize,
}

pub(super) struct Node<'d> {
    pub(super) state: &'d State,
    pub(super) inner: Vec<Sketch<'d>>,
    pub(super) ends: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) label: Option<String>,
    pub(super) catch: bool,
}

pub(super) fn sketch(machine: &Machine) -> Sketch<'_> {
    let nodes = machine
        .states
        .values()
        .map(|state| Node {
            state,
            inner: match &state.kind {
                StateKind::Parallel(parallel) => parallel.branches.iter().map(sketch).collect(),
                StateKind::Map(map) => vec![sketch(&map.processor)],
                _ => Vec::new(),
            },
            ends: state.next == Transition::End,
        })
        .collect();
    let index = |name: &str| machine.states.get_index_of(name);
    let mut edges = Vec::new();
    for (from, state) in machine.states.values().enumerate() {
        let mut add = |to: &str, label: Option<String>, catch: bool| {
            if let Some(to) = index(to) {
                edges.push(Edge { from, to, label: label.map(|text| super::shorten(&text, MAX_LABEL)), catch });
            }
        };
        if let Transition::Next(next) = &state.next {
            add(next, None, false);
        }
        if let StateKind::Choice(choice) = &state.kind {
            for rule in &choice.choices {
                add(&rule.next, Some(rule.comment.clone().unwrap_or_else(|| words(&rule.condition))), false);
            }
            if let Some(default) = &choice.default {
                add(default, Some("otherwise".to_owned()), false);
            }
        }
        for catcher in &state.catch {
            add(&catcher.next, Some(format!("on {}", catcher.error_equals.join(", "))), true);
        }
    }
    Sketch { nodes, edges, start: index(&machine.start_at).unwrap_or_default() }
}

/// A condition in few words.
fn words(condition: &Condition) -> String {
    let join = |all: &[Condition], with: &str| all.iter().map(words).collect::<Vec<_>>().join(with);
    match condition {
        Condition::And(all) => join(all, " and "),
        Condition::Or(any) => format!("({})", join(any, " or ")),
        Condition::Not(one) => format!("not {}", words(one)),
        Condition::Expression(text) => text.clone(),
        Condition::Compare { variable, operator, operand } => {
            let right = match operand {
                Operand::Literal(value) => value.to_string(),
                Operand::Path(path) => path.to_string(),
            };
            match (sign(*operator), operator) {
                (Some(sign), _) => format!("{variable} {sign} {right}"),
                (None, Operator::StringMatches) => format!("{variable} like {right}"),
                (None, operator) => {
                    let what = operator.as_str().trim_start_matches("Is").to_lowercase();
                    let is = if right == "false" { "is not" } else { "is" };
                    format!("{variable} {is} {what}")
                }
            }
        }
    }
}

fn sign(operator: Operator) -> Option<&'static str> {
    let name = operator.as_str();
    Some(match name {
        name if name.ends_with("LessThanEquals") => "≤",
        name if name.ends_with("GreaterThanEquals") => "≥",
        name if name.ends_with("LessThan") => "<",
        name if name.ends_with("GreaterThan") => ">",
        name if name.ends_with("Equals") => "=",
        _ => return None,
    })
}
