//! Tasks that are other workflows: fire and forget, waited for, or answered by a token.

use kube::Api;
use serde_json::{Value, json};
use skiff_asl::{ExecutionError, error};

use super::{Call, Done, failed};
use crate::api::{Parent, Phase, Stop, WorkflowRun};
use crate::arn;
use crate::endpoint::arn::object_name;
use crate::resource::{Pattern, Target};
use crate::runs::{Runs as _, RunsError, Start, Started};

/// A run that a task starts.
struct Child {
    machine: String,
    qualifier: Option<String>,
    name: String,
    /// Whether the name was made here.
    own: bool,
    run: String,
    input: Value,
}

fn refused(e: &RunsError) -> ExecutionError {
    let name = match e {
        RunsError::NoWorkflow(_) => "StepFunctions.StateMachineDoesNotExistException",
        RunsError::AlreadyExists(_) => "StepFunctions.ExecutionAlreadyExistsException",
        RunsError::InvalidData(_) => "StepFunctions.InvalidExecutionInputException",
        RunsError::InvalidName(_) => "StepFunctions.InvalidNameException",
        RunsError::Forbidden(_) => error::PERMISSIONS,
        _ => "StepFunctions.SfnException",
    };
    failed(name, e.to_string())
}

impl Call {
    /// Starts another workflow; the same attempt starts the same run.
    pub(super) async fn child(&self) -> Result<Done, ExecutionError> {
        let namespace = &self.owner.namespace;
        let Child { machine, qualifier, name, own, run, input } = self.which_child()?;
        let version = qualifier.as_ref().and_then(|q| q.parse().ok());
        let parent = Parent { run: self.owner.name.clone(), uid: self.owner.uid.clone(), step: self.address() };
        if !self.dispatch.submitted {
            let start = Start {
                namespace: namespace.clone(),
                workflow: machine.clone(),
                alias: qualifier.filter(|_| version.is_none()),
                version,
                name: Some(name.clone()),
                input: input.to_string(),
                trace_header: None,
                parent: Some(parent.clone()),
                another: false,
            };
            let started = match self.engine.stored().start(start).await {
                // It was over before this engine heard that it had begun.
                Err(RunsError::AlreadyExists(_)) if own => self.found(&run, &parent).await?,
                other => other.map_err(|e| refused(&e))?,
            };
            let said = json!({
                "ExecutionArn": arn::execution(namespace, &machine, &started.name),
                "StartDate": started.at.as_millisecond(),
                "SdkHttpMetadata": {"HttpStatusCode": 200},
            });
            match self.resource.pattern {
                Pattern::Request => return Ok(Done::Output(said.to_string())),
                Pattern::Callback => return self.answered(said.to_string()).await,
                Pattern::Sync => self.taken_over(said.to_string()).await,
            }
        }
        self.child_over(&run).await
    }

    /// Which run this attempt starts.
    fn which_child(&self) -> Result<Child, ExecutionError> {
        let (workflow, input, name) = match &self.resource.target {
            Target::Workflow { name } => (name.clone(), (*self.dispatch.parameters).clone(), None),
            _ => {
                let machine = self.text("StateMachineArn")?;
                let input = match self.field("Input") {
                    // The service takes text, too.
                    Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
                    Some(input) => input.clone(),
                    None => json!({}),
                };
                let name = self.field("Name").and_then(Value::as_str).map(str::to_owned);
                (arn::name(machine).to_owned(), input, name)
            }
        };
        // A run that is named by the definition may be there already; one that is named here is ours.
        let own = name.is_none();
        let name = name.unwrap_or_else(|| {
            let digest = crate::pack::digest(self.key().as_bytes());
            format!("c-{}", digest.get(..32).unwrap_or_default())
        });
        let (machine, qualifier) = match workflow.split_once(':') {
            Some((machine, qualifier)) => (object_name(machine), Some(qualifier.to_owned())),
            None => (object_name(&workflow), None),
        };
        let run = crate::runs::run_name(&machine, &name);
        Ok(Child { machine, qualifier, name, own, run, input })
    }

