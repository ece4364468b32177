//! Distributed Maps as their run sees them: one piece of work, like a task. What it consists of is somebody else's business
//! (the engine's `map`); here is what is asked for, evaluated once, and what the history says about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skiff_asl::definition::{ItemBatcher, ItemReader, Map, MapMode, StateKind};
use skiff_asl::{ExecutionError, Scope as Seen, data, error};

use super::model::{Command, Doing, Scope, Step};
use super::{Info, Machine};
use crate::api::DATA_MAX;
use crate::{arn, pack};

/// Characters of a label.
const LABEL_MAX: usize = 40;
/// What labels cannot have, for they are parts of ARNs.
const FORBIDDEN: &str = "?*<>{}[]:;,\\|^~$#%&`\"/";

/// A distributed Map, with all that its state's data says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Name of the state.
    pub state: String,
    /// What its ARN names it by.
    pub label: String,
    /// Name of the object that is its run.
    pub name: String,
    /// When it began.
    pub at: Timestamp,
    /// The state's effective input, for ItemSelector.
    pub input: Value,
    /// The context object, where anything reads it.
    pub context: Value,
    /// Variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Value>,
    /// The items; none where they are to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<Value>>,
    /// Where they are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How they are put together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batches: Option<Batches>,
    /// Parameters of the ResultWriter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Value>,
    /// Executions at a time; 0 for as many as may be.
    pub concurrency: u64,
    /// How many may fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerated: Option<u64>,
    /// How many of a hundred may fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<f64>,
    /// Whether executions are kept in memory only.
    #[serde(default)]
    pub express: bool,
}

/// Where items are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Parameters of the ItemReader.
    pub parameters: Value,
    /// No more items than that.
    pub most: Option<u64>,
}

/// How items are put together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batches {
    /// Given to every batch.
    pub shared: Option<Value>,
    /// Items in a batch.
    pub most: Option<u64>,
    /// Bytes in a batch.
    pub bytes: Option<u64>,
}

/// A distributed Map that is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Which.
    pub step: Step,
    /// What.
    pub plan: Arc<Plan>,
    /// How often the run was redriven: one that failed goes on where it has not been redriven so often.
    pub redrives: u32,
}

/// What an address means to what stands before all steps of it (`path`): a step of its own, or an execution of one of its maps.
#[must_use]
pub fn below<'a>(path: &str, address: &'a str) -> Option<(&'a str, Option<(Step, usize)>)> {
    let rest = address.strip_prefix(path)?;
    let mut parts = rest.splitn(3, '~');
    let (first, index, more) = (parts.next()?, parts.next(), parts.next());
    match (index, more) {
        (None, _) => Some((first, None)),
        (Some(index), Some(_)) => Some((rest, Some((first.parse().ok()?, index.parse().ok()?)))),
        _ => None,
    }
}

/// What stands before the steps of an execution of a distributed Map.
#[must_use]
pub fn path(path: &str, step: Step, index: usize) -> String {
    format!("{path}{step}~{index}~")
}

/// The label of a state that has none.
fn label(map: &Map, state: &str) -> String {
    map.label.clone().unwrap_or_else(|| {
        let bad = |c: char| c.is_whitespace() || c.is_control() || FORBIDDEN.contains(c);
        state.chars().take(LABEL_MAX).map(|c| if bad(c) { '-' } else { c }).collect()
    })
}

/// The name of the object of a map's run: the same each time this attempt is made.
fn object(info: &Info, step: Step) -> String {
    let digest = pack::digest(format!("{}/{}{step}", info.uid, info.path).as_bytes());
    let run: String = info.run.chars().take(40).collect();
    format!("{}-{}", run.trim_end_matches(['.', '-']), digest.get(..12).unwrap_or_default())
}

