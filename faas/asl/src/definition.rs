//! The typed model of a definition in the Amazon States Language.
//!
//! A [`Definition`] exists only when it has no fault of severity error (see [`crate::check`]), so that users of the
//! model need no second look: every `Next` leads to a state, every path is parsed, every number is in its range.
//! What can be known at parse time is compiled here (paths, templates, conditions); what depends on data is
//! evaluated by the functions of [`crate::data`], [`crate::choice`] and [`crate::retry`].
//!
//! Both query languages share one model: a [`Template`] is a payload template (keys ending in `.$`) in a JSONPath
//! state and a value with `{% %}` strings in a JSONata state.

use std::ops::Deref;

use indexmap::IndexMap;
use serde_json::Value;

use crate::fault::Fault;
use crate::path::{Path, Reference};
use crate::template::{Source, Template};

/// The largest definition in bytes of its JSON text.
pub const MAX_DEFINITION_BYTES: usize = 1024 * 1024;
/// The longest name of a state, in characters.
pub const MAX_NAME_CHARS: usize = 80;
/// The largest number of seconds that the language accepts anywhere.
pub const MAX_SECONDS: u64 = 99_999_999;

/// The language in which the fields of a state select and shape data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum QueryLanguage {
    /// Paths, payload templates and intrinsic functions.
    #[default]
    JsonPath,
    /// Expressions between `{%` and `%}`.
    Jsonata,
}

impl QueryLanguage {
    /// The name in a definition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JsonPath => "JSONPath",
            Self::Jsonata => "JSONata",
        }
    }
}

/// A whole state machine without faults; [`Machine`]'s fields are its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The states and where they begin.
    pub machine: Machine,
    /// How long a run may take; none without the field.
    pub timeout_seconds: Option<u64>,
    /// `1.0` unless the definition says otherwise.
    pub version: String,
    /// The language of the states that name none.
    pub query_language: QueryLanguage,
    /// The definition as it was written.
    pub raw: Value,
}

impl Deref for Definition {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Definition {
    /// Reads and checks a definition. On refusal all faults come at once, warnings among them.
    ///
    /// # Errors
    /// The faults, at least one of severity error, in the order of their paths' appearance.
    pub fn parse(value: &Value) -> Result<Self, Vec<Fault>> {
        let (definition, faults) = crate::check::definition(value);
        definition.ok_or(faults)
    }

    /// Like [`Definition::parse`] for JSON or YAML text; a key that occurs twice is a fault.
    ///
    /// # Errors
    /// As [`Definition::parse`]; text that is neither language is one fault.
    pub fn from_text(text: &str) -> Result<Self, Vec<Fault>> {
        let (definition, faults) = crate::check::text(text);
        definition.ok_or(faults)
    }

    /// Every Task resource, nested ones too, with the JSON pointer of its field.
    #[must_use]
    pub fn resources(&self) -> Vec<(String, &str)> {
        let mut out = Vec::new();
        self.machine.visit("", &mut |pointer, state| {
            if let StateKind::Task(task) = &state.kind {
                out.push((format!("{pointer}/Resource"), task.resource.as_str()));
            }
        });
        out
    }

    /// The state of that name wherever it is: names are unique over all nested machines.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&State> {
        self.machine.find(name)
    }
}

/// States and where they begin: the whole definition, a branch of Parallel, or the processor of Map.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// For people.
    pub comment: Option<String>,
    /// The first state, one of `states`.
    pub start_at: String,
    /// In the order of the parsed value.
    pub states: IndexMap<String, State>,
}

impl Machine {
    /// Calls `f` for every state, nested ones after the state that holds them, with the state's JSON pointer.
    pub fn visit<'a>(&'a self, pointer: &str, f: &mut dyn FnMut(&str, &'a State)) {
        for (name, state) in &self.states {
            let at = format!("{pointer}/States/{}", escape(name));
            f(&at, state);
            match &state.kind {
                StateKind::Parallel(parallel) => {
                    for (i, branch) in parallel.branches.iter().enumerate() {
                        branch.visit(&format!("{at}/Branches/{i}"), f);
                    }
                }
                StateKind::Map(map) => map.processor.visit(&format!("{at}/{}", map.processor_field), f),
                _ => {}
            }
        }
    }

