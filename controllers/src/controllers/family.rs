//! What controllers that own children share: making a pod from a template, claiming children, creating in batches.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use super::pods;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, Watched, orphan_term, owner_term};
use crate::runtime::worker::{self, Error, found};
use crate::runtime::{controller_ref, seconds_since, select};

/// Most children created or deleted in one step.
pub const BURST: usize = 500;

/// A kind whose objects live in namespaces.
pub trait Namespaced: Watched + Resource<Scope = NamespaceResourceScope> {}
impl<K> Namespaced for K where K: Watched + Resource<Scope = NamespaceResourceScope> {}

/// The API of a kind in a namespace.
pub fn api<K: Namespaced>(client: &Client, namespace: &str) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

/// The pod that a template describes, controlled by `owner` and named after it.
pub fn pod_from<K: Namespaced>(owner: &K, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod { spec: template.spec.clone(), ..Pod::default() };
    pod.metadata.generate_name = Some(format!("{}-", owner.name_any()));
    pod.metadata.namespace = owner.namespace();
    pod.metadata.labels = meta.labels;
    pod.metadata.annotations = meta.annotations;
    pod.metadata.finalizers = meta.finalizers;
    pod.metadata.owner_references = Some(vec![controller_ref(owner)]);
    pod
}

/// Which children an owner takes.
pub struct Claim<'a, C> {
    /// Labels of its children.
    pub selector: &'a LabelSelector,
    /// What must hold beside the labels.
    pub member: fn(owner: &str, child: &C) -> bool,
    /// Whether an orphan may be adopted.
    pub adoptable: fn(&C) -> bool,
    /// A finalizer that children have while they belong to the owner.
    pub finalizer: Option<&'a str>,
}

/// Children of the owner, after those that no longer match were released and matching orphans adopted.
///
/// # Errors
/// When the server fails, or the owner turns out to be deleted before an adoption.
pub async fn claim<K: Namespaced, C: Namespaced>(
    client: &Client,
    owner: &K,
    children: &Informer<C>,
    claim: &Claim<'_, C>,
) -> Result<Vec<Arc<C>>, Error> {
    let namespace = owner.namespace().unwrap_or_default();
    let uid = owner.uid().unwrap_or_default();
    let name = owner.name_any();
    let leaving = owner.meta().deletion_timestamp.is_some();
    let matches = |c: &C| select::matches(claim.selector, &c.meta().labels) && (claim.member)(&name, c);
    let api: Api<C> = api(client, &namespace);
    let write = async |child: &C, patch| {
        let params = PatchParams::default();
        found(api.patch(&child.name_any(), &params, &Patch::Strategic(patch)).await)
    };
    let mut mine = Vec::new();
    for child in children.with_term(&owner_term(&uid)) {
        if matches(&child) {
            mine.push(child);
        } else if child.meta().deletion_timestamp.is_none() && !leaving {
            let mut meta = json!({"uid": child.uid(), "ownerReferences": [{"$patch": "delete", "uid": uid}]});
            if let Some(f) = claim.finalizer {
                meta["$deleteFromPrimitiveList/finalizers"] = json!([f]);
            }
            match write(&child, json!({"metadata": meta})).await {
                // 422: the name was used again, the child that was meant is gone.
                Err(e) if worker::code(&e) == 422 => {}
                other => drop(other?),
            }
        }
    }
    if leaving || select::is_empty(claim.selector) {
        return Ok(mine);
    }
    let mut confirmed = false;
    for child in children.with_term(&orphan_term(&namespace)) {
        if child.meta().deletion_timestamp.is_some() || !(claim.adoptable)(&child) || !matches(&child) {
            continue;
        }
        // The cache may not know yet that the owner is being deleted; adopting then would be wrong.
        if !confirmed {
            let fresh = found(self::api::<K>(client, &namespace).get(&name).await)?;
            let same = fresh.is_some_and(|f| f.uid() == owner.uid() && f.meta().deletion_timestamp.is_none());
            if !same {
                return Err(Error::Other("the owner was deleted".into()));
            }
            confirmed = true;
        }
        let mut meta = json!({"uid": child.uid(), "ownerReferences": [controller_ref(owner)]});
        if let Some(f) = claim.finalizer {
            meta["finalizers"] = json!([f]);
        }
        if let Some(adopted) = write(&child, json!({"metadata": meta})).await? {
            mine.push(Arc::new(adopted));
        }
    }
    Ok(mine)
}

