//! The operations. Each takes a [`Call`] whose request has the right shape, and answers JSON or a fault of the service.

mod activities;
mod executions;
mod language;
mod machines;
mod maps;
mod tags;
pub(crate) mod versions;

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use serde_json::{Value, json};
use skiff_faas::gateway::auth::Right;

use super::arn::{self, Arn, Resource};
use super::error::{Answer, Fault};
use super::serve::Endpoint;
use crate::api::{Workflow, WorkflowVersion};
use crate::runs::RunsError;

/// Annotations: the role of a machine, tags, and what is kept to be told again.
pub(crate) const ROLE: &str = "states.skiff.dev/role-arn";
pub(crate) const TAGS: &str = "states.skiff.dev/tags";
pub(crate) const SETTINGS: &str = "states.skiff.dev/settings";

/// A request that may be carried out.
pub(crate) struct Call<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// Where the caller acts.
    pub(crate) namespace: String,
    /// The caller's region.
    pub(crate) region: String,
    pub(crate) request: Value,
}

/// Carries an operation out.
pub(crate) async fn run(operation: &str, call: Call<'_>) -> Answer {
    match operation {
        "CreateActivity" => activities::create(&call).await,
        "CreateStateMachine" => machines::create(&call).await,
        "CreateStateMachineAlias" => versions::create_alias(&call).await,
        "DeleteActivity" => activities::delete(&call).await,
        "DeleteStateMachine" => machines::delete(&call).await,
        "DeleteStateMachineAlias" => versions::delete_alias(&call).await,
        "DeleteStateMachineVersion" => versions::delete_version(&call).await,
        "DescribeActivity" => activities::describe(&call).await,
        "DescribeExecution" => executions::describe(&call).await,
        "DescribeMapRun" => maps::describe(&call).await,
        "DescribeStateMachine" => machines::describe(&call).await,
        "DescribeStateMachineAlias" => versions::describe_alias(&call).await,
        "DescribeStateMachineForExecution" => executions::describe_machine(&call).await,
        "GetActivityTask" => activities::task(&call).await,
        "GetExecutionHistory" => executions::history(&call).await,
        "ListActivities" => activities::list(&call).await,
        "ListExecutions" => executions::list(&call).await,
        "ListMapRuns" => maps::list(&call).await,
        "ListStateMachineAliases" => versions::list_aliases(&call).await,
        "ListStateMachineVersions" => versions::list_versions(&call).await,
        "ListStateMachines" => machines::list(&call).await,
        "ListTagsForResource" => tags::list(&call).await,
        "PublishStateMachineVersion" => versions::publish_version(&call).await,
        "RedriveExecution" => executions::redrive(&call).await,
        "SendTaskFailure" | "SendTaskHeartbeat" | "SendTaskSuccess" => activities::answer(operation, &call).await,
        "StartExecution" => executions::start(&call).await,
        "StartSyncExecution" => executions::start_sync(&call).await,
        "StopExecution" => executions::stop(&call).await,
        "TagResource" => tags::add(&call).await,
        "TestState" => language::test(&call),
        "UntagResource" => tags::remove(&call).await,
        "UpdateMapRun" => maps::update(&call).await,
        "UpdateStateMachine" => machines::update(&call).await,
        "UpdateStateMachineAlias" => versions::update_alias(&call).await,
        "ValidateStateMachineDefinition" => language::validate(&call),
        _ => Err(Fault::new("UnknownOperationException", "The requested operation is not supported.")),
    }
}

