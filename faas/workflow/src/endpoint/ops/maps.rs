//! Runs of distributed maps, and their executions: `execution:MACHINE/LABEL:NAME`.

use kube::ResourceExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::executions::{self, Found, execution_arn, execution_name, include};
use super::{Call, created, seconds};
use crate::api::{MapCounts, Phase, RUN, WorkflowMapRun, WorkflowRun};
use crate::endpoint::arn::{self, Resource};
use crate::endpoint::error::{Answer, Fault};
use crate::endpoint::page::{Row, newest_first, page};
use crate::journal::JournalError;
use crate::payload::Owner;
use crate::runs::RunsError;
use crate::runs::maps::{self, Told};

/// A map's run that an ARN names.
pub(super) struct Map {
    /// Name of the machine, as the service's clients know it.
    machine: String,
    object: WorkflowMapRun,
}

/// An execution of a map's run.
pub(super) struct Child {
    map: Map,
    told: Told,
}

impl From<JournalError> for Fault {
    fn from(e: JournalError) -> Self {
        match e {
            JournalError::Api(e) => (*e).into(),
            e => Self::internal(&e),
        }
    }
}

impl Map {
    /// What an ARN of the request names.
    async fn of(call: &Call<'_>, member: &str) -> Result<Self, Fault> {
        let Resource::MapRun { machine, label, id } = call.resource(member)? else {
            return Err(call.wrong(member));
        };
        let found = Self::named(call, machine, &label, &id).await?;
        found.ok_or_else(|| Fault::absent("ResourceNotFound", call.required(member)))
    }

    async fn named(call: &Call<'_>, machine: String, label: &str, name: &str) -> Result<Option<Self>, Fault> {
        if !skiff_core::names::is_dns1123_subdomain(name).is_empty() {
            return Ok(None);
        }
        let found = call.api::<WorkflowMapRun>().get_opt(name).await?;
        let workflow = arn::object_name(&machine);
        // A run with a definition of its own is a machine of its own, whose name is any object's.
        let ours =
            |m: &WorkflowMapRun| m.spec.label == label && (m.spec.workflow == workflow || m.spec.workflow == machine);
        Ok(found.filter(ours).map(|object| Self { machine, object }))
    }

    fn arn(&self, call: &Call<'_>) -> String {
        let (machine, label) = (self.machine.clone(), self.object.spec.label.clone());
        call.arn(Resource::MapRun { machine, label, id: self.object.name_any() })
    }

    fn owner(&self) -> Owner {
        Owner::of_map(&self.object)
    }

    fn labelled(&self) -> String {
        format!("{}/{}", self.machine, self.object.spec.label)
    }

    /// What descriptions and lists have in common.
    fn tell(&self, call: &Call<'_>, execution: &str) -> Value {
        let status = self.object.status.clone().unwrap_or_default();
        let started = status.start_time.map_or_else(|| created(&self.object), |t| t.0);
        let mut told = json!({"mapRunArn": self.arn(call), "startDate": seconds(started),
            "executionArn": execution_arn(call, &self.machine, execution)});
        if let Some(stop) = status.stop_time {
            told["stopDate"] = seconds(stop.0);
        }
        told
    }
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let found = executions::find(call, "executionArn").await?;
    let of = ListParams::default().labels(&format!("{RUN}={}", found.run.uid().unwrap_or_default()));
    let all = call.api::<WorkflowMapRun>().list(&of).await?.items;
    let rows: Vec<Row> = all.into_iter().map(|object| row(call, &found, object)).collect();
    page(&call.request, "mapRuns", rows)
}

fn row(call: &Call<'_>, found: &Found, object: WorkflowMapRun) -> Row {
    let map = Map { machine: found.machine.clone(), object };
    let mut told = map.tell(call, &found.execution);
    let label = Some(map.object.spec.label.clone());
    told["stateMachineArn"] = call.arn(Resource::Machine { name: map.machine.clone(), label }).into();
    (newest_first(created(&map.object), &map.object.name_any()), told)
}

fn counts(counts: MapCounts) -> Value {
    let mut told = json!(counts);
    told["failuresNotRedrivable"] = 0.into();
    told["pendingRedrive"] = 0.into();
    told
}

pub(super) async fn describe(call: &Call<'_>) -> Answer {
    let map = Map::of(call, "mapRunArn").await?;
    let run = call.api::<WorkflowRun>().get_opt(&map.object.spec.run).await?;
    let execution = run.as_ref().map_or_else(|| map.object.spec.run.clone(), execution_name);
    let (spec, status) = (&map.object.spec, map.object.status.clone().unwrap_or_default());
    let mut told = map.tell(call, &execution);
    told["status"] = if status.phase.is_empty() { "RUNNING" } else { &status.phase }.into();
    told["maxConcurrency"] = spec.max_concurrency.into();
    told["toleratedFailurePercentage"] = spec.tolerated_failure_percentage.unwrap_or_default().into();
    told["toleratedFailureCount"] = spec.tolerated_failure_count.unwrap_or_default().into();
    told["itemCounts"] = counts(status.items);
    told["executionCounts"] = counts(status.executions);
    told["redriveCount"] = status.redrive_count.into();
    if let Some(at) = status.redrive_date {
        told["redriveDate"] = seconds(at.0);
    }
    Ok(told)
}

