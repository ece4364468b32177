//! Executions: WorkflowRuns.

use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};

use super::{Call, created, invalid_name, machines, maps, seconds, versions};
use crate::api::{Kind, Phase, Stop, Workflow, WorkflowRun};
use crate::endpoint::arn::{self, Resource};
use crate::endpoint::error::{Answer, Fault};
use crate::endpoint::page::{self, Row, newest_first};
use crate::pack::digest;
use crate::runs::{Cursor, Events, Pinned, Start, run_name};

/// Runs in one answer of the API.
const PAGE: u32 = 500;

/// An execution that an ARN names.
pub(super) struct Found {
    /// Name of the machine, as the service's clients know it.
    pub(super) machine: String,
    /// Name of the execution.
    pub(super) execution: String,
    pub(super) run: WorkflowRun,
}

impl Found {
    pub(super) fn arn(&self, call: &Call<'_>) -> String {
        execution_arn(call, &self.machine, &self.execution)
    }

    pub(super) fn started(&self) -> k8s_openapi::jiff::Timestamp {
        let status = self.run.status.as_ref();
        status.and_then(|s| s.start_time.as_ref()).map_or_else(|| created(&self.run), |t| t.0)
    }

    fn name(&self) -> String {
        self.run.name_any()
    }

    /// What descriptions and lists have in common.
    fn tell(&self, call: &Call<'_>) -> Value {
        let (spec, status) = (&self.run.spec, self.run.status.clone().unwrap_or_default());
        let machine = Resource::Machine { name: self.machine.clone(), label: None };
        let mut told = json!({
            "executionArn": self.arn(call),
            "stateMachineArn": call.arn(machine),
            "name": self.execution,
            "status": word(status.phase),
            "startDate": seconds(self.started()),
            "redriveCount": status.redrive_count,
        });
        if let Some(stop) = status.stop_time.filter(|_| status.phase.is_over()) {
            told["stopDate"] = seconds(stop.0);
        }
        if let Some(date) = status.redrive_date {
            told["redriveDate"] = seconds(date.0);
        }
        if let Some(number) = spec.version.or(status.version) {
            told["stateMachineVersionArn"] = versions::arn_of(call, &self.machine, number).into();
        }
        if let Some(alias) = &spec.alias {
            let alias = Resource::Alias { machine: self.machine.clone(), alias: alias.clone() };
            told["stateMachineAliasArn"] = call.arn(alias).into();
        }
        told
    }
}

/// The service has no word for a run that waits for its turn.
fn word(phase: Phase) -> &'static str {
    if phase == Phase::Pending { "RUNNING" } else { phase.as_str() }
}

pub(super) fn execution_arn(call: &Call<'_>, machine: &str, execution: &str) -> String {
    call.arn(Resource::Execution { machine: machine.to_owned(), name: execution.to_owned() })
}

/// The name of a run as an execution.
pub(super) fn execution_name(run: &WorkflowRun) -> String {
    run.spec.name.clone().unwrap_or_else(|| run.name_any())
}

/// The execution of an ARN of the request.
pub(super) async fn find(call: &Call<'_>, member: &str) -> Result<Found, Fault> {
    match call.resource(member)? {
        Resource::Execution { machine, name } | Resource::Express { machine, name, .. } => {
            find_named(call, &machine, &name, call.required(member)).await
        }
        _ => Err(call.wrong(member)),
    }
}

pub(super) async fn find_named(call: &Call<'_>, machine: &str, execution: &str, arn: &str) -> Result<Found, Fault> {
    let workflow = arn::object_name(machine);
    let api = call.api::<WorkflowRun>();
    let ours = |run: &WorkflowRun| {
        // A run with a definition of its own is an execution of a machine of its own.
        let of = run.spec.workflow.clone().unwrap_or_else(|| run.name_any());
        of == workflow && execution_name(run) == execution
    };
    // Runs that people made have the name that they gave.
    for name in [run_name(&workflow, execution), execution.to_owned()] {
        if !skiff_core::names::is_dns1123_subdomain(&name).is_empty() {
            continue;
        }
        if let Some(run) = api.get_opt(&name).await?.filter(ours) {
            return Ok(Found { machine: machine.to_owned(), execution: execution.to_owned(), run });
        }
    }
    Err(Fault::absent("ExecutionDoesNotExist", arn))
}

