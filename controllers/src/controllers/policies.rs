//! Type checking of validating policies: what is doubtful in one is told in its status, once for every generation.
//!
//! The structures of built-in kinds are in the schema table; those of definitions are read when a policy is about one.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use skiff_core::custom::Definition;
use skiff_core::custom::cel::typecheck::{self, KINDS_MAX};
use skiff_core::resources;
use skiff_core::schema::{Handle, Struct};

use crate::runtime::informer::Informer;
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Error, Outcome, Reconcile, found};

const NAME: &str = "validatingadmissionpolicy-status-controller";

/// The controller.
pub struct Controller {
    client: Client,
    /// May list definitions.
    reader: Client,
    policies: Informer<ValidatingAdmissionPolicy>,
    queue: Arc<Queue>,
}

/// A kind that a policy is about.
struct Found {
    name: String,
    model: Handle<Struct>,
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, reader: Client, policies: Informer<ValidatingAdmissionPolicy>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        policies.on_change(move |change| {
            if change.new.as_deref().is_some_and(stale) {
                q.add(change.latest().name_any());
            }
        });
        Arc::new(Self { client, reader, policies, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(policy) = self.policies.get(key).filter(|p| stale(p)) else { return Ok(None) };
        let spec = serde_json::to_value(&policy.spec).map_err(|e| Error::Other(e.to_string()))?;
        let kinds = self.kinds(&spec["matchConstraints"]["resourceRules"]).await?;
        let params = match spec["paramKind"].as_object() {
            Some(_) => self.params(&spec["paramKind"]).await?,
            None => None,
        };
        let known: Vec<typecheck::Kind<'_>> =
            kinds.iter().map(|k| typecheck::Kind { name: &k.name, model: &k.model }).collect();
        let warnings = typecheck::warnings(&spec, &known, params.as_deref());
        let told: Vec<Value> =
            warnings.into_iter().map(|(at, warning)| json!({"fieldRef": at, "warning": warning})).collect();
        let checked = if told.is_empty() { json!({}) } else { json!({"expressionWarnings": told}) };
        let status = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": key},
            "status": {"observedGeneration": policy.metadata.generation, "typeChecking": checked}});
        let api: Api<ValidatingAdmissionPolicy> = Api::all(self.client.clone());
        found(api.patch_status(key, &PatchParams::apply(NAME).force(), &Patch::Apply(&status)).await)?;
        Ok(None)
    }

    /// The kinds that rules name outright: what a star stands for is not looked for.
    async fn kinds(&self, rules: &Value) -> Result<Vec<Found>, Error> {
        let mut out: Vec<Found> = vec![];
        for rule in rules.as_array().into_iter().flatten() {
            let list = |key: &str| -> Vec<String> {
                let all = rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
                all.filter(|s| !s.contains(['*', '/'])).map(str::to_owned).collect()
            };
            for group in list("apiGroups") {
                for version in list("apiVersions") {
                    for plural in list("resources") {
                        if out.len() >= KINDS_MAX {
                            return Ok(out);
                        }
                        let kind = self.kind(&group, &version, |r| r.plural == plural.as_str(), &plural).await?;
                        out.extend(kind.filter(|k| out.iter().all(|o| o.name != k.name)));
                    }
                }
            }
        }
        Ok(out)
    }

    async fn params(&self, kind: &Value) -> Result<Option<Handle<Struct>>, Error> {
        let text = |key: &str| kind[key].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        let named = |r: &resources::Resource| r.kind == text("kind");
        Ok(self.kind(group, version, named, "").await?.map(|k| k.model))
    }

    /// A kind of a version; `plural` is empty where it is not known.
    async fn kind(
        &self,
        group: &str,
        version: &str,
        is: impl Fn(&resources::Resource) -> bool,
        plural: &str,
    ) -> Result<Option<Found>, Error> {
        let fits = |r: &resources::Resource| r.group == group && r.version == version && is(r);
        let made = |r: &resources::Resource| Found {
            name: format!("{}, Kind={}", resources::group_version(group, version), r.kind),
            model: r.model.clone(),
        };
        if let Some(r) = resources::all().iter().find(|r| fits(r)) {
            return Ok(Some(made(r)));
        }
        if group.is_empty() {
            return Ok(None);
        }
        let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let api: Api<DynamicObject> = Api::all_with(self.reader.clone(), &ApiResource::from_gvk(&kind));
        let mut options = ListParams::default();
        if !plural.is_empty() {
            options = options.fields(&format!("metadata.name={plural}.{group}"));
        }
        for definition in api.list(&options).await?.items.iter().filter(|d| d.data["spec"]["group"] == group) {
            let definition = serde_json::to_value(definition).map_err(|e| Error::Other(e.to_string()))?;
            let compiled = Definition::compile(&definition);
            let mut versions = compiled.iter().flat_map(|d| &d.versions);
            if let Some(v) = versions.find(|v| fits(&v.resource)) {
                return Ok(Some(made(&v.resource)));
            }
        }
        Ok(None)
    }
}

/// Whether the policy was not checked as it is now.
fn stale(policy: &ValidatingAdmissionPolicy) -> bool {
    let seen = policy.status.as_ref().and_then(|s| s.observed_generation);
    policy.metadata.generation.unwrap_or(0) > seen.unwrap_or(0)
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        NAME
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.policies.all().iter().filter(|p| stale(p)).for_each(|p| self.queue.add(p.name_any()));
    }

    fn workers(&self) -> usize {
        1
    }
}
