//! Workflows as people write them: judges their definitions, says so in the status, and looks after their triggers.
//!
//! Nothing is kept in memory: a status is written only where it would say something else.

use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use skiff_controllers::runtime::events::{Level, Recorder};
use tokio_util::sync::CancellationToken;

use crate::api::{Workflow, WorkflowStatus};
use crate::endpoint::latest_version;
use crate::engine::definition_text;
use crate::judge::{errors, judge};
use crate::pack::digest;
use crate::trigger::Triggers;

/// Objects in one answer of a list: definitions may be long.
const PAGE: u32 = 50;
/// Letters of the condition's message.
const MESSAGE: usize = 16 * 1024;
/// The condition.
const VALID: &str = "Valid";

/// Follows workflows until `stop`.
pub(crate) async fn follow(client: Client, triggers: Arc<Triggers>, stop: CancellationToken) {
    let recorder = Recorder::start(client.clone(), "skiff-workflows");
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = Box::pin(watch(Api::<Workflow>::all(client.clone()), config).default_backoff());
    while let Some(event) = stop.run_until_cancelled(events.next()).await.flatten() {
        match event {
            Ok(Event::InitApply(workflow) | Event::Apply(workflow)) => {
                triggers.changed(&workflow);
                look(&client, &recorder, &workflow).await;
            }
            Ok(Event::Delete(workflow)) => triggers.gone(&workflow),
            Ok(Event::Init | Event::InitDone) => {}
            Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "the watch of workflows begins anew"),
        }
    }
}

/// Says what a workflow's definition is worth, where that is not said yet.
async fn look(client: &Client, recorder: &Recorder, workflow: &Workflow) {
    let status = workflow.status.clone().unwrap_or_default();
    let version = latest_version(workflow).max(status.latest_version);
    if status.observed_generation == workflow.metadata.generation && version == status.latest_version {
        return;
    }
    let (_, faults) = judge(&workflow.spec.definition);
    let wrong = errors(&faults);
    let condition = condition(workflow, &status, &wrong);
    if !wrong.is_empty() && !status.conditions.contains(&condition) {
        let text = condition.message.clone();
        recorder.note(workflow, Level::Warning, "InvalidDefinition", text);
    }
    let revision = digest(definition_text(&workflow.spec.definition).as_bytes());
    let patch = json!({"status": {"observedGeneration": workflow.metadata.generation, "conditions": [condition],
        "revision": revision, "latestVersion": version}});
    let api = Api::<Workflow>::namespaced(client.clone(), &workflow.namespace().unwrap_or_default());
    // What is gone meanwhile needs no status; what changed comes again.
    if let Err(e) = api.patch_status(&workflow.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        tracing::debug!(workflow = workflow.name_any(), error = &e as &dyn std::error::Error, "no status is written");
    }
}

fn condition(workflow: &Workflow, status: &WorkflowStatus, wrong: &[String]) -> Condition {
    let valid = wrong.is_empty();
    let mut message = wrong.join("\n");
    if message.len() > MESSAGE {
        let end = (0..=MESSAGE).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    let state = if valid { "True" } else { "False" };
    let before = status.conditions.iter().find(|c| c.type_ == VALID && c.status == state);
    Condition {
        type_: VALID.to_owned(),
        status: state.to_owned(),
        reason: if valid { "Valid" } else { "InvalidDefinition" }.to_owned(),
        message,
        observed_generation: workflow.metadata.generation,
        last_transition_time: before.map_or_else(|| Time(Timestamp::now()), |c| c.last_transition_time.clone()),
    }
}
