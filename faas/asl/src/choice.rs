//! The decision of a Choice state.

use std::cmp::Ordering;

use serde_json::Value;

use crate::definition::{Choice, Condition, Operand, Operator};
use crate::error::{self, ExecutionError};
use crate::path::Path;
use crate::scope::Scope;
use crate::{jsonata, time};

/// Where a Choice leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// The next state.
    pub next: &'a str,
    /// The rule that holds, an index of `choices`; none for the default.
    pub rule: Option<usize>,
}

/// The first rule that holds, else the default, else nothing (the engine then fails with [`no_match`]).
///
/// # Errors
/// States.Runtime where a path finds nothing, States.QueryEvaluationError in JSONata.
pub fn decide<'a>(
    choice: &'a Choice,
    input: &Value,
    scope: &Scope<'_>,
) -> Result<Option<Decision<'a>>, ExecutionError> {
    for (i, rule) in choice.choices.iter().enumerate() {
        let held = match &rule.condition {
            Condition::Expression(text) => expression(&format!("Choices[{i}]/Condition"), text, input, scope)?,
            other => holds(other, input, scope)?,
        };
        if held {
            return Ok(Some(Decision { next: &rule.next, rule: Some(i) }));
        }
    }
    Ok(choice.default.as_deref().map(|next| Decision { next, rule: None }))
}

/// The error of a Choice without a decision.
#[must_use]
pub fn no_match() -> ExecutionError {
    ExecutionError::new(
        error::NO_CHOICE_MATCHED,
        "Failed to transition out of the state. The state does not point to a next state.",
    )
}

/// Whether a condition holds.
///
/// # Errors
/// As [`decide`].
pub fn holds(condition: &Condition, input: &Value, scope: &Scope<'_>) -> Result<bool, ExecutionError> {
    match condition {
        Condition::And(all) => {
            for one in all {
                if !holds(one, input, scope)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Condition::Or(any) => {
            for one in any {
                if holds(one, input, scope)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Condition::Not(one) => holds(one, input, scope).map(|held| !held),
        Condition::Expression(text) => expression("Condition", text, input, scope),
        Condition::Compare { variable, operator, operand } => {
            let left = variable.get(input, scope);
            if *operator == Operator::IsPresent {
                return Ok(left.is_some() == (*operand != Operand::Literal(Value::Bool(false))));
            }
            let left = left.ok_or_else(|| invalid(variable))?;
            match operand {
                Operand::Literal(right) => Ok(compare(*operator, &left, right).unwrap_or(false)),
                Operand::Path(path) => {
                    let right = path.get(input, scope).ok_or_else(|| invalid(path))?;
                    Ok(compare(*operator, &left, &right).unwrap_or(false))
                }
            }
        }
    }
}

fn expression(field: &str, text: &str, input: &Value, scope: &Scope<'_>) -> Result<bool, ExecutionError> {
    match jsonata::evaluate_for(field, text, &scope.states(input), scope.variables)? {
        Value::Bool(held) => Ok(held),
        other => {
            let cause = format!(
                "The JSONata expression '{text}' specified for the field '{field}' must give a boolean but gives {other}"
            );
            Err(ExecutionError::new(error::QUERY_EVALUATION_ERROR, cause))
        }
    }
}

fn invalid(path: &Path) -> ExecutionError {
    let cause = format!("Invalid path '{path}': The choice state's condition path references an invalid value.");
    ExecutionError::new(error::RUNTIME, cause)
}

impl Operator {
    /// The operator of a field's name, and whether it is the `…Path` form.
    #[must_use]
    pub fn parse(field: &str) -> Option<(Self, bool)> {
        let (name, path) = field.strip_suffix("Path").map_or((field, false), |name| (name, true));
        let operator = Self::ALL.into_iter().find(|operator| operator.as_str() == name)?;
        (!path || operator.has_path_form()).then_some((operator, path))
    }

    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::BooleanEquals,
        Self::NumericEquals,
        Self::NumericLessThan,
        Self::NumericLessThanEquals,
        Self::NumericGreaterThan,
        Self::NumericGreaterThanEquals,
        Self::StringEquals,
        Self::StringLessThan,
        Self::StringLessThanEquals,
        Self::StringGreaterThan,
        Self::StringGreaterThanEquals,
        Self::TimestampEquals,
        Self::TimestampLessThan,
        Self::TimestampLessThanEquals,
        Self::TimestampGreaterThan,
        Self::TimestampGreaterThanEquals,
        Self::StringMatches,
        Self::IsNull,
        Self::IsPresent,
        Self::IsString,
        Self::IsNumeric,
        Self::IsBoolean,
        Self::IsTimestamp,
    ];

    /// Its name in a definition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BooleanEquals => "BooleanEquals",
            Self::NumericEquals => "NumericEquals",
            Self::NumericLessThan => "NumericLessThan",
            Self::NumericLessThanEquals => "NumericLessThanEquals",
            Self::NumericGreaterThan => "NumericGreaterThan",
            Self::NumericGreaterThanEquals => "NumericGreaterThanEquals",
            Self::StringEquals => "StringEquals",
            Self::StringLessThan => "StringLessThan",
            Self::StringLessThanEquals => "StringLessThanEquals",
            Self::StringGreaterThan => "StringGreaterThan",
            Self::StringGreaterThanEquals => "StringGreaterThanEquals",
            Self::TimestampEquals => "TimestampEquals",
            Self::TimestampLessThan => "TimestampLessThan",
            Self::TimestampLessThanEquals => "TimestampLessThanEquals",
            Self::TimestampGreaterThan => "TimestampGreaterThan",
            Self::TimestampGreaterThanEquals => "TimestampGreaterThanEquals",
            Self::StringMatches => "StringMatches",
            Self::IsNull => "IsNull",
            Self::IsPresent => "IsPresent",
            Self::IsString => "IsString",
            Self::IsNumeric => "IsNumeric",
            Self::IsBoolean => "IsBoolean",
            Self::IsTimestamp => "IsTimestamp",
        }
    }

    /// Whether the operand may come from a path.
    #[must_use]
    pub fn has_path_form(self) -> bool {
        !matches!(
            self,
            Self::StringMatches
                | Self::IsNull
                | Self::IsPresent
                | Self::IsString
                | Self::IsNumeric
                | Self::IsBoolean
                | Self::IsTimestamp
        )
    }

    /// Whether a value can be its operand.
    #[must_use]
    pub fn takes(self, operand: &Value) -> bool {
        match self.family() {
            Family::Boolean => operand.is_boolean(),
            Family::Numeric => operand.is_number(),
            Family::String => operand.is_string(),
            Family::Timestamp => operand.as_str().and_then(time::parse).is_some(),
        }
    }

    /// What its operand has to be, for people.
    #[must_use]
    pub fn operand_name(self) -> &'static str {
        match self.family() {
            Family::Boolean => "a BOOLEAN",
            Family::Numeric => "a NUMBER",
            Family::String => "a STRING",
            Family::Timestamp => "an RFC 3339 timestamp",
        }
    }

    fn family(self) -> Family {
        let name = self.as_str();
        if name.starts_with("Numeric") {
            Family::Numeric
        } else if name.starts_with("String") {
            Family::String
        } else if name.starts_with("Timestamp") {
            Family::Timestamp
        } else {
            Family::Boolean
        }
    }

    fn accepts(self, order: Ordering) -> bool {
        match self {
            Self::NumericLessThan | Self::StringLessThan | Self::TimestampLessThan => order.is_lt(),
            Self::NumericLessThanEquals | Self::StringLessThanEquals | Self::TimestampLessThanEquals => order.is_le(),
            Self::NumericGreaterThan | Self::StringGreaterThan | Self::TimestampGreaterThan => order.is_gt(),
            Self::NumericGreaterThanEquals | Self::StringGreaterThanEquals | Self::TimestampGreaterThanEquals => {
                order.is_ge()
            }
            _ => order.is_eq(),
        }
    }
}

