//! Versions of machines, and aliases, which are names for them in the workflow's spec.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::machines::revision;
use super::{Call, created, machine_name, seconds};
use crate::api::{Alias, Route, WORKFLOW, Workflow, WorkflowVersion, WorkflowVersionSpec};
use crate::endpoint::arn::Resource;
use crate::endpoint::error::{Answer, Fault};
use crate::endpoint::page::{Row, newest_first, page};
use crate::engine::definition_text;

/// Annotation of a workflow: the highest number that a version ever had.
const LATEST: &str = "states.skiff.dev/latest-version";
/// Annotation of a workflow: when its aliases were made and changed.
const DATES: &str = "states.skiff.dev/alias-dates";
/// Versions and aliases of one workflow.
const VERSIONS_MAX: usize = 1000;
const ALIASES_MAX: usize = 100;
/// Tries of a change that meets another.
const TRIES: u32 = 8;

pub(super) fn arn_of(call: &Call<'_>, machine: &str, number: i64) -> String {
    call.arn(Resource::Version { machine: machine.to_owned(), number })
}

async fn all(client: &Client, namespace: &str, workflow: &str) -> Result<Vec<WorkflowVersion>, Fault> {
    let api = Api::<WorkflowVersion>::namespaced(client.clone(), namespace);
    let found = api.list(&ListParams::default()).await?.items;
    Ok(found.into_iter().filter(|v| v.spec.workflow == workflow).collect())
}

/// The highest number that a version of a workflow ever had, as far as its annotation says.
pub(crate) fn latest_version(workflow: &Workflow) -> Option<i64> {
    workflow.annotations().get(LATEST).and_then(|n| n.parse().ok())
}