/// Does `count` things in batches of 1, 2, 4 ... until one fails, so that a quota or a broken admission is met with one
/// request and not with hundreds. Answers how many were not started, and the first failure.
pub async fn slow_start<F>(count: usize, one: impl Fn(usize) -> F) -> (usize, Result<(), kube::Error>)
where
    F: Future<Output = Result<(), kube::Error>>,
{
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let size = batch.min(count - done);
        let failed = join_all((done..done + size).map(&one)).await.into_iter().find_map(Result::err);
        done += size;
        if let Some(e) = failed {
            return (count - done, Err(e));
        }
        batch *= 2;
    }
    (0, Ok(()))
}

/// Creates a pod of an owner and tells it.
///
/// # Errors
/// As the server says.
pub async fn create_pod<K: Namespaced>(
    client: &Client,
    events: &Recorder,
    owner: &K,
    pod: &Pod,
) -> Result<Pod, kube::Error> {
    let namespace = owner.namespace().unwrap_or_default();
    let made = api::<Pod>(client, &namespace).create(&PostParams::default(), pod).await;
    match &made {
        Ok(p) => events.note(owner, Level::Normal, "SuccessfulCreate", format!("Created pod: {}", p.name_any())),
        Err(e) if worker::namespace_terminating(e) => {}
        Err(e) => {
            let text = format!("Error creating: {}", worker::text(e));
            events.note(owner, Level::Warning, "FailedCreate", text);
        }
    }
    made
}

/// Deletes a pod of an owner and tells it; one that is gone already is fine.
///
/// # Errors
/// As the server says. A pod that is gone is [`worker::not_found`].
pub async fn delete_pod<K: Namespaced>(
    client: &Client,
    events: &Recorder,
    owner: &K,
    pod: &Pod,
) -> Result<(), kube::Error> {
    let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let name = pod.name_any();
    match api::<Pod>(client, &owner.namespace().unwrap_or_default()).delete(&name, &params).await {
        Ok(_) => {
            events.note(owner, Level::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
            Ok(())
        }
        Err(e) => {
            if !worker::not_found(&e) {
                let text = format!("Error deleting: {}", worker::text(&e));
                events.note(owner, Level::Warning, "FailedDelete", text);
            }
            Err(e)
        }
    }
}

/// A number, or a part of one.
#[derive(Clone, Copy, Debug)]
pub enum Share {
    /// So many.
    Number(i32),
    /// So many of a hundred.
    Percent(i32),
}

/// What `value` says of `total`, rounded up or down; `default` when it says nothing, 0 when it is no number.
#[must_use]
pub fn scaled(value: Option<&IntOrString>, default: Share, total: i32, up: bool) -> i32 {
    let percent = match value {
        None => match default {
            Share::Number(n) => return n,
            Share::Percent(p) => p,
        },
        Some(IntOrString::Int(n)) => return *n,
        Some(IntOrString::String(s)) => s.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0),
    };
    let hundredths = i64::from(percent) * i64::from(total);
    let whole = if up { (hundredths + 99).div_euclid(100) } else { hundredths.div_euclid(100) };
    i32::try_from(whole).unwrap_or(i32::MAX)
}

/// When the next ready pod has been ready for `min_ready` seconds.
#[must_use]
pub fn next_available(pods: &[Arc<Pod>], min_ready: i32) -> Option<Duration> {
    if min_ready == 0 {
        return None;
    }
    let waiting = pods.iter().filter(|p| !pods::available(p, min_ready)).filter_map(|p| pods::ready_since(p));
    let left = waiting.map(|t| (f64::from(min_ready) - seconds_since(t)).max(0.0)).reduce(f64::min)?;
    Some(Duration::from_secs_f64(left) + Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn refused() -> kube::Error {
        kube::Error::Api(Box::new(kube::core::Status::failure("no", "Forbidden").with_code(403)))
    }

    #[tokio::test]
    async fn a_refusal_ends_the_batches() {
        for (count, bad, started) in [(10, 0, 1), (10, 2, 3), (10, 99, 10), (0, 0, 0), (100, 7, 15)] {
            let seen = RefCell::new(0);
            let one = |i| {
                *seen.borrow_mut() += 1;
                async move { if i == bad { Err(refused()) } else { Ok(()) } }
            };
            let (left, result) = slow_start(count, one).await;
            assert_eq!((*seen.borrow(), left), (started, count - started), "{count} {bad}");
            assert_eq!(result.is_err(), bad < count);
        }
    }
}
