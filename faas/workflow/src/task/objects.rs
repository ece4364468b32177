//! Tasks on objects of the API: `skiff:kubernetes:{create,apply,patch,delete,get,wait}`, and `skiff:container`.
//!
//! They have the rights of the workflow's ServiceAccount, and no others. What is made carries the key of the task as an
//! annotation: an engine that makes it again finds that it is there. Parameters: `Object` for create and apply; otherwise
//! `ApiVersion`, `Kind`, `Name`, `Namespace`; `Patch` and `Type` (merge, json, strategic); `Condition` of wait, with its
//! `Status` (True). With `.sync` a Job, a Pod, or what has conditions `Complete` and `Failed` is waited for, and deleted where
//! nobody waits any more.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, LogParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Scope, pinned_kind};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use skiff_asl::{ExecutionError, error};
use skiff_controllers::runtime::worker::{code, not_found};
use skiff_faas::outside::as_account;

use super::{Call, Done, failed};
use crate::api::{DATA_MAX, RUN};
use crate::resource::{Pattern, Verb};

/// Annotation of what a task made: its key.
const TASK: &str = "skiff.dev/workflow-task";
/// Field manager of what tasks apply.
const MANAGER: &str = "skiff-workflow";

/// The language's word for what the API says.
fn refused(e: &kube::Error) -> ExecutionError {
    match e {
        kube::Error::Api(status) if status.code == 403 => failed(error::PERMISSIONS, &*status.message),
        kube::Error::Api(status) => failed(&format!("Kubernetes.{}", status.reason), &*status.message),
        other => failed("Kubernetes.Unavailable", other.to_string()),
    }
}

fn wrong(cause: impl Into<String>) -> ExecutionError {
    failed(error::RUNTIME, cause)
}

/// How a job is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Running,
    Well,
    Badly,
}

/// How an object is that is waited for: by its conditions, or by its phase.
fn state(object: &Value) -> State {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let holds =
        |kind: &str| conditions.is_some_and(|all| all.iter().any(|c| c["type"] == kind && c["status"] == "True"));
    let phase = object.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    if holds("Failed") || phase.eq_ignore_ascii_case("failed") {
        State::Badly
    } else if holds("Complete") || holds("Succeeded") || phase.eq_ignore_ascii_case("succeeded") {
        State::Well
    } else {
        State::Running
    }
}

/// An object as a task's output.
fn shown(object: &DynamicObject) -> Value {
    let mut value = json!(object);
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    value
}

/// Which object.
struct Which {
    api: Api<DynamicObject>,
    name: String,
}

impl Call {
    pub(crate) fn asked(&self) -> Client {
        let account = self.info.role.rsplit('/').next().unwrap_or("default");
        as_account(self.client(), &self.owner.namespace, account)
    }

    /// A name that is the same each time this attempt is made.
    fn own_name(&self) -> String {
        let digest = crate::pack::digest(self.key().as_bytes());
        let run: String = self.owner.name.chars().take(40).collect();
        let run = run.trim_end_matches(['.', '-']).replace('.', "-");
        format!("{run}-{}", digest.get(..10).unwrap_or_default())
    }

