//! The intrinsic functions: `States.Format('Hello {}', $.name)` and seventeen others.
//!
//! A call is read and its number of arguments checked once; its values are checked when it runs, and everything that
//! is wrong then is States.IntrinsicFailure. Strings are in single quotes, with `\'`, `\{`, `\}` and `\\` as the only
//! escapes; other arguments are numbers, `true`, `false`, `null`, paths and further calls, up to ten deep.

mod functions;

use serde_json::Value;

use crate::budget::Budget;
use crate::error::{self, ExecutionError};
use crate::path::{Cursor, Path};
use crate::scope::Scope;
#[cfg(feature = "jsonata")]
pub(crate) use functions::{digest, fraction};

/// Calls within calls, the outermost counted.
pub const MAX_NESTING: usize = 10;

/// A call of an intrinsic function.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    text: String,
    function: Function,
    arguments: Vec<Argument>,
}

#[derive(Debug, Clone, PartialEq)]
enum Argument {
    /// With its escapes, for Format has its own view of braces.
    Text(String),
    Value(Value),
    Path(Path),
    Call(Call),
}

/// The functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the language's own")]
pub enum Function {
    Format,
    StringToJson,
    JsonToString,
    Array,
    ArrayPartition,
    ArrayContains,
    ArrayRange,
    ArrayGetItem,
    ArrayLength,
    ArrayUnique,
    Base64Encode,
    Base64Decode,
    Hash,
    JsonMerge,
    MathRandom,
    MathAdd,
    StringSplit,
    Uuid,
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Format,
        Self::StringToJson,
        Self::JsonToString,
        Self::Array,
        Self::ArrayPartition,
        Self::ArrayContains,
        Self::ArrayRange,
        Self::ArrayGetItem,
        Self::ArrayLength,
        Self::ArrayUnique,
        Self::Base64Encode,
        Self::Base64Decode,
        Self::Hash,
        Self::JsonMerge,
        Self::MathRandom,
        Self::MathAdd,
        Self::StringSplit,
        Self::Uuid,
    ];

    /// Its name without `States.`, and how many arguments it takes at least and at most.
    #[must_use]
    pub fn signature(self) -> (&'static str, usize, usize) {
        match self {
            Self::Format => ("Format", 1, usize::MAX),
            Self::StringToJson => ("StringToJson", 1, 1),
            Self::JsonToString => ("JsonToString", 1, 1),
            Self::Array => ("Array", 0, usize::MAX),
            Self::ArrayPartition => ("ArrayPartition", 2, 2),
            Self::ArrayContains => ("ArrayContains", 2, 2),
            Self::ArrayRange => ("ArrayRange", 3, 3),
            Self::ArrayGetItem => ("ArrayGetItem", 2, 2),
            Self::ArrayLength => ("ArrayLength", 1, 1),
            Self::ArrayUnique => ("ArrayUnique", 1, 1),
            Self::Base64Encode => ("Base64Encode", 1, 1),
            Self::Base64Decode => ("Base64Decode", 1, 1),
            Self::Hash => ("Hash", 2, 2),
            Self::JsonMerge => ("JsonMerge", 3, 3),
            Self::MathRandom => ("MathRandom", 2, 3),
            Self::MathAdd => ("MathAdd", 2, 2),
            Self::StringSplit => ("StringSplit", 2, 2),
            Self::Uuid => ("UUID", 0, 0),
        }
    }
}

impl Call {
    /// Reads a call.
    ///
    /// # Errors
    /// What is wrong with the text, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut cursor = Cursor::new(text);
        cursor.spaces();
        let call = call(&mut cursor, 1)?;
        cursor.spaces();
        cursor.end()?;
        Ok(call)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Which function it calls.
    #[must_use]
    pub fn function(&self) -> Function {
        self.function
    }

    /// The paths among its arguments, nested ones too.
    pub fn paths(&self, f: &mut dyn FnMut(&Path)) {
        for argument in &self.arguments {
            match argument {
                Argument::Path(path) => f(path),
                Argument::Call(call) => call.paths(f),
                Argument::Text(_) | Argument::Value(_) => {}
            }
        }
    }

    /// Its value.
    ///
    /// # Errors
    /// States.IntrinsicFailure, also where a path among the arguments finds nothing.
    pub fn eval(&self, input: &Value, scope: &Scope<'_>) -> Result<Value, ExecutionError> {
        self.eval_within(input, scope, &mut Budget::new())
    }