enum Family {
    Boolean,
    Numeric,
    String,
    Timestamp,
}

/// Nothing where a side has another type than the operator's: the comparison then does not hold.
fn compare(operator: Operator, left: &Value, right: &Value) -> Option<bool> {
    let is = |held: bool| Some(held == right.as_bool()?);
    match operator {
        Operator::IsNull => is(left.is_null()),
        Operator::IsPresent => is(true),
        Operator::IsString => is(left.is_string()),
        Operator::IsNumeric => is(left.is_number()),
        Operator::IsBoolean => is(left.is_boolean()),
        Operator::IsTimestamp => is(left.as_str().and_then(time::parse).is_some()),
        Operator::StringMatches => Some(like(left.as_str()?, right.as_str()?)),
        Operator::BooleanEquals => Some(left.as_bool()? == right.as_bool()?),
        _ => {
            let order = match operator.family() {
                Family::Timestamp => time::parse(left.as_str()?)?.cmp(&time::parse(right.as_str()?)?),
                Family::String => left.as_str()?.cmp(right.as_str()?),
                _ => left.as_number().and(right.as_number()).and_then(|_| crate::path::order(left, right))?,
            };
            Some(operator.accepts(order))
        }
    }
}

/// StringMatches: `*` stands for any text, `\*` for a star, `\\` for a backslash.
///
/// Steps back only to the last star, so that the time is bounded by the product of the lengths.
fn like(text: &str, pattern: &str) -> bool {
    enum Token {
        Any,
        Char(char),
    }
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Any,
            '\\' => Token::Char(chars.next_if(|next| matches!(next, '*' | '\\')).unwrap_or('\\')),
            c => Token::Char(c),
        });
    }
    let text: Vec<char> = text.chars().collect();
    let (mut t, mut p) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match tokens.get(p) {
            Some(Token::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(Token::Char(c)) if *c == text[t] => {
                t += 1;
                p += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    tokens[p..].iter().all(|token| matches!(token, Token::Any))
}
