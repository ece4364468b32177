//! Workflows themselves: whether their definitions are valid, and what triggers them.

use std::collections::HashMap;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use skiff_asl::{Definition, Fault, Severity, StateKind, fault};
use skiff_controllers::runtime::events::Level;
use skiff_controllers::runtime::{now, worker::not_found};

use super::begin::definition_text;
use super::hear::PAGE;
use super::{Engine, Key, map};
use crate::api::Workflow;
use crate::endpoint::latest_version;
use crate::needs::missing;
use crate::pack;
use crate::resource::Resource;
use crate::trigger::Triggers;

/// Characters of a message.
const MESSAGE: usize = 16 * 1024;

/// A definition, if it can run, and everything that is to be said about it: also resources that nothing here does.
#[must_use]
pub fn judge(text: &str) -> (Option<Definition>, Vec<Fault>) {
    let (definition, mut faults) = skiff_asl::check::text(text);
    for (path, resource) in definition.iter().flat_map(Definition::resources) {
        if let Err(why) = Resource::parse(resource) {
            faults.push(Fault::error(fault::INVALID_RESOURCE, path, why));
        }
    }
    if let Some(definition) = &definition {
        definition.machine.visit("", &mut |pointer, state| {
            let StateKind::Map(spread) = &state.kind else { return };
            let mut refuse = |field: &str, why: String| {
                faults.push(Fault::error(fault::INVALID_RESOURCE, format!("{pointer}/{field}"), why));
            };
            if let Some(reader) = &spread.item_reader {
                if !map::SOURCES.contains(&reader.resource.as_str()) {
                    let there = map::SOURCES.join(", ");
                    refuse("ItemReader/Resource", format!("'{}' is not read here; there are {there}", reader.resource));
                }
                if reader.config.input_type.as_deref() == Some("PARQUET") {
                    let why = "files of type PARQUET are not read; there are CSV, JSON, JSONL, MANIFEST";
                    refuse("ItemReader/ReaderConfig/InputType", why.to_owned());
                }
            }
            let target = spread.result_writer.as_ref().and_then(|w| w.resource.as_deref());
            if let Some(target) = target.filter(|t| !map::TARGETS.contains(t)) {
                let there = map::TARGETS.join(", ");
                refuse("ResultWriter/Resource", format!("'{target}' is not written here; there are {there}"));
            }
        });
    }
    let valid = faults.iter().all(|f| f.severity != Severity::Error);
    (definition.filter(|_| valid), faults)
}

impl Engine {
    /// Follows the workflows until it is dropped. What is done once for a workflow is done by one engine of those that share the
    /// runs: all are looked at again when it is another.
    pub(super) async fn hear_workflows(&self) {
        let Some(runs) = self.shared() else { return };
        let triggers = Triggers::new(self.client.clone(), runs);
        let mut agreed = self.share.agreed();
        let mut known = HashMap::new();
        loop {
            tokio::select! {
                () = self.follow_workflows(&triggers, &mut known) => return,
                _ = agreed.changed() => self.gives_no_places(),
            }
        }
    }

