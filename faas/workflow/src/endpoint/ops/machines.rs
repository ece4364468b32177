//! State machines: Workflows.
//!
//! The definition is kept as the text that came. What the service's clients set and Workflows have no field for (role,
//! logging destinations, tracing) is in annotations, to be told again. A role `…:role/service-account/NAME` means that the
//! workflow's tasks act as that ServiceAccount; other roles mean nothing here.

use kube::ResourceExt as _;
use kube::api::{ListParams, ObjectMeta, PostParams};
use serde_json::{Value, json};

use super::{Call, ROLE, SETTINGS, created, invalid_name, machine_name, named, seconds, tags, versions};
use crate::api::{Kind, LogLevel, Logging, Workflow, WorkflowSpec};
use crate::endpoint::arn::{self, Resource};
use crate::endpoint::error::{Answer, Fault};
use crate::endpoint::page::{Row, page};
use crate::engine::{definition_text, judge};
use crate::pack::digest;

/// Path of a role whose last part is a ServiceAccount.
const ACCOUNT: &str = ":role/service-account/";
/// Tries of a change that meets another.
const TRIES: u32 = 8;
/// Members that are kept as they came.
const KEPT: [&str; 3] = ["loggingConfiguration", "tracingConfiguration", "encryptionConfiguration"];

/// A definition's text.
pub(crate) fn text_of(definition: &Value) -> String {
    match definition {
        // Clients expect JSON: what was written as YAML is told as JSON.
        Value::String(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => text.clone(),
        Value::String(text) => {
            serde_saphyr::from_str::<Value>(text).map_or_else(|_| text.clone(), |value| value.to_string())
        }
        other => other.to_string(),
    }
}

/// The revision of a workflow as it is now.
pub(crate) fn revision(workflow: &Workflow) -> String {
    digest(definition_text(&workflow.spec.definition).as_bytes())
}

pub(crate) fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Standard => "STANDARD",
        Kind::Express => "EXPRESS",
    }
}

/// Whether a definition is one, in the service's words.
fn refuse(text: &str) -> Result<(), Fault> {
    let (_, faults) = judge(text);
    let errors: Vec<String> = super::language::errors(&faults).collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Fault::new("InvalidDefinition", format!("Invalid State Machine Definition: '{}'", errors.join(", "))))
}

fn check_role(call: &Call<'_>) -> Result<(), Fault> {
    let Some(role) = call.text("roleArn") else { return Ok(()) };
    let parts: Vec<&str> = role.splitn(6, ':').collect();
    let sound = matches!(parts[..], ["arn", _, "iam", _, _, what] if what.starts_with("role/"));
    if sound { Ok(()) } else { Err(Fault::new("InvalidArn", format!("Invalid Role Arn: '{role}'"))) }
}

fn check_settings(request: &Value) -> Result<(), Fault> {
    let encryption = request["encryptionConfiguration"]["type"].as_str();
    if encryption.is_some_and(|t| t != "AWS_OWNED_KEY") {
        return Err(Fault::new(
            "InvalidEncryptionConfiguration",
            "Invalid Encryption Configuration: there are no keys of customers here",
        ));
    }
    Ok(())
}

/// Writes what a request says of a machine into its workflow.
fn apply(call: &Call<'_>, workflow: &mut Workflow) {
    if let Some(definition) = call.text("definition") {
        workflow.spec.definition = Value::String(definition.to_owned());
    }
    if let Some(role) = call.text("roleArn") {
        workflow.annotations_mut().insert(ROLE.to_owned(), role.to_owned());
        if let Some((_, account)) = role.split_once(ACCOUNT) {
            workflow.spec.service_account_name = Some(account.to_owned());
        }
    }
    let mut kept = settings(workflow);
    for member in KEPT {
        let given = &call.request[member];
        if !given.is_null() {
            kept[member] = given.clone();
        }
    }
    if kept != json!({}) {
        workflow.annotations_mut().insert(SETTINGS.to_owned(), kept.to_string());
    }
    let logging = &call.request["loggingConfiguration"];
    if !logging.is_null() {
        let level = serde_json::from_value::<LogLevel>(logging["level"].clone()).unwrap_or_default();
        let include_execution_data = logging["includeExecutionData"].as_bool().unwrap_or_default();
        workflow.spec.logging = Some(Logging { level, include_execution_data });
    }
}