    pub(crate) fn eval_within(
        &self,
        input: &Value,
        scope: &Scope<'_>,
        budget: &mut Budget,
    ) -> Result<Value, ExecutionError> {
        let mut values = Vec::with_capacity(self.arguments.len());
        for (i, argument) in self.arguments.iter().enumerate() {
            values.push(match argument {
                Argument::Text(raw) if i == 0 && self.function == Function::Format => Value::String(raw.clone()),
                Argument::Text(raw) => Value::String(unescape(raw)),
                Argument::Value(value) => value.clone(),
                Argument::Call(call) => call.eval_within(input, scope, budget)?,
                Argument::Path(path) => {
                    let found = path.get(input, scope).ok_or_else(|| {
                        self.fail(&format!("the JSONPath '{path}' could not be found in the input '{input}'"))
                    })?;
                    budget.charge(&found)?;
                    found.into_owned()
                }
            });
        }
        let value = functions::apply(self.function, &values).map_err(|why| self.fail(&why))?;
        budget.charge(&value)?;
        Ok(value)
    }

    fn fail(&self, why: &str) -> ExecutionError {
        let cause = format!("The function '{}' had the following error: {why}", self.text);
        ExecutionError::new(error::INTRINSIC_FAILURE, cause)
    }
}

fn call(cursor: &mut Cursor<'_>, depth: usize) -> Result<Call, String> {
    if depth > MAX_NESTING {
        return Err(cursor.fault(&format!("intrinsic functions are nested more than {MAX_NESTING} deep")));
    }
    let start = cursor.rest();
    if !cursor.eat("States.") {
        return Err(cursor.fault("a path begins with '$', an intrinsic function with 'States.'"));
    }
    let rest = cursor.rest();
    let name = &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len())];
    let Some(function) = Function::ALL.into_iter().find(|f| f.signature().0 == name) else {
        return Err(cursor.fault(&format!("there is no intrinsic function 'States.{name}'")));
    };
    cursor.expect(name)?;
    cursor.spaces();
    cursor.expect("(")?;
    let mut arguments = Vec::new();
    cursor.spaces();
    if !cursor.eat(")") {
        loop {
            cursor.spaces();
            arguments.push(argument(cursor, depth)?);
            cursor.spaces();
            if cursor.eat(")") {
                break;
            }
            cursor.expect(",")?;
        }
    }
    let (_, least, most) = function.signature();
    if !(least..=most).contains(&arguments.len()) {
        let wanted = match (least, most) {
            (least, usize::MAX) => format!("at least {least}"),
            (least, most) if least == most => least.to_string(),
            (least, most) => format!("{least} to {most}"),
        };
        return Err(cursor.fault(&format!("States.{name} takes {wanted} arguments but has {}", arguments.len())));
    }
    let text = start[..start.len() - cursor.rest().len()].to_owned();
    Ok(Call { text, function, arguments })
}

fn argument(cursor: &mut Cursor<'_>, depth: usize) -> Result<Argument, String> {
    match cursor.peek() {
        Some('\'') => text(cursor).map(Argument::Text),
        Some('$') => cursor.path().map(Argument::Path),
        Some('S') => call(cursor, depth + 1).map(Argument::Call),
        _ => {
            let rest = cursor.rest();
            let word = &rest[..rest.find([',', ')', ' ', '\t', '\n']).unwrap_or(rest.len())];
            match serde_json::from_str::<Value>(word) {
                Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null)) => {
                    cursor.expect(word)?;
                    Ok(Argument::Value(value))
                }
                _ => {
                    Err(cursor
                        .fault("a string in single quotes, a number, true, false, null, a path or a call expected"))
                }
            }
        }
    }
}

/// A string with its escapes left in.
fn text(cursor: &mut Cursor<'_>) -> Result<String, String> {
    cursor.expect("'")?;
    let mut raw = String::new();
    loop {
        match cursor.bump() {
            None => return Err(cursor.fault("the quote is not closed")),
            Some('\'') => return Ok(raw),
            Some('\\') => match cursor.bump() {
                Some(c @ ('\'' | '{' | '}' | '\\')) => {
                    raw.push('\\');
                    raw.push(c);
                }
                _ => return Err(cursor.fault(r"a backslash is followed by one of ' { } \")),
            },
            Some(c) => raw.push(c),
        }
    }
}

fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}
