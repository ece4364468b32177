//! Workflows of the predecessors in the States Language.
//!
//! Three forms are known: `startAt`, `params`, `nodes` (a map of Task and Choice); `spec.startNode`,
//! `spec.startCoeff`, `spec.nodes` (a list of func, fork and call); `spec.startAt`, `spec.states` (a map of Task,
//! Choice with rules, and Fail). Where the forms mean what the language has no word for, the definition says the
//! same in other words; where the meaning cannot stay the same, a note says what changed.

mod condition;
mod forms;

use serde_json::{Map, Value, json};

use crate::check;
use crate::fault::Severity;

/// A predecessor's workflow, converted.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// A manifest of kind Workflow.
    pub workflow: Value,
    /// The input that the form carried; the predecessors ran a workflow when it was applied.
    pub input: Option<Value>,
    /// What is not as it was.
    pub notes: Vec<String>,
}

/// Like [`convert`] for JSON or YAML text.
///
/// # Errors
/// As [`convert`], or what is wrong with the text.
pub fn text(text: &str) -> Result<Converted, Vec<String>> {
    let value = check::value_of(text).map_err(|why| vec![why])?;
    convert(&value)
}

/// Converts a manifest of one of the three forms.
///
/// # Errors
/// What stands in the way, all at once.
pub fn convert(manifest: &Value) -> Result<Converted, Vec<String>> {
    let Some(root) = manifest.as_object() else { return Err(vec!["a workflow is an object".to_owned()]) };
    if root.contains_key("StartAt") {
        return Err(vec!["the file already is a definition in the Amazon States Language".to_owned()]);
    }
    let spec = root.get("spec").and_then(Value::as_object).unwrap_or(root);
    let metadata = ["metadata", "metaData"].iter().find_map(|key| root.get(*key)?.as_object());
    let mut work = Work::default();
    let (start, input) = if spec.contains_key("startNode") {
        forms::list_of_nodes(&mut work, spec)
    } else if spec.contains_key("nodes") {
        forms::map_of_nodes(&mut work, spec)
    } else if spec.contains_key("states") {
        forms::map_of_states(&mut work, spec)
    } else {
        return Err(vec![
            "the form is not known: there is neither 'nodes' with 'startAt' or 'spec.startNode', nor 'spec.states'"
                .to_owned(),
        ]);
    };
    let start = match start {
        Some(name) => work.resolve(&name),
        None => {
            work.errors.push("the workflow does not say where it starts".to_owned());
            String::new()
        }
    };
    work.complete();
    work.drop_unreachable(&start);
    let definition = json!({ "StartAt": start, "States": work.states });
    if work.errors.is_empty() {
        let (_, faults) = check::definition(&definition);
        work.errors.extend(faults.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string));
    }
    if !work.errors.is_empty() {
        return Err(work.errors);
    }
    let workflow = json!({
        "apiVersion": "skiff.dev/v1",
        "kind": "Workflow",
        "metadata": work.metadata(metadata),
        "spec": { "definition": definition },
    });
    if input.is_some() {
        work.note("the workflow does not run when it is applied: 'kubectl wf run NAME -d INPUT' runs it");
    }
    Ok(Converted { workflow, input, notes: work.notes })
}

/// The states so far.
#[derive(Debug, Default)]
struct Work {
    states: Map<String, Value>,
    /// The names in the source, so that transitions can be resolved before all states are there.
    names: Vec<String>,
    missing: Vec<String>,
    notes: Vec<String>,
    errors: Vec<String>,
}

impl Work {
    fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// The state that a transition means. One that does not exist becomes a Fail state.
    fn resolve(&mut self, target: &str) -> String {
        if self.names.iter().any(|name| name == target) {
            return target.to_owned();
        }
        let alike: Vec<String> =
            self.names.iter().filter(|name| name.to_lowercase() == target.to_lowercase()).cloned().collect();
        if let [only] = alike.as_slice() {
            self.note(format!("'{target}' is written '{only}' where it is defined: taken as the same"));
            return only.clone();
        }
        if !self.missing.iter().any(|name| name == target) {
            self.missing.push(target.to_owned());
            self.note(format!("the node '{target}' does not exist: a run that comes there fails"));
        }
        target.to_owned()
    }

    fn complete(&mut self) {
        for name in std::mem::take(&mut self.missing) {
            let cause = format!("The converted workflow leads to '{name}', which it does not define");
            let state = json!({ "Type": "Fail", "Error": "Workflow.MissingNode", "Cause": cause });
            self.states.insert(name, state);
        }
    }

    /// The language refuses states that nothing leads to; the predecessors did not mind them.
    fn drop_unreachable(&mut self, start: &str) {
        let mut reached = vec![start.to_owned()];
        let mut at = 0;
        while let Some(state) = reached.get(at).and_then(|name| self.states.get(name)) {
            let mut targets: Vec<&str> = ["Next", "Default"].iter().filter_map(|f| state.get(*f)?.as_str()).collect();
            let rules = state.get("Choices").and_then(Value::as_array).into_iter().flatten();
            targets.extend(rules.filter_map(|rule| rule.get("Next")?.as_str()));
            let new: Vec<String> =
                targets.into_iter().filter(|t| !reached.iter().any(|r| r == t)).map(str::to_owned).collect();
            for name in new {
                if !reached.contains(&name) {
                    reached.push(name);
                }
            }
            at += 1;
        }
        let lost: Vec<String> = self.states.keys().filter(|name| !reached.contains(name)).cloned().collect();
        for name in lost {
            self.states.remove(&name);
            self.note(format!("the node '{name}' is left out: nothing leads to it"));
        }
    }

    fn put(&mut self, name: &str, mut state: Value, next: Option<&str>) {
        match next.filter(|next| !next.is_empty()) {
            Some(next) => state["Next"] = self.resolve(next).into(),
            None => state["End"] = true.into(),
        }
        self.states.insert(name.to_owned(), state);
    }

    /// The resource of a function, under a name that an object can have.
    fn function(&mut self, name: &str) -> String {
        format!("skiff:function:{}", self.object_name("function", name))
    }

    fn object_name(&mut self, kind: &str, name: &str) -> String {
        let lower = name.to_lowercase();
        let clean: String = lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let clean = clean.trim_matches('-').to_owned();
        if clean.is_empty() {
            self.errors.push(format!("'{name}' cannot be the name of a {kind}"));
        } else if clean != name {
            self.note(format!("the {kind} '{name}' is called '{clean}' here, as names of objects have to be"));
        }
        clean
    }

    fn metadata(&mut self, metadata: Option<&Map<String, Value>>) -> Value {
        let text = |key: &str| metadata.and_then(|m| m.get(key)?.as_str()).map(str::to_owned);
        let name = text("name").unwrap_or_else(|| {
            self.note("the workflow had no name: it is called 'workflow'");
            "workflow".to_owned()
        });
        let mut out = json!({ "name": self.object_name("workflow", &name) });
        if let Some(namespace) = text("namespace") {
            out["namespace"] = namespace.into();
        }
        if let Some(labels) = metadata.and_then(|m| m.get("labels")).filter(|labels| labels.is_object()) {
            out["labels"] = labels.clone();
        }
        out
    }
}