    /// Stops the run that was waited for.
    pub(super) async fn undo_child(&self) {
        if self.resource.pattern != Pattern::Sync {
            return;
        }
        let Ok(child) = self.which_child() else { return };
        let cause = Some(format!("the run {} waits for it no more", self.owner.name));
        let stop = Stop { error: None, cause };
        if let Err(e) = self.engine.stored().stop(&self.owner.namespace, &child.run, stop).await {
            tracing::debug!(run = child.run, error = &e as &dyn std::error::Error, "a run is not stopped");
        }
    }

    /// The run that an earlier try of this attempt started.
    async fn found(&self, run: &str, parent: &Parent) -> Result<Started, ExecutionError> {
        let runs = Api::<WorkflowRun>::namespaced(self.client().clone(), &self.owner.namespace);
        let there = runs.get(run).await.map_err(|e| failed("StepFunctions.SfnException", e.to_string()))?;
        if there.spec.parent.as_ref() != Some(parent) {
            let text = RunsError::AlreadyExists(run.to_owned());
            return Err(refused(&text));
        }
        let at = there.metadata.creation_timestamp.map_or_else(k8s_openapi::jiff::Timestamp::now, |t| t.0);
        Ok(Started { run: run.to_owned(), name: there.spec.name.unwrap_or_default(), at, again: true })
    }

    /// Waits for the end of a run.
    async fn child_over(&self, run: &str) -> Result<Done, ExecutionError> {
        let namespace = &self.owner.namespace;
        let runs = Api::<WorkflowRun>::namespaced(self.client().clone(), namespace);
        let over = |run: Option<&WorkflowRun>| run.is_none_or(|r| r.status.as_ref().is_some_and(|s| s.phase.is_over()));
        skiff_client::wait_for(runs, run, over)
            .await
            .map_err(|e| failed("StepFunctions.SfnException", e.to_string()))?;
        let found = self.engine.stored().describe(namespace, run).await.map_err(|e| refused(&e))?;
        let status = found.run.status.clone().unwrap_or_default();
        let machine = found.run.spec.workflow.clone().unwrap_or_default();
        let name = found.run.spec.name.clone().unwrap_or_default();
        let text = |json: Option<String>| json.unwrap_or_else(|| "null".to_owned());
        if status.phase != Phase::Succeeded {
            let cause = json!({
                "ExecutionArn": arn::execution(namespace, &machine, &name), "Name": name,
                "StateMachineArn": arn::machine(namespace, &machine), "Status": status.phase.as_str(),
                "Error": status.error, "Cause": status.cause, "Input": found.input,
            });
            let short = matches!(self.resource.target, Target::Workflow { .. });
            return Err(match status.error.filter(|_| short) {
                Some(error) => failed(&error, status.cause.unwrap_or_default()),
                None => failed(error::TASK_FAILED, cause.to_string()),
            });
        }
        let output = text(found.output);
        let millis =
            |t: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime>| t.map(|t| t.0.as_millisecond());
        let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        match &self.resource.target {
            Target::Workflow { .. } => Ok(Done::Output(output)),
            target => {
                let json_output = matches!(target, Target::StartExecution { parsed: true });
                let said = json!({
                    "ExecutionArn": arn::execution(namespace, &machine, &name), "Name": name,
                    "StateMachineArn": arn::machine(namespace, &machine), "Status": "SUCCEEDED",
                    "Input": if json_output { parsed(&found.input) } else { json!(found.input) },
                    "Output": if json_output { parsed(&output) } else { json!(output) },
                    "StartDate": millis(status.start_time.as_ref()), "StopDate": millis(status.stop_time.as_ref()),
                });
                Ok(Done::Output(said.to_string()))
            }
        }
    }
}