    async fn kind(&self, api_version: &str, kind: &str) -> Result<(ApiResource, Scope), ExecutionError> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = pinned_kind(self.client(), &kind).await.map_err(|e| refused(&e))?;
        Ok((resource, capabilities.scope))
    }

    fn place(&self, resource: &ApiResource, scope: &Scope, namespace: Option<&str>) -> Api<DynamicObject> {
        match scope {
            Scope::Cluster => Api::all_with(self.asked(), resource),
            Scope::Namespaced => {
                Api::namespaced_with(self.asked(), namespace.unwrap_or(&self.owner.namespace), resource)
            }
        }
    }

    /// The object that the parameters name.
    async fn which(&self) -> Result<Which, ExecutionError> {
        let (resource, scope) = self.kind(self.text("ApiVersion")?, self.text("Kind")?).await?;
        let namespace = self.field("Namespace").and_then(Value::as_str);
        Ok(Which { api: self.place(&resource, &scope, namespace), name: self.text("Name")?.to_owned() })
    }

    /// The object that the parameters hold, as it is to be made.
    async fn made(&self) -> Result<(Which, DynamicObject), ExecutionError> {
        let object = self.field("Object").ok_or_else(|| wrong("the parameters have no Object"))?;
        let mut object: DynamicObject =
            serde_json::from_value(object.clone()).map_err(|e| wrong(format!("the Object: {e}")))?;
        let types = object.types.clone().ok_or_else(|| wrong("the Object has no apiVersion and kind"))?;
        let (resource, scope) = self.kind(&types.api_version, &types.kind).await?;
        if object.metadata.name.is_none() {
            object.metadata.name = Some(self.own_name());
        }
        object.annotations_mut().insert(TASK.to_owned(), self.key());
        object.labels_mut().insert(RUN.to_owned(), self.owner.uid.clone());
        let api = self.place(&resource, &scope, object.metadata.namespace.as_deref());
        // What a run waits for goes with it.
        let same = object.metadata.namespace.as_ref().is_none_or(|n| *n == self.owner.namespace);
        if self.resource.pattern == Pattern::Sync && scope == Scope::Namespaced && same {
            let meta = self.owner.meta(String::new());
            object.metadata.owner_references = object.metadata.owner_references.or(meta.owner_references);
        }
        let name = object.name_any();
        Ok((Which { api, name }, object))
    }

    /// Does something to an object.
    pub(super) async fn object(&self, verb: Verb) -> Result<Done, ExecutionError> {
        let done = match verb {
            Verb::Create | Verb::Apply => {
                let (which, object) = self.made().await?;
                if !self.dispatch.submitted {
                    let made = if verb == Verb::Create {
                        self.create(&which, &object).await?
                    } else {
                        let parameters = PatchParams::apply(MANAGER).force();
                        which
                            .api
                            .patch(&which.name, &parameters, &Patch::Apply(&object))
                            .await
                            .map_err(|e| refused(&e))?
                    };
                    if self.resource.pattern == Pattern::Request {
                        return Ok(Done::Output(shown(&made).to_string()));
                    }
                    if self.resource.pattern == Pattern::Callback {
                        return self.answered(shown(&made).to_string()).await;
                    }
                    self.taken_over(shown(&made).to_string()).await;
                }
                return Ok(Done::Output(self.over(&which).await?.to_string()));
            }
            Verb::Get => {
                let which = self.which().await?;
                shown(&which.api.get(&which.name).await.map_err(|e| refused(&e))?)
            }
            Verb::Patch => {
                let which = self.which().await?;
                let patch = self.field("Patch").ok_or_else(|| wrong("the parameters have no Patch"))?;
                let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                let kind = self.field("Type").and_then(Value::as_str).unwrap_or("merge");
                let patched = match kind {
                    "merge" => which.api.patch(&which.name, &parameters, &Patch::Merge(patch)).await,
                    "strategic" => which.api.patch(&which.name, &parameters, &Patch::Strategic(patch)).await,
                    "json" => {
                        let patch = serde_json::from_value(patch.clone()).map_err(|e| wrong(e.to_string()))?;
                        which.api.patch(&which.name, &parameters, &Patch::Json::<()>(patch)).await
                    }
                    other => return Err(wrong(format!("'{other}' is no type of patch: merge, json, strategic"))),
                };
                shown(&patched.map_err(|e| refused(&e))?)
            }
            Verb::Delete => {
                let which = self.which().await?;
                match which.api.delete(&which.name, &DeleteParams::default()).await {
                    Ok(_) => {}
                    // An engine before this one may have done it.
                    Err(e) if not_found(&e) && self.field("IgnoreNotFound") != Some(&Value::Bool(false)) => {}
                    Err(e) => return Err(refused(&e)),
                }
                json!({"Name": which.name})
            }
            Verb::Wait => {
                let which = self.which().await?;
                let kind = self.text("Condition")?.to_owned();
                let status = self.field("Status").and_then(Value::as_str).unwrap_or("True").to_owned();
                let holds = move |object: Option<&DynamicObject>| {
                    let conditions = object.and_then(|o| o.data.pointer("/status/conditions"));
                    let all = conditions.and_then(Value::as_array);
                    all.is_some_and(|all| all.iter().any(|c| c["type"] == *kind && c["status"] == *status))
                };
                let found = await_condition(which.api, &which.name, holds).await;
                found.map_err(|e| failed("Kubernetes.Unavailable", e.to_string()))?.map_or(Value::Null, |o| shown(&o))
            }
        };
        Ok(Done::Output(done.to_string()))
    }

    /// Makes an object, or finds the one that an earlier try of this attempt made.
    async fn create(&self, which: &Which, object: &DynamicObject) -> Result<DynamicObject, ExecutionError> {
        match which.api.create(&PostParams::default(), object).await {
            Ok(made) => Ok(made),
            Err(e) if code(&e) == 409 => {
                let there = which.api.get(&which.name).await.map_err(|e| refused(&e))?;
                let ours = there.annotations().get(TASK).is_some_and(|key| *key == self.key());
                if ours { Ok(there) } else { Err(refused(&e)) }
            }
            Err(e) => Err(refused(&e)),
        }
    }

    /// Waits for the end of what was made.
    async fn over(&self, which: &Which) -> Result<Value, ExecutionError> {
        let over = |o: Option<&DynamicObject>| o.is_none_or(|o| state(&o.data_with_status()) != State::Running);
        let found = await_condition(which.api.clone(), &which.name, over).await;
        let found = found.map_err(|e| failed("Kubernetes.Unavailable", e.to_string()))?;
        let Some(object) = found else {
            return Err(failed(error::TASK_FAILED, format!("{} was deleted before it was over", which.name)));
        };
        let shown = shown(&object);
        if state(&shown) == State::Badly {
            return Err(failed(error::TASK_FAILED, shown.to_string()));
        }
        Ok(shown)
    }

    /// Runs a container to its end: parameters `Image`, `Command`, `Args`, `Env`, `Resources`. The output is the last line it
    /// printed where that is JSON, otherwise everything it printed.
    pub(super) async fn container(&self) -> Result<Done, ExecutionError> {
        let name = self.own_name();
        let pods = Api::<Pod>::namespaced(self.asked(), &self.owner.namespace);
        if !self.dispatch.submitted {
            let env: Vec<Value> = match self.field("Env") {
                Some(Value::Object(env)) => env
                    .iter()
                    .map(|(k, v)| json!({"name": k, "value": v.as_str().map_or_else(|| v.to_string(), str::to_owned)}))
                    .collect(),
                Some(Value::Array(env)) => env.clone(),
                _ => vec![],
            };
            let account = self.info.role.rsplit('/').next().unwrap_or("default");
            let mut container = json!({"name": "task", "image": self.text("Image")?, "env": env});
            for (field, parameter) in [("command", "Command"), ("args", "Args"), ("resources", "Resources")] {
                if let Some(value) = self.field(parameter) {
                    container[field] = value.clone();
                }
            }
            let mut pod: Pod = serde_json::from_value(json!({
                "spec": {"restartPolicy": "Never", "serviceAccountName": account, "containers": [container]},
            }))
            .map_err(|e| wrong(format!("the container: {e}")))?;
            pod.metadata = self.owner.meta(name.clone());
            pod.metadata.annotations = Some(BTreeMap::from([(TASK.to_owned(), self.key())]));
            match pods.create(&PostParams::default(), &pod).await {
                Ok(_) => {}
                Err(e) if code(&e) == 409 => {
                    let there = pods.get(&name).await.map_err(|e| refused(&e))?;
                    if there.annotations().get(TASK).is_none_or(|key| *key != self.key()) {
                        return Err(refused(&e));
                    }
                }
                Err(e) => return Err(refused(&e)),
            }
            let said = json!({"PodName": name}).to_string();
            if self.resource.pattern == Pattern::Callback {
                return self.answered(said).await;
            }
            self.taken_over(said).await;
        }
        let over = |pod: Option<&Pod>| {
            pod.is_none_or(|p| {
                let phase = p.status.as_ref().and_then(|s| s.phase.as_deref());
                matches!(phase, Some("Succeeded" | "Failed"))
            })
        };
        let found = skiff_client::wait_for(pods.clone(), &name, over).await;
        let found = found.map_err(|e| failed("Kubernetes.Unavailable", e.to_string()))?;
        let pod = found.ok_or_else(|| failed(error::TASK_FAILED, format!("the pod {name} was deleted")))?;
        let limit = i64::try_from(DATA_MAX - 1024).unwrap_or(i64::MAX);
        let log = pods.logs(&name, &LogParams { limit_bytes: Some(limit), ..LogParams::default() }).await;
        let log = log.map_err(|e| refused(&e))?;
        let status = pod.status.unwrap_or_default();
        // It is read; who wants pods to stay makes them with skiff:kubernetes:create.sync.
        let _ = pods.delete(&name, &DeleteParams::default()).await;
        if status.phase.as_deref() == Some("Failed") {
            let ended = status.container_statuses.unwrap_or_default().into_iter().find_map(|c| c.state?.terminated);
            let code = ended.map(|t| t.exit_code);
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            let cause = json!({"ExitCode": code, "Reason": status.reason, "Log": tail.join("\n")});
            return Err(failed(error::TASK_FAILED, cause.to_string()));
        }
        Ok(Done::Output(printed(&log)))
    }

    /// Ends what was made, for nobody waits for it any more.
    pub(crate) async fn undo_object(&self, verb: Verb) {
        if self.resource.pattern == Pattern::Sync
            && matches!(verb, Verb::Create | Verb::Apply)
            && let Ok((which, _)) = self.made().await
            && let Ok(there) = which.api.get(&which.name).await
            && there.annotations().get(TASK).is_some_and(|key| *key == self.key())
        {
            let _ = which.api.delete(&which.name, &DeleteParams::background()).await;
        }
    }

    /// Ends a container, for nobody waits for it any more.
    pub(crate) async fn undo_container(&self) {
        let pods = Api::<Pod>::namespaced(self.asked(), &self.owner.namespace);
        let _ = pods.delete(&self.own_name(), &DeleteParams::default()).await;
    }
}

