//! Payload templates, compiled once.
//!
//! In a JSONPath state a key that ends in `.$` names a field whose value is a path or an intrinsic function; all
//! else is literal. In a JSONata state a string that is wrapped in `{%` and `%}` is an expression, at any depth.

use serde_json::Value;

use crate::budget::Budget;
use crate::definition::QueryLanguage;
use crate::error::{self, ExecutionError};
use crate::fault;
use crate::intrinsics::Call;
use crate::jsonata;
use crate::path::Path;
use crate::scope::Scope;

/// Values within values beyond this are refused, so that a definition cannot exhaust the stack.
const MAX_DEPTH: usize = 100;

/// What follows a key ending in `.$`.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A path.
    Path(Path),
    /// An intrinsic function.
    Call(Call),
}

impl Source {
    /// Reads a path or an intrinsic function.
    ///
    /// # Errors
    /// What is wrong with the text, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('$') { Path::parse(text).map(Self::Path) } else { Call::parse(text).map(Self::Call) }
    }

    /// Its value, for the field `field` in texts of errors.
    ///
    /// # Errors
    /// States.ParameterPathFailure, States.IntrinsicFailure, or States.DataLimitExceeded far above the largest payload.
    pub fn eval(&self, field: &str, input: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
        self.eval_within(field, input, scope, &mut Budget::new())
    }

    fn eval_within(
        &self,
        field: &str,
        input: &Value,
        scope: &Scope<'_>,
        budget: &mut Budget,
    ) -> Result<Value, ExecutionError> {
        match self {
            Self::Path(path) => {
                let found = path.get(input, scope).ok_or_else(|| {
                    let cause = format!(
                        "The JSONPath '{path}' specified for the field '{field}' could not be found in the input \
                         '{input}'"
                    );
                    ExecutionError::new(error::PARAMETER_PATH_FAILURE, cause)
                })?;
                budget.charge(&found)?;
                Ok(found.into_owned())
            }
            Self::Call(call) => call.eval_within(input, scope, budget),
        }
    }
}

/// A template of either language.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Node);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Literal(Value),
    Source(String, Source),
    /// The expression, and the place of it within the state's fields.
    Expression(String, String),
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
}

/// What is wrong within a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateFault {
    /// The JSON pointer from the template's root.
    pub pointer: String,
    /// A code of [`crate::fault`].
    pub code: &'static str,
    /// What people read.
    pub message: String,
}

impl TemplateFault {
    fn new(pointer: &str, message: String) -> Self {
        Self { pointer: pointer.to_owned(), code: fault::SCHEMA_VALIDATION_FAILED, message }
    }

    fn of(pointer: &str, why: jsonata::Invalid) -> Self {
        Self { pointer: pointer.to_owned(), code: why.code, message: why.message }
    }
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// All that is wrong in it.
    pub fn parse(value: &Value, language: QueryLanguage) -> Result<Self, Vec<TemplateFault>> {
        Self::parse_for("", value, language)
    }

    /// Like [`Template::parse`] for a field of a state (`Output`, `Choices[1]/Assign`), which the causes of errors in
    /// JSONata then name.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub fn parse_for(field: &str, value: &Value, language: QueryLanguage) -> Result<Self, Vec<TemplateFault>> {
        let mut faults = Vec::new();
        let node = compile(value, language, &Place { pointer: String::new(), field: field.to_owned() }, 0, &mut faults);
        if faults.is_empty() { Ok(Self(node)) } else { Err(faults) }
    }

    /// The value that the template gives for `input`.
    ///
    /// # Errors
    /// States.ParameterPathFailure, States.IntrinsicFailure, in JSONata States.QueryEvaluationError; and
    /// States.DataLimitExceeded far above the largest payload.
    pub fn eval(&self, input: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
        // JSONata's `$states` is the same for all expressions of one template.
        let states = if self.0.has_expression() { scope.states(input) } else { Value::Null };
        eval(&self.0, input, scope, &states, &mut Budget::new())
    }
}

impl Node {
    fn has_expression(&self) -> bool {
        match self {
            Self::Expression(..) => true,
            Self::Object(fields) => fields.iter().any(|(_, node)| node.has_expression()),
            Self::Array(items) => items.iter().any(Self::has_expression),
            Self::Literal(_) | Self::Source(..) => false,
        }
    }
}