    /// The state of that name here or in a nested machine.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&State> {
        if let Some(state) = self.states.get(name) {
            return Some(state);
        }
        self.states.values().find_map(|state| match &state.kind {
            StateKind::Parallel(parallel) => parallel.branches.iter().find_map(|b| b.find(name)),
            StateKind::Map(map) => map.processor.find(name),
            _ => None,
        })
    }
}

/// One segment of a JSON pointer.
pub(crate) fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

/// A state: what all types share, and its own part in `kind`.
///
/// A field that the type or the query language does not have holds what its absence means.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Its key under `States`.
    pub name: String,
    /// For people.
    pub comment: Option<String>,
    /// Its own, else the definition's.
    pub query_language: QueryLanguage,
    /// What of the raw input the state sees.
    pub input_path: Selection,
    /// `Parameters` (JSONPath) or `Arguments` (JSONata) of Task, Pass, Parallel, Map.
    pub parameters: Option<Template>,
    /// Shapes the result of Task, Parallel, Map.
    pub result_selector: Option<Template>,
    /// Where the result goes in the raw input.
    pub result_path: ResultPath,
    /// What of the shaped data leaves the state.
    pub output_path: Selection,
    /// JSONata's `Output`.
    pub output: Option<Template>,
    /// The variables that the state sets when it succeeds.
    pub assign: Option<Template>,
    /// What follows; `End` where the state ends its machine (always so for Succeed and Fail, never for Choice).
    pub next: Transition,
    /// The retriers, first match decides.
    pub retry: Vec<Retrier>,
    /// The catchers, first match decides.
    pub catch: Vec<Catcher>,
    /// What kind of state it is.
    pub kind: StateKind,
}

impl State {
    /// The `Type` field.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            StateKind::Task(_) => "Task",
            StateKind::Pass(_) => "Pass",
            StateKind::Choice(_) => "Choice",
            StateKind::Wait(_) => "Wait",
            StateKind::Succeed => "Succeed",
            StateKind::Fail(_) => "Fail",
            StateKind::Parallel(_) => "Parallel",
            StateKind::Map(_) => "Map",
        }
    }

    /// Whether its fields are JSONata's.
    #[must_use]
    pub fn is_jsonata(&self) -> bool {
        self.query_language == QueryLanguage::Jsonata
    }
}

/// What follows a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// The named state of the same machine.
    Next(String),
    /// The machine ends.
    End,
    /// A Choice state: its rules decide.
    Choice,
}

/// The types of states with the fields that only they have.
#[derive(Debug, Clone, PartialEq)]
pub enum StateKind {
    /// Work done elsewhere.
    Task(Task),
    /// Data passed on or injected.
    Pass(Pass),
    /// A branch on data.
    Choice(Choice),
    /// A pause.
    Wait(Wait),
    /// The machine ends well.
    Succeed,
    /// The run fails.
    Fail(Fail),
    /// Machines side by side on the same input.
    Parallel(Parallel),
    /// One machine per item.
    Map(Box<Map>),
}

/// `InputPath` and `OutputPath`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Selection {
    /// `$`, the default.
    #[default]
    Whole,
    /// `null`: an empty object.
    Nothing,
    /// A part.
    Path(Path),
}

/// `ResultPath`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum ResultPath {
    /// `$`, the default: the result replaces the input.
    #[default]
    Replace,
    /// `null`: the result is dropped, the input stays.
    Discard,
    /// The result is put into the input.
    At(Reference),
}