fn read(reader: &ItemReader, input: &Value, seen: &Seen<'_>) -> Result<Source, ExecutionError> {
    let parameters = reader.parameters.as_ref().map(|p| p.eval(input, seen)).transpose()?.unwrap_or_else(|| json!({}));
    let most = reader.config.max_items.as_ref();
    let most = most.map(|s| data::whole("MaxItems", s, 0, u64::from(u32::MAX), input, seen)).transpose()?;
    Ok(Source { parameters, most: most.filter(|m| *m > 0) })
}

fn batch(batcher: &ItemBatcher, input: &Value, seen: &Seen<'_>) -> Result<Batches, ExecutionError> {
    let whole = |field, setting| data::whole(field, setting, 1, u64::from(u32::MAX), input, seen);
    Ok(Batches {
        shared: batcher.batch_input.as_ref().map(|b| b.eval(input, seen)).transpose()?,
        most: batcher.max_items_per_batch.as_ref().map(|s| whole("MaxItemsPerBatch", s)).transpose()?,
        bytes: batcher.max_input_bytes_per_batch.as_ref().map(|s| whole("MaxInputBytesPerBatch", s)).transpose()?,
    })
}

impl Machine {
    /// Begins a distributed Map.
    pub(super) fn distribute(&mut self, id: u64) {
        let at = self.now;
        let planned = self.look(id, false, None, |state, entry, seen| {
            let StateKind::Map(map) = &state.kind else {
                return Err(ExecutionError::new(error::RUNTIME, "not a Map"));
            };
            let input = data::input(state, &entry.raw, seen)?;
            let whole = |field, setting| data::whole(field, setting, 0, u64::from(u32::MAX), &input, seen);
            let source = map.item_reader.as_ref().map(|r| read(r, &input, seen)).transpose()?;
            let target = map.result_writer.as_ref().and_then(|w| w.parameters.as_ref());
            let percentage = map.tolerated_failure_percentage.as_ref();
            Ok(Plan {
                state: state.name.clone(),
                label: label(map, &state.name),
                name: String::new(),
                at,
                items: if source.is_some() { None } else { Some(data::items(map, &input, seen)?) },
                source,
                batches: map.item_batcher.as_ref().map(|b| batch(b, &input, seen)).transpose()?,
                target: target.map(|p| p.eval(&input, seen)).transpose()?,
                concurrency: map.max_concurrency.as_ref().map_or(Ok(0), |s| whole("MaxConcurrency", s))?,
                tolerated: map
                    .tolerated_failure_count
                    .as_ref()
                    .map(|s| whole("ToleratedFailureCount", s))
                    .transpose()?,
                percentage: percentage
                    .map(|s| data::fraction("ToleratedFailurePercentage", s, 0.0, 100.0, &input, seen))
                    .transpose()?,
                express: map.mode == MapMode::DistributedExpress,
                context: seen.context.clone(),
                variables: seen.variables.clone(),
                input,
            })
        });
        let mut plan = match planned {
            Ok(plan) => plan,
            Err(error) => return self.fail(id, error),
        };
        let Some(entry) = self.core.scopes.get_mut(&id).and_then(Scope::entry_mut) else { return };
        let step = Step { scope: id, entry: entry.id, attempt: entry.attempt };
        plan.name = object(&self.info, step);
        let length = plan.items.as_ref().map_or(0, Vec::len);
        let plan = Arc::new(plan);
        entry.doing = Doing::Spread { plan: Arc::clone(&plan), failed: false };
        self.note(id, "MapStateStarted", Some(("mapStateStartedEventDetails", json!({"length": length}))), None);
        let details = json!({"mapRunArn": self.map_arn(&plan)});
        self.note(id, "MapRunStarted", Some(("mapRunStartedEventDetails", details)), None);
        self.commands.push(Command::Map(Box::new(Spread { step, plan, redrives: self.core.redrives })));
    }

    fn map_arn(&self, plan: &Plan) -> String {
        arn::map_run(&self.info.namespace, &self.info.workflow, &plan.label, &plan.name)
    }