/// What is to be started: the machine's name, and the request of a run.
async fn wanted(call: &Call<'_>) -> Result<(String, Workflow, Start), Fault> {
    let arn = call.required("stateMachineArn");
    let (machine, version, alias) = match call.resource("stateMachineArn")? {
        Resource::Machine { name, label: None } => (name, None, None),
        Resource::Version { machine, number } => (machine, Some(number), None),
        Resource::Alias { machine, alias } => (machine, None, Some(alias)),
        _ => return Err(call.wrong("stateMachineArn")),
    };
    if let Some(name) = call.text("name").filter(|n| !arn::is_name(n)) {
        return Err(invalid_name(name));
    }
    let input = call.text("input").unwrap_or("{}");
    if let Err(e) = serde_json::from_str::<serde::de::IgnoredAny>(input) {
        return Err(Fault::new("InvalidExecutionInput", format!("Invalid State Machine Execution Input: '{e}'")));
    }
    let workflow = call.workflow(&machine, arn).await?;
    let absent = || Fault::absent("StateMachineDoesNotExist", arn);
    if let Some(number) = version {
        call.version(&workflow.name_any(), number).await?.ok_or_else(absent)?;
    }
    if let Some(alias) = &alias {
        workflow.spec.aliases.iter().find(|a| a.name == *alias).ok_or_else(absent)?;
    }
    let start = Start {
        namespace: call.namespace.clone(),
        workflow: workflow.name_any(),
        version,
        alias,
        name: call.text("name").map(str::to_owned),
        input: input.to_owned(),
        trace_header: call.text("traceHeader").map(str::to_owned),
        parent: None,
        another: false,
    };
    Ok((machine, workflow, start))
}

pub(super) async fn start(call: &Call<'_>) -> Answer {
    let (machine, workflow, mut start) = wanted(call).await?;
    let name = start.name.clone().unwrap_or_default();
    start.another = workflow.spec.kind == Kind::Express;
    let started = call.endpoint.runs.start(start).await;
    let started = started.map_err(|e| call.failed(e, &execution_arn(call, &machine, &name)))?;
    let arn = match workflow.spec.kind {
        Kind::Standard => execution_arn(call, &machine, &started.name),
        Kind::Express => express_arn(call, &machine, &started.name, &started.run),
    };
    Ok(json!({"executionArn": arn, "startDate": seconds(started.at)}))
}

/// The ARN of an express execution: another of the same name has another id.
fn express_arn(call: &Call<'_>, machine: &str, name: &str, run: &str) -> String {
    let id = digest(format!("{machine}/{name}/{run}").as_bytes());
    let id = id.get(..32).unwrap_or_default().to_owned();
    call.arn(Resource::Express { machine: machine.to_owned(), name: name.to_owned(), id })
}

pub(super) async fn start_sync(call: &Call<'_>) -> Answer {
    let (machine, workflow, start) = wanted(call).await?;
    if workflow.spec.kind != Kind::Express {
        return Err(call.failed(crate::runs::RunsError::WrongType, call.required("stateMachineArn")));
    }
    let (input, trace) = (start.input.clone(), start.trace_header.clone());
    let outcome = call.endpoint.runs.start_sync(start).await;
    let outcome = outcome.map_err(|e| call.failed(e, call.required("stateMachineArn")))?;
    let millis = outcome.stop.duration_since(outcome.start).as_millis().max(0);
    let mut told = json!({
        "executionArn": express_arn(call, &machine, &outcome.name, &outcome.start.to_string()),
        "stateMachineArn": call.arn(Resource::Machine { name: machine, label: None }),
        "name": outcome.name,
        "startDate": seconds(outcome.start),
        "stopDate": seconds(outcome.stop),
        "status": outcome.phase.as_str(),
        "error": outcome.error,
        "cause": outcome.cause,
        "traceHeader": trace,
        // As the service counts: in steps of 100 ms and 64 MB.
        "billingDetails": {"billedMemoryUsedInMB": 64,
            "billedDurationInMilliseconds": i64::try_from(millis).unwrap_or(i64::MAX).saturating_add(99) / 100 * 100},
    });
    include(call, &mut told, input, outcome.output);
    Ok(told)
}

/// Adds input and output, where the caller wants them.
pub(super) fn include(call: &Call<'_>, told: &mut Value, input: String, output: Option<String>) {
    let included = call.text("includedData") != Some("METADATA_ONLY");
    if !included {
        told["inputDetails"] = json!({"included": false});
        told["outputDetails"] = json!({"included": false});
        return;
    }
    told["input"] = input.into();
    told["inputDetails"] = json!({"included": true});
    if let Some(output) = output {
        told["output"] = output.into();
        told["outputDetails"] = json!({"included": true});
    }
}

pub(super) async fn stop(call: &Call<'_>) -> Answer {
    let found = find(call, "executionArn").await?;
    let own = |member: &str| call.text(member).map(str::to_owned);
    let stop = Stop { error: own("error"), cause: own("cause") };
    let over = found.run.status.as_ref().filter(|s| s.phase.is_over()).and_then(|s| s.stop_time.as_ref());
    if let Some(stopped) = over {
        return Ok(json!({"stopDate": seconds(stopped.0)}));
    }
    let at = call.endpoint.runs.stop(&call.namespace, &found.name(), stop).await;
    Ok(json!({"stopDate": seconds(at.map_err(|e| call.failed(e, call.required("executionArn")))?)}))
}