/// A field that is a constant, a path (`…Path`) or a JSONata expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting<T> {
    /// Written in the definition.
    Literal(T),
    /// From the state's input (JSONPath): a path, or an intrinsic function where the language allows one.
    Path(Source),
    /// The text between `{%` and `%}` (JSONata).
    Expression(String),
}

/// Task's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What does the work.
    pub resource: String,
    /// Seconds until States.Timeout; see [`crate::data::whole`] with [`MAX_SECONDS`].
    pub timeout: Option<Setting<u64>>,
    /// Seconds without a heartbeat until States.HeartbeatTimeout.
    pub heartbeat: Option<Setting<u64>>,
    /// Passed on to the resource.
    pub credentials: Option<Template>,
}

/// Pass's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    /// The state's result instead of its input (JSONPath only).
    pub result: Option<Value>,
}

/// Choice's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// In order; the first that holds decides.
    pub choices: Vec<ChoiceRule>,
    /// Where to go when none holds.
    pub default: Option<String>,
}

/// One rule of a Choice.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceRule {
    /// When it holds.
    pub condition: Condition,
    /// Where it leads.
    pub next: String,
    /// For people.
    pub comment: Option<String>,
    /// Variables set instead of the state's `Assign` when the rule decides.
    pub assign: Option<Template>,
    /// JSONata's output instead of the state's `Output` when the rule decides.
    pub output: Option<Template>,
}

/// What a rule asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// All hold.
    And(Vec<Condition>),
    /// At least one holds.
    Or(Vec<Condition>),
    /// The other does not hold.
    Not(Box<Condition>),
    /// A comparison of a value with an operand.
    Compare {
        /// The value.
        variable: Path,
        /// The comparison; each operator with an operand from a path has the same name here.
        operator: Operator,
        /// What it is compared with.
        operand: Operand,
    },
    /// JSONata: the text between `{%` and `%}`, which must give a boolean.
    Expression(String),
}

/// The right side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// Written in the definition.
    Literal(Value),
    /// The `…Path` operators.
    Path(Path),
}

/// The comparisons; 39 names in a definition, for 16 of these have a `…Path` form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the language's own")]
pub enum Operator {
    BooleanEquals,
    NumericEquals,
    NumericLessThan,
    NumericLessThanEquals,
    NumericGreaterThan,
    NumericGreaterThanEquals,
    StringEquals,
    StringLessThan,
    StringLessThanEquals,
    StringGreaterThan,
    StringGreaterThanEquals,
    TimestampEquals,
    TimestampLessThan,
    TimestampLessThanEquals,
    TimestampGreaterThan,
    TimestampGreaterThanEquals,
    StringMatches,
    IsNull,
    IsPresent,
    IsString,
    IsNumeric,
    IsBoolean,
    IsTimestamp,
}

/// Wait's one field.
#[derive(Debug, Clone, PartialEq)]
pub enum Wait {
    /// A number of seconds.
    Seconds(Setting<u64>),
    /// Until a moment, RFC 3339.
    Timestamp(Setting<String>),
}

/// Fail's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Fail {
    /// The error's name.
    pub error: Option<Setting<String>>,
    /// What people read.
    pub cause: Option<Setting<String>>,
}

/// Parallel's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Parallel {
    /// At least one.
    pub branches: Vec<Machine>,
}

/// How the items of a Map run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MapMode {
    /// Inside the run.
    #[default]
    Inline,
    /// As executions of their own, durable ones.
    DistributedStandard,
    /// As executions of their own, in memory.
    DistributedExpress,
}

impl MapMode {
    /// Whether items are executions of their own.
    #[must_use]
    pub fn is_distributed(self) -> bool {
        self != Self::Inline
    }
}