/// What a container printed, as JSON text.
fn printed(log: &str) -> String {
    let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
    match serde_json::from_str::<serde::de::IgnoredAny>(last) {
        Ok(_) => last.to_owned(),
        Err(_) => Value::String(log.to_owned()).to_string(),
    }
}

/// The whole of an object as JSON, as far as its state is concerned.
trait WithStatus {
    fn data_with_status(&self) -> Value;
}

impl WithStatus for DynamicObject {
    fn data_with_status(&self) -> Value {
        json!({"status": self.data.get("status")})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_over_by_condition_or_phase() {
        for (object, want) in [
            (json!({}), State::Running),
            (json!({"status": {"phase": "Running"}}), State::Running),
            (json!({"status": {"phase": "Succeeded"}}), State::Well),
            (json!({"status": {"phase": "FAILED"}}), State::Badly),
            (json!({"status": {"conditions": [{"type": "Complete", "status": "False"}]}}), State::Running),
            (json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}), State::Well),
            (json!({"status": {"conditions": [{"type": "Failed", "status": "True"}]}}), State::Badly),
        ] {
            assert_eq!(state(&object), want, "{object}");
        }
    }

    #[test]
    fn the_last_line_counts_where_it_is_json() {
        for (log, want) in [
            ("hello\n{\"a\":1}\n\n", "{\"a\":1}"),
            ("7", "7"),
            ("hello\nworld\n", "\"hello\\nworld\\n\""),
            ("", "\"\""),
        ] {
            assert_eq!(printed(log), want);
        }
    }
}
