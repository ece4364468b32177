//! Choice: its rules and their conditions.

use serde_json::Value;

use super::fields::Fields;
use super::{Check, state};
use crate::definition::{Choice, ChoiceRule, Condition, Operand, Operator, QueryLanguage};
use crate::path::Path;

/// Conditions within conditions beyond this are refused, so that a definition cannot exhaust the stack.
const MAX_DEPTH: usize = 50;

pub(super) fn choice(fields: &mut Fields<'_, '_>) -> Option<Choice> {
    let default = fields.string("Default");
    fields.required("Choices");
    let items = fields.array("Choices")?;
    if items.is_empty() {
        fields.fault("Choices", "A Choice state has at least one rule");
    }
    let (at, language) = (fields.pointer("Choices"), fields.language);
    let choices = items.iter().enumerate().filter_map(|(i, item)| rule(item, &at, i, language, fields.check)).collect();
    Some(Choice { choices, default })
}

fn rule(value: &Value, at: &str, i: usize, language: QueryLanguage, check: &mut Check) -> Option<ChoiceRule> {
    let fields = Fields::new(value, format!("{at}/{i}"), check)?;
    let mut fields = fields.with_language(language).with_place(format!("Choices[{i}]/"));
    let next = fields.required_string("Next");
    let comment = fields.string("Comment");
    let assign = state::assign(&mut fields);
    let output = if fields.is_jsonata() { fields.template("Output") } else { None };
    let condition = if fields.is_jsonata() { expression(&mut fields) } else { condition(&mut fields, 0) };
    state::wrong_language(&mut fields);
    fields.finish("of a rule of a Choice state");
    Some(ChoiceRule { condition: condition?, next: next?, comment, assign, output })
}

fn expression(fields: &mut Fields<'_, '_>) -> Option<Condition> {
    match fields.required("Condition")? {
        // A constant is allowed, and as good as an expression.
        Value::Bool(value) => Some(Condition::Expression(value.to_string())),
        Value::String(text) => match crate::jsonata::unwrap(text) {
            Ok(Some(expression)) => {
                if let Err(why) = crate::jsonata::check(expression) {
                    fields.invalid("Condition", why);
                }
                Some(Condition::Expression(expression.to_owned()))
            }
            Ok(None) => {
                fields.fault("Condition", "The value for the field 'Condition' must be an expression in {% and %}");
                None
            }
            Err(why) => {
                fields.invalid("Condition", why);
                None
            }
        },
        _ => {
            fields.fault("Condition", "The value for the field 'Condition' must be an expression or a BOOLEAN");
            None
        }
    }
}

fn condition(fields: &mut Fields<'_, '_>, depth: usize) -> Option<Condition> {
    if depth > MAX_DEPTH {
        fields.own_fault(format!("Conditions are nested more than {MAX_DEPTH} deep"));
        return None;
    }
    let operators: Vec<(&str, Operator, bool)> =
        fields.keys().filter_map(|key| Operator::parse(key).map(|(op, path)| (key, op, path))).collect();
    let combiners: Vec<&str> = ["And", "Or", "Not"].into_iter().filter(|name| fields.has(name)).collect();
    if operators.len() + combiners.len() != 1 {
        for name in operators.iter().map(|(key, ..)| *key).chain(combiners) {
            fields.get(name);
        }
        fields.get("Variable");
        let found = operators.len();
        fields.own_fault(if found == 0 {
            "A condition has exactly one comparison operator, or one of 'And', 'Or' and 'Not'; this one has none"
        } else {
            "A condition has exactly one comparison operator, or one of 'And', 'Or' and 'Not'; this one has several"
        });
        return None;
    }
    if let Some((field, operator, from_path)) = operators.first().copied() {
        fields.required("Variable");
        let variable = fields.path("Variable");
        let operand = operand(fields, field, operator, from_path);
        return Some(Condition::Compare { variable: variable?, operator, operand: operand? });
    }
    let name = combiners.first().copied()?;
    if name == "Not" {
        return nested(fields.get("Not")?, fields.pointer("Not"), fields.check, depth)
            .map(|inner| Condition::Not(Box::new(inner)));
    }
    let items = fields.array(name)?;
    if items.is_empty() {
        fields.fault(name, format!("'{name}' has at least one condition"));
    }
    let at = fields.pointer(name);
    let all: Vec<Condition> = items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| nested(item, format!("{at}/{i}"), fields.check, depth))
        .collect();
    Some(if name == "And" { Condition::And(all) } else { Condition::Or(all) })
}

fn nested(value: &Value, at: String, check: &mut Check, depth: usize) -> Option<Condition> {
    let mut fields = Fields::new(value, at, check)?.with_language(QueryLanguage::JsonPath);
    fields.string("Comment");
    if fields.get("Next").is_some() {
        fields.fault("Next", "Only the rule itself has 'Next', its inner conditions have not");
    }
    let condition = condition(&mut fields, depth + 1);
    fields.finish("of a condition");
    condition
}

fn operand(fields: &mut Fields<'_, '_>, field: &str, operator: Operator, from_path: bool) -> Option<Operand> {
    if from_path {
        return fields.path(field).map(Operand::Path);
    }
    let value = fields.get(field)?;
    if operator.takes(value) {
        return Some(Operand::Literal(value.clone()));
    }
    let message = format!(
        "The value for the field '{field}' must be {} but is {}",
        operator.operand_name(),
        super::fields::kind(value)
    );
    fields.fault(field, message);
    let looks_like_path = value.as_str().is_some_and(|text| text.starts_with('$') && Path::parse(text).is_ok());
    if looks_like_path && operator.has_path_form() {
        fields.warning(crate::fault::NO_PATH, field, format!("A path belongs to '{field}Path'"));
    }
    None
}