/// What the caller must be allowed, on the object of which name; an empty name means all.
pub(crate) fn right(operation: &str, request: &Value) -> (Right, String) {
    let (verb, resource) = match operation {
        "CreateActivity" => ("create", "workflowactivities"),
        "DeleteActivity" => ("delete", "workflowactivities"),
        "DescribeActivity" => ("get", "workflowactivities"),
        "ListActivities" => ("list", "workflowactivities"),
        // Who fetches work will answer it.
        "GetActivityTask" | "SendTaskFailure" | "SendTaskHeartbeat" | "SendTaskSuccess" => {
            ("create", "workflowsignals")
        }
        "CreateStateMachine" => ("create", "workflows"),
        "DeleteStateMachine" => ("delete", "workflows"),
        "PublishStateMachineVersion" => ("create", "workflowversions"),
        "DeleteStateMachineVersion" => ("delete", "workflowversions"),
        "ListStateMachineVersions" => ("list", "workflowversions"),
        "CreateStateMachineAlias"
        | "UpdateStateMachineAlias"
        | "DeleteStateMachineAlias"
        | "UpdateStateMachine"
        | "TagResource"
        | "UntagResource" => ("update", "workflows"),
        "ListStateMachines" => ("list", "workflows"),
        "StartExecution" | "StartSyncExecution" | "TestState" => ("create", "workflowruns"),
        "StopExecution" | "RedriveExecution" | "UpdateMapRun" => ("update", "workflowruns"),
        "ListExecutions" => ("list", "workflowruns"),
        "DescribeExecution"
        | "DescribeMapRun"
        | "DescribeStateMachineForExecution"
        | "GetExecutionHistory"
        | "ListMapRuns" => ("get", "workflowruns"),
        _ => ("get", "workflows"),
    };
    let name = match resource {
        "workflows" => ["stateMachineArn", "stateMachineAliasArn", "resourceArn"]
            .iter()
            .find_map(|m| Arn::parse(request[m].as_str()?))
            .map(|arn| match arn.resource {
                Resource::Machine { name, .. } => arn::object_name(&name),
                Resource::Version { machine, .. } | Resource::Alias { machine, .. } => arn::object_name(&machine),
                _ => String::new(),
            }),
        _ => None,
    };
    let subresource = None;
    (Right { verb, resource, subresource }, name.unwrap_or_default())
}

/// A time as JSON 1.0 has it: seconds with a fraction.
pub(crate) fn seconds(time: Timestamp) -> Value {
    #[allow(clippy::cast_precision_loss)] // Milliseconds of any year people meet fit.
    let seconds = time.as_millisecond() as f64 / 1000.0;
    json!(seconds)
}

pub(crate) fn created(object: &impl kube::ResourceExt) -> Timestamp {
    object.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |t| t.0)
}

fn invalid_arn(arn: &str) -> Fault {
    Fault::new("InvalidArn", format!("Invalid Arn: '{arn}'"))
}