    /// Distributed Maps that are under way, or were when something else ended the run.
    pub(crate) fn spreads(&self) -> impl Iterator<Item = Spread> {
        self.core.scopes.iter().filter_map(|(id, scope)| {
            let entry = scope.entry()?;
            let Doing::Spread { plan, failed: false } = &entry.doing else { return None };
            let step = Step { scope: *id, entry: entry.id, attempt: entry.attempt };
            Some(Spread { step, plan: Arc::clone(plan), redrives: self.core.redrives })
        })
    }

    /// Whether this is a distributed Map that is waited for.
    pub(super) fn is_spread(&self, step: Step) -> bool {
        let entry = self.core.scopes.get(&step.scope).and_then(Scope::entry);
        self.core.over.is_none()
            && entry.is_some_and(|e| {
                (e.id, e.attempt) == (step.entry, step.attempt)
                    && matches!(e.doing, Doing::Spread { failed: false, .. })
            })
    }

    /// A distributed Map ended.
    pub(super) fn spread_over(&mut self, step: Step, ended: Result<&Arc<str>, &ExecutionError>) {
        let id = step.scope;
        let long = || {
            let cause = format!(
                "the Map's result is longer than the maximum number of bytes service limit, which is {DATA_MAX}"
            );
            ExecutionError::new(error::DATA_LIMIT_EXCEEDED, cause)
        };
        let result = match ended {
            Ok(output) if output.len() > DATA_MAX => Err(long()),
            Ok(output) => serde_json::from_str::<Value>(output)
                .map_err(|e| ExecutionError::new(error::RUNTIME, format!("the result is no JSON: {e}"))),
            Err(error) => Err(error.clone()),
        };
        if let Some(Doing::Spread { failed, .. }) =
            self.core.scopes.get_mut(&id).and_then(Scope::entry_mut).map(|e| &mut e.doing)
        {
            *failed = result.is_err();
        }
        match result {
            Ok(result) => {
                self.note(id, "MapRunSucceeded", None, None);
                self.note(id, "MapStateSucceeded", None, None);
                self.leave(id, &result);
            }
            // Its executions ended well: only what they gave is too much.
            Err(error) if error.error == error::DATA_LIMIT_EXCEEDED => {
                self.note(id, "MapRunSucceeded", None, None);
                self.fail_as(id, error, true);
            }
            Err(error) => {
                let details = json!({"error": error.error, "cause": error.cause});
                self.note(id, "MapRunFailed", Some(("mapRunFailedEventDetails", details)), None);
                self.fail_as(id, error, true);
            }
        }
    }

    /// The run goes on: its distributed Maps do, too.
    pub(super) fn spread_again(&mut self) {
        for scope in self.core.scopes.values_mut() {
            if let Some(Doing::Spread { failed, .. }) = scope.entry_mut().map(|e| &mut e.doing) {
                *failed = false;
            }
        }
        let all: Vec<Spread> = self.spreads().collect();
        for spread in all {
            let details = json!({"mapRunArn": self.map_arn(&spread.plan), "redriveCount": spread.redrives});
            self.note(spread.step.scope, "MapRunRedriven", Some(("mapRunRedrivenEventDetails", details)), None);
            self.commands.push(Command::Map(Box::new(spread)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_steps_of_executions() {
        let (map, leaf) = (Step { scope: 0, entry: 3, attempt: 1 }, Step { scope: 2, entry: 9, attempt: 0 });
        let inner = path("", map, 12);
        let address = format!("{inner}{leaf}");
        assert_eq!(below("", "2-9-0"), Some(("2-9-0", None)));
        assert_eq!(below("", &address), Some((address.as_str(), Some((map, 12)))));
        assert_eq!(below(&inner, &address), Some(("2-9-0", None)));
        let nested = format!("{}{leaf}", path(&inner, leaf, 4));
        assert_eq!(below(&inner, &nested).unwrap().1, Some((leaf, 4)));
        for bad in ["0-3-1~x~1-1-1", "0-3-1~1", "a~1~1-1-1"] {
            assert_eq!(below("", bad), None, "{bad}");
        }
        assert_eq!(below("x~", "y~1"), None);
    }
}