pub(super) async fn redrive(call: &Call<'_>) -> Answer {
    let found = find(call, "executionArn").await?;
    let at = call.endpoint.runs.redrive(&call.namespace, &found.name(), call.text("clientToken")).await;
    Ok(json!({"redriveDate": seconds(at.map_err(|e| call.failed(e, call.required("executionArn")))?)}))
}

pub(super) async fn describe(call: &Call<'_>) -> Answer {
    if let Some(child) = maps::Child::find(call, "executionArn").await? {
        return child.describe(call).await;
    }
    let mut found = find(call, "executionArn").await?;
    let whole = call.endpoint.runs.describe(&call.namespace, &found.name()).await;
    let whole = whole.map_err(|e| call.failed(e, call.required("executionArn")))?;
    found.run = whole.run;
    let mut told = found.tell(call);
    let status = found.run.status.clone().unwrap_or_default();
    include(call, &mut told, whole.input, whole.output);
    for (member, value) in
        [("traceHeader", found.run.spec.trace_header.clone()), ("error", status.error), ("cause", status.cause)]
    {
        if let Some(value) = value {
            told[member] = value.into();
        }
    }
    let redrivable = matches!(status.phase, Phase::Failed | Phase::TimedOut | Phase::Aborted);
    told["redriveStatus"] = if redrivable { "REDRIVABLE" } else { "NOT_REDRIVABLE" }.into();
    if !redrivable {
        let reason = format!("Execution is {} and cannot be redriven", word(status.phase));
        told["redriveStatusReason"] = reason.into();
    }
    Ok(told)
}

pub(super) async fn describe_machine(call: &Call<'_>) -> Answer {
    let found = find(call, "executionArn").await?;
    let workflow = match &found.run.spec.workflow {
        Some(name) => call.api::<Workflow>().get_opt(name).await?,
        None => None,
    };
    // What the run pinned; one that has not begun yet pins what there is now.
    let pinned = match call.endpoint.runs.pinned(&call.namespace, &found.name()).await {
        Ok(pinned) => pinned,
        Err(crate::runs::RunsError::Unavailable(_)) if workflow.is_some() => {
            let w = workflow.as_ref();
            let definition = w.map(|w| machines::text_of(&w.spec.definition)).unwrap_or_default();
            Pinned { revision: digest(definition.as_bytes()), definition, ..Pinned::default() }
        }
        Err(e) => return Err(call.failed(e, call.required("executionArn"))),
    };
    let workflow = workflow.unwrap_or_else(|| {
        let mut gone = Workflow::new(&arn::object_name(&found.machine), crate::api::WorkflowSpec::default());
        gone.annotations_mut().insert(arn::NAME.to_owned(), found.machine.clone());
        gone
    });
    let mut told = machines::tell(call, &workflow);
    if let Some(members) = told.as_object_mut() {
        members.remove("type");
    }
    told["stateMachineArn"] = call.arn(Resource::Machine { name: found.machine.clone(), label: None }).into();
    told["definition"] = match call.text("includedData") {
        Some("METADATA_ONLY") => "{}".to_owned(),
        _ => machines::text_of(&Value::String(pinned.definition)),
    }
    .into();
    told["revisionId"] = pinned.revision.into();
    told["updateDate"] = seconds(found.started());
    Ok(told)
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let (arn, map) = (call.text("stateMachineArn"), call.text("mapRunArn"));
    let (machine, version, alias) = match (arn, map) {
        (Some(arn), None) => match call.resource_of(arn)? {
            Resource::Machine { name, label: None } => (name, None, None),
            Resource::Version { machine, number } => (machine, Some(number), None),
            Resource::Alias { machine, alias } => (machine, None, Some(alias)),
            _ => return Err(call.wrong("stateMachineArn")),
        },
        (None, Some(_)) => return maps::executions_of(call).await,
        _ => return Err(Fault::validation("Must provide a 'stateMachineArn' or a 'mapRunArn', and not both.")),
    };
    let workflow = call.workflow(&machine, arn.unwrap_or_default()).await?;
    if workflow.spec.kind == Kind::Express {
        return Err(call.failed(crate::runs::RunsError::WrongType, &machine));
    }
    let object = workflow.name_any();
    let (status, redriven) = (call.text("statusFilter"), call.text("redriveFilter"));
    let mut rows: Vec<Row> = vec![];
    // The server looks through all runs, and sends those of this workflow.
    let mut params = ListParams::default().fields(&format!("spec.workflow={object}")).limit(PAGE);
    loop {
        let page = call.api::<WorkflowRun>().list(&params).await?;
        for run in page.items {
            let (spec, now) = (&run.spec, run.status.clone().unwrap_or_default());
            let ours = spec.workflow.as_ref() == Some(&object)
                && version.is_none_or(|v| spec.version.or(now.version) == Some(v))
                && alias.as_ref().is_none_or(|a| spec.alias.as_ref() == Some(a))
                && status.is_none_or(|s| s == word(now.phase))
                && redriven.is_none_or(|r| (r == "REDRIVEN") == (now.redrive_count > 0));
            if ours {
                let found = Found { machine: machine.clone(), execution: execution_name(&run), run };
                rows.push((newest_first(found.started(), &found.name()), found.tell(call)));
            }
        }
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(more) => params = params.continue_token(&more),
            None => break,
        }
    }
    page::page(&call.request, "executions", rows)
}