impl Call<'_> {
    /// A member that is text.
    pub(crate) fn text(&self, member: &str) -> Option<&str> {
        self.request[member].as_str()
    }

    /// A member that the shape requires.
    pub(crate) fn required(&self, member: &str) -> &str {
        self.text(member).unwrap_or_default()
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.endpoint.client.clone(), &self.namespace)
    }

    pub(crate) fn arn(&self, resource: Resource) -> String {
        Arn::new(&self.region, &self.namespace, resource).to_string()
    }

    /// What an ARN of the request names. Other accounts are nobody's business here.
    pub(crate) fn resource(&self, member: &str) -> Result<Resource, Fault> {
        self.resource_of(self.required(member))
    }

    pub(crate) fn resource_of(&self, text: &str) -> Result<Resource, Fault> {
        let arn = Arn::parse(text).ok_or_else(|| invalid_arn(text))?;
        if !arn.is_in(&self.namespace) {
            return Err(Fault::new(
                "AccessDeniedException",
                format!("The access key is of namespace {}, and {text} is of another account.", self.namespace),
            ));
        }
        Ok(arn.resource)
    }

    /// Of what type an ARN must be.
    pub(crate) fn wrong(&self, member: &str) -> Fault {
        Fault::new(
            "InvalidArn",
            format!("Invalid Arn: 'Resource type not valid in this context: {}'", self.required(member)),
        )
    }

    /// The workflow of a machine's name, where its own name agrees.
    pub(crate) async fn workflow(&self, machine: &str, arn: &str) -> Result<Workflow, Fault> {
        let found = self.api::<Workflow>().get_opt(&arn::object_name(machine)).await?;
        let found = found.filter(|w| machine_name(w) == machine && w.metadata.deletion_timestamp.is_none());
        found.ok_or_else(|| Fault::absent("StateMachineDoesNotExist", arn))
    }

    /// A version of a workflow.
    pub(crate) async fn version(&self, workflow: &str, number: i64) -> Result<Option<WorkflowVersion>, Fault> {
        let found = self.api::<WorkflowVersion>().get_opt(&WorkflowVersion::name_of(workflow, number)).await?;
        Ok(found.filter(|v| v.spec.workflow == workflow && v.spec.number == number))
    }

    /// A fault of runs in the service's words; `arn` is what the request was about.
    pub(crate) fn failed(&self, error: RunsError, arn: &str) -> Fault {
        match error {
            RunsError::NoWorkflow(_) => Fault::absent("StateMachineDoesNotExist", arn),
            RunsError::NoVersion(_) => Fault::absent("StateMachineDoesNotExist", arn),
            RunsError::InvalidDefinition(m) => {
                Fault::validation(format!("The definition of the state machine is not valid: {m}"))
            }
            RunsError::AlreadyExists(_) => {
                Fault::new("ExecutionAlreadyExists", format!("Execution Already Exists: '{arn}'"))
            }
            RunsError::NoRun(_) => Fault::absent("ExecutionDoesNotExist", arn),
            RunsError::NotRedrivable(m) => {
                Fault::new("ExecutionNotRedrivable", format!("Execution is not redrivable: '{arn}': {m}"))
            }
            RunsError::InvalidData(m) => {
                Fault::new("InvalidExecutionInput", format!("Invalid State Machine Execution Input: '{m}'"))
            }
            RunsError::InvalidName(name) => invalid_name(&name),
            RunsError::InvalidToken => Fault::new("InvalidToken", "Invalid Token: 'Invalid token'"),
            RunsError::NoTask => {
                Fault::new("TaskDoesNotExist", "Task does not exist: 'Provided task does not exist anymore'")
            }
            RunsError::TaskOver => Fault::new("TaskTimedOut", "Task Timed Out: 'Provided task does not exist anymore'"),
            RunsError::NoActivity(_) => Fault::absent("ActivityDoesNotExist", arn),
            RunsError::WrongType => Fault::new(
                "StateMachineTypeNotSupported",
                "This operation is not supported by this type of state machine",
            ),
            RunsError::TooMany(m) => Fault::new("ActivityWorkerLimitExceeded", m),
            RunsError::Forbidden(m) => Fault::new("AccessDeniedException", m),
            RunsError::Unavailable(m) => Fault::new("ServiceUnavailable", m),
        }
    }
}

pub(crate) fn invalid_name(name: &str) -> Fault {
    Fault::new("InvalidName", format!("Invalid Name: '{name}'"))
}

/// The name that the service's clients know an object by.
pub(crate) fn known_as(object: &impl kube::ResourceExt) -> String {
    object.annotations().get(arn::NAME).cloned().unwrap_or_else(|| object.name_any())
}

/// The name of a workflow as a machine.
pub(crate) fn machine_name(workflow: &Workflow) -> String {
    known_as(workflow)
}

/// The annotations of an object that is made for a name of the service.
pub(crate) fn named(name: &str) -> BTreeMap<String, String> {
    let same = arn::object_name(name) == name;
    (!same).then(|| (arn::NAME.to_owned(), name.to_owned())).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::model::OPERATIONS;
    use super::*;

    #[test]
    fn every_operation_needs_a_right() {
        for operation in OPERATIONS {
            let (right, _) = right(operation.name, &json!({}));
            let writes = [
                "Create",
                "Delete",
                "Update",
                "Start",
                "Stop",
                "Send",
                "Tag",
                "Untag",
                "Publish",
                "Redrive",
                "TestState",
            ];
            let writes = writes.iter().any(|w| operation.name.starts_with(w));
            let reads = matches!(right.verb, "get" | "list");
            assert!(writes != reads || operation.name == "GetActivityTask", "{} needs {right:?}", operation.name);
        }
        let (right, name) =
            right("DeleteStateMachine", &json!({"stateMachineArn": "arn:aws:states:r:1:stateMachine:Hello"}));
        assert_eq!((right.verb, name), ("delete", arn::object_name("Hello")));
    }
}
