//! JSONPath as the language uses it: paths that select, and reference paths that name exactly one place.
//!
//! A path begins with `$` (the data at hand), `$$` (the context object) or `$name` (a variable) and goes on with
//! names (`.a`, `['a']`, `['a','b']`), indexes (`[0]`, `[-1]`, `[0,2]`), slices (`[1:3]`, `[::2]`), wildcards
//! (`.*`, `[*]`), descent (`..a`), filters (`[?(@.price < 10 && @.tags)]`) and closing functions (`.length()`).
//! A path is definite when it can only ever select one value: it then gives that value, or nothing. Any other gives
//! an array of what it found, provided that the definite part before the first such step exists.

mod eval;
mod filter;
mod parse;

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use crate::error::{self, ExecutionError};
use crate::scope::Scope;
pub(crate) use eval::number;
pub(crate) use filter::order;
pub(crate) use parse::Cursor;

/// Where a path begins.
#[derive(Debug, Clone, PartialEq)]
pub enum Root {
    /// `$`.
    Input,
    /// `$$`.
    Context,
    /// `$name`.
    Variable(String),
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Segment {
    Child(String),
    Children(Vec<String>),
    Index(i64),
    Indexes(Vec<i64>),
    Slice(Option<i64>, Option<i64>, i64),
    Wildcard,
    Descend(Box<Segment>),
    Filter(Box<filter::Filter>),
    Function(eval::Function),
}

impl Segment {
    fn is_definite(&self) -> bool {
        matches!(self, Self::Child(_) | Self::Index(_) | Self::Function(_))
    }
}

/// A path that selects values.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    text: String,
    root: Root,
    segments: Vec<Segment>,
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with the text, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut cursor = Cursor::new(text);
        let path = cursor.path()?;
        cursor.end()?;
        Ok(path)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where it begins.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whether it can only ever select one value.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        self.segments.iter().all(Segment::is_definite)
    }

    /// Whether it names one place: names and indexes only.
    #[must_use]
    pub fn is_reference(&self) -> bool {
        self.segments.iter().all(|s| matches!(s, Segment::Child(_)) || matches!(s, Segment::Index(0..)))
    }

    /// What it selects in `input`, the context object or a variable; nothing where it leads nowhere.
    #[must_use]
    pub fn get<'a>(&self, input: &'a Value, scope: &Scope<'a>) -> Option<Cow<'a, Value>> {
        let start = match &self.root {
            Root::Input => input,
            Root::Context => scope.context,
            Root::Variable(name) => scope.variables.get(name)?,
        };
        eval::select(&self.segments, start, start)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A path of names and indexes only: one place in the data.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    text: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Name(String),
    Index(usize),
}

impl Reference {
    /// Reads a reference path.
    ///
    /// # Errors
    /// What is wrong with the text, for people; a path that is more than a reference path among it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = Path::parse(text)?;
        if path.root != Root::Input {
            return Err(format!("'{text}' must begin with '$' and neither be a variable nor in the context object"));
        }
        let steps = path.segments.into_iter().map(|segment| match segment {
            Segment::Child(name) => Ok(Step::Name(name)),
            Segment::Index(i) => usize::try_from(i).map(Step::Index).map_err(|_| ()),
            _ => Err(()),
        });
        let steps = steps.collect::<Result<_, ()>>().map_err(|()| {
            format!("'{text}' is not a reference path: it may only have names and indexes, so that it names one place")
        })?;
        Ok(Self { text: text.to_owned(), steps })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What is at the place.
    #[must_use]
    pub fn get<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.steps.iter().try_fold(value, |at, step| match step {
            Step::Name(name) => at.as_object()?.get(name),
            Step::Index(i) => at.as_array()?.get(*i),
        })
    }

    /// `target` with `value` at the place. Missing objects on the way are created; an array has to have the index.
    ///
    /// # Errors
    /// States.ResultPathMatchFailure where something on the way is neither.
    pub fn set(&self, mut target: Value, value: Value) -> Result<Value, ExecutionError> {
        let fail = |at: &dyn fmt::Display| {
            let cause = format!("Unable to apply ReferencePath {} to input {at}", self.text);
            ExecutionError::new(error::RESULT_PATH_MATCH_FAILURE, cause)
        };
        let mut at = &mut target;
        for step in &self.steps {
            at = match (step, at) {
                (Step::Name(name), Value::Object(map)) => {
                    map.entry(name.clone()).or_insert_with(|| Value::Object(serde_json::Map::new()))
                }
                (Step::Index(i), Value::Array(items)) => {
                    let count = items.len();
                    items.get_mut(*i).ok_or_else(|| fail(&format!("with an array of {count} items")))?
                }
                (_, other) => return Err(fail(other)),
            };
        }
        *at = value;
        Ok(target)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