pub(super) async fn update(call: &Call<'_>) -> Answer {
    let map = Map::of(call, "mapRunArn").await?;
    let mut spec = json!({});
    for member in ["maxConcurrency", "toleratedFailureCount", "toleratedFailurePercentage"] {
        if let Some(value) = call.request.get(member).filter(|v| v.is_number()) {
            spec[member] = value.clone();
        }
    }
    let patch = Patch::Merge(json!({"spec": spec}));
    call.api::<WorkflowMapRun>().patch(&map.object.name_any(), &PatchParams::default(), &patch).await?;
    Ok(json!({}))
}

/// The executions of the map's run that the request names.
pub(super) async fn executions_of(call: &Call<'_>) -> Answer {
    let map = Map::of(call, "mapRunArn").await?;
    let (status, redriven) = (call.text("statusFilter"), call.text("redriveFilter"));
    let all = maps::executions(&call.endpoint.client, &map.owner()).await?;
    let mut child = Child { map, told: Told::default() };
    let mut rows: Vec<Row> = vec![];
    for (index, told) in all {
        let shown = status.is_none_or(|s| s == told.phase.as_str())
            && redriven.is_none_or(|r| (r == "REDRIVEN") == (told.redrives.0 > 0));
        if shown {
            child.told = told;
            // Those that began at the same time are in the order of their numbers.
            rows.push((newest_first(child.told.start, &format!("{index:010}")), child.tell(call)));
        }
    }
    page(&call.request, "executions", rows)
}

impl Child {
    /// The execution of a map's run that a machine (`MACHINE/LABEL`) and a name mean. None where it is not one of that kind.
    pub(super) async fn find(call: &Call<'_>, member: &str) -> Result<Option<Self>, Fault> {
        let Resource::Execution { machine, name } = call.resource(member)? else { return Ok(None) };
        let Some((machine, label)) = machine.split_once('/') else { return Ok(None) };
        let absent = || Fault::absent("ExecutionDoesNotExist", call.required(member));
        let (map, index) = maps::named(&name).ok_or_else(absent)?;
        let map = Map::named(call, machine.to_owned(), label, map).await?.ok_or_else(absent)?;
        let mut all = maps::executions(&call.endpoint.client, &map.owner()).await?;
        let told = all.remove(&index).ok_or_else(absent)?;
        Ok(Some(Self { map, told }))
    }

    fn name(&self) -> String {
        maps::name_of(&self.map.object.name_any(), self.told.index)
    }

    /// What descriptions and lists have in common.
    fn tell(&self, call: &Call<'_>) -> Value {
        let (map, told) = (&self.map, &self.told);
        let label = Some(map.object.spec.label.clone());
        let mut whole = json!({
            "executionArn": execution_arn(call, &map.labelled(), &self.name()),
            "stateMachineArn": call.arn(Resource::Machine { name: map.machine.clone(), label }),
            "name": self.name(),
            "status": told.phase.as_str(),
            "startDate": seconds(told.start),
            "mapRunArn": map.arn(call),
            "redriveCount": told.redrives.0,
        });
        if let Some(stop) = told.stop {
            whole["stopDate"] = seconds(stop);
        }
        if let Some(at) = told.redrives.1 {
            whole["redriveDate"] = seconds(at);
        }
        whole
    }

    pub(super) async fn describe(&self, call: &Call<'_>) -> Answer {
        let data = self.told.data(&call.endpoint.client, &self.map.owner()).await?;
        let mut whole = self.tell(call);
        include(call, &mut whole, data.input, data.output);
        for (member, value) in [("error", self.told.error.clone()), ("cause", data.cause)] {
            if let Some(value) = value {
                whole[member] = value.into();
            }
        }
        let failed = !matches!(self.told.phase, Phase::Succeeded | Phase::Running);
        whole["redriveStatus"] = if failed { "REDRIVABLE_BY_MAP_RUN" } else { "NOT_REDRIVABLE" }.into();
        if !failed {
            let reason = format!("Execution is {} and cannot be redriven", self.told.phase.as_str());
            whole["redriveStatusReason"] = reason.into();
        }
        Ok(whole)
    }

    /// Its history, from the first event or from the last.
    pub(super) async fn events(&self, call: &Call<'_>, reverse: bool) -> Result<Vec<Value>, RunsError> {
        let mut events = maps::history(&call.endpoint.client, &self.map.object, self.told.index).await?;
        if reverse {
            events.reverse();
        }
        Ok(events)
    }
}