/// What was kept to be told again.
fn settings(workflow: &Workflow) -> Value {
    let kept = workflow.annotations().get(SETTINGS).and_then(|t| serde_json::from_str::<Value>(t).ok());
    kept.filter(Value::is_object).unwrap_or_else(|| json!({}))
}

pub(super) async fn create(call: &Call<'_>) -> Answer {
    let name = call.required("name");
    if !arn::is_name(name) {
        return Err(invalid_name(name));
    }
    check_role(call)?;
    check_settings(&call.request)?;
    refuse(call.required("definition"))?;
    let publish = call.request["publish"].as_bool().unwrap_or_default();
    let description = call.text("versionDescription");
    if description.is_some() && !publish {
        return Err(Fault::validation("Version description can only be set when publish is true"));
    }
    let mut workflow = Workflow {
        metadata: ObjectMeta {
            name: Some(arn::object_name(name)),
            annotations: Some(named(name)),
            ..ObjectMeta::default()
        },
        spec: WorkflowSpec {
            kind: if call.text("type") == Some("EXPRESS") { Kind::Express } else { Kind::Standard },
            ..WorkflowSpec::default()
        },
        status: None,
    };
    apply(call, &mut workflow);
    tags::set(&mut workflow.metadata, &call.request["tags"])?;
    let machine_arn = call.arn(Resource::Machine { name: name.to_owned(), label: None });
    let stored = match call.api::<Workflow>().create(&PostParams::default(), &workflow).await {
        Ok(stored) => stored,
        Err(kube::Error::Api(s)) if s.code == 409 => {
            let there = call.api::<Workflow>().get_opt(&workflow.name_any()).await?;
            // The same again is the same answer.
            let same = |t: &Workflow| {
                machine_name(t) == name
                    && t.spec.definition == workflow.spec.definition
                    && t.spec.kind == workflow.spec.kind
                    && settings(t) == settings(&workflow)
            };
            let exists =
                || Fault::new("StateMachineAlreadyExists", format!("State Machine Already Exists: '{machine_arn}'"));
            there.filter(same).ok_or_else(exists)?
        }
        Err(e) => return Err(e.into()),
    };
    let mut answer = json!({"stateMachineArn": machine_arn, "creationDate": seconds(created(&stored))});
    if publish {
        let version = versions::publish(&call.endpoint.client, &stored, description).await?;
        answer["stateMachineVersionArn"] = versions::arn_of(call, name, version.spec.number).into();
    }
    Ok(answer)
}

pub(super) async fn update(call: &Call<'_>) -> Answer {
    let Resource::Machine { name, label: None } = call.resource("stateMachineArn")? else {
        return Err(call.wrong("stateMachineArn"));
    };
    let said = ["definition", "roleArn"].iter().chain(&KEPT).any(|m| !call.request[m].is_null());
    if !said {
        return Err(Fault::new(
            "MissingRequiredParameter",
            "Either the definition, the role ARN, the LoggingConfiguration, or the TracingConfiguration must be specified",
        ));
    }
    check_role(call)?;
    check_settings(&call.request)?;
    if let Some(definition) = call.text("definition") {
        refuse(definition)?;
    }
    let api = call.api::<Workflow>();
    let mut tries = 0;
    let stored = loop {
        let mut workflow = call.workflow(&name, call.required("stateMachineArn")).await?;
        apply(call, &mut workflow);
        match api.replace(&workflow.name_any(), &PostParams::default(), &workflow).await {
            Ok(stored) => break stored,
            Err(kube::Error::Api(s)) if s.code == 409 && tries < TRIES => tries += 1,
            Err(e) => return Err(e.into()),
        }
    };
    let mut answer = json!({"updateDate": seconds(changed(&stored)), "revisionId": revision(&stored)});
    if call.request["publish"].as_bool() == Some(true) {
        let version = versions::publish(&call.endpoint.client, &stored, call.text("versionDescription")).await?;
        answer["stateMachineVersionArn"] = versions::arn_of(call, &name, version.spec.number).into();
    }
    Ok(answer)
}

/// When somebody last wrote a workflow's spec, as the managers of its fields tell.
pub(crate) fn changed(workflow: &Workflow) -> k8s_openapi::jiff::Timestamp {
    let entries = workflow.metadata.managed_fields.iter().flatten();
    let written =
        entries.filter(|e| e.subresource.as_deref().unwrap_or_default().is_empty()).filter_map(|e| e.time.as_ref());
    written.map(|t| t.0).max().unwrap_or_else(|| created(workflow))
}

