//! What starts workflows beside people: time, changes of objects, requests.
//!
//! Time and objects are waited for by the triggers that functions have (skiff-faas); here an occasion is a run. It is named
//! after its occasion, so one that is told twice, after a restart or by two processes, is one run. How far a trigger is stands in
//! the workflow's status.

pub mod http;

use std::sync::Arc;

use async_trait::async_trait;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use skiff_faas::api::{Cron, TriggerStatus, Watch};
use skiff_faas::trigger::{Occasion, Of, Owner, Running, Untold, patch_of};

use crate::api::{Trigger, Workflow};
use crate::pack::digest;
use crate::runs::{Runs, RunsError, Start};

/// The triggers of all workflows.
pub struct Triggers {
    client: Client,
    runs: Arc<dyn Runs>,
    running: Running<Trigger>,
}

impl Triggers {
    /// None run yet.
    #[must_use]
    pub fn new(client: Client, runs: Arc<dyn Runs>) -> Self {
        Self { client, runs, running: Running::default() }
    }

    /// A workflow is as it is now: starts and ends what that means. To be called on every change and at the start; quick, on
    /// the runtime.
    pub fn changed(&self, workflow: &Workflow) {
        let deleted = workflow.metadata.deletion_timestamp.is_some();
        // Requests come by themselves.
        let waits = |t: &&Trigger| !deleted && (t.cron.is_some() || t.objects.is_some());
        let wanted: Vec<Trigger> = workflow.spec.triggers.iter().filter(waits).cloned().collect();
        let account = workflow.spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
        let uid = workflow.uid().unwrap_or_default();
        let known = workflow.status.clone().unwrap_or_default().triggers;
        let identity = format!("{uid}/{account}");
        self.running.changed(
            &key_of(workflow),
            &identity,
            &wanted,
            |t| &t.name,
            |trigger| {
                let owner = Starts {
                    client: self.client.clone(),
                    runs: Arc::clone(&self.runs),
                    namespace: workflow.namespace().unwrap_or_default(),
                    workflow: workflow.name_any(),
                    uid: uid.clone(),
                    trigger: trigger.name.clone(),
                    input: trigger.cron.as_ref().and_then(|c| c.input.clone()),
                };
                let of = Of {
                    client: self.client.clone(),
                    namespace: owner.namespace.clone(),
                    account: account.clone(),
                    about: format!("workflow {}, trigger {}", workflow.name_any(), trigger.name),
                    owner: Box::new(owner),
                };
                let known =
                    known.get(&trigger.name).and_then(|k| serde_json::from_value(json!(k)).ok()).unwrap_or_default();
                run(of, trigger.clone(), known)
            },
        );
    }

    /// A workflow is gone.
    pub fn gone(&self, workflow: &Workflow) {
        self.running.gone(&key_of(workflow));
    }
}

fn key_of(workflow: &Workflow) -> String {
    format!("{}/{}", workflow.namespace().unwrap_or_default(), workflow.name_any())
}

async fn run(of: Of, trigger: Trigger, known: TriggerStatus) {
    let known = of.begin(known).await;
    if let Some(spec) = trigger.cron {
        let spec = Cron { schedule: spec.schedule, time_zone: spec.time_zone, body: None };
        of.by_time(&spec, known).await;
    } else if let Some(spec) = trigger.objects {
        let spec = Watch {
            api_version: spec.api_version,
            kind: spec.kind,
            namespace: spec.namespace,
            selector: spec.selector,
            events: spec.events,
        };
        of.by_objects(&spec, known).await;
    }
}

/// Occasions that are runs of a workflow.
struct Starts {
    client: Client,
    runs: Arc<dyn Runs>,
    namespace: String,
    workflow: String,
    uid: String,
    trigger: String,
    /// Of runs by time, where the trigger has one.
    input: Option<Value>,
}

impl Starts {
    fn start(&self, occasion: &Occasion) -> Start {
        let whole = digest(format!("{}/{}/{}", self.uid, self.trigger, occasion.id).as_bytes());
        let trigger = self.trigger.get(..48).unwrap_or(&self.trigger);
        let input = match (&self.input, occasion.kind.as_str()) {
            (Some(input), "cron") => input.clone(),
            (None, "cron") => json!({"trigger": self.trigger, "time": occasion.time.to_string()}),
            _ => {
                let mut body: Value = serde_json::from_slice(&occasion.body).unwrap_or_default();
                body["trigger"] = self.trigger.clone().into();
                body
            }
        };
        Start {
            namespace: self.namespace.clone(),
            workflow: self.workflow.clone(),
            name: Some(format!("{trigger}-{}", &whole[..16])),
            input: input.to_string(),
            ..Start::default()
        }
    }
}

#[async_trait]
impl Owner for Starts {
    async fn tell(&self, occasion: &Occasion) -> Result<(), Untold> {
        match self.runs.start(self.start(occasion)).await {
            // It was told before.
            Ok(_) | Err(RunsError::AlreadyExists(_)) => Ok(()),
            Err(e @ (RunsError::Unavailable(_) | RunsError::TooMany(_))) => Err(Untold::Yet(e.to_string())),
            Err(e) => Err(Untold::Ever(e.to_string())),
        }
    }

    async fn report(&self, status: &TriggerStatus) {
        let api: Api<Workflow> = Api::namespaced(self.client.clone(), &self.namespace);
        let patch = Patch::Merge(patch_of(&self.trigger, status));
        if let Err(e) = api.patch_status(&self.workflow, &PatchParams::default(), &patch).await {
            tracing::debug!(workflow = self.workflow, trigger = self.trigger, error = %e, "a trigger's status waits");
        }
    }
}