pub(super) async fn history(call: &Call<'_>) -> Answer {
    let child = maps::Child::find(call, "executionArn").await?;
    let from = page::after(&call.request)?;
    let invalid = || Fault::new("InvalidToken", "Invalid Token: 'Invalid token'");
    let from = from.map(|text| cursor(&text).ok_or_else(invalid)).transpose()?;
    let reverse = call.request["reverseOrder"].as_bool().unwrap_or_default();
    let limit = page::limit(&call.request);
    let events = match child {
        Some(child) => child.events(call, reverse).await.map(|all| part(all, from, limit)),
        None => {
            let found = find(call, "executionArn").await?;
            call.endpoint.runs.history(&call.namespace, &found.name(), from, reverse, limit).await
        }
    };
    let events = events.map_err(|e| call.failed(e, call.required("executionArn")))?;
    let data = call.request["includeExecutionData"].as_bool().unwrap_or(true);
    let told: Vec<Value> = events.events.into_iter().map(|e| event(e, data)).collect();
    let mut answer = json!({"events": told});
    if let Some(next) = events.next {
        answer["nextToken"] = page::token(&format!("{}/{}", next.page, next.event)).into();
    }
    Ok(answer)
}

/// A part of events that are all there; the cursor says how many were told.
fn part(all: Vec<Value>, from: Option<Cursor>, limit: usize) -> Events {
    let begin = from.and_then(|c| usize::try_from(c.event).ok()).unwrap_or_default();
    let more = all.len() > begin.saturating_add(limit);
    let next = more.then(|| Cursor { page: 1, event: i64::try_from(begin + limit).unwrap_or(i64::MAX) });
    Events { events: all.into_iter().skip(begin).take(limit).collect(), next }
}

fn cursor(text: &str) -> Option<Cursor> {
    let (page, event) = text.split_once('/')?;
    Some(Cursor { page: page.parse().ok().filter(|p| *p > 0)?, event: event.parse().ok().filter(|e| *e >= 0)? })
}

/// An event as clients read it: its time in seconds, data where it is wanted.
fn event(mut event: Value, data: bool) -> Value {
    let time = event["timestamp"].as_str().and_then(|t| t.parse().ok());
    if let Some(time) = time {
        event["timestamp"] = seconds(time);
    }
    let details = event.as_object_mut().into_iter().flat_map(|e| e.iter_mut());
    for details in details.filter(|(key, _)| key.ends_with("EventDetails")).filter_map(|(_, v)| v.as_object_mut()) {
        for member in ["input", "output"] {
            if !details.contains_key(member) {
                continue;
            }
            if data {
                details.entry(format!("{member}Details")).or_insert_with(|| json!({"truncated": false}));
            } else {
                details.remove(member);
            }
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_as_clients_read_them() {
        let stored = json!({"id": 2, "timestamp": "2026-01-01T00:00:01.5Z", "type": "PassStateEntered",
            "stateEnteredEventDetails": {"name": "A", "input": "{}"}});
        let told = event(stored.clone(), true);
        assert_eq!(told["timestamp"], json!(1_767_225_601.5));
        assert_eq!(
            told["stateEnteredEventDetails"],
            json!({"name": "A", "input": "{}", "inputDetails": {"truncated": false}})
        );
        assert_eq!(event(stored, false)["stateEnteredEventDetails"], json!({"name": "A"}));
    }

    #[test]
    fn places_in_histories_are_read() {
        assert_eq!(cursor("3/70"), Some(Cursor { page: 3, event: 70 }));
        for bad in ["", "3", "0/1", "-1/1", "1/-1", "a/b"] {
            assert_eq!(cursor(bad), None, "{bad}");
        }
    }
}
