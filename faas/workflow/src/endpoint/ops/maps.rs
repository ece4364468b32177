//! Runs of distributed maps, as far as the status of their run tells of them (the last 20).

use serde_json::{Value, json};

use super::executions::{self, Found};
use super::{Call, seconds};
use crate::api::MapRunStatus;
use crate::endpoint::arn::Resource;
use crate::endpoint::error::{Answer, Fault};
use crate::endpoint::page::{Row, page};

fn tell(call: &Call<'_>, found: &Found, map: &MapRunStatus) -> Value {
    let id = found.execution.clone();
    let arn = Resource::MapRun { machine: found.machine.clone(), label: map.name.clone(), id };
    json!({"mapRunArn": call.arn(arn), "executionArn": found.arn(call),
        "stateMachineArn": call.arn(Resource::Machine { name: found.machine.clone(), label: Some(map.name.clone()) }),
        "startDate": seconds(found.started())})
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let found = executions::find(call, "executionArn").await?;
    let maps = found.run.status.as_ref().map(|s| s.map_runs.clone()).unwrap_or_default();
    let rows: Vec<Row> = maps.iter().map(|m| (m.name.clone(), tell(call, &found, m))).collect();
    page(&call.request, "mapRuns", rows)
}

pub(super) async fn describe(call: &Call<'_>) -> Answer {
    let arn = call.required("mapRunArn");
    let Resource::MapRun { machine, label, id } = call.resource("mapRunArn")? else {
        return Err(call.wrong("mapRunArn"));
    };
    let absent = || Fault::absent("ResourceNotFound", arn);
    let found = executions::find_named(call, &machine, &id, arn).await.map_err(|_| absent())?;
    let maps = found.run.status.as_ref().map(|s| s.map_runs.as_slice()).unwrap_or_default();
    let map = maps.iter().find(|m| m.name == label).ok_or_else(absent)?;
    let counts = json!({"pending": map.pending, "running": map.running, "succeeded": map.succeeded, "failed": map.failed,
        "timedOut": 0, "aborted": map.aborted, "total": map.total, "resultsWritten": 0});
    let mut answer = tell(call, &found, map);
    answer["status"] = map.phase.clone().into();
    answer["maxConcurrency"] = 0.into();
    answer["toleratedFailurePercentage"] = 0.0.into();
    answer["toleratedFailureCount"] = 0.into();
    answer["itemCounts"] = counts.clone();
    answer["executionCounts"] = counts;
    answer["redriveCount"] = 0.into();
    if let Some(stop) = found.run.status.as_ref().and_then(|s| s.stop_time.as_ref()).filter(|_| map.phase != "RUNNING")
    {
        answer["stopDate"] = seconds(stop.0);
    }
    if let Some(members) = answer.as_object_mut() {
        members.remove("stateMachineArn");
    }
    Ok(answer)
}

/// What a run pinned does not change.
pub(super) fn update(call: &Call<'_>) -> Answer {
    match call.resource("mapRunArn")? {
        Resource::MapRun { .. } => Err(Fault::validation("A run of a map keeps the settings with which it began.")),
        _ => Err(call.wrong("mapRunArn")),
    }
}