    async fn follow_workflows(&self, triggers: &Triggers, known: &mut HashMap<Key, Workflow>) {
        let all = Api::<Workflow>::all(self.client.clone());
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = skiff_client::watch(all, config);
        // What each is called, so that those that are missing in a list are known.
        let mut listed: HashMap<Key, Workflow> = HashMap::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(workflow)) => {
                    self.mind(triggers, &workflow).await;
                    listed.insert(key_of(&workflow), named(&workflow));
                }
                Ok(Event::InitDone) => {
                    let old = std::mem::replace(known, std::mem::take(&mut listed));
                    for (_, gone) in old.iter().filter(|(k, _)| !known.contains_key(*k)) {
                        triggers.gone(gone);
                        self.keeps_nothing(&key_of(gone));
                    }
                }
                Ok(Event::Apply(workflow)) => {
                    self.mind(triggers, &workflow).await;
                    known.insert(key_of(&workflow), named(&workflow));
                }
                Ok(Event::Delete(workflow)) => {
                    triggers.gone(&workflow);
                    self.keeps_nothing(&key_of(&workflow));
                    known.remove(&key_of(&workflow));
                }
                Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "the watch of workflows begins anew"),
            }
        }
    }

    /// A workflow is as it is now: does what is to be done for it once, where that is this engine's to do.
    async fn mind(&self, triggers: &Triggers, workflow: &Workflow) {
        let key = key_of(workflow);
        if !self.minds(&key.0, &key.1) {
            triggers.gone(workflow);
            self.keeps_nothing(&key);
            return;
        }
        self.gives_places(workflow).await;
        triggers.changed(workflow);
        self.judged(workflow).await;
        self.keeps(workflow).await;
    }

    /// Says in a workflow's status whether it is valid, where that is not said yet.
    async fn judged(&self, workflow: &Workflow) {
        let status = workflow.status.clone().unwrap_or_default();
        let generation = workflow.metadata.generation;
        // Who publishes notes the number in an annotation.
        let version = latest_version(workflow).max(status.latest_version);
        let said = status.observed_generation == generation && version == status.latest_version;
        if workflow.metadata.deletion_timestamp.is_some() || said {
            return;
        }
        let text = definition_text(&workflow.spec.definition);
        let (definition, mut faults) = judge(&text);
        let valid = definition.is_some();
        if let Some(definition) = &definition {
            // As it is now: what comes later is not looked for again.
            match missing(&self.client, &key_of(workflow).0, definition).await {
                Ok(missing) => faults.extend(missing),
                Err(e) => {
                    tracing::debug!(error = &e as &dyn std::error::Error, "what a workflow calls is not looked for")
                }
            }
        }
        let message: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let message: String = message.join("\n").chars().take(MESSAGE).collect();
        let reason = match (valid, faults.is_empty()) {
            (true, true) => "Valid",
            (true, false) => "Warnings",
            (false, _) => "InvalidDefinition",
        };
        let word = if valid { "True" } else { "False" };
        let before = status.conditions.iter().find(|c| c.type_ == "Valid");
        let since = before.filter(|c| c.status == word).map_or_else(now, |c| c.last_transition_time.clone());
        let condition = Condition {
            type_: "Valid".to_owned(),
            status: word.to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            last_transition_time: since,
            observed_generation: generation,
        };
        let patch = json!({"status": {
            "observedGeneration": generation, "conditions": [condition], "revision": pack::digest(text.as_bytes()),
            "latestVersion": version,
        }});
        let (namespace, name) = key_of(workflow);
        let api = Api::<Workflow>::namespaced(self.client.clone(), &namespace);
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {}
            Err(e) if not_found(&e) => return,
            Err(e) => {
                tracing::warn!(namespace, name, error = &e as &dyn std::error::Error, "a workflow is not judged");
                return;
            }
        }
        if !valid {
            let message: String = message.chars().take(1024).collect();
            self.recorder.note(workflow, Level::Warning, "InvalidDefinition", message);
        }
    }
}

fn key_of(workflow: &Workflow) -> Key {
    (workflow.namespace().unwrap_or_default(), workflow.name_any())
}

/// As much of a workflow as says which it is.
fn named(workflow: &Workflow) -> Workflow {
    let (namespace, name) = key_of(workflow);
    let mut named = Workflow::new(&name, crate::api::WorkflowSpec::default());
    named.metadata.namespace = Some(namespace);
    named.metadata.uid.clone_from(&workflow.metadata.uid);
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_that_nothing_does_are_faults() {
        let with = |resource: &str| {
            format!(r#"{{"StartAt":"A","States":{{"A":{{"Type":"Task","Resource":"{resource}","End":true}}}}}}"#)
        };
        let (definition, faults) = judge(&with("arn:aws:states:::sqs:sendMessage"));
        assert!(definition.is_none());
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].path, "/States/A/Resource");
        let (definition, faults) = judge(&with("skiff:function:add"));
        assert!(definition.is_some() && faults.is_empty(), "{faults:?}");
    }
}