pub(super) async fn describe(call: &Call<'_>) -> Answer {
    let arn = call.required("stateMachineArn");
    let (machine, version) = match call.resource("stateMachineArn")? {
        Resource::Machine { name, .. } => (name, None),
        Resource::Version { machine, number } => (machine, Some(number)),
        _ => return Err(call.wrong("stateMachineArn")),
    };
    let workflow = call.workflow(&machine, arn).await?;
    let mut answer = tell(call, &workflow);
    answer["stateMachineArn"] = arn.into();
    answer["status"] = "ACTIVE".into();
    answer["creationDate"] = seconds(created(&workflow));
    if let Some(number) = version {
        let version = call.version(&workflow.name_any(), number).await?;
        let version = version.ok_or_else(|| Fault::absent("StateMachineDoesNotExist", arn))?;
        answer["definition"] = text_of(&Value::String(version.spec.definition.clone())).into();
        answer["revisionId"] = version.spec.revision.clone().into();
        answer["type"] = kind_text(version.spec.kind).into();
        answer["creationDate"] = seconds(created(&version));
        if let Some(description) = &version.spec.description {
            answer["description"] = description.clone().into();
        }
    }
    if call.text("includedData") == Some("METADATA_ONLY") {
        answer["definition"] = "{}".into();
    }
    Ok(answer)
}

/// What descriptions of a machine and of an execution's machine have in common.
pub(super) fn tell(call: &Call<'_>, workflow: &Workflow) -> Value {
    let kept = settings(workflow);
    let or = |member: &str, default: Value| kept.get(member).cloned().unwrap_or(default);
    let level = workflow.spec.logging.as_ref().map(|l| (l.level, l.include_execution_data)).unwrap_or_default();
    let logging = json!({"level": level.0, "includeExecutionData": level.1});
    json!({
        "name": machine_name(workflow),
        "definition": text_of(&workflow.spec.definition),
        "roleArn": role(call, workflow),
        "type": kind_text(workflow.spec.kind),
        "loggingConfiguration": or("loggingConfiguration", logging),
        "tracingConfiguration": or("tracingConfiguration", json!({"enabled": false})),
        "encryptionConfiguration": or("encryptionConfiguration", json!({"type": "AWS_OWNED_KEY"})),
        "revisionId": revision(workflow),
    })
}

/// The role that was given, else the one that its ServiceAccount means.
fn role(call: &Call<'_>, workflow: &Workflow) -> String {
    workflow.annotations().get(ROLE).cloned().unwrap_or_else(|| {
        let account = workflow.spec.service_account_name.as_deref().unwrap_or("default");
        format!("arn:aws:iam::{}{ACCOUNT}{account}", arn::account(&call.namespace))
    })
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let all = call.api::<Workflow>().list(&ListParams::default()).await?.items;
    let rows: Vec<Row> = all
        .iter()
        .filter(|w| w.metadata.deletion_timestamp.is_none())
        .map(|w| {
            let name = machine_name(w);
            let arn = call.arn(Resource::Machine { name: name.clone(), label: None });
            let row = json!({"stateMachineArn": arn, "name": name, "type": kind_text(w.spec.kind),
                "creationDate": seconds(created(w))});
            (name, row)
        })
        .collect();
    page(&call.request, "stateMachines", rows)
}

/// Runs go on with what they pinned; versions and aliases go along.
pub(super) async fn delete(call: &Call<'_>) -> Answer {
    let Resource::Machine { name, label: None } = call.resource("stateMachineArn")? else {
        return Err(call.wrong("stateMachineArn"));
    };
    let workflow = match call.workflow(&name, call.required("stateMachineArn")).await {
        Ok(workflow) => workflow,
        // What is gone already is gone.
        Err(fault) if fault.name == "StateMachineDoesNotExist" => return Ok(Value::Null),
        Err(fault) => return Err(fault),
    };
    match call.api::<Workflow>().delete(&workflow.name_any(), &kube::api::DeleteParams::default()).await {
        Ok(_) => Ok(Value::Null),
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(Value::Null),
        Err(e) => Err(e.into()),
    }
}