/// Map's fields. `State::parameters` is unused: `ItemSelector` (or its old name `Parameters`) is `item_selector`.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// What runs for each item.
    pub processor: Machine,
    /// `ItemProcessor` or its old name `Iterator`.
    pub processor_field: &'static str,
    /// Inline or distributed.
    pub mode: MapMode,
    /// Where the items are in the input (JSONPath); the whole input without it.
    pub items_path: Option<Path>,
    /// The items (JSONata).
    pub items: Option<Template>,
    /// What each iteration gets instead of its item.
    pub item_selector: Option<Template>,
    /// 0 or none: no limit.
    pub max_concurrency: Option<Setting<u64>>,
    /// How many items may fail.
    pub tolerated_failure_count: Option<Setting<u64>>,
    /// How many of a hundred items may fail.
    pub tolerated_failure_percentage: Option<Setting<f64>>,
    /// Where a distributed Map's items come from.
    pub item_reader: Option<ItemReader>,
    /// Several items per execution.
    pub item_batcher: Option<ItemBatcher>,
    /// Where a distributed Map's results go.
    pub result_writer: Option<ResultWriter>,
    /// A prefix for the executions' names.
    pub label: Option<String>,
}

/// `ItemReader`.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemReader {
    /// What is read.
    pub resource: String,
    /// `Parameters` or `Arguments`.
    pub parameters: Option<Template>,
    /// `ReaderConfig`.
    pub config: ReaderConfig,
}

/// `ReaderConfig`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReaderConfig {
    /// `CSV`, `JSON`, `JSONL`, `MANIFEST` or `PARQUET`.
    pub input_type: Option<String>,
    /// `FIRST_ROW` or `GIVEN`.
    pub csv_header_location: Option<String>,
    /// The column names of `GIVEN`.
    pub csv_headers: Vec<String>,
    /// `COMMA` (default), `PIPE`, `SEMICOLON`, `SPACE`, `TAB`.
    pub csv_delimiter: Option<String>,
    /// No more items than that.
    pub max_items: Option<Setting<u64>>,
    /// A JSON pointer to the items in the file.
    pub items_pointer: Option<String>,
    /// `NONE` or `LOAD_AND_FLATTEN`.
    pub transformation: Option<String>,
    /// As written.
    pub raw: Value,
}

/// `ItemBatcher`.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemBatcher {
    /// Given to every batch.
    pub batch_input: Option<Template>,
    /// Items in a batch.
    pub max_items_per_batch: Option<Setting<u64>>,
    /// Bytes in a batch.
    pub max_input_bytes_per_batch: Option<Setting<u64>>,
}

/// `ResultWriter`.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultWriter {
    /// Where to; without it the results stay in the run.
    pub resource: Option<String>,
    /// `Parameters` or `Arguments`.
    pub parameters: Option<Template>,
    /// `WriterConfig`'s `Transformation`: `NONE`, `COMPACT` or `FLATTEN`.
    pub transformation: Option<String>,
    /// `WriterConfig`'s `OutputType`: `JSON` or `JSONL`.
    pub output_type: Option<String>,
}

/// One entry of `Retry`.
#[derive(Debug, Clone, PartialEq)]
pub struct Retrier {
    /// The errors it is for.
    pub error_equals: Vec<String>,
    /// Seconds before the first retry.
    pub interval_seconds: u64,
    /// Retries, 0 for never.
    pub max_attempts: u64,
    /// The factor per retry, at least 1.
    pub backoff_rate: f64,
    /// No pause is longer.
    pub max_delay_seconds: Option<u64>,
    /// Whether pauses are random.
    pub jitter: Jitter,
}

/// `JitterStrategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jitter {
    /// The computed pause.
    #[default]
    None,
    /// Anything between zero and the computed pause.
    Full,
}

/// One entry of `Catch`.
#[derive(Debug, Clone, PartialEq)]
pub struct Catcher {
    /// The errors it is for.
    pub error_equals: Vec<String>,
    /// Where the run goes on.
    pub next: String,
    /// Where the error goes in the input (JSONPath).
    pub result_path: ResultPath,
    /// Variables set when it catches.
    pub assign: Option<Template>,
    /// JSONata's output.
    pub output: Option<Template>,
    /// For people.
    pub comment: Option<String>,
}