/// Makes a version of what a workflow is now. Where there is one of the same definition, that is it. Numbers rise, also when
/// the newest versions were deleted.
///
/// # Errors
/// When the API refuses or there are too many.
pub async fn publish(
    client: &Client,
    workflow: &Workflow,
    description: Option<&str>,
) -> Result<WorkflowVersion, Fault> {
    let (namespace, name) = (workflow.namespace().unwrap_or_default(), workflow.name_any());
    let workflows = Api::<Workflow>::namespaced(client.clone(), &namespace);
    let versions = Api::<WorkflowVersion>::namespaced(client.clone(), &namespace);
    let mut workflow = workflow.clone();
    for _ in 0..TRIES {
        let there = all(client, &namespace, &name).await?;
        let revision = revision(&workflow);
        if let Some(same) = there.iter().filter(|v| v.spec.revision == revision).max_by_key(|v| v.spec.number) {
            return Ok(same.clone());
        }
        if there.len() >= VERSIONS_MAX {
            return Err(Fault::new(
                "ServiceQuotaExceededException",
                format!("there are {VERSIONS_MAX} versions already"),
            ));
        }
        let noted = latest_version(&workflow);
        let told = workflow.status.as_ref().and_then(|s| s.latest_version);
        let number = there.iter().map(|v| v.spec.number).chain(noted).chain(told).max().unwrap_or(0) + 1;
        // The number is taken first: two that publish at once meet here.
        workflow.annotations_mut().insert(LATEST.to_owned(), number.to_string());
        workflow = match workflows.replace(&name, &PostParams::default(), &workflow).await {
            Ok(workflow) => workflow,
            Err(kube::Error::Api(s)) if s.code == 409 => workflows.get(&name).await?,
            Err(e) => return Err(e.into()),
        };
        if workflow.annotations().get(LATEST) != Some(&number.to_string()) {
            continue;
        }
        let spec = WorkflowVersionSpec {
            workflow: name.clone(),
            number,
            description: description.map(str::to_owned),
            revision,
            definition: definition_text(&workflow.spec.definition),
            kind: workflow.spec.kind,
        };
        let metadata = ObjectMeta {
            name: Some(WorkflowVersion::name_of(&name, number)),
            labels: Some(&name).filter(|n| n.len() <= 63).map(|n| [(WORKFLOW.to_owned(), n.clone())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: Workflow::api_version(&()).into_owned(),
                kind: Workflow::kind(&()).into_owned(),
                name: name.clone(),
                uid: workflow.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        };
        match versions.create(&PostParams::default(), &WorkflowVersion { metadata, spec }).await {
            Ok(version) => return Ok(version),
            Err(kube::Error::Api(s)) if s.code == 409 => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Fault::new("ConflictException", "others change the state machine all the time"))
}

pub(super) async fn publish_version(call: &Call<'_>) -> Answer {
    let arn = call.required("stateMachineArn");
    let Resource::Machine { name, label: None } = call.resource("stateMachineArn")? else {
        return Err(call.wrong("stateMachineArn"));
    };
    let workflow = call.workflow(&name, arn).await?;
    let now = revision(&workflow);
    if call.text("revisionId").is_some_and(|wanted| wanted != now) {
        return Err(Fault::new(
            "ConflictException",
            format!("The revision of the state machine is {now} and not {}", call.required("revisionId")),
        ));
    }
    let version = publish(&call.endpoint.client, &workflow, call.text("description")).await?;
    Ok(json!({"stateMachineVersionArn": arn_of(call, &name, version.spec.number),
        "creationDate": seconds(created(&version))}))
}

pub(super) async fn list_versions(call: &Call<'_>) -> Answer {
    let Resource::Machine { name, label: None } = call.resource("stateMachineArn")? else {
        return Err(call.wrong("stateMachineArn"));
    };
    let workflow = crate::endpoint::arn::object_name(&name);
    let rows: Vec<Row> = all(&call.endpoint.client, &call.namespace, &workflow)
        .await?
        .iter()
        .map(|v| {
            let arn = arn_of(call, &name, v.spec.number);
            let row = json!({"stateMachineVersionArn": arn, "creationDate": seconds(created(v))});
            // Several may be made in a second.
            (newest_first(Timestamp::UNIX_EPOCH, &format!("{:020}", i64::MAX - v.spec.number)), row)
        })
        .collect();
    page(&call.request, "stateMachineVersions", rows)
}

pub(super) async fn delete_version(call: &Call<'_>) -> Answer {
    let Resource::Version { machine, number } = call.resource("stateMachineVersionArn")? else {
        return Err(call.wrong("stateMachineVersionArn"));
    };
    let arn = call.required("stateMachineVersionArn");
    let workflow = match call.workflow(&machine, arn).await {
        Ok(workflow) => workflow,
        Err(fault) if fault.name == "StateMachineDoesNotExist" => return Ok(Value::Null),
        Err(fault) => return Err(fault),
    };
    let users: Vec<&str> = workflow
        .spec
        .aliases
        .iter()
        .filter(|a| a.routing.iter().any(|r| r.version == number))
        .map(|a| a.name.as_str())
        .collect();
    if !users.is_empty() {
        return Err(Fault::new(
            "ConflictException",
            format!(
                "Version to be deleted must not be referenced by an alias. Current list of aliases referencing this version: [{}]",
                users.join(", ")
            ),
        ));
    }
    if let Some(version) = call.version(&workflow.name_any(), number).await? {
        match call.api::<WorkflowVersion>().delete(&version.name_any(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(s)) if s.code == 404 => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Value::Null)
}

type Dates = BTreeMap<String, (Timestamp, Timestamp)>;

fn dates(workflow: &Workflow) -> Dates {
    workflow.annotations().get(DATES).and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

fn dates_of(workflow: &Workflow, alias: &str) -> (Timestamp, Timestamp) {
    dates(workflow).get(alias).copied().unwrap_or_else(|| (created(workflow), created(workflow)))
}

/// The routes of a request: all of one machine, whose name comes back.
async fn routes(call: &Call<'_>) -> Result<Option<(String, Vec<Route>)>, Fault> {
    let Some(given) = call.request["routingConfiguration"].as_array() else { return Ok(None) };
    let (mut machine, mut routes): (Option<String>, Vec<Route>) = (None, vec![]);
    for item in given {
        let arn = item["stateMachineVersionArn"].as_str().unwrap_or_default();
        let Resource::Version { machine: of, number } = call.resource_of(arn)? else {
            return Err(Fault::new("InvalidArn", format!("Invalid Arn: '{arn}' is no version of a state machine")));
        };
        if machine.get_or_insert_with(|| of.clone()) != &of {
            return Err(Fault::validation("Routing configuration must be of versions of one state machine."));
        }
        if routes.iter().any(|r| r.version == number) {
            return Err(Fault::validation("Routing configuration must contain distinct state machine version ARNs."));
        }
        let workflow = call.workflow(&of, arn).await.map_err(|_| Fault::absent("ResourceNotFound", arn))?;
        let version = call.version(&workflow.name_any(), number).await?;
        version.ok_or_else(|| Fault::absent("ResourceNotFound", arn))?;
        let weight = item["weight"].as_u64().and_then(|w| u32::try_from(w).ok()).unwrap_or_default();
        routes.push(Route { version: number, weight });
    }
    if routes.iter().map(|r| r.weight).sum::<u32>() != 100 {
        return Err(Fault::validation("Sum of routing configuration weights must equal 100."));
    }
    Ok(machine.map(|m| (m, routes)))
}

/// Writes the aliases of a workflow. `change` answers false where there is nothing to do.
async fn change(
    call: &Call<'_>,
    machine: &str,
    arn: &str,
    change: impl Fn(&mut Vec<Alias>, &mut Dates) -> Result<bool, Fault>,
) -> Result<Workflow, Fault> {
    for _ in 0..TRIES {
        let absent = |_| Fault::absent("ResourceNotFound", arn);
        let mut workflow = call.workflow(machine, arn).await.map_err(absent)?;
        let mut dates = dates(&workflow);
        if !change(&mut workflow.spec.aliases, &mut dates)? {
            return Ok(workflow);
        }
        workflow.annotations_mut().insert(DATES.to_owned(), json!(dates).to_string());
        match call.api::<Workflow>().replace(&workflow.name_any(), &PostParams::default(), &workflow).await {
            Ok(workflow) => return Ok(workflow),
            Err(kube::Error::Api(s)) if s.code == 409 => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Fault::new("ConflictException", "others change the state machine all the time"))
}

pub(super) async fn create_alias(call: &Call<'_>) -> Answer {
    let (name, description) = (call.required("name"), call.text("description").map(str::to_owned));
    let Some((machine, routing)) = routes(call).await? else {
        return Err(Fault::validation("Routing configuration must not be empty."));
    };
    let alias = Alias { name: name.to_owned(), description, routing };
    let arn = call.arn(Resource::Alias { machine: machine.clone(), alias: name.to_owned() });
    let workflow = change(call, &machine, &arn, |aliases, dates| {
        if let Some(there) = aliases.iter().find(|a| a.name == alias.name) {
            // The same again is the same answer.
            return if *there == alias {
                Ok(false)
            } else {
                Err(Fault::new("ConflictException", format!("Failed to create alias because an alias with the same name and a different routing configuration already exists: '{arn}'")))
            };
        }
        if aliases.len() >= ALIASES_MAX {
            return Err(Fault::new("ServiceQuotaExceededException", format!("there are {ALIASES_MAX} aliases already")));
        }
        aliases.push(alias.clone());
        dates.insert(alias.name.clone(), (Timestamp::now(), Timestamp::now()));
        Ok(true)
    })
    .await?;
    Ok(json!({"stateMachineAliasArn": arn, "creationDate": seconds(dates_of(&workflow, name).0)}))
}

fn alias_of(call: &Call<'_>) -> Result<(String, String), Fault> {
    match call.resource("stateMachineAliasArn")? {
        Resource::Alias { machine, alias } => Ok((machine, alias)),
        _ => Err(call.wrong("stateMachineAliasArn")),
    }
}

pub(super) async fn update_alias(call: &Call<'_>) -> Answer {
    let (machine, name) = alias_of(call)?;
    let arn = call.required("stateMachineAliasArn");
    let (routing, description) = (routes(call).await?, call.text("description"));
    if routing.is_none() && description.is_none() {
        return Err(Fault::validation("Either the description or the routing configuration must be given."));
    }
    if routing.as_ref().is_some_and(|(of, _)| *of != machine) {
        return Err(Fault::validation("Routing configuration must be of versions of the alias's state machine."));
    }
    let workflow = change(call, &machine, arn, |aliases, dates| {
        let alias = aliases.iter_mut().find(|a| a.name == name);
        let alias = alias.ok_or_else(|| Fault::absent("ResourceNotFound", arn))?;
        if let Some((_, routing)) = &routing {
            alias.routing = routing.clone();
        }
        if let Some(description) = description {
            alias.description = Some(description.to_owned());
        }
        dates.entry(name.clone()).or_insert_with(|| (Timestamp::now(), Timestamp::now())).1 = Timestamp::now();
        Ok(true)
    })
    .await?;
    Ok(json!({"updateDate": seconds(dates_of(&workflow, &name).1)}))
}

pub(super) async fn describe_alias(call: &Call<'_>) -> Answer {
    let (machine, name) = alias_of(call)?;
    let arn = call.required("stateMachineAliasArn");
    let absent = || Fault::absent("ResourceNotFound", arn);
    let workflow = call.workflow(&machine, arn).await.map_err(|_| absent())?;
    let alias = workflow.spec.aliases.iter().find(|a| a.name == name).ok_or_else(absent)?;
    let routes: Vec<Value> = alias
        .routing
        .iter()
        .map(|r| json!({"stateMachineVersionArn": arn_of(call, &machine, r.version), "weight": r.weight}))
        .collect();
    let (created, updated) = dates_of(&workflow, &name);
    let mut told = json!({"stateMachineAliasArn": arn, "name": name, "routingConfiguration": routes,
        "creationDate": seconds(created), "updateDate": seconds(updated)});
    if let Some(description) = &alias.description {
        told["description"] = description.clone().into();
    }
    Ok(told)
}

pub(super) async fn list_aliases(call: &Call<'_>) -> Answer {
    let (machine, version) = match call.resource("stateMachineArn")? {
        Resource::Machine { name, label: None } => (name, None),
        Resource::Version { machine, number } => (machine, Some(number)),
        _ => return Err(call.wrong("stateMachineArn")),
    };
    let workflow = call.workflow(&machine, call.required("stateMachineArn")).await?;
    let machine = machine_name(&workflow);
    let of = workflow.spec.aliases.iter();
    let rows: Vec<Row> = of
        .filter(|a| version.is_none_or(|v| a.routing.iter().any(|r| r.version == v)))
        .map(|a| {
            let arn = call.arn(Resource::Alias { machine: machine.clone(), alias: a.name.clone() });
            let row = json!({"stateMachineAliasArn": arn, "creationDate": seconds(dates_of(&workflow, &a.name).0)});
            (a.name.clone(), row)
        })
        .collect();
    page(&call.request, "stateMachineAliases", rows)
}

pub(super) async fn delete_alias(call: &Call<'_>) -> Answer {
    let (machine, name) = alias_of(call)?;
    let arn = call.required("stateMachineAliasArn");
    change(call, &machine, arn, |aliases, dates| {
        let before = aliases.len();
        aliases.retain(|a| a.name != name);
        dates.remove(&name);
        if aliases.len() < before { Ok(true) } else { Err(Fault::absent("ResourceNotFound", arn)) }
    })
    .await?;
    Ok(Value::Null)
}