/// Where a value is: as a pointer from the template's root, and in the words of the service.
struct Place {
    pointer: String,
    field: String,
}

impl Place {
    fn key(&self, key: &str) -> Self {
        Self {
            pointer: format!("{}/{}", self.pointer, crate::definition::escape(key)),
            field: format!("{}/{key}", self.field),
        }
    }

    fn item(&self, i: usize) -> Self {
        Self { pointer: format!("{}/{i}", self.pointer), field: format!("{}[{i}]", self.field) }
    }
}

fn compile(value: &Value, language: QueryLanguage, at: &Place, depth: usize, faults: &mut Vec<TemplateFault>) -> Node {
    if depth > MAX_DEPTH {
        faults.push(TemplateFault::new(&at.pointer, format!("Values are nested deeper than {MAX_DEPTH}")));
        return Node::Literal(Value::Null);
    }
    match value {
        Value::Object(map) => {
            let mut fields = Vec::with_capacity(map.len());
            for (key, value) in map {
                let here = at.key(key);
                let name = if language == QueryLanguage::JsonPath { key.strip_suffix(".$") } else { None };
                let Some(name) = name else {
                    fields.push((key.clone(), compile(value, language, &here, depth + 1, faults)));
                    continue;
                };
                if map.contains_key(name) {
                    let message = format!("The fields '{name}' and '{key}' exclude each other");
                    faults.push(TemplateFault::new(&here.pointer, message));
                }
                match value.as_str().map(Source::parse) {
                    Some(Ok(source)) => fields.push((name.to_owned(), Node::Source(key.clone(), source))),
                    Some(Err(why)) => faults.push(TemplateFault::new(
                        &here.pointer,
                        format!(
                            "The value for the field '{key}' must be a valid JSONPath or a valid intrinsic function \
                             call: {why}"
                        ),
                    )),
                    None => faults.push(TemplateFault::new(
                        &here.pointer,
                        format!(
                            "The value for the field '{key}' must be a STRING that contains a JSONPath or an \
                             intrinsic function call"
                        ),
                    )),
                }
            }
            if fields.iter().all(|(_, node)| matches!(node, Node::Literal(_))) {
                return Node::Literal(value.clone());
            }
            Node::Object(fields)
        }
        Value::Array(items) => {
            let items: Vec<Node> = items
                .iter()
                .enumerate()
                .map(|(i, item)| compile(item, language, &at.item(i), depth + 1, faults))
                .collect();
            if items.iter().all(|node| matches!(node, Node::Literal(_))) {
                return Node::Literal(value.clone());
            }
            Node::Array(items)
        }
        Value::String(text) if language == QueryLanguage::Jsonata => match jsonata::unwrap(text) {
            Ok(None) => Node::Literal(value.clone()),
            Ok(Some(expression)) => {
                if let Err(why) = jsonata::check(expression) {
                    faults.push(TemplateFault::of(&at.pointer, why));
                }
                Node::Expression(expression.to_owned(), at.field.clone())
            }
            Err(why) => {
                faults.push(TemplateFault::of(&at.pointer, why));
                Node::Literal(Value::Null)
            }
        },
        other => Node::Literal(other.clone()),
    }
}

fn eval(
    node: &Node,
    input: &Value,
    scope: &Scope<'_>,
    states: &Value,
    budget: &mut Budget,
) -> Result<Value, ExecutionError> {
    match node {
        Node::Literal(value) => Ok(value.clone()),
        Node::Source(field, source) => source.eval_within(field, input, scope, budget),
        Node::Expression(expression, field) => {
            let value = jsonata::evaluate_for(field, expression, states, scope.variables)?;
            budget.charge(&value)?;
            Ok(value)
        }
        Node::Object(fields) => fields
            .iter()
            .map(|(key, node)| Ok((key.clone(), eval(node, input, scope, states, budget)?)))
            .collect::<Result<serde_json::Map<_, _>, _>>()
            .map(Value::Object),
        Node::Array(items) => items
            .iter()
            .map(|item| eval(item, input, scope, states, budget))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::Array),
    }
}
