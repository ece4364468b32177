//! ControllerRevisions: the templates that a StatefulSet or DaemonSet has had, for rolling out and back.
//!
//! A revision holds `spec.template` as a patch that `kubectl rollout undo` applies. A template that comes back takes its
//! old revision along under a new number. The name has the template's hash, so making it twice ends in "already exists".

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::deployment::plan;
use super::family::{self, Claim, Namespaced};
use crate::runtime::controller_ref;
use crate::runtime::informer::{Informer, controller_of};
use crate::runtime::worker::{self, Error, found};

/// Label of pods with the revision that they are of.
pub const REVISION: &str = "controller-revision-hash";

/// An owner's revisions, the oldest first.
pub struct History {
    /// All of them.
    pub all: Vec<Arc<ControllerRevision>>,
    /// That of the present template.
    pub update: Arc<ControllerRevision>,
    /// How often a name was taken by another template.
    pub collisions: Option<i32>,
}

/// What an owner says about its template.
pub struct Source<'a> {
    /// Labels of its pods.
    pub selector: &'a LabelSelector,
    /// How its pods are made.
    pub template: &'a PodTemplateSpec,
    /// Collisions so far.
    pub collisions: Option<i32>,
    /// Label of a revision with its hash.
    pub hash_label: &'a str,
}

fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template of a revision.
#[must_use]
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn same(a: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(a).is_some_and(|t| plan::same_template(&t, template))
}

/// Its number: later ones are higher.
#[must_use]
pub fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

/// Claims the revisions of an owner and sees to that of the present template being there and the newest.
///
/// # Errors
/// When the server fails, or other templates have taken all names.
pub async fn sync<K: Namespaced>(
    client: &Client,
    owner: &K,
    cache: &Informer<ControllerRevision>,
    source: &Source<'_>,
) -> Result<History, Error> {
    let claim = Claim {
        selector: source.selector,
        member: |_, _| true,
        adoptable: |_: &ControllerRevision| true,
        finalizer: None,
    };
    let mut all = family::claim(client, owner, cache, &claim).await?;
    all.sort_by_key(|r| (number(r), r.metadata.creation_timestamp.as_ref().map(|t| t.0), r.name_any()));
    let newest = all.last().map_or(0, |r| number(r));
    let mut collisions = source.collisions;
    let update = match all.iter().rposition(|r| same(r, source.template)) {
        Some(i) if i + 1 == all.len() => Arc::clone(&all[i]),
        Some(i) => {
            // Back to an older template: its revision becomes the newest.
            let mut next = ControllerRevision::clone(&all.remove(i));
            next.revision = Some(newest + 1);
            let api = family::api::<ControllerRevision>(client, &owner.namespace().unwrap_or_default());
            let written = Arc::new(api.replace(&next.name_any(), &PostParams::default(), &next).await?);
            all.push(Arc::clone(&written));
            written
        }
        None => {
            let made = make(client, owner, source, newest + 1, &mut collisions).await?;
            all.push(Arc::clone(&made));
            made
        }
    };
    Ok(History { all, update, collisions })
}

/// Names tried for one template.
const TRIES: usize = 5;

async fn make<K: Namespaced>(
    client: &Client,
    owner: &K,
    source: &Source<'_>,
    number: i64,
    collisions: &mut Option<i32>,
) -> Result<Arc<ControllerRevision>, Error> {
    let api = family::api::<ControllerRevision>(client, &owner.namespace().unwrap_or_default());
    for _ in 0..TRIES {
        let revision = revision_of(owner, source, number, *collisions);
        match api.create(&PostParams::default(), &revision).await {
            Ok(made) => return Ok(Arc::new(made)),
            Err(e) if worker::code(&e) == 409 => {
                // Either the cache was behind and it is ours, or another template has the same hash.
                if let Some(there) = found(api.get(&revision.name_any()).await)? {
                    let ours = controller_of(&there).is_some_and(|r| Some(&r.uid) == owner.meta().uid.as_ref());
                    if ours && same(&there, source.template) {
                        return Ok(Arc::new(there));
                    }
                }
                *collisions = Some(collisions.unwrap_or(0) + 1);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Err(Error::Other("all names of the revision are taken".into()))
}

fn revision_of<K: Namespaced>(
    owner: &K,
    source: &Source<'_>,
    number: i64,
    collisions: Option<i32>,
) -> ControllerRevision {
    let hash = plan::hash(source.template, collisions);
    let mut r = ControllerRevision { data: RawExtension(data(source.template)), ..ControllerRevision::default() };
    r.revision = Some(number);
    r.metadata.name = Some(name(&owner.name_any(), &hash));
    r.metadata.namespace = owner.namespace();
    let mut labels = source.template.metadata.clone().and_then(|m| m.labels).unwrap_or_default();
    labels.insert(source.hash_label.to_owned(), hash);
    r.metadata.labels = Some(labels);
    r.metadata.annotations = owner.meta().annotations.clone();
    r.metadata.owner_references = Some(vec![controller_ref(owner)]);
    r
}

fn name(owner: &str, hash: &str) -> String {
    /// Longest part of the owner's name.
    const OWNER_MAX: usize = 223;
    let head: String = owner.chars().take(OWNER_MAX).collect();
    format!("{head}-{hash}")
}

/// Deletes the oldest revisions beyond `limit` that no pod is of. `live` holds names, those of the present and the
/// updated revision among them.
///
/// # Errors
/// When the server fails.
pub async fn forget<K: Namespaced>(
    client: &Client,
    owner: &K,
    all: &[Arc<ControllerRevision>],
    live: &HashSet<String>,
    limit: i32,
) -> Result<(), Error> {
    let old: Vec<&Arc<ControllerRevision>> = all.iter().filter(|r| !live.contains(&r.name_any())).collect();
    let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    let api = family::api::<ControllerRevision>(client, &owner.namespace().unwrap_or_default());
    for r in old.into_iter().take(excess) {
        let preconditions = Preconditions { uid: r.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        found(api.delete(&r.name_any(), &params).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_gives_its_template_back() {
        let template: PodTemplateSpec = serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}))
        .unwrap();
        let r = ControllerRevision { data: RawExtension(data(&template)), ..ControllerRevision::default() };
        assert_eq!(r.data.0["spec"]["template"]["$patch"], "replace");
        assert!(same(&r, &template));
        let mut other = template.clone();
        other.spec.as_mut().unwrap().containers[0].image = Some("j".into());
        assert!(!same(&r, &other));
        assert_eq!(template_of(&r), Some(template));
    }
}
